"""Operators against matrices, denoisers against the posterior mean, the loop against its recursion on Gaussians."""

from types import SimpleNamespace

import pytest
import torch

from kflow.amplitude import Fourier, Identity
from kflow.flow import HardBump, Linear, Path
from kflow.networks import make_dit
from kflow.restore import Blurring, Downsampling, Inpainting, Operator, degrade, denoise, plug_and_play
from kflow.velocity import GaussianOracle, KFlow
from kflow_book.peers import d_flow, flow_priors, ot_ode

torch.set_num_threads(1)
SHAPE, D = (1, 4, 4), 16
PATHS = {"ordinary": Path(Identity(SHAPE), Linear()), "banded": Path(Fourier(SHAPE, 2), HardBump(2))}
MASK = (torch.arange(D).view(SHAPE) % 3 > 0).float()
OPERATORS = [Operator(SHAPE), Downsampling(SHAPE), Inpainting(SHAPE, MASK), Blurring(SHAPE, 0.8)]


def random(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(path, seed=1):
    root = random(D, D, seed=seed) / 4
    return GaussianOracle(random(*SHAPE, seed=seed + 1), root @ root.T + 0.1 * torch.eye(D), path)


def as_matrix(operator):
    return operator(torch.eye(D, dtype=torch.float64).view(D, *SHAPE)).flatten(1).T


def weight_matrix(path, k):
    weights = path.schedule(torch.full((D,), k, dtype=torch.float64))[0]
    return path.decomposition.reweight(torch.eye(D, dtype=torch.float64).view(D, *SHAPE), weights).flatten(1)


def posterior_gain(prior, k):
    """C W (W C W + (I − W)²)⁻¹, and W."""
    w, one = weight_matrix(prior.path, k), torch.eye(D, dtype=torch.float64)
    return prior.covariance @ w @ torch.linalg.inv(w @ prior.covariance @ w + (one - w) @ (one - w)), w


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 6)])
@pytest.mark.parametrize("kind", ["identity", "downsampling", "mask", "box", "blur"])
def test_an_operator_and_its_adjoint_are_a_pair(shape, kind):
    operator = {
        "identity": lambda: Operator(shape),
        "downsampling": lambda: Downsampling(shape),
        "mask": lambda: Inpainting(shape, (torch.rand(shape[1:], generator=torch.Generator().manual_seed(0)) > 0.4)),
        "box": lambda: Inpainting.box(shape, 2),
        "blur": lambda: Blurring(shape, 1.3),
    }[kind]()
    x = random(5, *shape)
    y = random(*operator(x).shape, seed=1)
    assert y.shape[1:] == operator.measured
    torch.testing.assert_close((operator(x) * y).sum(), (x * operator.adjoint(y)).sum())


def test_what_the_operators_do():
    x = random(2, *SHAPE)
    assert torch.equal(Downsampling(SHAPE)(x), x[..., ::2, ::2])
    hidden = Inpainting.box(SHAPE, 2)(x) == 0
    assert torch.equal(hidden[0, 0], torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool())
    distance = torch.tensor([0.0, 1, 2, 1], dtype=torch.float64)  # periodic
    kernel = torch.exp(-(distance**2) / 2)
    weights = torch.stack([(kernel / kernel.sum()).roll(i) for i in range(4)])
    torch.testing.assert_close(Blurring(SHAPE, 1.0)(x), torch.einsum("ij,kl,bcjl->bcik", weights, weights, x))


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_whitening_inverts_the_covariance_of_the_measurement(operator):
    h, r = as_matrix(operator), random(3, *operator.measured)
    expected = torch.linalg.solve(0.7 * h @ h.T + 0.2 * torch.eye(len(h)), r.flatten(1).T).T
    torch.testing.assert_close(operator.whiten(r, 0.7, 0.2).flatten(1), expected)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_a_displacement_denoises_to_the_posterior_mean(k):
    prior = gaussian(PATHS["banded"])
    gain, w = posterior_gain(prior, k)
    state, at = random(3, *SHAPE, seed=5), torch.full((3,), k, dtype=torch.float64)
    expected = prior.mean + (state.flatten(1) - prior.mean @ w) @ gain.T
    torch.testing.assert_close(denoise(prior, state, at, state).flatten(1), expected)


@pytest.mark.parametrize(("path", "k"), [("ordinary", 0.0), ("ordinary", 0.6), ("banded", 0.3), ("banded", 0.8)])
def test_a_velocity_denoises_what_is_not_waiting(path, k):
    prior, path = gaussian(PATHS[path]), PATHS[path]
    model = KFlow(None, path)  # the exact velocity, as a network would give it
    model.predict = prior.velocity
    state, estimate = random(3, *SHAPE, seed=5), random(3, *SHAPE, seed=6)
    at = torch.full((3,), k, dtype=torch.float64)
    mean, found = prior.preview(state, at), denoise(model, state, at, estimate)
    waiting = path.schedule(at)[0] == 0 if path.bands > 1 else torch.zeros(3, 1)
    part = lambda x, mask: path.decomposition.reweight(x, mask.to(x))  # noqa: E731
    torch.testing.assert_close(part(found - mean, 1 - waiting.float()), torch.zeros_like(found))
    torch.testing.assert_close(part(found - estimate, waiting), torch.zeros_like(found))
    printed = (denoise(model, state, at, estimate, printed=True) - mean).norm() / mean.norm()
    assert printed < 1e-12 if path.bands == 1 else printed > 0.05  # erratum 14


def test_a_velocity_says_nothing_where_its_factor_diverges():
    model = KFlow(None, PATHS["banded"])
    model.predict = lambda state, k, *_: 1e3 * state
    state, k = random(2, *SHAPE), torch.full((2,), 0.01, dtype=torch.float64)
    torch.testing.assert_close(denoise(model, state, k, 0 * state), 0 * state)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_the_loop_is_a_linear_recursion_on_a_gaussian_prior(path, operator):
    """Its mean: x ← m + C W S⁻¹ W (z − m), z = x − γ Hᵀ(H x − y)."""
    prior, h, y = gaussian(PATHS[path]), as_matrix(operator), random(1, *operator.measured, seed=7)
    options = {"steps": 5, "start": 0.3, "step_size": 0.8, "exponent": 0.5}
    expected = y.flatten() @ h
    for n in range(5):
        k = 0.3 + 0.7 * n / 5
        z = expected - 0.8 * (1 - k) ** 0.5 * (h.T @ (h @ expected - y.flatten()))
        gain, w = posterior_gain(prior, k)
        expected = prior.mean + gain @ w @ (z - prior.mean)
    found = plug_and_play(prior, y.expand(4000, *operator.measured), operator, **options)
    assert found.nfe == 5 and found.k[0] == pytest.approx(0.3)
    error = (found.data.mean(0).flatten() - expected).abs() / (found.data.flatten(1).std(0) / 4000**0.5 + 1e-9)
    assert error.max() < 4.5  # standard errors, sixteen pixels


def test_a_step_by_band_is_the_plain_one_with_one_band_and_leaves_finished_bands():
    y, options = random(3, *SHAPE), {"steps": 4, "exponent": 0.5}
    plain, by_band = (
        plug_and_play(gaussian(PATHS["ordinary"]), y, OPERATORS[0], step_by_band=x, **options) for x in (False, True)
    )
    torch.testing.assert_close(plain.data, by_band.data)
    blur, path = OPERATORS[3], PATHS["banded"]
    for x in (False, True):
        found = plug_and_play(gaussian(path), y, blur, steps=1, start=0.6, step_by_band=x).data
        kept = (path.decomposition.project(found - blur.adjoint(y), 0)).abs().max() < 1e-12
        assert bool(kept) is x


@pytest.mark.parametrize("path", PATHS)
def test_the_first_image_is_forgotten_at_k_0_and_enters_each_band_by_its_weight_later(path):
    """With W the weights, the posterior mean of the first step moves by C W S⁻¹ W times a change of x₀."""
    prior, y, x = gaussian(PATHS[path]), random(3, *SHAPE), random(3, *SHAPE, seed=4)
    step = {"steps": 1, "step_size": 0.0}
    for start in (0.0, 0.3):
        with_x, plain = (plug_and_play(prior, y, OPERATORS[0], start=start, first=first, **step) for first in (x, None))
        gain, w = posterior_gain(prior, start)
        torch.testing.assert_close((with_x.data - plain.data).flatten(1), ((x - y).flatten(1) @ w) @ gain.T)
        assert (start > 0) is bool((with_x.data - plain.data).abs().max() > 0.01)


def test_averaging_draws_noise_anew_and_lessens_the_spread():
    prior, y = gaussian(PATHS["ordinary"]), random(1, *SHAPE).expand(2000, *SHAPE)
    single, mean = (plug_and_play(prior, y, OPERATORS[0], steps=1, averages=n) for n in (1, 4))
    assert mean.nfe == 4 and float(single.data.var(0).sum() / mean.data.var(0).sum()) == pytest.approx(4, rel=0.15)


def test_an_autoencoder_wraps_the_prior_and_not_the_measurement():
    """Latents are the image turned round and doubled: the prior of the latents is that of the images, transformed."""
    turn = SimpleNamespace(encode=lambda x: 2 * x.flip(-1, -2), decode=lambda z: z.flip(-1, -2) / 2)
    calls, y = [], random(4, *OPERATORS[1].measured)

    class Seen(GaussianOracle):
        def preview(self, state, k, *_):
            calls.append(state)
            return self.mean.view(1, *SHAPE).expand_as(state)

    mean = random(*SHAPE, seed=3)
    found = plug_and_play(Seen(mean, torch.eye(D), PATHS["ordinary"]), y, OPERATORS[1], steps=2, autoencoder=turn)
    assert len(calls) == 2
    torch.testing.assert_close(found.data, (mean.flip(-1, -2) / 2).expand_as(found.data))


def test_ot_ode_draws_from_the_posterior_of_a_white_prior():
    """Prior N(0, I), y = x + σ·noise: the posterior is N(y/(1 + σ²), σ²/(1 + σ²))."""
    prior = GaussianOracle(torch.zeros(SHAPE), torch.eye(D), PATHS["ordinary"])
    y = torch.full((2000, *SHAPE), 1.5, dtype=torch.float32)
    found = ot_ode(prior, y, OPERATORS[0], 0.5, steps=150, start=0.01, constant=True).data
    assert float(found.mean()) == pytest.approx(1.5 / 1.25, abs=0.04)
    assert float(found.var()) == pytest.approx(0.25 / 1.25, rel=0.12)


def test_d_flow_fits_the_measurement():
    prior, operator = GaussianOracle(torch.zeros(SHAPE), torch.eye(D), PATHS["ordinary"]), OPERATORS[1]
    y = random(3, *operator.measured).float()
    found = d_flow(prior, y, operator, steps=2, penalty=0.0)
    torch.testing.assert_close(operator(found.data), y, atol=1e-3, rtol=0)
    assert found.nfe > 40


def test_flow_priors_is_drawn_to_the_measurement_through_a_network():
    torch.manual_seed(0)
    shape = (1, 8, 8)
    model = KFlow(make_dit("DiT-nano/4", shape), Path(Identity(shape), Linear())).requires_grad_(False)
    y = torch.full((2, *shape), 0.5)
    errors = [
        float((flow_priors(model, y, Operator(shape), steps=8, weight=w, rate=0.2).data - y).norm()) for w in (0, 1e4)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_the_noise_of_a_measurement_is_the_same_on_every_device():
    expected = degrade(Operator(SHAPE), torch.zeros(2, *SHAPE), 0.5, seed=3)
    assert expected.std() == pytest.approx(0.5, rel=0.3)
    assert degrade(Operator(SHAPE), torch.zeros(2, *SHAPE, device="meta"), 0.5, seed=3).device.type == "meta"
    if torch.cuda.is_available():
        there = degrade(Operator(SHAPE), torch.zeros(2, *SHAPE, device="cuda"), 0.5, seed=3)
        assert there.is_cuda and torch.equal(there.cpu(), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Downsampling((1, 5, 4)), "factor is 2, allowed are 2 or more that divide 5 and 4"),
        (
            lambda: Downsampling(SHAPE)(random(2, 1, 8, 8)),
            r"image has shape \(2, 1, 8, 8\), allowed is \(batch, 1, 4, 4\)",
        ),
        (lambda: Operator(SHAPE).adjoint(random(2, 1, 2, 2)), "measurement has shape"),
        (lambda: Inpainting(SHAPE, torch.zeros(4, 4)), "allowed are 0 and 1, and 1 at least once"),
        (lambda: Inpainting.box(SHAPE, 4), "1 at least once"),
        (lambda: Inpainting(SHAPE, torch.full((4, 4), 0.5)), "mask holds"),
        (lambda: Inpainting(SHAPE, torch.ones(5, 5)), r"mask has shape \(5, 5\), allowed"),
        (lambda: Inpainting(SHAPE, torch.ones(3, 4, 4)), "broadcasts to"),
        (lambda: Blurring(SHAPE, 0.0), "width is 0.0, allowed are positive"),
        (lambda: degrade(Operator(SHAPE), random(2, *SHAPE), -0.1), "noise_level is -0.1, allowed is 0 or more"),
        (lambda: plug_and_play(gaussian(PATHS["banded"]), random(2, *SHAPE), Operator(SHAPE), start=1.0), "start"),
        (lambda: plug_and_play(gaussian(PATHS["banded"]), random(2, *SHAPE), Downsampling(SHAPE)), "measurement"),
        (
            lambda: plug_and_play(gaussian(PATHS["banded"]), random(2, 1, 8, 8), Operator((1, 8, 8))),
            r"the operator's image, for this model, has shape \(2, 1, 8, 8\), allowed is \(batch, 1, 4, 4\)",
        ),
        (
            lambda: plug_and_play(
                gaussian(PATHS["banded"]), random(2, *SHAPE), Operator(SHAPE), first=random(3, *SHAPE)
            ),
            r"first has shape \(3, 1, 4, 4\), allowed is \(2, 1, 4, 4\)",
        ),
        (
            lambda: plug_and_play(
                gaussian(PATHS["banded"]),
                random(2, *SHAPE),
                Operator(SHAPE),
                step_by_band=True,
                autoencoder=SimpleNamespace(encode=lambda x: x, decode=lambda z: z),
            ),
            "step_by_band is True with an autoencoder, allowed is a model of pixels",
        ),
        (lambda: ot_ode(gaussian(PATHS["banded"]), random(2, *SHAPE), Operator(SHAPE), 0.1), "ordinary flow matching"),
    ],
)
def test_bad_input_is_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
