"""Image restoration with a trained flow as the prior: Algorithm 4 (E.9).

Images lie in [−1, 1], a measurement is y = H x + σ·noise, nothing is trained further, and the flow is not told a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kflow.sample import Samples
from kflow.velocity import KFlow

PIXELS = SimpleNamespace(encode=lambda image: image, decode=lambda latent: latent)  # the prior lives among the pixels


class Operator:
    """H of y = H x + σ·noise, linear with ‖H‖ ≤ 1; this one is the identity: **denoising**.

    Args:
        shape: of one image, (channel, height, width). Others raise a ValueError.
    """

    def __init__(self, shape: Sequence[int]):
        self.shape = self.measured = tuple(shape)

    def __call__(self, image: Tensor) -> Tensor:
        """H x: (batch, *shape) to (batch, *measured)."""
        return self._forward(check_shape("image", image, self.shape))

    def adjoint(self, measurement: Tensor) -> Tensor:
        """Hᵀ y: (batch, *measured) to (batch, *shape), with ⟨H x, y⟩ = ⟨x, Hᵀ y⟩."""
        return self._adjoint(check_shape("measurement", measurement, self.measured))

    def whiten(self, residual: Tensor, gain: float, ridge: float) -> Tensor:
        """(gain·H Hᵀ + ridge)⁻¹ r, (batch, *measured), for ridge > 0: what OT-ODE divides by."""
        return residual / (gain + ridge)

    def _forward(self, image: Tensor) -> Tensor:
        return image

    _adjoint = _forward


class Downsampling(Operator):
    """Every ``factor``-th pixel of each row and column (Table 10's super-resolution); the adjoint fills in zeros.

    Raises ValueError: the image's sides are not divisible by the factor.
    """

    def __init__(self, shape: Sequence[int], factor: int = 2):
        super().__init__(shape)
        if factor < 2 or shape[1] % factor or shape[2] % factor:
            raise ValueError(f"factor is {factor}, allowed are 2 or more that divide {shape[1]} and {shape[2]}")
        self.factor, self.measured = factor, (shape[0], shape[1] // factor, shape[2] // factor)

    def _forward(self, image: Tensor) -> Tensor:
        return image[..., :: self.factor, :: self.factor]

    def _adjoint(self, measurement: Tensor) -> Tensor:
        image = measurement.new_zeros(len(measurement), *self.shape)
        image[..., :: self.factor, :: self.factor] = measurement
        return image


class Inpainting(Operator):
    """A mask, 1 where the image is seen and 0 where it is hidden; it broadcasts to ``shape``.

    Raises ValueError: the mask does not fit, holds other numbers, or hides everything.
    """

    def __init__(self, shape: Sequence[int], mask: Tensor):
        super().__init__(shape)
        if any(size not in (1, full) for size, full in zip(mask.shape[::-1], self.shape[::-1])) or mask.dim() > 3:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, allowed is one that broadcasts to {self.shape}")
        if not ((mask == 0) | (mask == 1)).all() or not mask.any():
            raise ValueError(f"mask holds {mask.unique().tolist()[:3]}, allowed are 0 and 1, and 1 at least once")
        self.mask = mask.float()

    @classmethod
    def box(cls, shape: Sequence[int], side: int) -> Inpainting:
        """A square of this side (in pixels) in the middle is hidden."""
        mask = torch.ones(tuple(shape)[1:])
        top, left = ((length - side) // 2 for length in mask.shape)
        mask[max(top, 0) : top + side, max(left, 0) : left + side] = 0
        return cls(shape, mask)

    def whiten(self, residual: Tensor, gain: float, ridge: float) -> Tensor:
        return residual / (gain * self.mask.to(residual) + ridge)

    def _forward(self, image: Tensor) -> Tensor:
        return self.mask.to(image) * image

    _adjoint = _forward


class Blurring(Operator):
    """Periodic convolution with a Gaussian of standard deviation ``width`` pixels, through the DFT; its own adjoint.

    Raises ValueError: a width that is not positive.
    """

    def __init__(self, shape: Sequence[int], width: float = 1.0):
        super().__init__(shape)
        if not width > 0:
            raise ValueError(f"width is {width}, allowed are positive numbers of pixels")
        rows, columns = (
            torch.exp(-0.5 * ((torch.arange(n) + n // 2) % n - n // 2).double().square() / width**2) for n in shape[1:]
        )
        self.response = torch.fft.fft2(torch.outer(rows / rows.sum(), columns / columns.sum())).real  # even: it is real

    def whiten(self, residual: Tensor, gain: float, ridge: float) -> Tensor:
        return self._filter(residual, 1 / (gain * self.response.square() + ridge))

    def _forward(self, image: Tensor) -> Tensor:
        return self._filter(image, self.response)

    _adjoint = _forward

    @staticmethod
    def _filter(image: Tensor, response: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(image) * response.to(image)).real


def degrade(operator: Operator, images: Tensor, noise_level: float, seed: int = 0) -> Tensor:
    """y = H x + σ·noise, (batch, *measured), with σ = ``noise_level``; a ValueError if that is negative.

    The noise is drawn on the CPU: a seed means the same on every device.
    """
    if not noise_level >= 0:
        raise ValueError(f"noise_level is {noise_level}, allowed is 0 or more")
    clean = operator(images)
    return clean + noise_level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)


def denoise(model: KFlow, state: Tensor, k: Tensor, estimate: Tensor, printed: bool = False) -> Tensor:
    """The denoiser D of Algorithm 4: the finished image that the model expects from Ψ_k, (batch, *shape).

    A displacement gives the posterior mean in every band. A velocity gives it in finished bands, Ψ itself, and in
    active ones, Ψ + (1 − w)/w′·v; of waiting bands it says nothing, and they are those of ``estimate``. So are bands
    where (1 − w)/w′ > 1, ordinary flow matching's largest factor: at a band's start it diverges.

    Args:
        state, estimate: (batch, *shape): Ψ_k, and the image that it was made from.
        k: (batch,).
        printed: Ψ + (1 − k) v in all bands, as cited in E.9; right for ordinary flow matching alone.
    """
    if printed:
        return state + (1 - k).reshape(-1, *[1] * (state.dim() - 1)) * model.velocity(state, k)
    if model.output == "displacement":
        return model.preview(state, k)
    weights, rates = model.path.schedule(k)
    factor = (1 - weights) / rates.clamp(min=1e-12)
    silent = (weights < 1) & (factor > 1 + 1e-6)
    factor = torch.where(silent | (weights >= 1), 0.0, factor)
    step, *_ = model.path.decomposition.reweight(model.velocity(state, k), factor[None])
    return state + step + model.path.decomposition.reweight(estimate - state, silent.to(state))


@torch.no_grad()
def plug_and_play(
    model: KFlow,
    measurement: Tensor,
    operator: Operator,
    *,
    steps: int = 100,
    start: float = 0.3,
    step_size: float = 1.0,
    exponent: float = 0.5,
    averages: int = 1,
    first: Tensor | None = None,
    printed: bool = False,
    step_by_band: bool = False,
    autoencoder: Any = PIXELS,
    seed: int = 0,
    progress: bool = False,
) -> Samples:
    """Algorithm 4; with ordinary flow matching and ``start=0`` it is PnP-Flow (Martin et al., 2025).

    Each of the steps, at k_n = start + (1 − start)·n/N, is a gradient step on the data term, γ_n Hᵀ(H x − y) with
    γ_n = step_size·(1 − k_n)^exponent (the noise level is absorbed), the way back to Ψ_{k_n} (Eq. 8), and the denoiser.

    Args:
        measurement: y, (batch, *measured).
        averages: noise draws that each step averages the denoiser over.
        first: x₀, (batch, *shape), which Algorithm 4 leaves open; Hᵀ y if not given. Ψ_k keeps the share w_b(k) of
            it in band b: nothing at ``start=0``, so it matters with a later start.
        printed: the denoiser as cited in E.9: see :func:`denoise`.
        step_by_band: γ_n is step_size·(1 − w_b)^exponent in band b, what D cleans there (ours; pixels only).
        autoencoder: anything with ``encode`` and ``decode``, if the model's samples are latents; the data step
            stays among the pixels.

    Returns the images, with ``nfe`` the network calls for each. Raises ValueError: a number out of its range, an image
    that does not fit the operator or the model, steps by band with latents.
    """
    if steps < 1 or averages < 1 or not 0 <= start < 1 or step_size < 0:
        raise ValueError(
            f"steps, averages, start, step_size are {steps}, {averages}, {start}, {step_size}: allowed are 1 or more, "
            "1 or more, 0 up to, not including, 1, and 0 or more"
        )
    if step_by_band and autoencoder is not PIXELS:
        raise ValueError(
            "step_by_band is True with an autoencoder, allowed is a model of pixels: bands are of its samples"
        )
    image, source = operator.adjoint(measurement), torch.Generator().manual_seed(seed)
    if first is not None:
        image = check_shape("first", first, image.shape[1:], len(image))
    points = [start + (1 - start) * n / steps for n in range(steps)]
    for point in tqdm(points, disable=not progress, desc="restoring"):
        gradient = operator.adjoint(operator(image) - measurement)
        step = (1 - point) ** exponent * gradient
        if step_by_band:
            left = 1 - model.path.schedule(image.new_full((len(image),), point))[0]
            step = model.path.decomposition.reweight(gradient, left**exponent)
        latent = autoencoder.encode(image - step_size * step)
        check_shape("the operator's image, for this model,", latent, model.path.decomposition.shape)
        k, total = latent.new_full((len(latent),), point), torch.zeros_like(latent)
        for _ in range(averages):
            noise = torch.randn(latent.shape, generator=source).to(latent)
            total += denoise(model, model.path.state(latent, noise, k), k, latent, printed)
        image = autoencoder.decode(total / averages)
    return Samples(image, steps * averages, torch.tensor(points))


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], batch: int | None = None) -> Tensor:
    """The tensor itself; a ValueError if it is not (batch, *shape)."""
    if x.shape[1:] != shape or len(x) != (batch or len(x)):
        raise ValueError(f"{name} has shape {tuple(x.shape)}, allowed is ({batch or 'batch'}, {str(tuple(shape))[1:]}")
    return x
