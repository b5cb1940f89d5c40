"""w_b(k) and its rate: monotone, exact at the ends, one band at a time if hard, drawn as promised."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest

from kflow.flow import HardBump, Linear, SoftBump
from kflow.flow.schedule import check_k

torch.set_num_threads(1)

INTERVALS = {1: [5], 2: [1, 3], 3: [0.2, 0.1, 0.7], 5: [1, 2, 3, 1, 7]}
ORDERS = ("low-to-high", "high-to-low")
DTYPES = (torch.float32, torch.float64)
HARD = {
    f"{connection} {order} {bands}{' unequal' if intervals else ''}": HardBump(bands, intervals, order, connection)
    for connection in ("cubic", "meyer", "linear")
    for order in ORDERS
    for bands, unequal in INTERVALS.items()
    for intervals in (None, unequal)
}
SOFT = {
    f"soft {bands} width {width} degree {degree} {order}": SoftBump(bands, width, degree, INTERVALS[bands], order)
    for bands, width, degree, order in [
        (1, 0.5, 1, ORDERS[0]),
        (2, 0.5, 2, ORDERS[0]),
        (2, 0.1, 2, ORDERS[1]),
        (3, 0.3, 5, ORDERS[1]),
        (3, 4.0, 20, ORDERS[0]),
        (5, 0.7, 1, ORDERS[0]),
        (5, 1.0, 300, ORDERS[1]),
    ]
}
ALL = {"linear": Linear(), "linear 3": Linear(3), **HARD, **SOFT}
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
every_hard = pytest.mark.parametrize("schedule", HARD.values(), ids=HARD.keys())
every_soft = pytest.mark.parametrize("schedule", SOFT.values(), ids=SOFT.keys())


def column(values, dtype=torch.float64):
    return torch.as_tensor(values, dtype=dtype)


def around_joins(schedule, dtype):
    """Every join as this dtype rounds it, and its neighbours on both sides."""
    joins = column(schedule.joins, dtype)
    zeros, ones = torch.zeros_like(joins), torch.ones_like(joins)
    return torch.cat([torch.nextafter(joins, zeros), joins, torch.nextafter(joins, ones)])


def visiting_order(schedule):
    return range(schedule.bands)[:: 1 if schedule.order == "low-to-high" else -1]


# --- what holds for every schedule


@every_schedule
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 8, 33])
def test_weights_are_exactly_0_and_1_at_the_ends(schedule, dtype, count):
    for k, expected in ((0, 0.0), (1, 1.0)):
        weights, rates = schedule(torch.full((count,), k, dtype=dtype))
        assert weights.shape == rates.shape == (count, schedule.bands)
        assert weights.dtype == rates.dtype == dtype
        assert (weights == expected).all()
        assert rates.isfinite().all() and (rates >= 0).all()


@every_schedule
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_rise_from_0_to_1(schedule, dtype):
    k = torch.cat([torch.linspace(0, 1, 4001, dtype=dtype), around_joins(schedule, dtype)]).sort().values
    weights, rates = schedule(k)
    assert weights.min() >= 0 and weights.max() <= 1
    assert rates.min() >= 0
    # Rounding may remain between neighbours, nothing more.
    assert weights.diff(dim=0).min() >= (-5e-7 if dtype == torch.float32 else -2e-14)


@every_schedule
@settings(max_examples=25, deadline=None)
@given(k=st.floats(0.001, 0.999))
def test_rates_are_the_derivative(schedule, k):
    step = 1e-6
    if any(abs(k - join) < 2 * step for join in schedule.joins):
        return
    after, before = schedule(column([k + step]))[0], schedule(column([k - step]))[0]
    rates = schedule(column([k]))[1]
    torch.testing.assert_close((after - before) / (2 * step), rates, rtol=1e-5, atol=1e-6)


@every_schedule
def test_integral_of_the_rates_is_one(schedule):
    nodes, node_weights = np.polynomial.legendre.leggauss(400)
    total = 0
    edges = [0, *schedule.joins, 1]
    for low, high in zip(edges, edges[1:], strict=False):
        k = column((low + high) / 2 + (high - low) / 2 * nodes)
        total = total + (high - low) / 2 * (column(node_weights)[:, None] * schedule(k)[1]).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


@every_schedule
def test_joins_are_rising_and_inside(schedule):
    assert list(schedule.joins) == sorted(set(schedule.joins))
    assert all(0 < join < 1 for join in schedule.joins)


@every_schedule
def test_invert_finds_the_k_of_a_mean_weight(schedule):
    wanted = torch.linspace(0, 1, 101, dtype=torch.float64)
    k = schedule.invert(wanted)
    assert k.dtype == torch.float64 and k.min() >= 0 and k.max() <= 1
    torch.testing.assert_close(schedule(k)[0].mean(1), wanted, rtol=0, atol=1e-12)
    assert schedule.invert(wanted.float()).dtype == torch.float32


def test_invert_skips_where_nothing_moves():
    schedule = SoftBump(2, width=0.1)  # moves in (0.15, 0.35) and in (0.65, 0.85) only
    assert schedule.invert(column([0.5])).item() == pytest.approx(0.35, abs=1e-3)
    drawn = schedule.draw(2000, torch.Generator().manual_seed(0), uniform="w")
    assert ((drawn > 0.15) & (drawn < 0.35) | (drawn > 0.65) & (drawn < 0.85)).all()


@pytest.mark.parametrize(
    "schedule",
    [Linear(2), HardBump(1), HardBump(3, [1, 2, 4], "high-to-low"), HardBump(2, connection="meyer"), SoftBump(2, 0.15)],
)
def test_draw_is_uniform_in_what_it_says(schedule):
    drawn = {u: schedule.draw(4000, torch.Generator().manual_seed(1), uniform=u) for u in ("k", "w")}
    for k in drawn.values():
        assert k.shape == (4000,) and k.dtype == torch.float32
    assert kstest(drawn["k"].numpy(), "uniform").pvalue > 0.01
    assert kstest(schedule(drawn["w"].double())[0].mean(1).numpy(), "uniform").pvalue > 0.01
    if not isinstance(schedule, Linear):
        assert kstest(drawn["w"].numpy(), "uniform").pvalue < 1e-6
        assert kstest(schedule(drawn["k"].double())[0].mean(1).numpy(), "uniform").pvalue < 1e-6


def test_draw_follows_its_generator():
    first, second, other = (HardBump(2).draw(5, torch.Generator().manual_seed(s), uniform="w") for s in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(
        HardBump(2).draw(5, torch.Generator().manual_seed(3)), HardBump(2).draw(5, torch.Generator().manual_seed(3))
    )


# --- linear


def test_linear_is_k_in_every_band():
    k = torch.linspace(0, 1, 7)
    weights, rates = Linear(3)(k)
    assert torch.equal(weights, k[:, None].expand(-1, 3)) and torch.equal(rates, torch.ones(7, 3))
    assert Linear().joins == ()


def test_one_linear_band_of_the_hard_bump_is_linear_everywhere():
    k = torch.linspace(0, 1, 11)
    for ours, plain in zip(HardBump(1, connection="linear")(k), Linear()(k), strict=True):
        assert torch.equal(ours, plain)


# --- hard bump


def literal_interval(schedule, intervals, band):
    """[k_b, k_{b+1}) from the lengths, by adding up those of the bands visited before."""
    visited = list(visiting_order(schedule))
    before = sum(intervals[b] for b in visited[: visited.index(band)])
    return before / sum(intervals), (before + intervals[band]) / sum(intervals)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("intervals", [[1, 1], [1, 2, 3, 1, 7], [0.7, 0.1, 0.2]])
@pytest.mark.parametrize("connection", ["cubic", "meyer", "linear"])
def test_hard_bump_against_its_definition(connection, intervals, order):
    polynomial = {
        "cubic": lambda t: 1 - (1 - 3 * t**2 + 2 * t**3),
        "meyer": lambda t: t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3),
        "linear": lambda t: t,
    }[connection]
    derivative = {
        "cubic": lambda t: 6 * t - 6 * t**2,
        "meyer": lambda t: 140 * t**3 * (1 - t) ** 3,
        "linear": lambda t: 1.0,
    }[connection]
    schedule = HardBump(len(intervals), intervals, order, connection)
    for k in [0.003, 0.1, 0.21, 0.35, 0.499, 0.63, 0.8, 0.95, 0.999]:
        weights, rates = schedule(column([k]))
        for band in range(len(intervals)):
            start, end = literal_interval(schedule, intervals, band)
            t = (k - start) / (end - start)
            weight = 0 if t < 0 else 1 if t >= 1 else polynomial(t)
            rate = derivative(t) / (end - start) if 0 <= t < 1 else 0
            assert weights[0, band].item() == pytest.approx(weight, abs=1e-12)
            assert rates[0, band].item() == pytest.approx(rate, abs=1e-11)
    inner = [literal_interval(schedule, intervals, band)[0] for band in visiting_order(schedule)][1:]
    assert schedule.joins == pytest.approx(inner, abs=1e-15)


def test_order_decides_which_band_moves_first():
    low_first, high_first = (HardBump(3, order=order)(column([0.2, 0.5, 0.8]))[1] > 0 for order in ORDERS)
    assert torch.equal(low_first, torch.eye(3, dtype=torch.bool))
    assert torch.equal(high_first, torch.eye(3, dtype=torch.bool).flip(1))


@every_hard
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_one_band_moves_at_a_time(schedule, dtype):
    """Exactly: a waiting band has weight 0, a finished one weight 1, neither moves; also right at the joins."""
    k = torch.cat([torch.rand(500, dtype=dtype), around_joins(schedule, dtype)])
    weights, rates = schedule(k)
    assert ((rates > 0).sum(1) <= 1).all()
    assert (((weights > 0) & (weights < 1)).sum(1) <= 1).all()
    visited = list(visiting_order(schedule))
    assert (weights[:, visited].diff(dim=1) <= 0).all()
    ends = column([*schedule.joins, 1.0], dtype)
    for place, band in enumerate(visited):
        start = ends[place - 1] if place else torch.zeros((), dtype=dtype)
        assert (weights[k < start, band] == 0).all() and (rates[k < start, band] == 0).all()
        assert (weights[k >= ends[place], band] == 1).all() and (rates[k >= ends[place], band] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=50, deadline=None)
@given(intervals=st.lists(st.integers(1, 50), min_size=2, max_size=8))
def test_at_a_join_one_band_ends_and_the_next_begins(dtype, order, intervals):
    schedule = HardBump(len(intervals), intervals, order, "linear")
    weights, rates = schedule(column(schedule.joins, dtype))
    visited = list(visiting_order(schedule))
    for place, (weight, rate) in enumerate(zip(weights, rates, strict=True), start=1):
        assert weight[visited].tolist() == [1.0] * place + [0.0] * (len(intervals) - place)
        assert (rate[visited] > 0).tolist() == [i == place for i in range(len(intervals))]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("connection", ["cubic", "meyer"])
def test_rates_vanish_at_both_ends_of_a_band(connection, order):
    """C¹: Eq. 18 and Meyer's function join without a jump of the velocity."""
    schedule = HardBump(5, INTERVALS[5], order, connection)
    for join in (0.0, *schedule.joins, 1.0):
        k = column([join - 1e-7, join, join + 1e-7]).clamp(0, 1)
        assert schedule(k)[1].max() < 1e-7 * 6 * 14**2 + 1e-12  # |w''| ≤ 6/length², the shortest length is 1/14
    if connection == "meyer":  # three derivatives vanish, so the rate starts like t³
        assert schedule(column([schedule.joins[0] + 1e-3]))[1].max() < 140 * 14**4 * 1e-9


def test_linear_ramp_jumps_at_joins():
    """What its documentation says: constant speed inside a band, and a jump at every join."""
    schedule = HardBump(2, [1, 3], connection="linear")
    rates = schedule(column([0.0, 0.25 - 1e-9, 0.25, 1 - 1e-9, 1.0]))[1]
    assert rates.tolist() == [[4, 0], [4, 0], [0, 4 / 3], [0, 4 / 3], [0, 4 / 3]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("intervals", [[1, 2e-6], [2e-6, 1], [1, 3e-6, 1]])
def test_short_intervals_work(intervals, order, dtype):
    schedule = HardBump(len(intervals), intervals, order, "linear")
    weights, rates = schedule(torch.cat([torch.linspace(0, 1, 11, dtype=dtype), around_joins(schedule, dtype)]))
    assert weights.isfinite().all() and rates.isfinite().all() and ((rates > 0).sum(1) == 1).all()
    assert (weights[10] == 1).all() and (weights[0] == 0).all()


# --- soft bump


@every_soft
def test_soft_bump_against_quadrature(schedule):
    """Eq. 19 with the support cut at 0 and 1, integrated numerically."""
    intervals = INTERVALS[schedule.bands]
    for band in range(schedule.bands):
        centre = sum(literal_interval(schedule, intervals, band)) / 2

        def bump(k, centre=centre):
            x = (k - centre) / schedule.width
            return (1 - x * x) ** schedule.degree if abs(x) < 1 else 0.0

        # Narrow for large degree: break the range where the bump is and at its edges.
        spread = schedule.width / math.sqrt(schedule.degree)
        breaks = [centre + s * e for s in (-1, 1) for e in (schedule.width, 0.5 * spread, 2 * spread, 5 * spread)]
        points = [0, *sorted(x for x in [centre, *breaks] if 0 < x < 1), 1]

        def integral(low, high, bump=bump, points=points):
            inner = [low, *[p for p in points if low < p < high], high]
            return sum(quad(bump, a, b, epsabs=1e-15)[0] for a, b in zip(inner, inner[1:], strict=False))

        whole = integral(0, 1)
        for k in (0.0, 0.05, 0.2, 0.41, centre, 0.6, 0.83, 0.97, 1.0):
            weights, rates = schedule(column([k]))
            assert weights[0, band].item() == pytest.approx(integral(0, k) / whole, abs=1e-10)
            assert rates[0, band].item() == pytest.approx(bump(k) / whole, rel=1e-9, abs=1e-12)


@every_soft
def test_soft_joins_are_the_ends_of_the_supports(schedule):
    intervals = INTERVALS[schedule.bands]
    centres = [sum(literal_interval(schedule, intervals, band)) / 2 for band in range(schedule.bands)]
    ends = sorted(c + side * schedule.width for c in centres for side in (-1, 1))
    assert schedule.joins == pytest.approx([e for e in ends if 1e-9 < e < 1 - 1e-9], abs=1e-11)


@pytest.mark.parametrize("bands", range(1, 13))
@pytest.mark.parametrize("part", [1, 2, 3])
def test_support_that_ends_at_0_or_1_makes_no_join_there(bands, part):
    joins = SoftBump(bands, width=1 / bands / part).joins
    assert all(1e-9 < join < 1 - 1e-9 for join in joins)
    assert all(high - low > 1e-9 for low, high in zip(joins, joins[1:], strict=False))


def test_soft_band_is_still_outside_its_support():
    weights, rates = SoftBump(2, width=0.2)(column([0.0, 0.04, 0.46, 0.54, 0.96, 1.0]))
    assert weights.tolist() == [[0, 0], [0, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
    assert (rates == 0).all()


@pytest.mark.parametrize("degree", [1, 20, 100, 1000])
def test_soft_bump_of_large_degree_is_accurate(degree):
    """Against the incomplete beta function: ∫(1 − s²)ⁿ over [−1, x] is I_{(1+x)/2}(n + 1, n + 1)."""
    from scipy.special import betainc

    k = torch.linspace(0, 1, 201, dtype=torch.float64)
    weights = SoftBump(1, width=0.5, degree=degree)(k)[0][:, 0]  # the support is all of [0, 1]
    expected = torch.from_numpy(betainc(degree + 1, degree + 1, k.numpy()))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-13)


def test_very_wide_soft_bump_is_linear():
    k = torch.linspace(0, 1, 11, dtype=torch.float64)
    weights, rates = SoftBump(3, width=1e6)(k)
    torch.testing.assert_close(weights, k[:, None].expand(-1, 3), rtol=0, atol=1e-9)
    torch.testing.assert_close(rates, torch.ones_like(rates), rtol=0, atol=1e-9)


# --- errors


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HardBump(2, order="up"), "order is 'up', allowed are low-to-high, high-to-low"),
        (lambda: HardBump(2, connection="quartic"), "connection is 'quartic', allowed are cubic, meyer, linear"),
        (lambda: HardBump(0), "bands is 0, allowed is 1 or more"),
        (lambda: HardBump(2, [1, 2, 3]), r"intervals is \[1, 2, 3\], allowed are 2 positive numbers"),
        (lambda: HardBump(2, [1, 0]), "2 positive numbers"),
        (lambda: HardBump(2, [1, 1e-7]), "none below a millionth of their sum"),
        (lambda: HardBump(2, [1, -1]), "2 positive numbers"),
        (lambda: HardBump(2, [1, math.inf]), "2 positive numbers"),
        (lambda: HardBump(2, [1, math.nan]), "2 positive numbers"),
        (lambda: SoftBump(2, width=0), "width is 0, allowed are positive numbers"),
        (lambda: SoftBump(2, width=math.nan), "width is nan"),
        (lambda: SoftBump(2, width=math.inf), "width is inf"),
        (lambda: SoftBump(2, 0.5, degree=0), "degree is 0, allowed are whole numbers"),
        (lambda: SoftBump(2, 0.5, degree=1.5), "degree is 1.5, allowed are whole numbers"),
        (lambda: SoftBump(2, 0.5, degree=math.nan), "degree is nan"),
        (lambda: SoftBump(2, 0.5, order="down"), "order is 'down'"),
        (lambda: SoftBump(2, 0.5, intervals=[1]), "2 positive numbers"),
        (lambda: Linear().draw(3, uniform="t"), "uniform is 't', allowed are 'k' and 'w'"),
        (lambda: check_k(torch.tensor([0.5, 1.25, -3])), "k is 1.25, allowed are values from 0"),
        (lambda: check_k(torch.tensor([-0.5])), "k is -0.5"),
        (lambda: check_k(torch.tensor([math.nan])), "k is nan"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_check_k_gives_k_back():
    k = torch.tensor([0.0, 0.5, 1.0])
    assert check_k(k) is k
