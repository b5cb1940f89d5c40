"""The methods beside Algorithm 4 in Table 10 that use the same trained flow: OT-ODE, D-Flow and Flow-Priors.

Each follows its paper's algorithm on the straight path of ordinary flow matching; a measurement is y = H x + σ·noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kflow.restore import Operator
from kflow.sample import Samples
from kflow.steer import invert
from kflow.velocity import KFlow


def ot_ode(
    model: KFlow,
    measurement: Tensor,
    operator: Operator,
    noise_level: float,
    *,
    steps: int = 100,
    start: float = 0.1,
    constant: bool = False,
    seed: int = 0,
) -> Samples:
    """OT-ODE (Pokle et al., 2024): the flow's ODE with each velocity corrected by the measurement (ΠGDM).

    With x̂ the denoised state and r² = (1 − k)²/((1 − k)² + k²), the correction is
    (1 − k)/k·γ·(∂x̂/∂x)ᵀ Hᵀ(r² H Hᵀ + σ²)⁻¹(y − H x̂), γ = 1 if ``constant``, else √(k/(k² + (1 − k)²)).
    Ordinary flow matching only (else a ValueError); start > 0.
    """
    check_plain(model)
    first = operator.adjoint(measurement)
    state = start * first + (1 - start) * torch.randn(first.shape, generator=torch.Generator().manual_seed(seed))
    points = [start + (1 - start) * n / steps for n in range(steps)]
    for point in points:
        k, square = state.new_full((len(state),), point), (1 - point) ** 2 + point**2
        state = state.detach().requires_grad_()
        velocity = model.velocity(state, k)
        clean = state + (1 - point) * velocity
        error = operator.whiten(
            measurement - operator(clean), (1 - point) ** 2 / square, max(noise_level, 1e-3) ** 2
        ).detach()
        (correction,) = torch.autograd.grad(clean, state, operator.adjoint(error))
        gain = (1 - point) / point * (1.0 if constant else math.sqrt(point / square))
        state = state.detach() + (1 - start) / steps * (velocity.detach() + gain * correction)
    return Samples(state, steps, torch.tensor(points))


def d_flow(
    model: KFlow,
    measurement: Tensor,
    operator: Operator,
    *,
    steps: int = 6,
    iterations: int = 20,
    penalty: float = 1e-3,
    blend: float = 0.1,
    seed: int = 0,
) -> Samples:
    """D-Flow (Ben-Hamu et al., 2024): the noise whose flow fits y, by L-BFGS through ``steps`` midpoint steps.

    The loss is ‖H x(ε) − y‖² minus ``penalty`` times the log density of ‖ε‖; ε starts as the noise of Hᵀ y, a share
    ``blend`` of its variance, the rest drawn. ``nfe`` counts forward calls, the line search's included.
    Ordinary flow matching only (else a ValueError).
    """
    check_plain(model)
    found, calls = invert(model, operator.adjoint(measurement), steps=20), 0
    noise = torch.randn(found.data.shape, generator=torch.Generator().manual_seed(seed))
    noise = (math.sqrt(blend) * found.data + math.sqrt(1 - blend) * noise).requires_grad_()
    optimizer = torch.optim.LBFGS([noise], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def flow(state: Tensor) -> Tensor:
        nonlocal calls
        for n in range(steps):
            k = state.new_full((len(state),), n / steps)
            middle = state + 0.5 / steps * model.velocity(state, k)
            state = state + 1 / steps * model.velocity(middle, k + 0.5 / steps)
        calls += 2 * steps
        return state

    def closure() -> Tensor:
        optimizer.zero_grad()
        square = noise.square().flatten(1).sum(1)
        density = (noise[0].numel() - 1) / 2 * square.clamp(min=1e-12).log() - square / 2
        error = (operator(flow(noise)) - measurement).square().sum()
        loss = error - penalty * density.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return Samples(flow(noise), calls + found.nfe, torch.arange(steps) / steps)


def flow_priors(
    model: KFlow,
    measurement: Tensor,
    operator: Operator,
    *,
    steps: int = 50,
    weight: float = 1e4,
    rate: float = 0.01,
    seed: int = 0,
) -> Samples:
    """Flow-Priors (Zhang et al., 2024): at each Euler step, one Adam step towards the local maximum a posteriori.

    Its loss: ``weight``·‖H x' − y_k‖² for the next state x' (y_k is y on the way from the starting noise), the
    divergence of v by Hutchinson's estimate, and the Gaussian prior's score at k. Ordinary flow matching only (else a
    ValueError).
    """
    check_plain(model)
    source, step = torch.Generator().manual_seed(seed), (1 - 1e-3) / steps
    noise = torch.randn(len(measurement), *operator.shape, generator=source)
    state, points = noise, [1e-3 + step * n for n in range(steps)]
    for point in points:
        k = state.new_full((len(state),), point)
        state = nn.Parameter(state.detach().clone())
        probe = torch.randn(state.shape, generator=source)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
            velocity = model.velocity(state, k)
            (change,) = torch.autograd.grad(velocity, state, probe, create_graph=True)
            target = (point + step) * measurement + (1 - point - step) * operator(noise)
            error = (operator(state + step * velocity) - target).square().sum()
            (state.grad,) = torch.autograd.grad(weight * error + step * (change * probe).sum(), state)
        state.grad += (state.detach() - point * velocity.detach()) / (1 - point)
        torch.optim.Adam([state], lr=rate).step()
        with torch.no_grad():
            state = state + step * model.velocity(state, k)
    return Samples(state.detach(), 2 * steps, torch.tensor(points))


def check_plain(model: KFlow) -> None:
    """A ValueError unless the model is ordinary flow matching, w(k) = k."""
    k = torch.linspace(0, 1, 5)
    if model.path.bands != 1 or not torch.allclose(model.path.schedule(k)[0][:, 0].float(), k):
        raise ValueError(f"the path has {model.path.bands} bands or a bump, allowed is ordinary flow matching")
