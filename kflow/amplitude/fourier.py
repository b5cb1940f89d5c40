"""Bands by radial frequency (§2.2, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kflow.amplitude.decomposition import KAmplitude, radial_cuts


class Fourier(KAmplitude):
    r"""Fourier decomposition: bands by the radial frequency :math:`|k|` of the lattice (Eq. 2, C.2.1).

    A frequency belongs to band b when cut_{b−1} ≤ |k|/k_max < cut_b, where k_max is the radius of the lattice's corner;
    the last band is closed. The comparison is made in integers, so that ±k always share a band and every projection
    of a real image is real. On a lattice that is not square, |k| is measured in cycles per pixel.

    Args:
        shape: (channel, height, width).
        bands: number of bands.
        cuts: bands − 1 rising fractions of k_max; equally spaced if not given (the paper's cut at k_max/2 for two).

    Raises:
        ValueError: impossible cuts, or a band that holds no frequency of the lattice.
    """

    def __init__(self, shape: Sequence[int], bands: int = 2, cuts: Sequence[float] | None = None):
        _, height, width = shape
        rows = torch.fft.fftfreq(height, 1 / height).long()[:, None] * width
        columns = torch.fft.fftfreq(width, 1 / width).long()[None, :] * height
        radius = rows**2 + columns**2
        corner = (height // 2 * width) ** 2 + (width // 2 * height) ** 2
        index = sum(
            (c.denominator**2 * radius >= c.numerator**2 * corner).long() for c in radial_cuts(bands, cuts)
        )
        super().__init__(shape, bands, torch.zeros_like(radius)[None] + index)

    def analyse(self, x: Tensor) -> Tensor:
        """Orthonormal 2-D FFT: (batch, channel, height, width), complex."""
        return torch.fft.fft2(x, norm="ortho")

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return torch.fft.ifft2(coefficients, norm="ortho").real

    def _reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        # Weights are even in k, so half of the spectrum is enough.
        base, last = self._base(x, weights)
        half = self.band_index[..., : x.shape[-1] // 2 + 1]
        coefficients = torch.fft.rfft2(x) * (weights - last)[..., half]
        return base + torch.fft.irfft2(coefficients, s=x.shape[-2:])
