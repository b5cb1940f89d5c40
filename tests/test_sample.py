"""Solvers: their order, their NFE, where they ask, and what they are asked to refuse."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kflow.amplitude import Fourier, Identity, Wavelet
from kflow.flow import HardBump, Linear, Path, SoftBump
from kflow.sample import ADAPTIVE, FIXED, grid, sample
from kflow.velocity import GaussianOracle, KFlow, PointsOracle

SHAPE = (1, 8, 8)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
CALLS = {"euler": 1, "increment": 1, "midpoint": 2, "heun": 2, "rk4": 4}


class Recorder(nn.Module):
    """A network that notes what it is asked, and answers with ``function(state, k, labels)``."""

    classes, null_label = 4, 4

    def __init__(self, function=lambda state, k, labels: torch.zeros_like(state)):
        super().__init__()
        self.function, self.calls = function, []

    def forward(self, state: Tensor, k: Tensor, weights: Tensor, labels: Tensor | None) -> Tensor:
        self.calls.append((k.clone(), labels, len(state)))
        return self.function(state, k, labels)

    @property
    def k(self) -> list[float]:
        return [float(k[0]) for k, _, _ in self.calls]


def flow(network: nn.Module, bands: int = 2, output: str = "velocity", **schedule) -> KFlow:
    return KFlow(network, Path(Fourier(SHAPE, bands), HardBump(bands, **schedule)), output)


def noise(batch: int = 3, dtype=torch.float64) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def order_of(solver: str, model, exact: Tensor, steps=(8, 16), **options) -> float:
    errors = [(sample(model, noise(), steps=n, solver=solver, **options).data - exact).norm() for n in steps]
    return math.log2(errors[0] / errors[1])


# --- the grid


@st.composite
def joins_and_steps(draw):
    joins = sorted(draw(st.sets(st.integers(1, 999), max_size=5)))
    return [j / 1000 for j in joins], draw(st.integers(len(joins) + 1, 60))


@settings(max_examples=100, deadline=None)
@given(joins_and_steps())
def test_the_grid_has_the_joins_and_the_steps(case):
    joins, steps = case
    points = grid(joins, steps)
    assert len(points) == steps + 1 and points[0] == 0 and points[-1] == 1
    assert all(low < high for low, high in pairwise(points)) and set(joins) <= set(points)
    edges = [0, *joins, 1]
    ideal = [steps * (high - low) for low, high in pairwise(edges)]
    counts = [sum(low <= p < high for p in points) for low, high in pairwise(edges)]
    assert min(counts) >= 1
    if min(ideal) >= 1:
        assert all(abs(count - share) < 1 + 1e-9 for count, share in zip(counts, ideal, strict=True))
    for low, high in pairwise(edges):  # equal steps inside an interval
        inside = [p for p in points if low <= p <= high]
        assert max(b - a for a, b in pairwise(inside)) - min(b - a for a, b in pairwise(inside)) < 1e-9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_steps_are_given_for_each_interval(steps):
    joins = [i / len(steps) for i in range(1, len(steps))]
    points, edges = grid(joins, steps), [0, *joins, 1]
    assert [sum(low <= p < high for p in points) for low, high in pairwise(edges)] == steps


def test_equal_bands_get_equal_steps():
    assert grid([0.5], 4) == [0, 0.25, 0.5, 0.75, 1]
    for bands in (2, 3, 5, 6):
        points = grid(HardBump(bands).joins, 30)
        assert points == pytest.approx([i / 30 for i in range(31)])


def test_a_grid_may_start_and_end_elsewhere():
    assert grid([0.2, 0.5, 0.9], 2, start=0.3, end=0.7) == pytest.approx([0.3, 0.5, 0.7])
    assert grid([0.3, 0.7], 1, start=0.3, end=0.7) == [0.3, 0.7]


def test_impossible_steps_are_errors():
    with pytest.raises(ValueError, match="steps is 2, allowed is 3 or more"):
        grid([0.2, 0.5], 2)
    for steps in ([1], [1, 2, 3], [1, 0], []):
        with pytest.raises(ValueError, match=r"steps is \[.*\], allowed are 2 positive numbers"):
            grid([0.5], steps)


# --- accuracy


def kinked() -> tuple[Recorder, Tensor]:
    """dx/dk = a(k) x with a = cos k before the join at ½, 2 + sin k from it on; and the exact answer to the noise."""

    def velocity(state, k, labels):
        rate = torch.where(k < 0.5, k.cos(), 2 + k.sin()).to(state.dtype)
        return rate.view(-1, 1, 1, 1) * state

    growth = math.exp(math.sin(0.5) + 2 * 0.5 + math.cos(0.5) - math.cos(1))
    return Recorder(velocity), growth * noise()


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_solvers_have_their_order_over_a_jump_at_a_join(solver, order):
    network, exact = kinked()
    assert order_of(solver, flow(network), exact) == pytest.approx(order, abs=0.25)
    result = sample(flow(network), noise(), steps=64, solver=solver).data
    assert (result - exact).norm() / exact.norm() < 3 * 64.0**-order


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_keep_their_tolerance_over_a_jump_at_a_join(solver):
    network, exact = kinked()
    calls = []
    for tolerance in (1e-3, 1e-11 if solver == "dopri8" else 1e-6):  # its first step keeps 1e-6 already
        result = sample(flow(network), noise(), solver=solver, tolerance=tolerance)
        assert (result.data - exact).norm() / exact.norm() < 5 * tolerance
        calls.append(result.nfe)
    assert calls[0] < calls[1] < 2_000


def gaussian() -> tuple[GaussianOracle, Tensor]:
    """An oracle whose covariance commutes with its bands: its flow takes ε to m + √C ε."""
    fourier = Fourier(SHAPE, 2)
    basis = torch.eye(64, dtype=torch.float64).view(64, *SHAPE)
    low = fourier.project(basis, 0).flatten(1)
    scale = 2 * low + 0.5 * (torch.eye(64).double() - low)
    mean = torch.linspace(-1, 1, 64, dtype=torch.float64).view(SHAPE)
    oracle = GaussianOracle(mean, scale @ scale, Path(fourier, HardBump(2)))
    return oracle, mean + (noise().flatten(1) @ scale).view(-1, *SHAPE)


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_an_oracle_is_sampled_like_a_model(solver, order):
    oracle, exact = gaussian()
    assert order_of(solver, oracle, exact, (20, 40)) == pytest.approx(order, abs=0.5)


def test_every_way_to_sample_an_oracle_tends_to_its_flow():
    oracle, exact = gaussian()
    for options in ({"solver": "increment"}, {"solver": "increment", "ask": "middle"}, {"ask": "middle"}):
        assert order_of(options.get("solver", "euler"), oracle, exact, (20, 40), ask=options.get("ask", "start")) > 0.8
    result = sample(oracle, noise(), solver="dopri5", tolerance=1e-7)
    torch.testing.assert_close(result.data, exact, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="unconditional"):
        sample(oracle, noise(), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("solver", ["euler", "heun", "increment", "rk4"])
def test_samples_of_known_points_are_those_points(solver):
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    oracle = PointsOracle(points, Path(Wavelet(SHAPE, "haar"), HardBump(2)))
    data = sample(oracle, noise(16), steps=80, solver=solver).data
    distances = torch.cdist(data.flatten(1), points.flatten(1))
    assert distances.min(1).values.max() < 0.02 * torch.pdist(points.flatten(1)).min()
    assert len(distances.argmin(1).unique()) > 1


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 3),
    st.integers(3, 70),
    st.sampled_from(["cubic", "meyer", "linear"]),
    st.sampled_from(["low-to-high", "high-to-low"]),
    st.sampled_from(["start", "middle"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_increment_is_exact_for_a_constant_displacement(bands, steps, connection, order, ask, dtype):
    delta = noise(dtype=dtype).flip(0)
    model = flow(Recorder(lambda *_: delta), bands, "displacement", connection=connection, order=order)
    result = sample(model, noise(dtype=dtype), steps=steps, solver="increment", ask=ask)
    torch.testing.assert_close(result.data, noise(dtype=dtype) + delta, atol=200 * torch.finfo(dtype).eps, rtol=0)
    assert result.nfe == steps


def test_euler_covers_what_the_design_says_of_a_constant_displacement():
    # n steps a band cover 1 − 1/n² of it, the first being null; asked at the middle, 1 + 1/(2n²).
    delta = noise().flip(0)
    model = flow(Recorder(lambda *_: delta), output="displacement")
    for n in (1, 2, 5, 10):
        for ask, share in (("start", 1 - 1 / n**2), ("middle", 1 + 1 / (2 * n**2))):
            result = sample(model, noise(), steps=2 * n, ask=ask).data
            torch.testing.assert_close(result, noise() + share * delta, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", *ADAPTIVE])
@pytest.mark.parametrize("bands", [2, 3])
def test_a_linear_ramp_is_followed_exactly_though_it_jumps_at_the_joins(solver, bands, dtype):
    delta = noise(dtype=dtype).flip(0)
    model = flow(Recorder(lambda *_: delta), bands, "displacement", connection="linear")
    for steps in (bands, 60, 1200) if solver in FIXED and bands == 3 else (60,):
        result = sample(model, noise(dtype=dtype), steps=steps, solver=solver)
        torch.testing.assert_close(
            result.data, noise(dtype=dtype) + delta, atol=steps * torch.finfo(dtype).eps * 4, rtol=0
        )


# --- where and how often the network is asked


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_nfe_is_the_number_of_network_calls(solver, guidance_scale):
    network = Recorder()
    labels = torch.tensor([0, 1, 2])
    result = sample(
        flow(network, output="displacement"), noise(), labels, steps=6, solver=solver, guidance_scale=guidance_scale
    )
    assert result.nfe == len(network.calls) == 6 * CALLS[solver]
    assert {count for _, _, count in network.calls} == {3 if guidance_scale == 1 else 6}, "guided: one batched call"


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_nfe_of_adaptive_solvers_is_the_number_of_network_calls(solver):
    network, _ = kinked()
    result = sample(flow(network), noise(), solver=solver, tolerance=1e-3)
    assert result.nfe == len(network.calls) > 4
    assert result.k.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bands", [1, 2, 3])
def test_no_step_looks_beyond_a_join(solver, dtype, bands):
    network = Recorder(lambda state, k, labels: state * k.view(-1, 1, 1, 1).to(state))
    model = flow(network, bands, "displacement" if solver == "increment" else "velocity")
    sample(model, noise(1, dtype), steps=7 * bands, solver=solver, tolerance=1e-3, ask="middle")
    joins = torch.tensor(model.path.schedule.joins, dtype=dtype)
    asked = torch.cat([k for k, _, _ in network.calls])
    interval = torch.bucketize(asked, joins, right=True)  # [join, next join)
    assert (interval.diff() >= 0).all() and interval.unique().tolist() == list(range(bands))
    if solver in FIXED:
        assert interval.bincount().tolist() == [7 * CALLS[solver]] * bands
    assert asked.min() >= 0 and asked.max() < 1


@pytest.mark.parametrize("solver", ["euler", "increment"])
def test_where_in_a_step_the_network_is_asked(solver):
    for ask, expected in (("start", [0, 0.25, 0.5, 0.75]), ("middle", [0.125, 0.375, 0.625, 0.875])):
        network = Recorder()
        sample(flow(network, output="displacement"), noise(), steps=4, solver=solver, ask=ask)
        assert network.k == expected


def test_where_the_other_solvers_ask():
    for solver, expected in (
        ("midpoint", [0, 0.25, 0.5, 0.75]),
        ("heun", [0, 0.5, 0.5, 1]),
        ("rk4", [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]),
    ):
        network = Recorder()
        sample(flow(network), noise(), steps=2, solver=solver)
        assert network.k == pytest.approx(expected, abs=1e-12)


def by_label(state: Tensor, k: Tensor, labels: Tensor | None) -> Tensor:
    """A velocity that is the label, and 10 for none."""
    number = torch.full((len(state),), 10.0) if labels is None else torch.where(labels == 4, 10, labels)
    return number.to(state).view(-1, 1, 1, 1).expand_as(state)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_guidance_is_that_of_algorithm_3(scale):
    labels = torch.tensor([0, 1, 3])
    result = sample(flow(Recorder(by_label)), noise(), labels, steps=4, guidance_scale=scale).data
    expected = (1 - scale) * 10 + scale * labels
    torch.testing.assert_close(result - noise(), expected.double().view(3, 1, 1, 1).expand_as(result))


def test_without_labels_guidance_means_nothing():
    network = Recorder(by_label)
    result = sample(flow(network), noise(), steps=4, guidance_scale=3.0)
    torch.testing.assert_close(result.data, noise() + 10)
    assert all(labels is None and count == 3 for _, labels, count in network.calls)


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE)
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5, 1.0])
def test_the_class_is_dropped_exactly_at_tau(solver, tau):
    network = Recorder(by_label)
    model = flow(network, output="displacement" if solver == "increment" else "velocity")
    labels = torch.tensor([0, 1, 3])
    result = sample(
        model, noise(), labels, steps=6, solver=solver, guidance_scale=1.5, drop_class_at=tau, tolerance=1e-3
    )
    assert network.calls and (tau in result.k or tau == 0.3) and abs(result.k - tau).min() < 1e-7
    for k, given_labels, count in network.calls:
        assert (given_labels is None) == (float(k[0]) >= tau)
        assert count == (3 if given_labels is None else 6)
    if solver != "increment":
        guided = -0.5 * 10 + 1.5 * labels
        expected = tau * guided + (1 - tau) * 10
        torch.testing.assert_close(result.data - noise(), expected.double().view(3, 1, 1, 1).expand_as(noise()))


def test_tau_joins_the_grid_and_counts_as_an_interval():
    model = flow(Recorder())
    result = sample(model, noise(), torch.tensor([0, 1, 2]), steps=[1, 2, 3], drop_class_at=0.3)
    assert result.k.tolist() == pytest.approx([0, 0.3, 0.4, 0.5, 0.5 + 1 / 6, 0.5 + 2 / 6, 1])
    with pytest.raises(ValueError, match="steps is 2, allowed is 3 or more"):
        sample(model, noise(), steps=2, drop_class_at=0.3)


def test_tau_can_be_the_join_by_name():
    labels, later = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    for tau in ("join", 0.5):
        network = Recorder(by_label)
        sample(flow(network), noise(), labels, labels_after=later, drop_class_at=tau, steps=4)
        assert [(float(k[0]), given.tolist()) for k, given, _ in network.calls] == [
            *((k, [0, 1, 2]) for k in (0.0, 0.25)),
            *((k, [3, 3, 3]) for k in (0.5, 0.75)),
        ]
    one_band = KFlow(Recorder(), Path(Identity(SHAPE), Linear(1)))
    with pytest.raises(ValueError, match="drop_class_at is join"):
        sample(one_band, noise(), labels, drop_class_at="join")


# --- what comes back


@pytest.mark.parametrize("solver", ["euler", "increment", "heun", "dopri5"])
def test_the_trajectory_leads_from_the_noise_to_the_data(solver):
    oracle, _ = gaussian()
    result = sample(oracle, noise(), steps=5, solver=solver, trajectory=True)
    points = 3 if solver == "dopri5" else 6
    assert result.k.shape == (points,) and result.trajectory.shape == (points, 3, *SHAPE)
    assert torch.equal(result.trajectory[0], noise()) and torch.equal(result.trajectory[-1], result.data)
    assert sample(oracle, noise(), steps=5, solver=solver).trajectory is None


def test_sampling_leaves_noise_and_model_alone():
    network = nn.Conv2d(1, 1, 1)
    model = flow(Recorder(lambda state, k, labels: network(state)))
    start = noise(dtype=torch.float32)
    result = sample(model, start, steps=4).data
    assert not result.requires_grad and torch.equal(start, noise(dtype=torch.float32))
    assert result.dtype == torch.float32 and sample(flow(Recorder()), noise(), steps=4).data.dtype == torch.float64


def test_a_velocity_has_no_exact_increment():
    with pytest.raises(ValueError, match="increment needs output 'displacement', this model's is 'velocity'"):
        sample(flow(Recorder()), noise(), solver="increment")


def test_one_step_is_enough_for_the_baseline():
    target = noise().flip(0)
    path = Path(Identity(SHAPE), Linear())
    model = KFlow(Recorder(lambda *_: target - noise()), path)
    torch.testing.assert_close(sample(model, noise(), steps=1).data, target)


def test_soft_bumps_have_joins_too():
    path = Path(Fourier(SHAPE, 2), SoftBump(2, 0.3))
    network = Recorder()
    result = sample(KFlow(network, path), noise(), steps=20)
    assert set(torch.tensor(path.schedule.joins).tolist()) <= set(result.k.tolist()) and result.nfe == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"solver": "eular"}, "solver is 'eular', allowed are euler, increment, midpoint, heun, rk4, dopri5"),
        ({"ask": "end"}, "ask is 'end', allowed are start, middle"),
        ({"drop_class_at": 1.5}, "drop_class_at is 1.5, allowed are values of k from 0 to 1"),
        ({"drop_class_at": math.nan}, "drop_class_at is nan"),
        ({"drop_class_at": "jion"}, "drop_class_at is jion, allowed are values of k from 0 to 1, and join"),
        ({"labels_after": torch.tensor([0, 1, 2])}, "labels_after were given with drop_class_at None, allowed is a k"),
        ({"labels": torch.tensor([0, 1, 5])}, "a label is 5, allowed are 0 to 3, and 4 for no class"),
        ({"labels": torch.tensor([0, -1, 2])}, "a label is -1, allowed are 0 to 3"),
        ({"labels": torch.tensor([0, 1])}, r"labels have shape \(2,\), allowed is \(3,\)"),
        ({"labels": torch.tensor(1)}, r"labels have shape \(\), allowed is \(3,\)"),
        ({"steps": 1}, "steps is 1, allowed is 2 or more"),
        ({"steps": [1, 2, 3]}, r"steps is \[1, 2, 3\], allowed are 2"),
        ({"noise": torch.randn(3, 1, 8, 9)}, r"noise has shape \(3, 1, 8, 9\), allowed is \(batch, 1, 8, 8\)"),
        ({"noise": torch.randn(1, 8, 8)}, r"noise has shape \(1, 8, 8\), allowed is \(batch, 1, 8, 8\)"),
    ],
)
def test_what_is_asked_wrongly_is_an_error_before_the_network_is_called(options, says):
    network = Recorder()
    with pytest.raises(ValueError, match=says):
        sample(flow(network), **{"noise": noise()} | options)
    assert not network.calls


def test_the_null_label_is_allowed_and_a_class_needs_a_conditional_network():
    network = Recorder(by_label)
    assert torch.equal(sample(flow(network), noise(), torch.full((3,), 4)).data, sample(flow(network), noise()).data)
    network.classes = 0
    with pytest.raises(ValueError, match="labels were given, but this model is unconditional: allowed is None"):
        sample(flow(network), noise(), torch.tensor([0, 1, 2]))
