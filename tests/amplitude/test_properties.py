"""What every decomposition promises: Eq. 1, orthogonal projections, white noise stays white, exact equal weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kflow.amplitude import PCA, Fourier, Identity, Meyer, Wavelet

torch.set_num_threads(1)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def rng(seed):
    return torch.Generator().manual_seed(seed)


def draw_fourier(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(7, 20)), draw(st.integers(7, 20))
    if draw(st.booleans()):
        # 0.14 of the corner is more than one step of the 7-lattice, so no band is empty.
        cuts = [0.14 + 0.14 * c for c in sorted(draw(st.sets(st.integers(0, 5), max_size=5)))]
        return Fourier(shape, len(cuts) + 1, cuts)
    return Fourier(shape, draw(st.integers(1, 4)))


def draw_sides(draw, levels):
    return (draw(st.integers(1, 3)), *(2**levels * draw(st.integers(1, 10)) for _ in range(2)))


def draw_wavelet(draw):
    levels, name = draw(st.integers(1, 3)), draw(st.sampled_from(["db6", "haar", "db2", "sym4", "sym20", "coif2"]))
    return Wavelet(draw_sides(draw, levels), name, levels)


def draw_orthogonalized(draw):
    levels, name = draw(st.integers(1, 2)), draw(st.sampled_from(["db6", "haar", "db2", "coif2"]))
    least = {"db6": 12, "haar": 2, "db2": 4, "coif2": 12}[name] // 2
    shape = draw(st.integers(1, 3)), *(2**levels * (least + draw(st.integers(0, 3))) for _ in range(2))
    return Wavelet(shape, name, levels, "orthogonalized")


def draw_meyer(draw):
    levels = draw(st.integers(1, 3))
    return Meyer(draw_sides(draw, levels), levels)


def draw_pca(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(3, 6)), draw(st.integers(3, 6))
    data = torch.randn(draw(st.integers(2, 60)), *shape, generator=rng(draw(st.integers(0, 99))))
    cuts = draw(st.sampled_from([None, [0.125], [0.25, 0.9]]))
    return PCA.fit(data, draw(st.integers(1, 8)) if cuts is None else len(cuts) + 1, cuts)


def draw_identity(draw):
    return Identity(draw(st.sampled_from([(3,), (2, 5), (1, 4, 6), (2, 3, 4, 5)])))


DRAWS = [draw_identity, draw_fourier, draw_wavelet, draw_orthogonalized, draw_meyer, draw_pca]
CASES = pytest.mark.parametrize("draw_one", DRAWS, ids=lambda f: f.__name__.removeprefix("draw_"))

SMALL = {
    "identity": lambda: Identity((2, 8, 8)),
    **{f"fourier {bands}": lambda bands=bands: Fourier((1, 16, 16), bands) for bands in range(1, 9)},
    "fourier odd": lambda: Fourier((1, 7, 9), 3),
    "fourier cuts": lambda: Fourier((1, 8, 12), 4, [0.1, 0.5, 0.55]),
    "db6": lambda: Wavelet((1, 16, 8)),
    "haar 3": lambda: Wavelet((1, 16, 8), "haar", 3),
    "db2 orthogonalized 2": lambda: Wavelet((1, 8, 16), "db2", 2, "orthogonalized"),
    "meyer 2": lambda: Meyer((1, 8, 16), 2),
    "pca 3": lambda: PCA.fit(torch.randn(30, 2, 6, 6, generator=rng(1)), 3),
}
EACH = pytest.mark.parametrize("name", SMALL)


def projections(decomposition):
    """Every P_b as a (D, D) matrix, from the projections of the unit vectors."""
    size = torch.Size(decomposition.shape).numel()
    basis = torch.eye(size, dtype=torch.float64).view(size, *decomposition.shape)
    return decomposition.split(basis).flatten(2).transpose(1, 2)


def defined(decomposition, x, weights):
    """synthesise(w · analyse(x)): the definition that reweight must agree with."""
    return decomposition.synthesise(decomposition.analyse(x) * weights[:, decomposition.band_index])


@CASES
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_transform_and_reweight(draw_one, data):
    F = draw_one(data.draw)
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    generator, close = rng(data.draw(st.integers(0, 99))), {"rtol": 0, "atol": TOLERANCE[dtype]}
    x, y = torch.randn(2, 3, *F.shape, generator=generator, dtype=dtype)
    weights = torch.rand(3, F.bands, generator=generator, dtype=dtype)
    spread = (len(x), *[1] * len(F.shape))

    coefficients = F.analyse(x)
    torch.testing.assert_close(F.synthesise(coefficients), x, **close)  # F⁻¹F = I
    norm, ones = x.square().flatten(1).sum(1), torch.ones(3, dtype=dtype)
    torch.testing.assert_close(coefficients.abs().square().flatten(1).sum(1) / norm, ones, **close)  # Parseval
    torch.testing.assert_close(F.energy(x).sum(1) / norm, ones, **close)

    result = F.reweight(x, weights)
    assert result.dtype == dtype and result.shape == x.shape
    torch.testing.assert_close(result, defined(F, x, weights), **close)
    sets = torch.rand(4, 3, F.bands, generator=generator, dtype=dtype)
    for several, one in zip(F.reweight(x, sets), sets, strict=True):
        torch.testing.assert_close(several, F.reweight(x, one), **close)

    parts = F.split(x)
    torch.testing.assert_close(parts.sum(0), x, **close)  # Σ P_b = I
    for band, part in enumerate(parts):
        torch.testing.assert_close(F.project(x, band), part, **close)
        again = torch.zeros_like(parts)
        again[band] = part
        torch.testing.assert_close(F.split(part), again, **close)  # P_b P_c = 0, P_b P_b = P_b
        one, other = (F.project(x, band) * y).sum(), (x * F.project(y, band)).sum()
        assert abs(one - other) <= TOLERANCE[dtype] * x.numel()  # P_b symmetric

    equal = weights[:, :1].expand(-1, F.bands)
    assert torch.equal(F.reweight(x, equal), equal[:, 0].view(spread) * x)  # without any rounding
    assert torch.equal(F.reweight(x, torch.stack([equal, weights]))[0], equal[:, 0].view(spread) * x)
    assert torch.equal(F.reweight(x, torch.ones_like(weights)), x)
    assert not F.reweight(x, torch.zeros_like(weights)).any()


@EACH
def test_projections_are_orthogonal(name):
    F = SMALL[name]()
    P, identity = projections(F), torch.eye(torch.Size(F.shape).numel(), dtype=torch.float64)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(P.sum(0), identity, **close)
    for b, first in enumerate(P):
        torch.testing.assert_close(first, first.T, **close)
        for c, second in enumerate(P):
            torch.testing.assert_close(first @ second.T, first if b == c else torch.zeros_like(first), **close)
        assert abs(first.trace() - F.sizes()[b]) < 1e-8


@EACH
def test_white_noise_stays_white(name):
    """In every band: unit variance in each of its dimensions, no correlation inside it or with another band."""
    F, samples = SMALL[name](), 20_000
    noise = torch.randn(samples, *F.shape, generator=rng(7), dtype=torch.float64)
    bases = []
    for matrix, size in zip(projections(F), F.sizes().tolist(), strict=True):
        values, vectors = torch.linalg.eigh(matrix)
        assert (values > 0.5).sum() == size
        bases.append(vectors[:, values > 0.5])
    # Coordinates of each band's part of the noise in a basis of the band.
    coordinates = torch.cat([p.flatten(1) @ v for p, v in zip(F.split(noise), bases, strict=True)], 1)
    covariance = coordinates.T @ coordinates / samples
    # Standard deviations √(2/n) of a variance and √(1/n) of a correlation: six of them, for some 30,000 entries.
    deviation = (covariance - torch.eye(len(covariance))).abs()
    assert deviation.diagonal().max() < 6 * (2 / samples) ** 0.5
    assert (deviation - deviation.diag().diag()).max() < 6 * (1 / samples) ** 0.5
    energy = F.energy(noise) / F.sizes()
    assert ((energy.mean(0) - 1).abs() < 6 * (2 / (samples * F.sizes())) ** 0.5).all()


@EACH
def test_gradients(name):
    F = SMALL[name]()
    x = torch.randn(2, *F.shape, generator=rng(2), dtype=torch.float64, requires_grad=True)
    for lead in ((), (3,)):
        weights = torch.rand(*lead, 2, F.bands, generator=rng(3), dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(F.reweight, (x, weights), fast_mode=True)
    torch.autograd.gradcheck(lambda x: F.synthesise(F.analyse(x)), (x,), fast_mode=True)
    # Σ w_b P_b is symmetric, so the gradient of ⟨y, Σ w_b P_b x⟩ is Σ w_b P_b y.
    y = torch.randn(x.shape, generator=rng(4), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((F.reweight(x, weights[0]) * y).sum(), x)
    torch.testing.assert_close(gradient, F.reweight(y, weights[0]).detach(), rtol=0, atol=1e-10)


@EACH
def test_input_is_left_alone(name):
    F = SMALL[name]()
    x, weights = torch.randn(2, *F.shape, generator=rng(2)), torch.rand(2, F.bands, generator=rng(3))
    before = x.clone(), weights.clone()
    F.reweight(x, weights), F.analyse(x), F.split(x)
    coefficients = F.analyse(x)
    kept = coefficients.clone()
    F.synthesise(coefficients)
    assert torch.equal(x, before[0]) and torch.equal(weights, before[1]) and torch.equal(coefficients, kept)


@EACH
def test_autocast_and_half_precision(name):
    F = SMALL[name]()
    x, weights = torch.randn(2, *F.shape, generator=rng(2)), torch.rand(2, F.bands, generator=rng(3))
    plain = F.reweight(x, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.reweight(x, weights), plain)
        assert torch.equal(F.split(x), torch.stack([F.project(x, b) for b in range(F.bands)]))
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        result = F.reweight(half, weights)
        assert result.dtype == dtype
        assert torch.equal(result, F.reweight(half.float(), weights).to(dtype))
        assert torch.equal(F.reweight(half, torch.ones_like(weights)), half)
        assert torch.equal(F.energy(half), F.energy(half.float()))
    # 300² is beyond float16.
    assert torch.isfinite(F.energy(torch.full((1, *F.shape), 300.0, dtype=torch.float16))).all()


@EACH
def test_casting_or_copying_a_module_never_rounds(name):
    F = SMALL[name]()
    x, weights = torch.randn(2, *F.shape, generator=rng(2)), torch.rand(2, F.bands, generator=rng(3))
    plain, exact = F.reweight(x, weights), F.reweight(x.double(), weights)
    coefficients = F.analyse(x)
    for module in (copy.deepcopy(F), copy.deepcopy(F).to(torch.bfloat16), SMALL[name]().half(), F.to(torch.bfloat16)):
        assert torch.equal(module.reweight(x, weights), plain)
        assert torch.equal(module.reweight(x.double(), weights), exact)
        assert torch.equal(module.analyse(x), coefficients)
        assert not module.state_dict()


@EACH
def test_sampling_first_does_not_stop_training(name):
    F = SMALL[name]()
    x, weights = torch.randn(2, *F.shape), torch.rand(2, F.bands)
    with torch.inference_mode():
        F.reweight(x.clone(), weights.clone()), F.analyse(x.clone())
    x.requires_grad_()
    (F.reweight(x, weights).sum() + F.synthesise(F.analyse(x)).sum()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@EACH
def test_on_another_device(name):
    F = SMALL[name]()
    x, weights = torch.randn(2, *F.shape), torch.rand(2, F.bands)
    plain, coefficients = F.reweight(x, weights), F.analyse(x)
    F = F.to("cuda")
    torch.testing.assert_close(F.reweight(x.cuda(), weights.cuda()).cpu(), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.analyse(x.cuda()).cpu(), coefficients, rtol=0, atol=1e-4)
    assert F.split(x.cuda()).device.type == F.energy(x.cuda()).device.type == F.sizes().device.type == "cuda"


def test_strided_input():
    x, weights = torch.randn(2, 3, 8, 12, generator=rng(0)), torch.rand(2, 2, generator=rng(1))
    for F in (Wavelet((3, 8, 12), "haar"), Fourier((3, 8, 12)), PCA.fit(torch.randn(9, 3, 8, 12, generator=rng(2)))):
        result = F.reweight(x.to(memory_format=torch.channels_last), weights)
        torch.testing.assert_close(result, F.reweight(x, weights))


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (torch.zeros(2, 1, 16, 8), torch.zeros(2, 2), r"\(2, 1, 16, 8\), allowed .* \(batch, 1, 8, 16\)"),
        (torch.zeros(1, 8, 16), torch.zeros(1, 2), r"\(1, 8, 16\), allowed .* \(batch, 1, 8, 16\)"),
        (torch.zeros(2, 1, 8, 16, dtype=torch.int64), torch.zeros(2, 2), "torch.int64 .* allowed is a float"),
        (torch.zeros(2, 1, 8, 16), torch.zeros(2, 3), r"\(2, 3\), allowed is \(\[sets,\] 2, 2\)"),
        (torch.zeros(2, 1, 8, 16), torch.zeros(1, 2), r"\(1, 2\), allowed is \(\[sets,\] 2, 2\)"),
        (torch.zeros(2, 1, 8, 16), torch.zeros(2), r"\(2,\), allowed is \(\[sets,\] 2, 2\)"),
        (torch.zeros(2, 1, 8, 16), torch.zeros(1, 1, 2, 2), r"\(1, 1, 2, 2\), allowed is \(\[sets,\] 2, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(x, weights, message):
    for F in (Fourier((1, 8, 16)), Wavelet((1, 8, 16), "haar"), Meyer((1, 8, 16))):
        with pytest.raises(ValueError, match=message):
            F.reweight(x, weights)


@pytest.mark.parametrize("band", [-1, 2])
def test_band_that_does_not_exist(band):
    with pytest.raises(ValueError, match=f"band is {band}, allowed are 0 to 1"):
        Fourier((1, 8, 8)).project(torch.zeros(1, 1, 8, 8), band)
