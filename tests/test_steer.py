"""Steering: what is not touched stays, to the bit where that can be."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from kflow.amplitude import Fourier, Meyer, Wavelet
from kflow.checkpoint import load_model
from kflow.data import load_data, to_float
from kflow.flow import HardBump, Path
from kflow.sample import ADAPTIVE, FIXED, sample
from kflow.steer import Steered, compose_noise, draw_noise, invert
from kflow.storage import CHECKPOINTS
from kflow.velocity import KFlow

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def model():
    return load_model(CHECKPOINTS / "digits-db6")[0]


def test_drawn_noise_is_normal_and_white():
    noise = draw_noise(7, (1, 64, 64), count=50).double()
    assert stats.kstest(noise.flatten(), "norm").pvalue > 1e-3
    flat = noise.flatten(1)
    assert abs(flat.mean()) < 5 / math.sqrt(flat.numel())
    for first, second in ((flat[:-1], flat[1:]), (flat[:, :-1], flat[:, 1:]), (flat[:, :-64], flat[:, 64:])):
        assert abs((first * second).mean()) < 5 / math.sqrt(first.numel()), (
            "seeds, neighbours and rows do not correlate"
        )


def test_a_seed_means_the_same_everywhere():
    """Literal values: whoever writes this generator in another language must find them."""
    one = draw_noise(7, (1, 4, 4))
    assert torch.equal(one, draw_noise(7, (1, 4, 4)))
    assert torch.equal(draw_noise(5, (1, 4, 4), count=3)[2:], one), "sample i has the seed of the draw plus i"
    assert torch.equal(draw_noise(2**32 - 1, (2,), count=2)[1:], draw_noise(0, (2,)))
    expected = literal(7, 3)
    assert one.flatten()[:3].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="seed is -1, allowed are whole numbers from 0 to 4294967295"):
        draw_noise(-1, (2,))


def literal(seed: int, count: int) -> list[float]:
    """The generator with Python's whole numbers, one value at a time."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    bits = [mix(mix(i) ^ mix(seed ^ 0x9E3779B9)) for i in range(2 * count)]
    u = [(b + 0.5) / 2**32 for b in bits]
    return [math.sqrt(-2 * math.log(u[2 * i])) * math.cos(2 * math.pi * u[2 * i + 1]) for i in range(count)]


@pytest.mark.parametrize("decomposition", [Fourier(SHAPE, 3), Wavelet(SHAPE, "db6", 2), Meyer(SHAPE, 2)], ids=str)
def test_each_band_is_its_noises(decomposition):
    noises = [draw_noise(seed, SHAPE, 4) for seed in (1, 2, 3)]
    composed = compose_noise(decomposition, noises)
    for band, noise in enumerate(noises):
        torch.testing.assert_close(decomposition.project(composed, band), decomposition.project(noise, band))
    assert composed.std() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(compose_noise(decomposition, noises[:1] * 3), noises[0])
    with pytest.raises(ValueError, match="there are 2 noises, allowed are 3, one for each band"):
        compose_noise(decomposition, noises[:2])


def test_bands_that_are_not_touched_start_bit_identical(monkeypatch):
    decomposition, kept = Wavelet(SHAPE, "db6"), []
    synthesise = decomposition.synthesise
    monkeypatch.setattr(decomposition, "synthesise", lambda c: kept.append(c) or synthesise(c))
    low, first, second = (draw_noise(seed, SHAPE) for seed in (1, 2, 3))
    for high in (first, second):
        compose_noise(decomposition, [low, high])
    same = (kept[0] == kept[1]).flatten()
    assert torch.equal(same, (decomposition.band_index.expand_as(kept[0]) == 0).flatten())


def test_localised_sampling_leaves_waiting_and_finished_bands_where_they_are(model):
    noise, labels = draw_noise(0, (1, 32, 32), 5), torch.arange(5)
    decomposition = model.path.decomposition
    for localised, limit in ((True, 1e-4), (False, math.inf)):
        result = sample(Steered(model, localised), noise, labels, steps=10, guidance_scale=1.5, trajectory=True)
        low, high = torch.stack([decomposition.split(state) for state in result.trajectory]).transpose(0, 1)
        moved = max((high[:6] - high[0]).abs().max(), (low[5:] - low[5]).abs().max())
        assert (moved < limit) and (localised or moved > 1e-2)


def test_high_noise_redrawn_at_the_join_leaves_the_low_band(model):
    """The must-show of localised sampling: exact with it, not without."""
    steered, labels, decomposition = Steered(model, localised=True), torch.arange(4), model.path.decomposition
    first, second = draw_noise(0, (1, 32, 32), 4), draw_noise(100, (1, 32, 32), 4)
    half = sample(steered, first, labels, steps=8, end=0.5).data
    swapped = compose_noise(decomposition, [half, second])
    ends = [sample(steered, state, labels, steps=8, start=0.5).data for state in (half, swapped)]
    low, high = decomposition.split(ends[0] - ends[1])
    assert low.abs().max() < 1e-4 and high.abs().max() > 0.1
    plain = [sample(model, state, labels, steps=8, start=0.5).data for state in (half, swapped)]
    assert decomposition.project(plain[0] - plain[1], 0).abs().max() > 1e-3


def test_two_parts_of_the_way_are_the_whole(model):
    noise, labels = draw_noise(3, (1, 32, 32), 2), torch.arange(2)
    whole = sample(model, noise, labels, steps=10, trajectory=True)
    half = sample(model, noise, labels, steps=5, end=0.5)
    rest = sample(model, half.data, labels, steps=5, start=0.5)
    assert torch.equal(rest.data, whole.data) and half.nfe + rest.nfe == whole.nfe
    for start, end in ((0.5, 0.5), (-0.1, 1), (0, 1.1), (1, -0.2)):
        with pytest.raises(
            ValueError, match=f"start is {start} and end {end}, allowed are two different values from 0 to 1"
        ):
            sample(model, noise, start=start, end=end)


def test_the_class_switched_on_the_way(model):
    noise, three, eight = draw_noise(3, (1, 32, 32), 2), torch.full((2,), 3), torch.full((2,), 8)
    options = {"steps": 10, "drop_class_at": 0.5, "guidance_scale": 1.5, "trajectory": True}
    switched = sample(model, noise, three, labels_after=eight, **options)
    kept, other = (sample(model, noise, label, labels_after=label, **options) for label in (three, eight))
    assert torch.equal(switched.trajectory[:6], kept.trajectory[:6])
    assert not torch.equal(switched.data, kept.data) and not torch.equal(switched.data, other.data)
    rest = sample(model, switched.trajectory[5], eight, steps=5, start=0.5, guidance_scale=1.5)
    assert torch.equal(rest.data, switched.data)
    with pytest.raises(ValueError, match="a label is 11, allowed are 0 to 9"):
        sample(model, noise, three, labels_after=torch.full((2,), 11), **options)


def test_guidance_of_each_band(model):
    state, k, labels = draw_noise(0, (1, 32, 32), 3), torch.tensor([0.1, 0.4, 0.8]), torch.arange(3)
    plain = model.velocity(state, k, labels, 2.0)
    same = Steered(model, band_guidance=(2.0, 2.0)).velocity(state, k, labels)
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=1e-3)
    mixed = Steered(model, band_guidance=(2.0, 0.0)).velocity(state, k, labels)
    decomposition = model.path.decomposition
    torch.testing.assert_close(decomposition.project(mixed, 0), decomposition.project(plain, 0), atol=1e-4, rtol=1e-3)
    free = decomposition.project(model.velocity(state, k), 1)
    torch.testing.assert_close(decomposition.project(mixed, 1), free, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"band_guidance is \(1.0,\), allowed are 2 numbers, one a band"):
        Steered(model, band_guidance=(1.0,))


def test_a_real_image_goes_to_noise_and_back(model):
    data = load_data("digits")
    images, labels = to_float(data.test[::50]), data.test_labels[::50]
    errors = []
    for steps in (10, 40):
        found = invert(model, images, labels, steps=steps)
        assert found.k[0] == 1 and found.k[-1] == 0 and found.nfe == 2 * steps
        back = sample(model, found.data, labels, steps=steps, solver="midpoint").data
        errors.append(float((back - images).square().mean().sqrt()))
    assert errors[1] < errors[0] and errors[1] < 0.01
    assert 0.8 < found.data.std() < 1.3, "what it finds looks like noise"


class LabelAsDisplacement(nn.Module):
    """A network whose answer is the label, and 10 for none."""

    classes, null_label = 4, 4

    def forward(self, state, k, weights, labels):
        number = torch.full((len(state),), 10) if labels is None else torch.where(labels == 4, 10, labels)
        return number.to(state).view(-1, 1, 1, 1).expand_as(state)


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE)
def test_the_way_back_is_exact_where_the_velocity_is_constant_between_jumps(solver):
    """It jumps at joins, and where the class changes: the way back asks on the same side of both."""
    model = KFlow(LabelAsDisplacement(), Path(Fourier(SHAPE, 3), HardBump(3, connection="linear")), "displacement")
    noise, labels, later = torch.randn(3, *SHAPE).double(), torch.tensor([0, 1, 3]), torch.tensor([2, 2, 0])
    options = {"steps": 9, "solver": solver, "guidance_scale": 1.5, "drop_class_at": 0.4, "labels_after": later}
    there = sample(model, noise, labels, **options)
    back = invert(model, there.data, labels, trajectory=True, **options)
    torch.testing.assert_close(back.data, noise, atol=1e-9, rtol=0)
    assert back.k.tolist() == there.k.tolist()[::-1] and len(back.trajectory) == len(back.k)
    assert torch.equal(back.trajectory[0], there.data) and torch.equal(back.trajectory[-1], back.data)


def test_a_part_of_the_way_back(model):
    noise, labels = draw_noise(3, (1, 32, 32), 2), torch.arange(2)
    whole = invert(model, noise, labels, steps=10)
    half = invert(model, noise, labels, steps=5, end=0.5)
    assert torch.equal(invert(model, half.data, labels, steps=5, start=0.5).data, whole.data)


def test_a_band_of_a_real_image_is_edited(model):
    """Encode, replace the high band's noise, generate: the low band stays nearer than with all noise replaced."""
    data, decomposition = load_data("digits"), model.path.decomposition
    images, labels = to_float(data.test[::50]), data.test_labels[::50]
    code, fresh = invert(model, images, labels).data, draw_noise(0, (1, 32, 32), 10)
    options = {"steps": 40, "solver": "midpoint"}
    edited, other = (
        sample(model, x, labels, **options).data for x in (compose_noise(decomposition, [code, fresh]), fresh)
    )
    far = [decomposition.project(x - images, 0).square().mean() for x in (edited, other)]
    assert far[0] < 0.5 * far[1]
