"""The classifier that judges: training, card, loading, and what it is asked."""

import json
import re
import shutil

import pytest
import torch

from kflow.data import load_data, to_float
from kflow.metrics import agreement, classify, load_classifier
from kflow.storage import CARD
from kflow_book.training import change_tone, jitter, train_classifier

IMAGES = 4_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier after a short training, and its folder."""
    folder = tmp_path_factory.mktemp("judge") / "classifier"
    return train_classifier(load_data("digits"), folder, images=IMAGES, progress=False), folder


def test_a_short_training_learns(trained):
    classifier, _ = trained
    data = load_data("digits")
    assert agreement(classifier, to_float(data.test), data.test_labels) > 0.8


def test_the_card_holds_the_accuracy_of_what_is_written(trained):
    classifier, folder = trained
    data = load_data("digits")
    loaded, card = load_classifier(folder)
    expected = {"data": "digits", "data_hash": data.hash, "images": IMAGES, "seed": 0, "test_images": 500}
    assert expected.items() <= card.items()
    assert card["seconds"] > 0
    images = to_float(data.test)
    # Another memory layout, other roundings: one image may be a tie.
    assert card["test_accuracy"] == pytest.approx(agreement(loaded, images, data.test_labels), abs=0.0021)
    written = loaded.state_dict()
    assert all(torch.equal(value, written[name]) for name, value in classifier.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert (folder / "model.safetensors").stat().st_size < 700_000, "half precision"


def test_features_are_standardised_over_the_training_images(trained):
    classifier, folder = trained
    features = classifier.features(to_float(load_data("digits").train))
    spread = features.std(0)
    assert features.mean(0).abs().median() < 0.01
    assert features.shape[1] == 7 * 32 and spread.median() == pytest.approx(1, abs=0.01)
    assert torch.equal(load_classifier(folder)[0].feature_scale, classifier.feature_scale)


def test_a_change_of_tone_lowers_contrast_and_adds_noise():
    torch.manual_seed(0)
    images = to_float(load_data("digits").train[:500])
    changed = change_tone(images, contrast=0.3, noise=0.0) / images
    assert 0.7 <= changed.min() < 0.72 and 0.98 < changed.max() <= 1
    assert changed.flatten(1).std(1).max() < 1e-5, "one factor an image"
    assert 0.05 < (change_tone(images, contrast=0.0, noise=0.15) - images).std() < 0.1


def test_nothing_is_overwritten(trained):
    before = {path.name: path.read_bytes() for path in trained[1].iterdir()}
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        train_classifier(load_data("digits"), trained[1], images=100, progress=False)
    assert {path.name: path.read_bytes() for path in trained[1].iterdir()} == before


def test_the_seed_decides(tmp_path):
    weights = [
        train_classifier(load_data("digits"), tmp_path / f"{i}", images=60, batch_size=20, seed=seed, progress=False)
        for i, seed in enumerate([3, 3, 4])
    ]
    first, same, other = (w.head.weight for w in weights)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_missing_and_damaged_classifiers(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no classifier in .*: train one with notebooks/00_features"):
        load_classifier(tmp_path / "nowhere")
    folder = tmp_path / "judge"
    shutil.copytree(trained[1], folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is missing, truncated or changed"):
        load_classifier(folder)
    card = json.loads((folder / CARD).read_text())
    del card["data"]
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="card.json lacks data"):
        load_classifier(folder)


def test_classes_do_not_depend_on_the_batch_and_images_are_clipped(trained):
    classifier, _ = trained
    images = to_float(load_data("digits").test[:50])
    whole = classify(classifier, images)
    assert whole.shape == (50,) and whole.dtype == torch.int64
    assert torch.equal(whole, classify(classifier, images, batch_size=7))
    beyond = torch.where(images.abs() == 1, images * (1 + 9 * torch.rand_like(images)), images)
    assert torch.equal(whole, classify(classifier, beyond))


def test_agreement_is_a_share(trained):
    classifier, _ = trained
    images = to_float(load_data("digits").test[:8])
    said = classify(classifier, images)
    assert agreement(classifier, images, said) == 1
    said[:2] = (said[:2] + 1) % 10
    assert agreement(classifier, images, said) == 0.75


def test_jitter_moves_images_a_little():
    torch.manual_seed(0)
    images = to_float(load_data("digits").train[:64])
    moved = jitter(images)
    assert moved.shape == images.shape and moved.min() >= -1 and moved.max() <= 1
    assert 0.05 < (moved - images).square().mean() < 0.6
    torch.testing.assert_close(jitter(images, 0, 0, 0), images, atol=1e-5, rtol=0)
    wide = torch.randn(3, 2, 8, 12)
    assert jitter(wide).shape == wide.shape


def test_jitter_stays_in_its_limits():
    # A dot in the middle moves by at most the shift, in pixels.
    image = torch.zeros(500, 1, 33, 33)
    image[..., 16, 16] = 1
    moved = jitter(image, shift=0.1, turn=0, scale=0)[:, 0]
    y = (moved.sum(2) * torch.arange(33)).sum(1) / moved.sum((1, 2)) - 16
    x = (moved.sum(1) * torch.arange(33)).sum(1) / moved.sum((1, 2)) - 16
    for offset in (x, y):
        assert offset.abs().max() <= 3.31 and offset.abs().max() > 3 and abs(float(offset.mean())) < 0.5
    # Turning alone leaves the middle where it is.
    torch.testing.assert_close(jitter(image, 0, 0.2, 0)[..., 16, 16], image[..., 16, 16], atol=1e-5, rtol=0)
