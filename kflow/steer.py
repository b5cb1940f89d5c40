"""Steering: noise composed band by band (Algorithm 2), localised sampling, guidance per band, images back to noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kflow.amplitude import KAmplitude
from kflow.sample import Samples, sample
from kflow.velocity import KFlow


def draw_noise(seed: int, shape: Sequence[int], count: int = 1) -> Tensor:
    """Standard normal noise that any language can draw: a 32-bit counter, hashed twice with the seed, Box and Muller.

    The page without a kernel has the same generator, so that a seed means the same picture there and here.

    Args:
        seed: 0 to 2³² − 1 (else a ValueError); sample i of a draw has the seed ``seed + i``, modulo 2³².
        shape, count: of one sample, and number of samples. Returns (count, *shape) float32.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, allowed are whole numbers from 0 to {2**32 - 1}")
    size = torch.Size(shape).numel()
    key = _hash(np.arange(seed, seed + count, dtype=np.uint64).astype(np.uint32) ^ np.uint32(0x9E3779B9))
    bits = _hash(_hash(np.arange(2 * size, dtype=np.uint32))[None] ^ key[:, None])
    first, second = ((bits[:, i::2] + 0.5) / 2.0**32 for i in (0, 1))
    normal = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
    return torch.from_numpy(normal.astype(np.float32)).view(count, *shape)


def _hash(x: np.ndarray) -> np.ndarray:
    """A bijection of 32-bit integers that mixes all bits (multiply and xor-shift)."""
    with np.errstate(over="ignore"):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def compose_noise(decomposition: KAmplitude, noises: Sequence[Tensor]) -> Tensor:
    r"""Noise whose band b is that of ``noises[b]``: Ψ_0 = F⁻¹(…, F ε_b on band b, …), line 2 of Algorithm 2.

    Composed among coefficients: those of a band that is not touched are the same bit for bit.

    Args:
        noises: for every band (else a ValueError), low scaling first, (batch, \*shape). Returns (batch, \*shape).
    """
    if len(noises) != decomposition.bands:
        raise ValueError(f"there are {len(noises)} noises, allowed are {decomposition.bands}, one for each band")
    coefficients = decomposition.analyse(noises[0])
    for band, noise in enumerate(noises[1:], start=1):
        chosen = (decomposition.band_index == band).expand_as(coefficients)
        coefficients = torch.where(chosen, decomposition.analyse(noise), coefficients)
    return decomposition.synthesise(coefficients)


class Steered(KFlow):
    """A trained model, sampled differently: :func:`~kflow.sample.sample` takes it like the model itself.

    Args:
        model: the trained model; its weights are shared.
        localised: the velocity is projected on the bands that move at k, so that finished and waiting bands stay where
            they are, exactly. The exact velocity of a hard bump has this property, a trained one nearly.
        band_guidance: ω of each band (else a ValueError), low scaling first, in place of one guidance scale for all.
    """

    def __init__(self, model: KFlow, localised: bool = False, band_guidance: Sequence[float] | None = None):
        super().__init__(model.network, model.path, model.output, model.loss_bands)
        if band_guidance is not None and len(band_guidance) != model.path.bands:
            raise ValueError(f"band_guidance is {band_guidance}, allowed are {model.path.bands} numbers, one a band")
        self.localised, self.band_guidance = localised, band_guidance

    def predict(self, state: Tensor, k: Tensor, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Tensor:
        """As :meth:`KFlow.predict`; with a guidance scale for each band, the bands of v(∅) + ω_b (v(c) − v(∅))."""
        if self.band_guidance is None or labels is None:
            return super().predict(state, k, labels, guidance_scale)
        free = super().predict(state, k)
        scales = state.new_tensor(self.band_guidance).expand(len(state), -1)
        return free + self.path.decomposition.reweight(super().predict(state, k, labels) - free, scales)

    def velocity(self, state: Tensor, k: Tensor, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Tensor:
        """As :meth:`KFlow.velocity`; localised, its part in the bands that move at k."""
        velocity = super().velocity(state, k, labels, guidance_scale)
        rates = self.path.schedule(k)[1]
        return self.path.decomposition.reweight(velocity, (rates > 0).to(velocity)) if self.localised else velocity


def invert(
    model: KFlow, data: Tensor, labels: Tensor | None = None, steps: int = 40, solver: str = "midpoint", **options
) -> Samples:
    r"""Noise from which the flow makes these images: its equation from k = 1 to k = 0.

    Sampled from that noise with the same options, the images come back nearly; plain Euler's errors do not
    cancel on the way back, those of ``midpoint``, ``heun`` and ``rk4`` nearly do.

    Args:
        data: (batch, \*shape). labels, steps, solver, options: as for :func:`~kflow.sample.sample`.

    Returns samples whose ``data`` is the noise, and whose ``k`` and trajectory run from data to noise.
    """
    return sample(model, data, labels, steps=steps, solver=solver, **{"start": 1.0, "end": 0.0} | options)
