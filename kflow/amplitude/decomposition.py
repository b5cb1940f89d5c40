"""The one interface of every K-amplitude decomposition (Eq. 1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


class KAmplitude(nn.Module, ABC):
    r"""A linear, orthonormal transform :math:`\mathcal F` with coefficients partitioned into scaling bands.

    Band 0 is the lowest scaling. With :math:`P_b = \mathcal F^{-1} 1_b \mathcal F` the orthogonal projection on band
    ``b``, :math:`\sum_b P_b = I`: Eq. 1 of the paper. A subclass gives :meth:`analyse`, :meth:`synthesise` and
    ``band_index``; it may override :meth:`_low_pass` or :meth:`_reweight` with something faster that computes the same.
    Raises ValueError if a band holds no coefficient.

    Args:
        shape: shape of one sample, ``(channel, height, width)`` for images.
        bands: number of bands B.
        band_index: integer tensor that broadcasts to the coefficients of one sample: the band of each coefficient.
        matrices: the transform's matrices, if it has any. They stay in float64 and are cast once for each device and
            dtype that asks, so that moving a model, or halving its precision, never rounds the transform.
    """

    def __init__(self, shape: Sequence[int], bands: int, band_index: Tensor, matrices: Mapping[str, Tensor] = {}):
        super().__init__()
        self.shape, self.bands = tuple(shape), bands
        self.register_buffer("band_index", band_index.long(), persistent=False)
        self._matrices = {name: matrix.double().cpu() for name, matrix in matrices.items()}
        self._cast: dict[tuple, Tensor] = {}
        if not self.sizes().all():
            raise ValueError(f"band {int(self.sizes().argmin())} of {bands} is empty, {self.shape} allows fewer bands")

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """The transform F: x of shape (batch, *shape) to coefficients (batch, ...), real or complex."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The inverse transform: coefficients (batch, ...) to a real x of shape (batch, *shape)."""

    def reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        r"""The hot operation: :math:`\sum_b w_b P_b x`, from one analysis of x.

        Args:
            x: (batch, \*shape), floating point. Half precision is computed in float32, also under autocast.
            weights: (batch, B), or (S, batch, B) for S weight sets at once.

        Returns:
            (batch, \*shape), or (S, batch, \*shape); the dtype of x. Where all weights of a sample equal w,
            the result is w·x without any rounding of the transform.

        Raises ValueError if the shape of x or of the weights does not fit, or x is not floating point.
        """
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, allowed is a float (batch, {str(self.shape)[1:]}")
        if weights.dim() not in (2, 3) or weights.shape[-2:] != (len(x), self.bands):
            raise ValueError(f"weights are {tuple(weights.shape)}, allowed is ([sets,] {len(x)}, {self.bands})")
        precise = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return self._reweight(x.to(precise), weights.to(precise)).to(x.dtype)

    def _reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        # Σ_b w_b P_b = w_{B−1} I + Σ_{j<B−1} (w_j − w_{j+1}) Q_j with Q_j = Σ_{b≤j} P_b: B − 1 projections for any
        # number of weight sets, exact wherever a sample's weights are all the same, and in place where it can be.
        weights = [spread(weight, x) for weight in weights.split(1, -1)]
        result, times = None, Tensor.mul_ if weights[0].dim() == x.dim() else Tensor.mul
        for band, low in zip(reversed(range(self.bands - 1)), self._low_pass(x)):
            step = weights[band] - weights[band + 1]
            result = times(low, step) if result is None else result.addcmul_(step, low)
        return weights[-1] * x if result is None else result.addcmul_(weights[-1], x)

    def _low_pass(self, x: Tensor) -> Iterable[Tensor]:
        """Q_{B−2} x, …, Q_0 x: what x has up to band j, each a new tensor (batch, *shape)."""
        coefficients = self.analyse(x)
        for band in reversed(range(self.bands - 1)):
            yield self.synthesise(coefficients * (self.band_index <= band))

    def _matrix(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.device, like.dtype)
        if key not in self._cast:
            with torch.inference_mode(False):  # or training could not use what sampling has cached
                self._cast[key] = self._matrices[name].to(like.device, like.dtype)
        return self._cast[key]

    def project(self, x: Tensor, band: int) -> Tensor:
        """P_b x: the part of x, (batch, *shape), that lies in one band. Raises ValueError if there is no such band."""
        if band not in range(self.bands):
            raise ValueError(f"band is {band}, allowed are 0 to {self.bands - 1}")
        return self.reweight(x, torch.eye(self.bands, device=x.device)[band].expand(len(x), -1))

    def split(self, x: Tensor) -> Tensor:
        """All bands of x, (B, batch, *shape); they sum to x (Eq. 1)."""
        return self.reweight(x, torch.eye(self.bands, device=x.device)[:, None].expand(-1, len(x), -1))

    def energy(self, x: Tensor) -> Tensor:
        """Squared norm of each band of x: (batch, B), at least float32. Its sum is x's squared norm (Parseval)."""
        return self.split(x.to(torch.promote_types(x.dtype, torch.float32))).flatten(2).square().sum(2).T

    def sizes(self) -> Tensor:
        """Number of dimensions of each band, (B,); white noise has this energy per band on average."""
        repeats = torch.Size(self.shape).numel() // self.band_index.numel()
        return torch.bincount(self.band_index.flatten(), minlength=self.bands) * repeats


class Identity(KAmplitude):
    """One band that holds all of a sample of the given shape: with the linear schedule, ordinary flow matching."""

    def __init__(self, shape: Sequence[int]):
        super().__init__(shape, 1, torch.zeros([1] * len(shape)))

    def analyse(self, x: Tensor) -> Tensor:
        return x

    synthesise = analyse


def spread(weight: Tensor, x: Tensor) -> Tensor:
    """Weights (..., batch, 1) so that they multiply x of shape (batch, ...)."""
    return weight.unflatten(-1, [1] * (x.dim() - 1))


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape itself; a ValueError if it is not (channel, height, width)."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}, allowed is (channel, height, width), each 1 or more")
    return tuple(shape)


def orthonormal(matrix: Tensor, name: str) -> Tensor:
    """The matrix itself; a ValueError if its rows are not orthonormal to 1e-5."""
    error = (matrix @ matrix.T - torch.eye(len(matrix)).to(matrix)).abs().max()
    if not error <= 1e-5:
        raise ValueError(f"{name} at size {len(matrix)} is off orthonormal by {error:.1e}, allowed is 1e-5")
    return matrix


def radial_cuts(bands: int, cuts: Sequence[float] | None) -> list[Fraction]:
    """The B − 1 cuts as exact fractions of k_max, equally spaced if not given; a ValueError if they are impossible."""
    if bands < 1:
        raise ValueError(f"bands is {bands}, allowed is 1 or more")
    if cuts is None:
        return [Fraction(b, bands) for b in range(1, bands)]
    if len(cuts) != bands - 1 or not all(low < high for low, high in zip([0, *cuts], [*cuts, 1], strict=True)):
        raise ValueError(f"cuts is {list(cuts)}, allowed are {bands - 1} rising numbers strictly between 0 and 1")
    return [Fraction(c).limit_denominator(10_000) for c in cuts]
