"""What the network's output means: both outputs give one velocity; loss, guidance, band increment and preview."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kflow.amplitude import Fourier, Identity, Wavelet
from kflow.flow import HardBump, Linear, Path, SoftBump
from kflow.velocity import GaussianOracle, KFlow, PointsOracle

torch.set_num_threads(1)

SHAPE = (1, 4, 4)
D = 16
CLASSES = 3
PATHS = {
    "flow matching": Path(Identity(SHAPE), Linear()),
    "fourier": Path(Fourier(SHAPE), HardBump(2)),
    "fourier reversed": Path(Fourier(SHAPE), HardBump(2, [1, 3], "high-to-low")),
    "haar ramp": Path(Wavelet(SHAPE, "haar", levels=2), HardBump(3, [3, 1, 2], connection="linear")),
    "haar soft": Path(Wavelet(SHAPE, "haar", levels=2), SoftBump(3, width=0.4)),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_output = pytest.mark.parametrize("output", ["velocity", "displacement"])


def random(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def oracle_of(path):
    """Gaussian data whose bands are coupled."""
    factor = random(D, D, seed=3) / 4
    return GaussianOracle(random(*SHAPE, seed=4), factor @ factor.T, path)


class Perfect(nn.Module):
    """A network that answers what the oracle says, in the output asked for."""

    def __init__(self, oracle, output):
        super().__init__()
        self.answer = oracle.velocity if output == "velocity" else oracle.displacement

    def forward(self, state, k, weights, labels):
        return self.answer(state, k)


class Stub(nn.Module):
    """Some smooth function of all arguments; keeps its calls. Each sample's answer depends on that sample alone."""

    null_label = CLASSES

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, state, k, weights, labels):
        self.calls.append((state, k, weights, labels))
        label = torch.full_like(k, self.null_label) if labels is None else labels.to(k)
        shift = (k + label + weights.sum(1))[:, None, None, None]
        return torch.sin(2 * state.roll(1, -1) + shift) + shift * state


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, state, k, weights, labels):
        return self.value.expand_as(state)


def batch(count=6, dtype=torch.float64):
    """Data, noise, k in the middle of steps, labels."""
    k = (torch.arange(count, dtype=dtype) + 0.37) / count
    return (
        1.5 + random(count, *SHAPE, seed=1, dtype=dtype),
        random(count, *SHAPE, seed=2, dtype=dtype),
        k,
        torch.arange(count) % CLASSES,
    )


# --- the two outputs


@every_path
def test_both_outputs_of_a_perfect_network_give_the_velocity(path):
    oracle = oracle_of(path)
    data, noise, k, labels = batch()
    state = path.state(data, noise, k)
    for output in ("velocity", "displacement"):
        model = KFlow(Perfect(oracle, output), path, output)
        torch.testing.assert_close(model.velocity(state, k, labels), oracle.velocity(state, k), rtol=0, atol=1e-12)


@every_path
@every_output
def test_velocity_of_a_network_literally(path, output):
    """velocity: the output itself, to the bit. displacement: Σ_b w_b' P_b of it, sample by sample and band by band."""
    data, noise, k, labels = batch()
    state = path.state(data, noise, k)
    network = Stub()
    got = KFlow(network, path, output).velocity(state, k, labels)
    weights, rates = path.schedule(k)
    raw = Stub()(state, k, weights, labels)
    if output == "velocity":
        assert torch.equal(got, raw)
    else:
        for i in range(len(k)):
            parts = [path.decomposition.project(raw[i : i + 1], b)[0] for b in range(path.bands)]
            expected = sum(rates[i, b] * parts[b] for b in range(path.bands))
            torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-11)
    (call,) = network.calls
    assert torch.equal(call[0], state) and torch.equal(call[1], k)
    assert torch.equal(call[2], weights) and torch.equal(call[3], labels)


@pytest.mark.parametrize("name", ["fourier", "fourier reversed", "haar ramp"])
def test_velocity_from_a_displacement_lies_in_the_active_band(name):
    path = PATHS[name]
    data, noise, k, labels = batch(12)
    state = path.state(data, noise, k)
    model = KFlow(Stub(), path, "displacement")
    parts = path.decomposition.split(model.velocity(state, k, labels))
    active = path.schedule(k)[1] > 0
    assert (active.sum(1) == 1).all()
    for band in range(path.bands):
        norms = parts[band].flatten(1).norm(dim=1)
        assert (norms[~active[:, band]] < 1e-12).all() and (norms[active[:, band]] > 1e-3).all()
    # So does one whose loss saw only the active band (C.4); what it answers there is kept.
    free = KFlow(Stub(), path).velocity(state, k, labels)
    only = KFlow(Stub(), path, loss_bands="active").velocity(state, k, labels)
    torch.testing.assert_close(only, path.decomposition.reweight(free, active.double()), rtol=0, atol=1e-12)
    # A network that answers with a velocity is only asked to: its answer may move every band.
    free = path.decomposition.split(KFlow(Stub(), path).velocity(state, k, labels)).flatten(2).norm(dim=2)
    assert (free > 1e-3).all()


# --- the loss


@every_path
@pytest.mark.parametrize(
    ("output", "loss_bands"), [("velocity", "all"), ("velocity", "active"), ("displacement", "all")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_literally(path, output, loss_bands, dtype):
    """Eq. 10 sample by sample, band by band, pixel by pixel; bands are orthogonal, so their squares add up."""
    data, noise, k, labels = batch(dtype=dtype)
    k[0] = 0.0
    got = KFlow(Stub(), path, output, loss_bands).loss(data, noise, k, labels)
    assert got.shape == k.shape and got.dtype == dtype
    weights, rates = path.schedule(k)
    state, velocity = path.sample(data, noise, k)
    raw = Stub()(state, k, weights, labels)
    for i in range(len(k)):
        expected = 0.0
        for band in range(path.bands):
            if output == "velocity":
                counted, target = loss_bands == "all" or rates[i, band] > 0, velocity
            else:
                counted, target = weights[i, band] < 1, data - noise
            if counted:
                expected += sum(
                    float(e) ** 2 for e in path.decomposition.project((raw - target)[i : i + 1], band).flatten()
                )
        assert got[i].item() == pytest.approx(expected / D, rel=1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("name", ["flow matching", "fourier", "haar soft"])
@pytest.mark.parametrize(
    ("output", "loss_bands"), [("velocity", "all"), ("velocity", "active"), ("displacement", "all")]
)
def test_no_network_has_a_smaller_loss_than_the_perfect_one(name, output, loss_bands):
    """On pairs drawn from the data that the oracle knows."""
    path, count = PATHS[name], 4000
    oracle = oracle_of(path)
    root = torch.linalg.cholesky(oracle.covariance)
    data = oracle.mean.view(SHAPE) + (random(count, D, seed=5) @ root.T).view(-1, *SHAPE)
    noise = random(count, *SHAPE, seed=6)
    k = torch.linspace(0.005, 0.995, 12, dtype=torch.float64).repeat(count)[:count]
    perfect = Perfect(oracle, output)

    class Other(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change = change

        def forward(self, state, k, weights, labels):
            return self.change(perfect(state, k, weights, labels), state, k)

    def loss(network):
        return KFlow(network, path, output, loss_bands).loss(data, noise, k).mean().item()

    least = loss(perfect)
    assert least > 0.05  # what cannot be known from Ψ
    for change in (
        lambda v, state, k: 0 * v,
        lambda v, state, k: 1.1 * v,
        lambda v, state, k: 0.9 * v,
        lambda v, state, k: v + 0.2,
        lambda v, state, k: v + 0.1 * state,
        lambda v, state, k: v - 0.1 * state,
        lambda v, state, k: v + 0.1 * state.roll(1, -1),
    ):
        assert loss(Other(change)) > least
    if output == "displacement":
        assert oracle.loss(data, noise, k).mean().item() == pytest.approx(least)


def test_loss_trains_waiting_bands_of_a_displacement_and_nothing_in_finished_ones():
    path = PATHS["fourier"]
    data, noise, *_ = batch(2)
    value = nn.Parameter(random(*SHAPE, seed=8))
    for k, trained in ((0.2, [0, 1]), (0.7, [1])):
        value.grad = None
        model = KFlow(Constant(value), path, "displacement")
        model.loss(data, noise, torch.full((2,), k, dtype=torch.float64)).sum().backward()
        energy = path.decomposition.energy(value.grad[None])[0]
        assert [b for b in range(2) if energy[b] > 1e-6] == trained


def test_loss_of_active_bands_trains_only_those():
    path = PATHS["fourier"]
    data, noise, *_ = batch(2)
    value = nn.Parameter(random(*SHAPE, seed=8))
    model = KFlow(Constant(value), path, loss_bands="active")
    model.loss(data, noise, torch.full((2,), 0.2, dtype=torch.float64)).sum().backward()
    energy = path.decomposition.energy(value.grad[None])[0]
    assert energy[0] > 1e-6 and energy[1] < 1e-20


@every_output
def test_loss_passes_labels_and_weights_on(output):
    path = PATHS["haar soft"]
    data, noise, k, labels = batch()
    network = Stub()
    KFlow(network, path, output).loss(data, noise, k, labels)
    ((state, passed_k, weights, passed_labels),) = network.calls
    assert torch.equal(state, path.state(data, noise, k)) and torch.equal(passed_k, k)
    assert torch.equal(weights, path.schedule(k)[0]) and torch.equal(passed_labels, labels)
    KFlow(network, path, output).loss(data, noise, k)
    assert network.calls[1][3] is None


# --- guidance


@every_path
@every_output
@settings(max_examples=5, deadline=None)
@given(scale=st.sampled_from([0.0, 0.5, 1.5, 7.0]))
def test_guidance_is_two_calls_in_one(path, output, scale):
    """(1 − ω)·v(∅) + ω·v(c), with one network call of twice the batch."""
    data, noise, k, labels = batch()
    state = path.state(data, noise, k)
    network = Stub()
    model = KFlow(network, path, output)
    free = model.velocity(state, k, torch.full_like(labels, CLASSES))
    conditional = model.velocity(state, k, labels)
    assert len(network.calls) == 2
    got = model.velocity(state, k, labels, scale)
    assert len(network.calls) == 3 and len(network.calls[2][0]) == 2 * len(state)
    torch.testing.assert_close(got, (1 - scale) * free + scale * conditional, rtol=0, atol=1e-10)


@every_output
def test_no_guidance_is_one_plain_call(output):
    data, noise, k, labels = batch()
    path, network = PATHS["fourier"], Stub()
    model, state = KFlow(network, path, output), path.state(data, noise, k)
    model.velocity(state, k, labels, guidance_scale=1.0)
    model.velocity(state, k, None, guidance_scale=4.0)  # no class, nothing to guide to
    assert [len(call[0]) for call in network.calls] == [len(state)] * 2
    assert network.calls[0][3] is labels and network.calls[1][3] is None


def test_guidance_reaches_preview_and_increment():
    data, noise, k, labels = batch()
    path = PATHS["fourier"]
    state, end = path.state(data, noise, k), (k + 0.05).clamp(max=1)
    model = KFlow(Stub(), path, "displacement")
    null = torch.full_like(labels, CLASSES)
    for call in (
        lambda labels, scale=1.0: model.preview(state, k, labels, scale),
        lambda labels, scale=1.0: model.increment(state, k, end, k, labels, scale),
    ):
        torch.testing.assert_close(call(labels, 2.5), -1.5 * call(null) + 2.5 * call(labels), rtol=0, atol=1e-10)


# --- the band increment


@every_path
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_increments_of_a_constant_displacement_sum_to_all_of_it(path, steps):
    """Whatever the grid, and wherever the network is asked: the steps telescope."""
    constant = random(1, *SHAPE)
    model = KFlow(Constant(constant), path, "displacement")
    noise = random(2, *SHAPE, seed=1)
    state = noise
    grid = torch.tensor(sorted({0.0, 1.0, *np.linspace(0, 1, steps + 1).tolist(), 0.123})).double()
    for low, high in zip(grid, grid[1:], strict=False):
        state = state + model.increment(state, low.expand(2), high.expand(2), ((low + high) / 2).expand(2))
    torch.testing.assert_close(state, noise + constant, rtol=0, atol=1e-12)


def test_one_increment_over_everything_is_the_displacement_to_the_bit():
    model = KFlow(Constant(random(1, *SHAPE)), PATHS["fourier"], "displacement")
    ends = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert torch.equal(model.increment(random(2, *SHAPE), *ends, ends[0]), model.network.value.expand(2, *SHAPE))


@every_path
def test_increment_literally(path):
    data, noise, k, labels = batch()
    start, end = k, (k + 0.11).clamp(max=1)
    ask = (start + end) / 2
    state = path.state(data, noise, start)
    network = Stub()
    got = KFlow(network, path, "displacement").increment(state, start, end, ask, labels)
    raw = Stub()(state, ask, path.schedule(ask)[0], labels)
    moved = path.schedule(end)[0] - path.schedule(start)[0]
    for i in range(len(k)):
        expected = sum(moved[i, b] * path.decomposition.project(raw[i : i + 1], b)[0] for b in range(path.bands))
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-12)
    (call,) = network.calls
    assert torch.equal(call[1], ask) and torch.equal(call[2], path.schedule(ask)[0])


# --- the preview


@every_path
def test_preview_is_the_posterior_mean(path):
    """E[φ | Ψ] = m + C W S⁺ (Ψ − W m), in numpy from the joint Gaussian of φ and Ψ."""
    oracle = oracle_of(path)
    data, noise, k, _ = batch()
    state = path.state(data, noise, k)
    got = KFlow(Perfect(oracle, "displacement"), path, "displacement").preview(state, k).flatten(1).numpy()
    basis = torch.eye(D, dtype=torch.float64).view(D, *SHAPE)
    p = [path.decomposition.project(basis, b).flatten(1).numpy().T for b in range(path.bands)]
    mean, covariance = oracle.mean.numpy(), oracle.covariance.numpy()
    for i in range(len(k)):
        w = sum(weight * matrix for weight, matrix in zip(path.schedule(k[i : i + 1])[0][0].tolist(), p, strict=True))
        own = w @ covariance @ w + (np.eye(D) - w) @ (np.eye(D) - w)
        expected = mean + covariance @ w @ np.linalg.solve(own, state[i].flatten().numpy() - w @ mean)
        np.testing.assert_allclose(got[i], expected, rtol=0, atol=1e-7)


def test_preview_begins_at_the_mean_and_ends_at_the_state():
    path = PATHS["haar ramp"]
    points, state = random(4, *SHAPE), random(3, *SHAPE, seed=1)
    oracle = PointsOracle(points, path)
    model = KFlow(Perfect(oracle, "displacement"), path, "displacement")
    k = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(model.preview(state, k), points.mean(0).expand_as(state), rtol=0, atol=1e-12)
    assert torch.equal(model.preview(state, k + 1), state)


# --- precision, errors


@every_output
def test_the_answer_has_the_dtype_of_the_state(output):
    """A network in lower precision, as under autocast."""

    class Half(Stub):
        def forward(self, state, k, weights, labels):
            return super().forward(state, k, weights, labels).bfloat16()

    data, noise, k, labels = batch(dtype=torch.float32)
    path = PATHS["fourier"]
    model = KFlow(Half(), path, output)
    for scale in (1.0, 2.0):
        assert model.velocity(data, k, labels, scale).dtype == torch.float32
    assert model.loss(data, noise, k, labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"output": "score"}, "output is 'score', allowed are velocity, displacement"),
        ({"loss_bands": "some"}, "loss_bands is 'some', allowed are all, active"),
        ({"output": "displacement", "loss_bands": "active"}, "loss_bands is 'active', with output 'displacement'"),
    ],
)
def test_unknown_options_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        KFlow(Stub(), PATHS["fourier"], **arguments)


@every_output
@pytest.mark.parametrize("k", [-0.25, 1.25, math.nan])
def test_k_outside_0_to_1_is_named(output, k):
    model = KFlow(Stub(), PATHS["fourier"], output)
    state, k_tensor, inside = random(2, *SHAPE), torch.tensor([0.5, k]).double(), torch.tensor([0.5, 0.5]).double()
    calls = [lambda: model.velocity(state, k_tensor), lambda: model.loss(state, state, k_tensor)]
    if output == "displacement":
        calls.append(lambda: model.preview(state, k_tensor))
        for place in range(3):
            three = [k_tensor if place == i else inside for i in range(3)]
            calls.append(lambda three=three: model.increment(state, *three))
    for call in calls:
        with pytest.raises(ValueError, match=f"k is {k}, allowed are values from 0"):
            call()


@every_output
def test_shapes_that_do_not_fit_are_named(output):
    model = KFlow(Stub(), PATHS["fourier"], output)
    for k in (torch.tensor(0.5), torch.tensor([0.5]), torch.full((3,), 0.5)):
        with pytest.raises(ValueError, match=r"k has shape .* allowed is \(2,\), one for each sample"):
            model.velocity(random(2, *SHAPE), k)
        with pytest.raises(ValueError, match="do not fit"):
            model.loss(random(2, *SHAPE), random(2, *SHAPE), k)
    with pytest.raises(ValueError, match="do not fit"):
        model.loss(random(2, *SHAPE), random(3, *SHAPE), torch.full((2,), 0.5))


def test_a_velocity_has_no_preview_and_no_increment():
    model, k = KFlow(Stub(), PATHS["fourier"]), torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="a preview needs output 'displacement', this model's is 'velocity'"):
        model.preview(random(2, *SHAPE), k)
    with pytest.raises(ValueError, match="the band increment needs output 'displacement', this model's is 'velocity'"):
        model.increment(random(2, *SHAPE), k, k, k)
