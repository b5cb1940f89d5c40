"""Bands by wavelet level (Eq. 11, C.3), and Meyer's wavelet (Eq. 21–23)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import ptwt
import pywt
import torch
from torch import Tensor

from kflow.amplitude.decomposition import KAmplitude, image_shape, orthonormal


class Pyramid(KAmplitude):
    """A separable multi-level orthonormal transform, given by its matrix along one axis of n values.

    Level j turns the approximation of level j − 1 into approximation and details, along rows and columns. ``levels``
    levels make levels + 1 bands: band 0 is the coarsest approximation, the last band the finest details (all three
    orientations). Coefficients stand in the usual pyramid layout, the approximation in the top left corner.
    ``matrix`` maps n to the orthonormal (n, n) matrix of one level, whose upper n/2 rows are the low-pass filters.
    """

    def __init__(self, shape: Sequence[int], levels: int, matrix: Callable[[int], Tensor]):
        _, height, width = image_shape(shape)
        if levels < 1:
            raise ValueError(f"levels is {levels}, allowed is 1 or more")
        if height % 2**levels or width % 2**levels:
            raise ValueError(f"size is {height}×{width}, allowed are multiples of {2**levels} for {levels} level(s)")
        self.levels, matrices = levels, {}
        for axis, size in (("rows", height), ("columns", width)):
            low = torch.eye(size, dtype=torch.float64)
            for level in range(levels):
                left, _, right = torch.linalg.svd(matrix(size >> level))
                step = left @ right  # the nearest orthonormal matrix: some filters are given to few digits
                low = step[: len(step) // 2] @ low
                matrices[f"{axis} {level}"] = step
                matrices[f"low {axis} {level}"] = low
        index = torch.full((1, height, width), levels)
        for level in range(1, levels + 1):
            index[:, : height >> level, : width >> level] = levels - level
        super().__init__(shape, levels + 1, index, matrices)

    def analyse(self, x: Tensor) -> Tensor:
        """Pyramid of coefficients, (batch, channel, height, width)."""
        result = x.clone()
        for level in range(self.levels):
            block = result[..., : self.shape[1] >> level, : self.shape[2] >> level]
            block.copy_(self._matrix(f"rows {level}", x) @ block @ self._matrix(f"columns {level}", x).T)
        return result

    def synthesise(self, coefficients: Tensor) -> Tensor:
        result = coefficients.clone()
        for level in reversed(range(self.levels)):
            block = result[..., : self.shape[1] >> level, : self.shape[2] >> level]
            block.copy_(self._matrix(f"rows {level}", result).T @ block @ self._matrix(f"columns {level}", result))
        return result

    def _low_pass(self, x: Tensor) -> Iterable[Tensor]:
        for level in range(self.levels):
            # The approximation from all levels at once, and back: four small products, and no details.
            rows, columns = self._matrix(f"low rows {level}", x), self._matrix(f"low columns {level}", x)
            yield rows.T @ (rows @ (x @ columns.T) @ columns)


class Wavelet(Pyramid):
    """Discrete wavelet decomposition with any orthonormal wavelet of PyWavelets (C.3; db6 and haar in the paper).

    Args:
        shape: (channel, height, width).
        wavelet: a discrete wavelet's name in PyWavelets, such as ``db6``, ``haar``, ``sym4``, ``coif2``.
        levels: number of levels; levels + 1 bands (the paper: one or two).
        boundary: ``periodization`` (PyWavelets' mode) or ``orthogonalized`` (ptwt's ``MatrixWavedec2``, whose filters
            are cut at the border and made orthonormal again).

    Raises ValueError for an unknown wavelet or boundary, a wavelet whose transform is not orthonormal to 1e-5
    (biorthogonal ones, ``dmey``), or a size that the levels do not take.
    """

    def __init__(self, shape: Sequence[int], wavelet: str = "db6", levels: int = 1, boundary: str = "periodization"):
        if wavelet not in pywt.wavelist(kind="discrete"):
            raise ValueError(f"wavelet is {wavelet!r}, allowed are PyWavelets' orthonormal discrete ones: db6, haar, …")
        make = {"periodization": periodized_matrix, "orthogonalized": orthogonalized_matrix}.get(boundary)
        if make is None:
            raise ValueError(f"boundary is {boundary!r}, allowed are periodization, orthogonalized")
        super().__init__(shape, levels, lambda n: orthonormal(make(wavelet, n), f"wavelet {wavelet!r}"))
        self.wavelet, self.boundary = wavelet, boundary


class Meyer(Pyramid):
    r"""Meyer's wavelet, built on the DFT lattice and exactly orthonormal there (Eq. 21–23, corrected).

    The low-pass filter is :math:`\sqrt2\,\hat\phi(2\omega)` with :math:`\hat\phi` of Eq. 21 and Meyer's connection
    function ν(t) = t⁴(35 − 84t + 70t² − 20t³) in place of the paper's ν(t) = t; the high-pass filter is its quadrature
    mirror, which supplies the octave and the phase that Eq. 23 leaves out. Arguments as for :class:`Wavelet`.
    """

    def __init__(self, shape: Sequence[int], levels: int = 1):
        super().__init__(shape, levels, meyer_matrix)


def periodized_matrix(wavelet: str, n: int) -> Tensor:
    """One level of PyWavelets' ``periodization`` transform as an (n, n) matrix, low-pass rows first."""
    return torch.from_numpy(np.concatenate(pywt.dwt(np.eye(n), wavelet, mode="periodization", axis=0)))


def orthogonalized_matrix(wavelet: str, n: int) -> Tensor:
    """One level of ptwt's boundary-adapted transform as an (n, n) matrix, low-pass rows first."""
    if n < pywt.Wavelet(wavelet).dec_len:
        raise ValueError(f"size {n} is too short for {wavelet!r}, allowed is {pywt.Wavelet(wavelet).dec_len} or more")
    with warnings.catch_warnings():  # torch calls its sparse matrices, which ptwt builds this one from, a beta
        warnings.filterwarnings("ignore", "Sparse", UserWarning)
        return ptwt.matmul_transform.construct_boundary_a(wavelet, n, dtype=torch.float64).to_dense()


def meyer_matrix(n: int) -> Tensor:
    """One level of the Meyer transform on n periodic samples as an (n, n) matrix, low-pass rows first."""
    omega = 2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64)
    # φ̂(2ω) of Eq. 21, whose two branches are one cosine of Meyer's connection function.
    t = (3 * omega.abs() / math.pi - 1).clamp(0, 1)
    response = math.sqrt(2) * torch.cos(math.pi / 2 * t**4 * (35 + t * (-84 + t * (70 - 20 * t))))
    low = torch.fft.ifft(response).real
    high = torch.fft.ifft(torch.exp(-1j * omega) * response.roll(n // 2)).real  # response at ω + π
    return torch.stack([taps.roll(2 * shift) for taps in (low, high) for shift in range(n // 2)])
