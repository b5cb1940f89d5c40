"""What the steering page is made of: grids that share what they say, sliders that never wait."""

import io
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kflow.checkpoint import load_model, save_model
from kflow.data import registry, to_uint8
from kflow.experiment import Experiment
from kflow.networks import Autoencoder
from kflow.records import Record
from kflow.sample import sample
from kflow.steer import Steered, compose_noise, draw_noise
from kflow.storage import CHECKPOINTS
from kflow_book import steering
from kflow_book.steering import Choice, Latest, Sliders, generate, kept_beside, page_address, steering_grid

CHOICE = Choice("digits-db6", (7, 8), 3, 1.5, 1.0, 6, False)


@pytest.fixture(scope="module")
def model():
    return load_model(CHECKPOINTS / "digits-db6")[0]


@pytest.mark.parametrize(("shared", "at"), [("low", 0), ("high", 1)])
@pytest.mark.parametrize("run", ["digits-db6", "digits-lfm"])
def test_rows_of_a_grid_share_one_bands_noise_and_columns_the_others(run, shared, at, monkeypatch):
    model, drawn = load_model(CHECKPOINTS / run)[0], []
    monkeypatch.setattr(
        steering, "sample", lambda model, noise, **_: drawn.append(noise) or sample(model, noise, steps=2)
    )
    steering_grid(model, shared, rows=2, columns=3)
    bands = steering.ruler_of(model).split(drawn[0]).unflatten(1, (2, 3))  # (band, row, column, ...)
    same, other = bands[at], bands[1 - at]
    torch.testing.assert_close(same, same[:, :1].expand_as(same), atol=1e-5, rtol=0)
    torch.testing.assert_close(other, other[:1].expand_as(other), atol=1e-5, rtol=0)
    assert (same[0, 0] - same[1, 0]).abs().max() > 0.1 and (other[0, 0] - other[0, 1]).abs().max() > 0.1


def test_the_numbers_beside_a_grid_are_the_records(tmp_path):
    values = {f"{band}_kept_by_{noise}_noise": 0.0 for band in ("low", "high") for noise in ("low", "high")}
    for run, seed, low, high in (("mine", 0, 0.5, 0.2), ("mine-seed1", 1, 0.7, 0.2), ("digits-lfm", 0, 0.1, 0.3)):
        found = values | {"low_kept_by_high_noise": low, "high_kept_by_high_noise": high}
        Record(f"{run}-steering", found, dict.fromkeys(found, "share"), 5, [seed], "digits", "hash").write(tmp_path)
    table = kept_beside("mine", "mine", "high", tmp_path)
    assert table.loc["mine"].tolist() == ["0.60 ±\N{NO-BREAK SPACE}0.14", "0.20 ±\N{NO-BREAK SPACE}0.00", 2]
    assert table.iloc[1].tolist() == ["0.10", "0.30", 1] and table.iloc[2].tolist() == ["0", "0", ""]


@pytest.mark.parametrize(
    "changes", [{}, {"drop_class_at": 0.3}, {"localised": True, "label": None}, {"run": "digits-lfm", "steps": 5}]
)
def test_step_by_step_is_the_sampler(changes):
    choice = Choice(**{**vars(CHOICE), **changes})
    model = load_model(CHECKPOINTS / choice.run)[0]
    noise = compose_noise(steering.ruler_of(model), [draw_noise(seed, (1, 32, 32)) for seed in choice.seeds])
    labels, drop = None if choice.label is None else torch.tensor([3]), choice.drop_class_at
    options = {"steps": choice.steps, "guidance_scale": 1.5, "drop_class_at": drop if drop < 1 else None}
    expected = sample(Steered(model, choice.localised), noise, labels, trajectory=True, **options)
    found = list(generate(choice))
    assert [k for k, _ in found] == pytest.approx(expected.k.tolist())
    torch.testing.assert_close(torch.stack([state for _, state in found]), expected.trajectory, atol=1e-5, rtol=1e-4)


def test_the_newest_request_is_served_and_an_older_one_left_at_its_next_step():
    steps, done, entered, go = [], [], threading.Event(), threading.Event()

    def work(request):
        for step in range(3):
            steps.append((request, step))
            entered.set()
            assert go.wait(10)
            yield
        done.append(request)

    latest = Latest(work, failed=None)
    latest.submit("first")
    assert entered.wait(10)
    latest.submit("second")
    latest.submit("third")
    go.set()
    wait_for(lambda: done)
    assert done == ["third"] and steps == [("first", 0), ("third", 0), ("third", 1), ("third", 2)]


def test_a_request_that_fails_says_so_and_the_next_is_served():
    said, done = [], []

    def work(request):
        if request == "bad":
            raise ValueError("no")
        yield done.append(request)

    latest = Latest(work, lambda error: said.append(str(error)))
    latest.submit("bad")
    wait_for(lambda: said)
    latest.submit("good")
    wait_for(lambda: done)
    assert said == ["no"] and done == ["good"]


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.fixture(scope="module")
def sliders():
    runs = {"db6": "digits-db6", "displacement": "digits-db6-displacement", "faces": "faces32-db6"}
    return Sliders(runs, steps=6)


def finished(sliders):
    wait_for(lambda: sliders.shown[0] == sliders.choice and "steps in" in sliders.status.value)


def shown(image) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(image.value)))


def test_a_slider_that_moves_changes_the_picture(sliders, model):
    finished(sliders)
    before = shown(sliders.state)
    sliders.seeds[1].value = 99
    finished(sliders)
    noise = compose_noise(model.path.decomposition, [draw_noise(seed, (1, 32, 32)) for seed in (1, 99)])
    expected = to_uint8(sample(model, noise, torch.tensor([3]), steps=6, guidance_scale=1.5).data)[0, 0].numpy()
    after = shown(sliders.state)
    assert after.shape == (256, 256) and np.array_equal(after[::8, ::8], after[7::8, 7::8])
    assert np.abs(after[::8, ::8].astype(int) - expected).max() <= 1 and not np.array_equal(before, after)
    assert sliders.progress.value == sliders.progress.max == 6


def test_looking_at_another_k_generates_nothing_anew(sliders):
    finished(sliders)
    frames, last = sliders.shown[1], shown(sliders.state)
    sliders.k.value = 0
    assert sliders.shown[1] is frames
    noise = to_uint8(frames[0][1])[0, 0].numpy()
    assert np.array_equal(shown(sliders.state)[::8, ::8], noise)
    sliders.k.value = 1
    assert np.array_equal(shown(sliders.state), last)


def test_only_a_model_that_has_a_preview_shows_one(sliders):
    box = sliders.children[0].children[2]
    assert box.layout.display == "none"
    sliders.run.value = "digits-db6-displacement"
    finished(sliders)
    assert box.layout.display == "" and np.array_equal(shown(sliders.preview), shown(sliders.state)), "at k = 1 both"
    sliders.k.value = 0.6
    assert not np.array_equal(shown(sliders.preview), shown(sliders.state))
    sliders.k.value, sliders.run.value = 1, "digits-db6"
    finished(sliders)


def test_a_model_without_classes_shows_nothing_that_speaks_of_them(sliders):
    of_classes = (sliders.label, sliders.guidance, sliders.drop)
    assert all(control.layout.display == "" for control in of_classes)
    sliders.run.value = "faces32-db6"
    finished(sliders)
    assert sliders.choice.label is None and all(control.layout.display == "none" for control in of_classes)
    model = load_model(CHECKPOINTS / "faces32-db6")[0]
    noise = compose_noise(model.path.decomposition, [draw_noise(seed.value, (1, 32, 32)) for seed in sliders.seeds])
    expected = to_uint8(sample(model, noise, steps=6).data)[0, 0].numpy()
    assert np.abs(shown(sliders.state)[::8, ::8].astype(int) - expected).max() <= 1
    sliders.run.value = "digits-db6"
    finished(sliders)
    assert sliders.choice.label == 3


def test_latents_are_decoded_in_colour_and_have_their_own_classes(sliders, monkeypatch, tmp_path):
    torch.manual_seed(0)
    autoencoder = Autoencoder((3, 32, 32), factor=2, width=16, depth=1).eval().requires_grad_(False)
    known = replace(registry.DATA["cifar10-latents"], autoencoder=lambda: autoencoder)
    monkeypatch.setitem(registry.DATA, "cifar10-latents", known)
    experiment = Experiment(name="colours", data="cifar10-latents")
    save_model(experiment.make_model(), experiment, tmp_path / "colours")
    monkeypatch.setattr(steering, "CHECKPOINTS", tmp_path)
    sliders.run.options = [*sliders.run.options, ("latents", "colours")]  # this goes back to the first of them
    sliders.run.value = "colours"
    finished(sliders)
    assert dict(sliders.label.options)["cat"] == sliders.label.value == 3 and "steps in" in sliders.status.value
    state = sliders.shown[1][-1][1]
    expected = to_uint8(autoencoder.decode(state))[0].permute(1, 2, 0).numpy()
    assert state.shape == (1, 4, 16, 16) and np.array_equal(shown(sliders.state)[::8, ::8], expected)
    picture = steering_grid(load_model(tmp_path / "colours")[0], "low", 1, 2, steps=2, data="cifar10-latents")
    assert len(picture.axes[0].images) == 2
    sliders.run.value = "digits-db6"
    finished(sliders)
    assert dict(sliders.label.options)["3"] == sliders.label.value == 3


def test_the_address_of_the_same_picture():
    assert "model=digits-db6&seeds=7%2C8&label=3&guidance=1.5&tau=1.0&steps=6&localised=0" in page_address(CHOICE)
    assert page_address(Choice(**{**vars(CHOICE), "run": "digits-pca"})) == ""
    assert page_address(Choice(**{**vars(CHOICE), "label": None})) == ""
    assert "model=faces32-db6&" in page_address(Choice(**{**vars(CHOICE), "run": "faces32-db6", "label": None}))
