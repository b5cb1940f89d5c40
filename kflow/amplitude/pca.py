"""Bands by the order of principal components (C.2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kflow.amplitude.decomposition import KAmplitude, orthonormal, radial_cuts


class PCA(KAmplitude):
    """Principal component analysis: large eigenvalues are low scaling (C.2.1).

    The mean only centres the covariance. The transform itself is linear, as K-amplitude needs: x ↦ components · x.

    Args:
        components: (D, D) orthonormal rows, in descending order of eigenvalue; D = product of shape.
        eigenvalues: (D,) of the covariance.
        mean: (*shape) of the data it was fitted on.
        bands: number of bands.
        cuts: bands − 1 rising fractions of D; equally spaced if not given (the paper's cut at D/2 for two bands).

    Raises ValueError for shapes that do not fit, components that are not orthonormal to 1e-5, or impossible cuts.
    """

    def __init__(
        self, components: Tensor, eigenvalues: Tensor, mean: Tensor, bands: int = 2, cuts: Sequence[float] | None = None
    ):
        size = mean.numel()
        shapes, allowed = (tuple(components.shape), tuple(eigenvalues.shape)), ((size, size), (size,))
        if shapes != allowed:
            raise ValueError(f"components and eigenvalues have shapes {shapes}, the mean allows {allowed}")
        self.ends = [int(cut * size) for cut in radial_cuts(bands, cuts)]
        index = torch.bucketize(torch.arange(size), torch.tensor(self.ends).long(), right=True)
        super().__init__(mean.shape, bands, index, {"components": orthonormal(components, "PCA")})
        self.components, self.eigenvalues, self.mean = components, eigenvalues, mean

    @classmethod
    def fit(cls, data: Tensor | Iterable[Tensor], bands: int = 2, cuts: Sequence[float] | None = None) -> PCA:
        """Fit on samples (N, *shape), or on an iterable of such batches; exact in both cases, also for N < D.

        Mean and covariance are gathered in float64 with Chan's update, so the data need not fit in memory.
        Raises ValueError for fewer than two samples, or impossible bands and cuts.
        """
        count, mean, scatter, shape = 0, 0.0, 0.0, ()
        for batch in [data] if isinstance(data, Tensor) else data:
            x, shape = batch.flatten(1).cpu().double(), batch.shape[1:]
            centre, total = x.mean(0), count + len(x)
            gap, x = centre - mean, x - centre
            scatter = scatter + x.T @ x + torch.outer(gap, gap) * (count * len(x) / total)
            mean, count = mean + gap * (len(x) / total), total
        if count < 2:
            raise ValueError(f"PCA got {count} samples, allowed is 2 or more")
        eigenvalues, vectors = torch.linalg.eigh(scatter / (count - 1))
        return cls(vectors.T.flip(0), eigenvalues.flip(0).clamp(min=0), mean.view(shape), bands, cuts)

    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients in the order of the components, (batch, D)."""
        return x.flatten(1) @ self._matrix("components", x).T

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return (coefficients @ self._matrix("components", coefficients)).unflatten(1, self.shape)

    def _low_pass(self, x: Tensor) -> Iterable[Tensor]:
        for end in reversed(self.ends):
            part = self._matrix("components", x)[:end]
            yield (x.flatten(1) @ part.T @ part).view_as(x)
