"""The one interface of every K-amplitude decomposition (Eq. 1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


class KAmplitude(nn.Module, ABC):
    r"""A linear, orthonormal transform :math:`\mathcal F` with coefficients partitioned into scaling bands.

    Band 0 is the lowest scaling. With :math:`P_b = \mathcal F^{-1} 1_b \mathcal F` the orthogonal projection on band
    ``b``, :math:`\sum_b P_b = I`: Eq. 1 of the paper.

    A subclass gives :meth:`analyse`, :meth:`synthesise` and the buffer ``band_index``; it may override
    :meth:`_reweight` with something faster that computes the same.

    Attributes:
        shape: shape of one sample, ``(channel, height, width)`` for images.
        bands: number of bands B.
        band_index: integer tensor that broadcasts to the coefficients of one sample: the band of each coefficient.
    """

    band_index: Tensor

    def __init__(self, shape: Sequence[int], bands: int, band_index: Tensor):
        super().__init__()
        self.shape = tuple(int(n) for n in shape)
        self.bands = int(bands)
        self.register_buffer("band_index", band_index.long(), persistent=False)
        counts = torch.bincount(self.band_index.flatten(), minlength=self.bands)
        if (counts == 0).any():
            raise ValueError(
                f"band {int(counts.argmin())} of {self.bands} of {type(self).__name__} on shape {self.shape} is empty: "
                "take fewer bands or other cuts"
            )

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """The transform F: x of shape (batch, *shape) to coefficients (batch, ...), real or complex."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The inverse transform: coefficients (batch, ...) to a real x of shape (batch, *shape)."""

    def reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        r"""The hot operation: :math:`\sum_b w_b P_b x`, from one analysis of x.

        Args:
            x: (batch, \*shape), floating point. Half precision is computed in float32.
            weights: (batch, B), or (S, batch, B) for S weight sets at once.

        Returns:
            (batch, \*shape), or (S, batch, \*shape); the dtype of x. Where all weights of a sample equal w,
            the result is w·x without any rounding of the transform.

        Raises:
            ValueError: the shape of x or of the weights does not fit.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, {type(self).__name__} takes (batch, *{self.shape})")
        if weights.dim() not in (2, 3) or tuple(weights.shape[-2:]) != (len(x), self.bands):
            raise ValueError(
                f"weights have shape {tuple(weights.shape)}, allowed are ({len(x)}, {self.bands}) and "
                f"(sets, {len(x)}, {self.bands})"
            )
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            return self._reweight(x.to(exact), weights.to(exact)).to(x.dtype)

    def _reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        # w_last·x plus the transform of the rest: exact wherever a sample's weights are all the same.
        base, last = self._base(x, weights)
        coefficients = self.analyse(x)
        product = coefficients * (weights - last)[..., self.band_index]
        return base + self.synthesise(product.flatten(0, product.dim() - coefficients.dim())).view_as(base)

    def _base(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The last band's weight times x, (..., batch, *shape), and that weight, (..., batch, 1)."""
        last = weights[..., -1:]
        return last.reshape(*last.shape[:-1], *[1] * len(self.shape)) * x, last

    def project(self, x: Tensor, band: int) -> Tensor:
        """P_b x: the part of x, (batch, *shape), that lies in one band.

        Raises:
            ValueError: no such band.
        """
        if not 0 <= band < self.bands:
            raise ValueError(f"band is {band}, allowed are 0 to {self.bands - 1}")
        weights = torch.zeros(len(x), self.bands, device=x.device)
        weights[:, band] = 1
        return self.reweight(x, weights)

    def split(self, x: Tensor) -> Tensor:
        """All bands of x, (B, batch, *shape); they sum to x (Eq. 1)."""
        weights = torch.eye(self.bands, device=x.device)[:, None].expand(-1, len(x), -1)
        return self.reweight(x, weights)

    def energy(self, x: Tensor) -> Tensor:
        """Squared norm of each band of x: (batch, B). Its sum is the squared norm of x (Parseval)."""
        return self.split(x).flatten(2).square().sum(2).T

    def sizes(self, device: torch.device | str | None = None) -> Tensor:
        """Number of dimensions of each band, (B,); white noise has this energy per band on average."""
        index = self.band_index
        repeats = torch.Size(self.shape).numel() // index.numel()
        return (torch.bincount(index.flatten(), minlength=self.bands) * repeats).to(device)


class Identity(KAmplitude):
    """One band that holds everything: with the linear schedule this is ordinary flow matching.

    Args:
        shape: shape of one sample.
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__(shape, 1, torch.zeros([1] * len(shape)))

    def analyse(self, x: Tensor) -> Tensor:
        return x

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return coefficients

    def _reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        return self._base(x, weights)[0]


class Nested(KAmplitude):
    """A decomposition whose bands are differences of nested low-pass projections Q_0 ⊂ Q_1 ⊂ … ⊂ I.

    Then Σ_b w_b P_b = w_{B−1} I + Σ_{j<B−1} (w_j − w_{j+1}) Q_j, which needs no inverse transform:
    only the B − 1 projections of x, whatever the number of weight sets.

    Args:
        shape, bands, band_index: as for :class:`KAmplitude`.
        matrices: the transform's matrices in float64. They are cast once for each device and dtype that asks, so that
            moving a model, or halving its precision, never rounds the transform.
    """

    def __init__(self, shape: Sequence[int], bands: int, band_index: Tensor, matrices: dict[str, Tensor]):
        super().__init__(shape, bands, band_index)
        self._matrices = {name: matrix.double().cpu() for name, matrix in matrices.items()}
        self._cast: dict[tuple, Tensor] = {}

    def _matrix(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.device, like.dtype)
        if key not in self._cast:
            self._cast[key] = self._matrices[name].to(like.device, like.dtype)
        return self._cast[key]

    @abstractmethod
    def _low_pass(self, x: Tensor) -> list[Tensor]:
        """[Q_0 x, …, Q_{B−2} x]: x kept up to band j, each (batch, *shape)."""

    def _reweight(self, x: Tensor, weights: Tensor) -> Tensor:
        result, _ = self._base(x, weights)
        steps = weights[..., :-1] - weights[..., 1:]
        for step, low in zip(steps.unbind(-1), self._low_pass(x) if self.bands > 1 else (), strict=True):
            result = torch.addcmul(result, step.reshape(*step.shape, *[1] * len(self.shape)), low)
        return result


def radial_cuts(bands: int, cuts: Sequence[float] | None) -> list[Fraction]:
    """The B − 1 cut points of B bands as exact fractions of k_max: given, or equally spaced.

    Raises:
        ValueError: the number of cuts does not fit, or they do not rise strictly inside (0, 1).
    """
    if bands < 1:
        raise ValueError(f"bands is {bands}, allowed is 1 or more")
    if cuts is None:
        return [Fraction(b, bands) for b in range(1, bands)]
    exact = [Fraction(c).limit_denominator(10_000) for c in cuts]
    if len(exact) != bands - 1:
        raise ValueError(f"cuts is {list(cuts)}, allowed are {bands - 1} numbers for {bands} bands")
    if any(not low < high for low, high in zip([Fraction(0), *exact], [*exact, Fraction(1)], strict=True)):
        raise ValueError(f"cuts is {list(cuts)}, allowed are rising numbers strictly between 0 and 1")
    return exact
