"""The exact velocity: against independent algebra, against regression on drawn pairs, as a flow that ends in the data.

Also Eq. 12–14 and B.1 in the form in which they are true (errata 10 and 11), on distributions known exactly.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, multivariate_normal

from kflow.amplitude import PCA, Fourier, Identity, Wavelet
from kflow.flow import HardBump, Linear, Path, SoftBump
from kflow.velocity import GaussianOracle, KFlow, PointsOracle

torch.set_num_threads(1)

SHAPE = (1, 4, 4)
D = 16
ORDERS = ("low-to-high", "high-to-low")


def random(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PCA_BANDS = PCA.fit(random(100, *SHAPE, seed=9) * torch.linspace(0.2, 2, 16).view(SHAPE), 3)
PATHS = {
    "flow matching": Path(Identity(SHAPE), Linear()),
    "fourier": Path(Fourier(SHAPE), HardBump(2)),
    "fourier reversed": Path(Fourier(SHAPE), HardBump(2, order="high-to-low")),
    "fourier ramp": Path(Fourier(SHAPE), HardBump(2, connection="linear")),
    "haar unequal": Path(Wavelet(SHAPE, "haar", levels=2), HardBump(3, [3, 1, 2])),
    "haar soft": Path(Wavelet(SHAPE, "haar", levels=2), SoftBump(3, width=0.5)),
    "pca meyer reversed": Path(PCA_BANDS, HardBump(3, None, "high-to-low", "meyer")),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
# Hard bumps: bands one at a time, so that finished, active and waiting bands exist.
HARD = {name: path for name, path in PATHS.items() if isinstance(path.schedule, HardBump)}
every_hard_path = pytest.mark.parametrize("path", HARD.values(), ids=HARD.keys())


def gaussian(rank=D, seed=3):
    """A mean and a covariance that couples all bands, of a given rank; unit scale."""
    factor = random(D, rank, seed=seed) / math.sqrt(rank)
    return random(*SHAPE, seed=seed + 1), factor @ factor.T


def points(count=5, seed=5):
    return 1.5 * random(count, *SHAPE, seed=seed)


def projections(path):
    """P_b as matrices, (B, D, D), numpy."""
    basis = torch.eye(D, dtype=torch.float64).view(D, *SHAPE)
    return np.stack([path.decomposition.project(basis, b).flatten(1).numpy().T for b in range(path.bands)])


def at(k, count=1):
    return torch.full((count,), k, dtype=torch.float64)


def weight_matrices(path, k):
    """W = Σ w_b P_b and I − W, numpy."""
    w = np.tensordot(path.schedule(at(k))[0][0].numpy(), projections(path), 1)
    return w, np.eye(D) - w


def flat(x):
    return x.flatten(1).numpy()


def statuses(path, k):
    """Lists of the bands that are finished, active and waiting at k."""
    weights = path.schedule(at(k))[0][0].tolist()
    return (
        [b for b, w in enumerate(weights) if w == 1],
        [b for b, w in enumerate(weights) if 0 < w < 1],
        [b for b, w in enumerate(weights) if w == 0],
    )


def middle_of_bands(path):
    edges = [0.0, *path.schedule.joins, 1.0]
    return [low + 0.45 * (high - low) for low, high in zip(edges, edges[1:], strict=False)]


def onto(path, x, bands):
    return sum((path.decomposition.project(x, b) for b in bands), torch.zeros_like(x))


# --- E[δ | Ψ] against independent algebra


@every_path
@pytest.mark.parametrize("rank", [D, 5])
@pytest.mark.parametrize("k", [0.0, 0.12, 0.4, 0.5, 0.77, 0.99, 1.0])
def test_gaussian_displacement_is_the_conditional_expectation(path, rank, k):
    """From the joint covariance of (δ, Ψ) = M (φ, ε), by least squares in numpy."""
    mean, covariance = gaussian(rank)
    w, rest = weight_matrices(path, k)
    both = np.block([[covariance.numpy(), np.zeros((D, D))], [np.zeros((D, D)), np.eye(D)]])
    to_displacement, to_state = np.hstack([np.eye(D), -np.eye(D)]), np.hstack([w, rest])
    cross, own = to_displacement @ both @ to_state.T, to_state @ both @ to_state.T
    centre = mean.flatten().numpy()[:, None]
    data = centre + covariance.numpy() @ random(D, 4, seed=1).numpy()  # in the support, whatever the rank
    state = w @ data + rest @ random(D, 4).numpy()
    expected = centre + cross @ np.linalg.lstsq(own, state - w @ centre, rcond=1e-12)[0]
    got = GaussianOracle(mean, covariance, path).displacement(
        torch.from_numpy(state.T.copy()).view(4, *SHAPE), at(k, 4)
    )
    np.testing.assert_allclose(flat(got).T, expected, rtol=0, atol=1e-5)


@every_path
@pytest.mark.parametrize("blur", [0.3, 1.7])
@pytest.mark.parametrize("k", [0.0, 0.12, 0.4, 0.5, 0.77, 0.99, 1.0])
def test_points_displacement_is_the_posterior_mixture(path, blur, k):
    """Bayes with full covariance matrices, point by point."""
    data = points()
    w, rest = weight_matrices(path, k)
    own = blur**2 * w @ w + rest @ rest
    cross = blur**2 * w - rest
    states = path.state(data[:4], random(4, *SHAPE, seed=6), at(k, 4))
    got = PointsOracle(data, path, blur).displacement(states, at(k, 4))
    for state, ours in zip(flat(states), flat(got), strict=True):
        log = np.array([multivariate_normal.logpdf(state, w @ x, own) for x in flat(data)])
        posterior = np.exp(log - log.max())
        posterior /= posterior.sum()
        expected = sum(
            p * (x + cross @ np.linalg.solve(own, state - w @ x)) for p, x in zip(posterior, flat(data), strict=True)
        )
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


@every_path
@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_log_density_is_the_marginal_of_the_path(path, kind):
    """Differences of log p_k between states, against scipy's densities."""
    mean, covariance = gaussian()
    data, blur = points(), 0.4
    for k in (0.0, 0.3, 0.62, 1.0):
        w, rest = weight_matrices(path, k)
        states = random(3, *SHAPE, seed=8)
        if kind == "gaussian":
            oracle = GaussianOracle(mean, covariance, path)
            own = w @ covariance.numpy() @ w + rest @ rest
            expected = multivariate_normal.logpdf(flat(states), w @ mean.flatten().numpy(), (own + own.T) / 2)
        else:
            oracle = PointsOracle(data, path, blur)
            own = blur**2 * w @ w + rest @ rest
            each = [multivariate_normal.logpdf(flat(states), w @ x, (own + own.T) / 2) for x in flat(data)]
            expected = np.logaddexp.reduce(each)
        got = oracle.log_density(states, at(k, 3)).numpy()
        np.testing.assert_allclose(got - got[0], expected - expected[0], rtol=1e-9, atol=1e-8)


def test_score_is_the_gradient_of_the_log_density():
    oracle = PointsOracle(points(), PATHS["haar unequal"], blur=0.5)
    state, k, step = random(2, *SHAPE), torch.tensor([0.3, 0.8], dtype=torch.float64), 1e-5
    score = oracle.score(state, k)
    direction = random(2, *SHAPE, seed=1)
    change = oracle.log_density(state + step * direction, k) - oracle.log_density(state - step * direction, k)
    torch.testing.assert_close((score * direction).flatten(1).sum(1), change / (2 * step), rtol=1e-6, atol=1e-6)
    assert not score.requires_grad


# --- E[δ | Ψ] against drawn pairs


@pytest.mark.parametrize("name", ["flow matching", "fourier", "fourier reversed", "haar soft"])
@pytest.mark.parametrize("k", [0.2, 0.7])
def test_gaussian_displacement_is_the_regression_on_drawn_pairs(name, k):
    """δ regressed on Ψ by least squares over 20,000 pairs; agreement within the error of the regression."""
    path, count = PATHS[name], 20_000
    mean, covariance = gaussian()
    data = mean + (random(count, D, seed=11) @ torch.linalg.cholesky(covariance).T).view(-1, *SHAPE)
    noise = random(count, *SHAPE, seed=12)
    state = path.state(data, noise, at(k, count))
    design = np.hstack([np.ones((count, 1)), flat(state)])
    coefficients, *_ = np.linalg.lstsq(design, flat(data - noise), rcond=None)
    fitted = design[:500] @ coefficients
    exact = flat(GaussianOracle(mean, covariance, path).displacement(state[:500], at(k, 500)))
    residual = flat(data - noise) - design @ coefficients
    expected_error = residual.std(0) * math.sqrt(design.shape[1] / count)
    assert (np.sqrt(((fitted - exact) ** 2).mean(0)) < 2 * expected_error + 1e-12).all()


@every_path
@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_points_displacement_leaves_an_unpredictable_rest(path, blur):
    """E[(δ − E[δ | Ψ]) g(Ψ)] = 0 for any g: what makes it the conditional expectation. Over 40,000 drawn pairs."""
    count = 40_000
    data = points(4)
    oracle = PointsOracle(data, path, blur)
    for k in (0.35, 0.6):
        chosen = torch.randint(4, (count,), generator=torch.Generator().manual_seed(0))
        drawn, noise = data[chosen] + blur * random(count, *SHAPE, seed=1), random(count, *SHAPE, seed=2)
        state = path.state(drawn, noise, at(k, count))
        rest = flat(drawn - noise - oracle.displacement(state, at(k, count)))
        for g in (np.ones_like, lambda x: x, np.tanh, np.abs, lambda x: x * np.roll(x, 1, axis=1)):
            products = (rest * g(flat(state))).mean(0)
            errors = (rest * g(flat(state))).std(0) / math.sqrt(count)
            assert (np.abs(products) <= 5 * errors + 1e-9).all()


# --- the flow ends in the data


def graded_grid(joins, steps):
    """Rising k with every join in it, fine towards the end of each interval, where a finishing band is stiff."""
    edges = [0.0, *joins, 1.0]
    fine = 1 - (1 - np.linspace(0, 1, steps + 1)) ** 3
    return np.unique(np.concatenate([low + (high - low) * fine for low, high in zip(edges, edges[1:], strict=False)]))


def runge_kutta(oracle, state, grid):
    """The oracle's flow from noise, RK4; yields (k, state). A step's end is asked a hair before it."""
    yield grid[0], state
    for low, high in zip(grid, grid[1:], strict=False):
        step = high - low
        last = np.nextafter(high, low)

        def velocity(k, x):
            return oracle.velocity(x, at(k, len(x)))

        first = velocity(low, state)
        second = velocity(low + step / 2, state + step / 2 * first)
        third = velocity(low + step / 2, state + step / 2 * second)
        fourth = velocity(last, state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        yield high, state


@every_path
@pytest.mark.parametrize("rank", [D, 5])
def test_the_flow_of_a_gaussian_has_its_mean_and_covariance(path, rank):
    """The flow is affine, x ↦ A x + c: integrated on 0 and the unit vectors, so c = m and A Aᵀ = C without sampling.

    On the way, at every k: c = W m and A Aᵀ = W C W + (I − W)².
    """
    mean, covariance = gaussian(rank)
    oracle = GaussianOracle(mean, covariance, path)
    start = torch.cat([torch.zeros(1, D), torch.eye(D)]).double().view(-1, *SHAPE)
    grid = graded_grid(path.schedule.joins, steps=40)
    for step, (k, state) in enumerate(runge_kutta(oracle, start, grid)):
        if step % 20 and k < 1:
            continue
        w, rest = weight_matrices(path, k)
        offset = flat(state)[0]
        matrix = (flat(state)[1:] - offset).T
        np.testing.assert_allclose(offset, w @ mean.flatten().numpy(), rtol=0, atol=5e-5)
        np.testing.assert_allclose(matrix @ matrix.T, w @ covariance.numpy() @ w + rest @ rest, rtol=0, atol=5e-5)
    assert k == 1
    np.testing.assert_allclose(matrix @ matrix.T, covariance.numpy(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", [n for n in PATHS if n != "fourier ramp"])
def test_the_flow_of_an_empirical_set_ends_in_its_points(name):
    path, data, count = PATHS[name], points(4), 400
    *_, (_, end) = runge_kutta(
        PointsOracle(data, path), random(count, *SHAPE, seed=21), graded_grid(path.schedule.joins, 40)
    )
    distance, nearest = torch.cdist(end.flatten(1), data.flatten(1)).min(1)
    # A few start on a watershed between two points, where a fixed grid is too coarse.
    assert distance.quantile(0.95) < 1e-3
    # Each point is reached with the probability that it has: 1/4.
    assert chisquare(torch.bincount(nearest, minlength=4).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("order", ORDERS)
def test_the_flow_of_blurred_points_is_their_mixture(order):
    """In one dimension the flow is monotone, so it maps the quantiles of the noise to those of the mixture."""
    shape, blur = (1, 1, 1), 0.25
    centres = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64).view(3, *shape)
    path = Path(Identity(shape), HardBump(1, order=order))
    noise = torch.linspace(-3, 3, 41, dtype=torch.float64).view(-1, *shape)
    *_, (_, end) = runge_kutta(PointsOracle(centres, path, blur), noise, graded_grid((), 400))
    normal = torch.distributions.Normal(0.0, 1.0)
    mixture = normal.cdf((end.flatten()[:, None] - centres.flatten()) / blur).mean(1)
    torch.testing.assert_close(mixture, normal.cdf(noise.flatten()), rtol=0, atol=1e-5)


# --- PointsOracle at its limits


@every_path
def test_one_point_is_met_exactly(path):
    """With one point Ψ tells the noise of every unfinished band, so δ is known there."""
    point, noise = points(1), random(6, *SHAPE)
    k = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.97], dtype=torch.float64)
    state = path.state(point.expand(6, *SHAPE), noise, k)
    got = PointsOracle(point, path).displacement(state, k)
    unfinished = (path.schedule(k)[0] < 0.999).double()
    reweight = path.decomposition.reweight
    torch.testing.assert_close(reweight(got, unfinished), reweight(point - noise, unfinished), rtol=0, atol=1e-4)
    velocity = PointsOracle(point, path).velocity(state, k)
    torch.testing.assert_close(velocity, path.velocity(point.expand(6, *SHAPE), noise, k), rtol=0, atol=1e-4)


@every_path
@pytest.mark.parametrize("blur", [0.2, 1.0])
@settings(max_examples=10, deadline=None)
@given(k=st.floats(0, 1))
def test_one_blurred_point_is_a_gaussian(path, blur, k):
    point, state = points(1), random(3, *SHAPE, seed=4)
    mixture = PointsOracle(point, path, blur)
    normal = GaussianOracle(point[0], blur**2 * torch.eye(D, dtype=torch.float64), path)
    torch.testing.assert_close(
        mixture.displacement(state, at(k, 3)), normal.displacement(state, at(k, 3)), rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(
        mixture.velocity(state, at(k, 3)), normal.velocity(state, at(k, 3)), rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(mixture.score(state, at(k, 3)), normal.score(state, at(k, 3)), rtol=1e-7, atol=1e-7)


@every_path
def test_blur_0_is_the_limit_of_small_blur(path):
    """The velocity, in which what diverges in the displacement is multiplied by a rate that vanishes."""
    data = points()
    k = torch.linspace(0, 0.9, 10, dtype=torch.float64)
    state = path.state(data[:1].expand(10, *SHAPE), random(10, *SHAPE), k)
    limit = PointsOracle(data, path).velocity(state, k)
    gaps = [
        (PointsOracle(data, path, blur).velocity(state, k) - limit).abs().max() for blur in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    gaps = [gap.item() for gap in gaps]
    assert gaps[0] > gaps[1] > gaps[2] > 1e-7
    assert gaps[3] == pytest.approx(gaps[2] / 100, rel=0.2)  # the gap falls as blur²


@every_path
def test_blur_0_is_finite_everywhere_in_both_precisions(path):
    """At and around ends and joins, on the path and far from it; float32 tells what float64 tells."""
    data = points()
    edges = torch.tensor([0.0, *path.schedule.joins, 1.0])
    k = torch.cat(
        [edges, *(torch.nextafter(edges, torch.tensor(to)) for to in (0.0, 1.0)), edges * 0.999, edges * 0.99]
    )
    oracle = PointsOracle(data, path)
    for far in (0.0, 3.0):
        state = path.state(data[:1].expand(len(k), *SHAPE).float(), random(len(k), *SHAPE).float(), k) + far
        assert oracle.displacement(state, k).dtype == torch.float32
        single, double = oracle.velocity(state, k), oracle.velocity(state.double(), k.double())
        assert single.isfinite().all() and double.isfinite().all()
        if far == 0:
            torch.testing.assert_close(single, double.float(), rtol=1e-2, atol=1e-2)
        preview = oracle.preview(state, k)
        assert preview.isfinite().all() and oracle.log_density(state, k).isfinite().all()
    at_the_end = oracle.preview(state[-1:] * 0 + data[:1].float(), torch.ones(1))
    torch.testing.assert_close(at_the_end, data[:1].float(), rtol=0, atol=1e-5)


@every_hard_path
def test_a_finished_band_keeps_the_nearest_points(path):
    """Two of four points agree in the band that comes first: once it is finished, exactly those two are left."""
    first = 0 if path.schedule.order == "low-to-high" else path.bands - 1
    data = points(4)
    data[1] = onto(path, data[:1], [first])[0] + onto(path, data[1:2], [b for b in range(path.bands) if b != first])[0]
    oracle = PointsOracle(data, path)
    k = path.schedule.joins[0]
    state = onto(path, data[:1], [first]) + onto(path, random(1, *SHAPE), [b for b in range(path.bands) if b != first])
    # A solver is never exactly on the point.
    state = state + 1e-4 * random(1, *SHAPE, seed=2)
    mean = oracle.preview(state, at(k))
    expected = (data[0] + data[1])[None] / 2
    torch.testing.assert_close(mean, expected, rtol=0, atol=2e-3)


# --- Eq. 12–13: while band b moves, finished bands have the data's marginal, waiting ones are noise


@every_hard_path
@pytest.mark.parametrize("rank", [D, 5])
def test_telescoping_density_of_a_gaussian(path, rank):
    """Exactly, on the blocks of the covariance of Ψ_k, which the oracle keeps as S."""
    mean, covariance = gaussian(rank)
    oracle, p = GaussianOracle(mean, covariance, path), projections(path)
    for k in middle_of_bands(path):
        finished, active, waiting = statuses(path, k)
        assert len(active) == 1 and len(finished) + len(waiting) == path.bands - 1
        _, middle, s = (x.numpy() for x in oracle._moments(torch.tensor(k, dtype=torch.float64)))
        done, wait = (sum((p[b] for b in bands), np.zeros((D, D))) for bands in (finished, waiting))
        np.testing.assert_allclose(done @ s @ done, done @ covariance.numpy() @ done, atol=1e-12)
        np.testing.assert_allclose(done @ middle, done @ mean.flatten().numpy(), atol=1e-12)
        np.testing.assert_allclose(wait @ s, wait, atol=1e-12)  # unit variance, and independent of all else
        np.testing.assert_allclose(wait @ middle, 0, atol=1e-12)


@every_hard_path
@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_density_factorises_into_waiting_noise_and_the_rest(path, kind):
    """log p_k(rest + noise) = log p_k(rest + 0) − ½‖noise‖², whatever the rest (Eq. 13)."""
    oracle = GaussianOracle(*gaussian(), path) if kind == "gaussian" else PointsOracle(points(), path, blur=0.5)
    for k in middle_of_bands(path):
        *_, waiting = statuses(path, k)
        rest = random(3, *SHAPE, seed=1)
        rest = rest - onto(path, rest, waiting)
        noise = onto(path, random(3, *SHAPE, seed=2), waiting)
        change = oracle.log_density(rest + noise, at(k, 3)) - oracle.log_density(rest, at(k, 3))
        torch.testing.assert_close(change, -0.5 * noise.square().flatten(1).sum(1), rtol=0, atol=1e-8)


@every_hard_path
@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_finished_bands_have_the_marginal_of_the_data(path, kind):
    """At a join, where nothing is half done, log p_k of the finished bands is the data's marginal (Eq. 12–13)."""
    mean, covariance = gaussian()
    data, blur = points(), 0.5
    oracle = GaussianOracle(mean, covariance, path) if kind == "gaussian" else PointsOracle(data, path, blur)
    for k in path.schedule.joins:
        finished, active, waiting = statuses(path, k)
        assert finished and waiting and not active
        values, vectors = np.linalg.eigh(sum(projections(path)[b] for b in finished))
        basis = vectors[:, values > 0.5]  # orthonormal, of the finished bands
        state = onto(path, random(4, *SHAPE, seed=3), finished)
        got = oracle.log_density(state, at(k, 4)).numpy()
        part = flat(state) @ basis
        if kind == "gaussian":
            inner = basis.T @ covariance.numpy() @ basis
            expected = multivariate_normal.logpdf(part, basis.T @ mean.flatten().numpy(), (inner + inner.T) / 2)
        else:
            one = [multivariate_normal.logpdf(part, basis.T @ x, blur**2 * np.eye(basis.shape[1])) for x in flat(data)]
            expected = np.logaddexp.reduce(one)
        np.testing.assert_allclose(got - got[0], np.atleast_1d(expected - expected[0]), rtol=1e-8, atol=1e-8)


# --- Eq. 14: noise splitting, and erratum 11


@every_hard_path
@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_velocity_does_not_depend_on_waiting_noise_at_all(path, kind):
    oracle = GaussianOracle(*gaussian(), path) if kind == "gaussian" else PointsOracle(points(), path, blur=1.5)
    for k in middle_of_bands(path):
        finished, active, waiting = statuses(path, k)
        state = path.state(points(3), random(3, *SHAPE), at(k, 3))
        other = state + 5 * onto(path, random(3, *SHAPE, seed=7), waiting)
        torch.testing.assert_close(
            oracle.velocity(other, at(k, 3)), oracle.velocity(state, at(k, 3)), rtol=0, atol=1e-9
        )
        # But on the finished bands it does: that is what ties the bands together.
        if finished:
            other = state + onto(path, random(3, *SHAPE, seed=7), finished)
            assert (oracle.velocity(other, at(k, 3)) - oracle.velocity(state, at(k, 3))).abs().max() > 1e-3


@pytest.mark.parametrize("order", ORDERS)
def test_the_band_that_comes_first_is_fixed_by_its_own_noise(order):
    """Low-to-high fixes low content whatever the high noise; in reversed order low noise does not fix low content."""
    path = Path(Fourier(SHAPE), HardBump(2, order=order))
    oracle = GaussianOracle(*gaussian(), path)
    low, high = onto(path, random(1, *SHAPE, seed=1), [0]), onto(path, random(6, *SHAPE, seed=2), [1])
    *_, (_, end) = runge_kutta(oracle, low + high, graded_grid(path.schedule.joins, 25))
    spread = onto(path, end, [0]).std(0).max()
    assert spread < 1e-9 if order == "low-to-high" else spread > 0.1


# --- B.1: velocity and score, and erratum 10


@every_path
@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_velocity_is_a_score_band_by_band(path, kind):
    """v = Σ_b P_b(w'/w·Ψ + w'(1 − w)/w·∇log p), over the bands that have begun."""
    oracle = GaussianOracle(*gaussian(), path) if kind == "gaussian" else PointsOracle(points(), path, blur=0.5)
    for k in middle_of_bands(path) if path in HARD.values() else (0.2, 0.35, 0.6, 0.8):
        state = path.state(points(3), random(3, *SHAPE, seed=3), at(k, 3))
        score = oracle.score(state, at(k, 3))
        weights, rates = path.schedule(at(k, 3))
        safe = weights.clamp(min=1e-9)
        begun = (weights > 1e-3) * (rates > 0.1)
        got = path.decomposition.reweight(oracle.velocity(state, at(k, 3)), begun.double())
        of_state = path.decomposition.reweight(state, begun * rates / safe)
        of_score = path.decomposition.reweight(score, begun * rates * (1 - weights) / safe)
        assert begun.any()
        torch.testing.assert_close(of_state + of_score, got, rtol=0, atol=1e-8)


@every_hard_path
def test_the_scalar_form_of_the_paper_moves_waiting_bands(path):
    """a_t Ψ + b_t ∇log p right in the active band: a waiting band, whose score is −Ψ, moves by w' Ψ."""
    oracle = GaussianOracle(*gaussian(), path)
    for k in middle_of_bands(path)[:-1]:
        finished, (active,), waiting = statuses(path, k)
        state = path.state(points(3), random(3, *SHAPE, seed=3), at(k, 3))
        weights, rates = (v[0, active] for v in path.schedule(at(k)))
        score = oracle.score(state, at(k, 3))
        scalar = rates / weights * state + rates * (1 - weights) / weights * score
        exact = oracle.velocity(state, at(k, 3))
        tolerance = {"rtol": 0, "atol": 1e-8}
        torch.testing.assert_close(onto(path, score, waiting), -onto(path, state, waiting), **tolerance)
        torch.testing.assert_close(onto(path, scalar, [active]), onto(path, exact, [active]), **tolerance)
        torch.testing.assert_close(onto(path, scalar, waiting), rates * onto(path, state, waiting), **tolerance)
        assert onto(path, exact, waiting).abs().max() < 1e-9 < 0.1 < onto(path, scalar, waiting).abs().max()


# --- as a model


@every_path
def test_velocity_is_the_rate_of_each_band_times_the_displacement(path):
    oracle = GaussianOracle(*gaussian(), path)
    state, k = random(4, *SHAPE), torch.tensor([0.1, 0.4, 0.4, 0.9], dtype=torch.float64)
    rates = path.schedule(k)[1]
    parts = path.decomposition.split(oracle.displacement(state, k))
    expected = sum(rates[:, b, None, None, None] * parts[b] for b in range(path.bands))
    torch.testing.assert_close(oracle.velocity(state, k), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(oracle.velocity(state, k, None, 3.0), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_samples_of_one_batch_may_stand_at_different_k(kind):
    path = PATHS["haar unequal"]
    oracle = GaussianOracle(*gaussian(), path) if kind == "gaussian" else PointsOracle(points(), path)
    state, k = random(4, *SHAPE), torch.tensor([0.9, 0.1, 0.45, 0.1], dtype=torch.float64)
    for method in (oracle.displacement, oracle.velocity, oracle.score, oracle.log_density):
        together = method(state, k)
        apart = torch.cat([method(state[i : i + 1], k[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_single_precision_comes_from_double(kind):
    path = PATHS["fourier"]
    oracle = (
        GaussianOracle(*(x.float() for x in gaussian(5)), path) if kind == "gaussian" else PointsOracle(points(), path)
    )
    state, k = path.state(points(3), random(3, *SHAPE), at(0.3, 3)), at(0.3, 3)
    for method in (oracle.displacement, oracle.velocity, oracle.score, oracle.log_density):
        single, double = method(state.float(), k.float()), method(state, k)
        assert single.dtype == torch.float32 and double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_the_oracle_is_a_model_with_the_least_loss():
    path = PATHS["fourier"]
    oracle = PointsOracle(points(3), path)
    assert isinstance(oracle, KFlow) and oracle.output == "displacement"
    generator = torch.Generator().manual_seed(0)
    data, noise = points(3)[torch.randint(3, (2000,), generator=generator)], random(2000, *SHAPE)
    k = torch.rand(2000, generator=generator, dtype=torch.float64)
    blurred = PointsOracle(points(3), path, blur=0.5)
    assert oracle.loss(data, noise, k).mean() < 0.98 * blurred.loss(data, noise, k).mean()


@pytest.mark.parametrize(
    "oracle", [GaussianOracle(*gaussian(), PATHS["fourier"]), PointsOracle(points(), PATHS["fourier"])]
)
def test_k_outside_0_to_1_is_named(oracle):
    state = random(1, *SHAPE)
    for method in (oracle.velocity, oracle.predict, oracle.preview):
        with pytest.raises(ValueError, match="k is 1.5, allowed are values from 0"):
            method(state, at(1.5))
    with pytest.raises(ValueError, match="k is -0.5"):
        oracle.increment(state, at(-0.5), at(0.5), at(0.2))


@pytest.mark.parametrize("blur", [-0.1, math.nan])
def test_negative_blur_is_named(blur):
    with pytest.raises(ValueError, match=f"blur is {blur}, allowed is 0 or more"):
        PointsOracle(points(), PATHS["fourier"], blur)
