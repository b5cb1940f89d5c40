"""Bands by radial frequency (§2.2, Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kflow.amplitude.decomposition import KAmplitude, image_shape, radial_cuts


class Fourier(KAmplitude):
    r"""Fourier decomposition: bands by the radial frequency :math:`|k|` of the lattice (Eq. 2, C.2.1).

    A frequency belongs to band b when cut_{b−1} ≤ |k|/k_max < cut_b, where k_max is the radius of the lattice's corner;
    the last band is closed. The comparison is made in integers, so that ±k always share a band and every projection
    of a real image is real. On a lattice that is not square, |k| is measured in cycles per pixel.

    Args:
        shape: (channel, height, width).
        bands: number of bands.
        cuts: bands − 1 rising fractions of k_max; equally spaced if not given (the paper's cut at k_max/2 for two).

    Raises ValueError for impossible cuts, or a band that holds no frequency of the lattice.
    """

    def __init__(self, shape: Sequence[int], bands: int = 2, cuts: Sequence[float] | None = None):
        _, height, width = image_shape(shape)
        rows, columns = (torch.fft.fftfreq(n, 1 / n).round().long() * (height * width // n) for n in (height, width))
        radius = rows[:, None] ** 2 + columns**2
        ends = [math.ceil(cut**2 * int(radius.max())) for cut in radial_cuts(bands, cuts)]
        index = torch.bucketize(radius, torch.tensor(ends).long(), right=True)
        super().__init__(shape, bands, index[None])
        self.columns = [int((index[0, : width // 2 + 1] <= band).sum()) for band in range(bands - 1)]

    def analyse(self, x: Tensor) -> Tensor:
        """Orthonormal 2-D FFT: (batch, channel, height, width), complex."""
        return torch.fft.fft2(x, norm="ortho")

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return torch.fft.ifft2(coefficients, norm="ortho").real

    def _low_pass(self, x: Tensor) -> Iterable[Tensor]:
        # Half of the spectrum is enough, as bands are even in k, and of it the columns that hold low frequencies.
        spectrum = torch.fft.fft(torch.fft.rfft(x)[..., : self.columns[-1]], dim=-2)
        for band, columns in reversed([*enumerate(self.columns)]):
            spectrum = spectrum[..., :columns].mul_((self.band_index[:, :, :columns] <= band).to(x))
            yield torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2), self.shape[2])
