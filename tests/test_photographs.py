"""Samples in one picture, nearest training images, and what a copy looks like in numbers."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from kflow.checkpoint import load_model
from kflow.data import load_data, to_float, to_uint8
from kflow.records import Record
from kflow.storage import CHECKPOINTS
from kflow_book import photographs, protocols
from kflow_book.measure import Trained
from kflow_book.photographs import as_pixels, montage, nearest


@pytest.mark.parametrize("channels", [1, 3])
def test_a_montage_holds_every_image_in_its_place(channels):
    images = torch.randint(0, 255, (7, channels, 5, 4), dtype=torch.uint8)
    (whole,) = montage(images, columns=3)
    assert whole.shape == (channels, 3 * 6 + 1, 3 * 5 + 1) and whole.dtype == torch.uint8
    for i, image in enumerate(images):
        y, x = 1 + i // 3 * 6, 1 + i % 3 * 5
        assert torch.equal(whole[:, y : y + 5, x : x + 4], image)
    assert (whole[:, 0] == 255).all() and torch.equal(montage(to_float(images), 3)[0], whole)


def test_the_nearest_is_the_nearest():
    found, among = torch.randn(11, 6), torch.randn(23, 6)
    distances, indices = nearest(found, among, batch=4)
    expected = (found[:, None] - among).square().sum(2).sqrt()
    torch.testing.assert_close(distances, expected.min(1).values)
    assert torch.equal(indices, expected.argmin(1))


def test_distance_of_pixels():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    images[1, 0, 0, 0] = 255  # one pixel of 16, from -1 to 1
    assert torch.cdist(*as_pixels(images)[:, None]).item() == pytest.approx((4 / 16) ** 0.5)


@pytest.mark.slow
def test_copies_are_found(monkeypatch):
    """Samples of a model are no copies; mirrored training images are."""
    digits = load_data("digits")
    few = replace(digits, train=digits.train[:600], train_labels=digits.train_labels[:600])
    monkeypatch.setattr(protocols, "images_of", lambda _: few)
    trained = Trained(*load_model(CHECKPOINTS / "digits-db6")[:2])
    settings = {"features": "digits-features", "samples": 40, "steps": 4}
    made = protocols.measure_copies(trained, **settings)
    assert made["copied_pixels"] < 0.3 and made["nearest_pixels"] > 0.1
    stolen = to_float(few.train[:40].flip(3))
    monkeypatch.setattr(Trained, "generate", lambda *_, **__: stolen)
    found = protocols.measure_copies(trained, **settings)
    assert found["copied_pixels"] == found["copied_features"] == 1
    assert found["neighbours_pixels"] == found["neighbours_features"] == list(range(600, 610)), "the mirror images"
    assert found["nearest_pixels"] < 1e-3 < found["nearest_pixels_held_out"] == made["nearest_pixels_held_out"]


def test_neighbours_are_those_of_the_record(tmp_path, monkeypatch):
    values = {"neighbours_pixels": [3, 2], "neighbours_features": [0, 5]}  # of 4 images, 5 is the mirror image of 1
    units = dict.fromkeys(values, "number")
    Record("digits-db6-copies", values, units, 2, [0], "digits", "", settings={"steps": 2}).write(tmp_path)
    digits = load_data("digits")
    few = replace(digits, train=digits.train[:4])
    monkeypatch.setattr(photographs, "RECORDS", tmp_path)
    monkeypatch.setattr(photographs, "images_of", lambda _: few)
    rows = photographs.neighbour_rows("digits-db6", "copies", 2)
    assert torch.equal(rows[2:], torch.stack([few.train[3], few.train[2], few.train[0], few.train[1].flip(2)]))
    trained = Trained(*load_model(CHECKPOINTS / "digits-db6")[:2])
    both = trained.generate(trained.noise(40), trained.labels(40), steps=2)[:2]
    off = (rows[:2].int() - to_uint8(both).int()).abs()
    assert off.max() <= 2, "the first samples are those that the record had"


@pytest.mark.slow
def test_what_an_autoencoder_keeps(monkeypatch):
    """One that keeps everything is at the floor; one that blurs is not."""

    class Codec:
        def __init__(self, keep):
            self.encode, self.decode = (lambda x: keep(x)), (lambda x: x)

    digits = load_data("digits")
    few = replace(digits, train=digits.train[::4], train_labels=digits.train_labels[::4])
    monkeypatch.setattr(protocols, "load_data", lambda _: few)
    found = {}
    for name, keep in {"all": lambda x: x, "blurred": lambda x: gaussian_blur(x, 5, 1.0)}.items():
        monkeypatch.setattr(protocols, "load_autoencoder", lambda _, keep=keep: (Codec(keep), {}))
        found[name] = protocols.measure_reconstruction("digits", "toy", "digits-features", "digits-judge")
    whole, blurred = found["all"], found["blurred"]
    assert whole["psnr"] > 60 and whole["fd"] == pytest.approx(whole["floor"], rel=1e-3) == blurred["floor"]
    assert blurred["psnr"] < 30 and blurred["fd"] > 5 * blurred["floor"] and blurred["recall"] < whole["recall"]
    assert whole["agreement_reconstructed"] == whole["agreement_images"] > 0.97 and whole["count"] == 500


@pytest.mark.slow
def test_few_classes_are_some_of_all(monkeypatch):
    images = to_float(load_data("digits").train[:500])
    monkeypatch.setattr(protocols, "generate_both", lambda *_, **__: (images.roll(1, 3), images))
    monkeypatch.setattr(Trained, "labels", lambda *_: torch.arange(500) % 10)
    trained = Trained(*load_model(CHECKPOINTS / "digits-db6")[:2])
    settings = {"features": "digits-features", "judge": "digits-judge", "samples": 500, "steps": 1, "class_count": 50}
    settings |= {"guidance_scale": 1.5, "drop_class_at": 0.3}
    all_of_them, few = (protocols.measure_fidelity(trained, **settings, few_classes=n) for n in (10, 5))
    assert all_of_them["cdr_few_classes"] == pytest.approx(all_of_them["cdr"]) == pytest.approx(few["cdr"])
    assert few["cdr_few_classes"] != pytest.approx(few["cdr"])
