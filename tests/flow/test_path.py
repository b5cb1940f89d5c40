"""Ψ_k and dΨ_k/dk: exact ends, the derivative, and each equation of the paper as the design reads it, term by term."""

import math
from fractions import Fraction

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from kflow.amplitude import PCA, Fourier, Identity, Meyer, Wavelet
from kflow.flow import HardBump, Linear, Path, SoftBump

torch.set_num_threads(1)

N = 8
SHAPE = (2, N, N)
DECOMPOSITIONS = {
    "identity": Identity(SHAPE),
    "fourier 2": Fourier(SHAPE),
    "fourier 3": Fourier(SHAPE, 3, cuts=[0.2, 0.7]),
    "fourier 5": Fourier(SHAPE, 5),
    "haar 3": Wavelet(SHAPE, "haar", levels=2),
    "db6": Wavelet(SHAPE, "db6"),
    "db2 orthogonalized": Wavelet(SHAPE, "db2", boundary="orthogonalized"),
    "meyer": Meyer(SHAPE),
    "pca 3": PCA.fit(torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0)), 3, cuts=[0.1, 0.5]),
    "pca 5": PCA.fit(torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(1)), 5),
}
INTERVALS = {1: [3], 2: [3, 1], 3: [0.2, 0.1, 0.7], 5: [1, 2, 3, 1, 7]}
ORDERS = ("low-to-high", "high-to-low")
SCHEDULES = {
    "linear": lambda bands: Linear(bands),
    "cubic": lambda bands: HardBump(bands),
    "cubic unequal": lambda bands: HardBump(bands, INTERVALS[bands]),
    "cubic unequal reversed": lambda bands: HardBump(bands, INTERVALS[bands], "high-to-low"),
    "meyer unequal": lambda bands: HardBump(bands, INTERVALS[bands], connection="meyer"),
    "ramp unequal reversed": lambda bands: HardBump(bands, INTERVALS[bands], "high-to-low", "linear"),
    "soft": lambda bands: SoftBump(bands, width=0.6, intervals=INTERVALS[bands]),
    "soft narrow reversed": lambda bands: SoftBump(bands, width=0.11, degree=7, order="high-to-low"),
}
PATHS = {
    (d, s): Path(DECOMPOSITIONS[d], make(DECOMPOSITIONS[d].bands))
    for d in DECOMPOSITIONS
    for s, make in SCHEDULES.items()
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=[" / ".join(key) for key in PATHS])


def pair(count, dtype=torch.float64, seed=0, shape=SHAPE):
    """Data, not centred and not of unit size, and white noise."""
    generator = torch.Generator().manual_seed(seed)
    data = 0.7 + 2 * torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return data.to(dtype), noise.to(dtype)


# --- what holds for every path


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ends_are_noise_and_data_to_the_bit(path, dtype):
    data, noise = pair(3, dtype)
    k_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for at, expected in ((0, noise), (1, data)):
        state, velocity = path.sample(data, noise, torch.full((3,), at, dtype=k_dtype))
        assert torch.equal(state, expected) and state.dtype == velocity.dtype == dtype
    # Samples of one batch stand at different k.
    mixed = path.state(data, noise, torch.tensor([1, 0, 1], dtype=k_dtype))
    assert torch.equal(mixed, torch.stack([data[0], noise[1], data[2]]))


@every_path
def test_velocity_is_the_derivative_of_the_state(path):
    data, noise = pair(9)
    k, step = torch.linspace(0.03, 0.98, 9, dtype=torch.float64), 1e-6
    joins = torch.tensor(path.schedule.joins, dtype=torch.float64)
    if len(joins):
        assert (k[:, None] - joins).abs().min() > 2 * step
    after, before = path.state(data, noise, k + step), path.state(data, noise, k - step)
    torch.testing.assert_close((after - before) / (2 * step), path.velocity(data, noise, k), rtol=1e-5, atol=3e-7)


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_is_the_sum_over_bands(path, dtype):
    """ε + Σ_b w_b P_b δ and Σ_b w_b' P_b δ, one band and one sample at a time."""
    data, noise = pair(5, dtype)
    k = torch.tensor([0.05, 0.24, 0.51, 0.77, 0.93], dtype=dtype)
    state, velocity = path.sample(data, noise, k)
    weights, rates = path.schedule(k)
    tolerance = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 1e-12}
    for i in range(5):
        expected_state, expected_velocity = noise[i].clone(), torch.zeros_like(noise[i])
        for band in range(path.bands):
            part = path.decomposition.project((data - noise)[i : i + 1], band)[0]
            expected_state += weights[i, band] * part
            expected_velocity += rates[i, band] * part
        torch.testing.assert_close(state[i], expected_state, **tolerance)
        torch.testing.assert_close(velocity[i], expected_velocity, rtol=0, atol=20 * tolerance["atol"])
    assert torch.equal(path.state(data, noise, k), state) and torch.equal(path.velocity(data, noise, k), velocity)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_band_outside_its_interval_does_not_move(name, order):
    decomposition = DECOMPOSITIONS[name]
    bands = decomposition.bands
    path = Path(decomposition, HardBump(bands, INTERVALS[bands], order))
    data, noise = pair(1)
    visited = list(range(bands))[:: 1 if order == "low-to-high" else -1]
    edges = [0.0, *path.schedule.joins, 1.0]
    for active, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        state, velocity = path.sample(data, noise, torch.tensor([low + 0.4 * (high - low)], dtype=torch.float64))
        for place, band in enumerate(visited):
            state_part = decomposition.project(state, band)
            velocity_part = decomposition.project(velocity, band)
            if place == active:
                assert velocity_part.norm() > 0.1
                continue
            source = data if place < active else noise
            torch.testing.assert_close(state_part, decomposition.project(source, band), rtol=0, atol=1e-12)
            torch.testing.assert_close(velocity_part, torch.zeros_like(velocity_part), rtol=0, atol=1e-11)


def test_velocity_is_continuous_at_joins_but_for_the_ramp():
    data, noise = pair(1)
    for connection, continuous in (("cubic", True), ("meyer", True), ("linear", False)):
        path = Path(DECOMPOSITIONS["haar 3"], HardBump(3, INTERVALS[3], connection=connection))
        for join in path.schedule.joins:
            before, after = (path.velocity(data, noise, torch.tensor([join + s * 1e-8]).double()) for s in (-1, 1))
            jump = (after - before).norm() / data.norm()
            assert (jump < 1e-5) == continuous and (jump > 0.3) != continuous


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
)
def test_one_linear_band_is_flow_matching_to_the_bit(dtype, shape, seed):
    data, noise = pair(4, dtype, seed, shape)
    k = torch.rand(4, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    state, velocity = Path(Identity(shape), Linear()).sample(data, noise, k)
    assert torch.equal(state, torch.lerp(noise, data, k[:, None, None, None]))
    assert torch.equal(velocity, data - noise)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_linear_schedule_is_flow_matching_in_any_decomposition(name):
    data, noise = pair(4, torch.float32)
    k = torch.rand(4)
    state, velocity = Path(DECOMPOSITIONS[name], Linear(DECOMPOSITIONS[name].bands)).sample(data, noise, k)
    assert torch.equal(state, torch.lerp(noise, data, k[:, None, None, None]))
    assert torch.equal(velocity, data - noise)


def test_state_and_velocity_come_from_one_analysis(monkeypatch):
    path, calls = PATHS["fourier 2", "cubic"], []
    reweight = path.decomposition.reweight
    monkeypatch.setattr(path.decomposition, "reweight", lambda *a: calls.append(a[1].shape) or reweight(*a))
    path.sample(*pair(2), torch.tensor([0.2, 0.7]))
    assert calls == [(2, 2, 2)]  # two weight sets at once


def test_gradients_reach_data_and_noise():
    data, noise = (x.requires_grad_() for x in pair(1))
    path = PATHS["fourier 3", "cubic unequal"]
    (path.state(data, noise, torch.tensor([0.6])) ** 2).sum().backward()
    assert data.grad.abs().sum() > 0 and noise.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("data", "noise", "k", "named"),
    [
        ((2, *SHAPE), (2, *SHAPE), [0.5, 1.5], "k is 1.5, allowed are values from 0"),
        ((2, *SHAPE), (2, *SHAPE), [-0.25, 0.5], "k is -0.25"),
        ((2, *SHAPE), (2, *SHAPE), [math.nan, 0.5], "k is nan"),
        ((2, *SHAPE), (1, *SHAPE), [0.5, 0.5], r"noise \(1, 2, 8, 8\) .* do not fit"),
        ((2, *SHAPE), (2, *SHAPE), [0.5], r"k \(1,\) do not fit"),
        ((2, *SHAPE), (2, *SHAPE), 0.5, r"k \(\) do not fit"),
        ((2, 2, 4, 4), (2, 2, 4, 4), [0.5, 0.5], r"\(2, 2, 4, 4\).*allowed"),
    ],
)
def test_errors_name_what_does_not_fit(data, noise, k, named):
    with pytest.raises(ValueError, match=named):
        PATHS["fourier 2", "cubic"].sample(torch.zeros(data), torch.zeros(noise), torch.tensor(k))


def test_decomposition_and_schedule_must_have_equal_bands():
    with pytest.raises(ValueError, match="the decomposition has 2 bands, the schedule 3: allowed are equal"):
        Path(Fourier(SHAPE), HardBump(3))


# --- the paper's equations, transcribed literally as the design reads them (errata 1 to 6)
#
# μ is the weight of the noise in Eq. 8, 9, 15 and 16 (Eq. 18 falls from 1 to 0), and that of the data in Eq. 20.
# ε stands for the transform of real noise. The lattice is that of integer frequencies, k_max its corner's radius.


def frequencies():
    """(row, column, kx² + ky²) of the N×N lattice, frequencies from −N/2 to N/2 − 1."""
    for row in range(N):
        for column in range(N):
            kx, ky = (f - N if f >= N // 2 else f for f in (row, column))
            yield row, column, kx * kx + ky * ky


K_MAX = math.sqrt(2 * (N // 2) ** 2)


def mu(t):
    """Eq. 18."""
    return 1 - 3 * t**2 + 2 * t**3


def mu_prime(t):
    return -6 * t + 6 * t**2


def in_fourier(data, noise, coefficient):
    """F⁻¹ of coefficient(kx² + ky², Fφ, Fε), frequency by frequency, channel by channel; it must come out real."""
    result = np.zeros(data.shape)
    for channel in range(len(data)):
        transformed, transformed_noise = np.fft.fft2(data[channel]), np.fft.fft2(noise[channel])
        spectrum = np.zeros((N, N), dtype=complex)
        for row, column, square in frequencies():
            spectrum[row, column] = coefficient(square, transformed[row, column], transformed_noise[row, column])
        signal = np.fft.ifft2(spectrum)
        assert abs(signal.imag).max() < 1e-12
        result[channel] = signal.real
    return result


def compare(got, expected):
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-11)


def ask(path, data, noise, k):
    state, velocity = path.sample(data, noise, torch.tensor([k], dtype=torch.float64))
    return state[0], velocity[0]


# Bands [j, j + 1) of the integer radius, K of them; the cut lies a hair below j, where no lattice radius is.
K = math.floor(K_MAX) + 1
INTEGER_BANDS = Fourier(SHAPE, K, cuts=[(j - 0.01) / K_MAX for j in range(1, K)])


@pytest.mark.parametrize("connection", ["cubic", "meyer", "linear"])
def test_equation_7_at_the_joins(connection):
    """φ_k keeps the data up to k and pads the rest with noise; every schedule passes through it at its joins.

    Eq. 7 has ≤ k where Eq. 8 has < ⌊k⌋: they differ on the lattice points of radius k exactly (erratum 4). So Eq. 7 is
    met as printed where k is moved between two radii, and with < where it isn't.
    """
    data, noise = pair(1)
    path = Path(INTEGER_BANDS, HardBump(K, connection=connection))
    for k in range(K + 1):
        got = ask(path, data, noise, k / K)[0]
        printed, strict, hair = (
            in_fourier(data[0].numpy(), noise[0].numpy(), lambda square, f, e, test=test: f if test(square) else e)
            for test in (lambda s: s <= k * k, lambda s: s < k * k, lambda s: math.sqrt(s) <= k - 0.001)  # noqa: B023
        )
        compare(got, strict)
        compare(got, hair)
        on_radius = any(square == k * k for *_, square in frequencies())
        assert (abs(printed - strict).max() > 1e-3) == on_radius


@pytest.mark.parametrize("k", [0.0, 0.3, 1.0, 1.75, 2.5, 3.0, 4.99, 5.2, 5.999])
def test_equations_8_and_9(k):
    """With integer bands; the library's k is the paper's k/K, so its derivative is K times the paper's."""
    data, noise = pair(1)
    state, velocity = ask(Path(INTEGER_BANDS, HardBump(K)), data, noise, k / K)
    floor = math.floor(k)
    t = k - floor

    def equation_8(square, f, e):
        radius = math.sqrt(square)
        below = 1 if radius < floor else 0
        above = 1 if radius >= floor + 1 else 0
        inside = 1 if floor <= radius < floor + 1 else 0
        return below * f + above * e + inside * ((1 - mu(t)) * f + mu(t) * e)

    def equation_9(square, f, e):
        inside = 1 if floor <= math.sqrt(square) < floor + 1 else 0
        return inside * mu_prime(t) * (e - f)

    compare(state, in_fourier(data[0].numpy(), noise[0].numpy(), equation_8))
    compare(velocity, K * in_fourier(data[0].numpy(), noise[0].numpy(), equation_9))


@pytest.mark.parametrize("cuts", [["1/2"], ["1/4", "3/5"]])
@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.8])
def test_equation_15(cuts, place):
    """Between k_m and k_n of {0, cuts…, k_max}; k runs as the radius does, so the intervals are as long as the bands.

    t runs to k_n − k_m there, and Eq. 18 lives on [0, 1] (erratum 4): t/(k_n − k_m) is meant; dΨ/dk has 1/(k_n − k_m).
    For two bands these are the paper's {0, k_max/2, k_max}, with lattice points exactly on the cut.
    """
    data, noise = pair(1)
    edges = [Fraction(0), *map(Fraction, cuts), Fraction(1)]
    lengths = [float(high - low) for low, high in zip(edges, edges[1:], strict=False)]
    path = Path(Fourier(SHAPE, len(lengths), [float(c) for c in edges[1:-1]]), HardBump(len(lengths), lengths))
    corner = 2 * (N // 2) ** 2  # k_max²
    for k_m, k_n in zip(edges, edges[1:], strict=False):
        length = float(k_n - k_m)
        t = place * length

        def below(square, cut):
            return square < cut * cut * corner or cut == 1  # noqa: B023 - the top band is closed at k_max

        def equation_15(square, f, e):
            before = 1 if below(square, k_m) else 0  # noqa: B023
            after = 0 if below(square, k_n) else 1  # noqa: B023
            inside = 1 - before - after
            m = mu(t / length)  # noqa: B023
            return before * f + after * e + inside * ((1 - m) * f + m * e)

        def derivative(square, f, e):
            inside = below(square, k_n) and not below(square, k_m)  # noqa: B023
            return inside * mu_prime(t / length) / length * (e - f)  # noqa: B023

        state, velocity = ask(path, data, noise, float(k_m) + t)
        compare(state, in_fourier(data[0].numpy(), noise[0].numpy(), equation_15))
        compare(velocity, in_fourier(data[0].numpy(), noise[0].numpy(), derivative))


@pytest.mark.filterwarnings("ignore:Level value:UserWarning")  # PyWavelets' advice on filters longer than the image
@pytest.mark.parametrize(("wavelet", "levels"), [("db6", 1), ("haar", 2), ("db2", 3)])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.7])
def test_equation_16_for_wavelets(wavelet, levels, place):
    """Coefficient by coefficient in PyWavelets: k counts the levels from coarse to fine."""
    data, noise = pair(1)
    bands = levels + 1
    path = Path(Wavelet(SHAPE, wavelet, levels), HardBump(bands))

    def mix(k_m, t, values):
        """values(k) gives the pairs of coefficients at scaling k; each is mixed by where k is."""

        def equation_16(k, f, e):
            k_n = k_m + 1
            if k < k_m:
                return f
            if k >= k_n:
                return e
            return (1 - mu(t)) * f + mu(t) * e

        def one(k, f, e):
            result = np.zeros_like(f)
            for index in np.ndindex(f.shape):
                result[index] = equation_16(k, f[index], e[index])
            return result

        data_levels, noise_levels = values
        mixed = [one(0, data_levels[0], noise_levels[0])]
        for k in range(1, bands):
            mixed.append(tuple(one(k, f, e) for f, e in zip(data_levels[k], noise_levels[k], strict=True)))
        return mixed

    for k_m in range(bands):
        expected = np.zeros(SHAPE)
        for channel in range(SHAPE[0]):
            both = [pywt.wavedec2(x[0, channel].numpy(), wavelet, "periodization", levels) for x in (data, noise)]
            expected[channel] = pywt.waverec2(mix(k_m, place, both), wavelet, "periodization")
        compare(ask(path, data, noise, (k_m + place) / bands)[0], expected)


def test_equation_16_for_pca():
    """Component by component: k is the relative order of the eigenvalues, cut at D/2 (C.2.1)."""
    samples = torch.randn(300, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    samples = samples * torch.linspace(0.3, 3, 16, dtype=torch.float64).view(1, 4, 4)
    data, noise = pair(1, shape=(1, 4, 4))
    centred = samples.flatten(1).numpy() - samples.flatten(1).numpy().mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    vectors = vectors[:, np.argsort(-values)]
    for place in (0.0, 0.3, 0.9):
        for k_m in (0, 8):
            expected = np.zeros(16)
            for k in range(16):
                f, e = (vectors[:, k] @ x.flatten().numpy() for x in (data, noise))
                inside = (1 - mu(place)) * f + mu(place) * e
                expected += (f if k < k_m else e if k >= k_m + 8 else inside) * vectors[:, k]
            got = ask(Path(PCA.fit(samples), HardBump(2)), data, noise, k_m / 16 + place / 2)[0]
            compare(got, expected.reshape(1, 4, 4))


@pytest.mark.parametrize(("width", "degree"), [(0.2, 1), (0.5, 2), (1.0, 6)])
@pytest.mark.parametrize("k", [0.0, 0.13, 0.5, 0.9, 1.0])
def test_equation_20(k, width, degree):
    """Eq. 19 integrated numerically, its support cut at the ends of [k_0, k_n] (erratum 6); μ weighs the data here."""
    data, noise = pair(1)
    edges = [0.0, 0.25, 0.6, 1.0]
    weights, rates = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        a = (low + high) / 2

        def bump(x, a=a):
            return (1 - ((x - a) / width) ** 2) ** degree if abs(x - a) < width else 0.0

        first, last = max(0, a - width), min(1, a + width)
        c = 1 / quad(bump, first, last)[0]
        weights.append(c * quad(bump, first, min(max(k, first), last))[0])
        rates.append(c * bump(k))

    def psi(square):
        """The index i whose ψ_i is 1."""
        return sum(square >= Fraction(cut) ** 2 * 2 * (N // 2) ** 2 for cut in ("1/4", "3/5"))

    path = Path(Fourier(SHAPE, 3, edges[1:-1]), SoftBump(3, width, degree, np.diff(edges).tolist()))
    state, velocity = ask(path, data, noise, k)
    data, noise = data[0].numpy(), noise[0].numpy()
    compare(state, in_fourier(data, noise, lambda s, f, e: weights[psi(s)] * f + (1 - weights[psi(s)]) * e))
    compare(velocity, in_fourier(data, noise, lambda s, f, e: rates[psi(s)] * (f - e)))
