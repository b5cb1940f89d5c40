"""Bands by the order of principal components (C.2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kflow.amplitude.decomposition import Nested, radial_cuts


class PCA(Nested):
    """Principal component analysis as a decomposition: large eigenvalues are low scaling (C.2.1).

    The mean only centres the covariance. The transform itself is linear, as K-amplitude needs: x ↦ components · x.

    Args:
        components: (D, D) orthonormal rows, in descending order of eigenvalue; D = product of shape.
        eigenvalues: (D,) of the covariance.
        mean: (*shape) of the data it was fitted on.
        bands: number of bands.
        cuts: bands − 1 rising fractions of D; equally spaced if not given (the paper's cut at D/2 for two bands).

    Raises:
        ValueError: shapes that do not fit, or impossible cuts.
    """

    def __init__(
        self,
        components: Tensor,
        eigenvalues: Tensor,
        mean: Tensor,
        bands: int = 2,
        cuts: Sequence[float] | None = None,
    ):
        size = mean.numel()
        if components.shape != (size, size) or eigenvalues.shape != (size,):
            raise ValueError(
                f"components {tuple(components.shape)} and eigenvalues {tuple(eigenvalues.shape)} "
                f"do not fit a mean of shape {tuple(mean.shape)}: allowed are ({size}, {size}) and ({size},)"
            )
        order = torch.arange(size)
        ends = [int(c * size) for c in radial_cuts(bands, cuts)]
        index = sum(((order >= end).long() for end in ends), torch.zeros_like(order))
        super().__init__(mean.shape, bands, index, {"components": components})
        self.components, self.eigenvalues, self.mean, self.ends = components, eigenvalues, mean, ends

    @classmethod
    def fit(cls, data: Tensor | Iterable[Tensor], bands: int = 2, cuts: Sequence[float] | None = None) -> PCA:
        """Fit on samples, all at once or batch by batch; exact in both cases, and for fewer samples than dimensions.

        Mean and covariance are gathered in float64 with Chan's update, so the data need not fit in memory.

        Args:
            data: (N, *shape), or an iterable of such batches.
            bands, cuts: as for the class.

        Raises:
            ValueError: fewer than two samples.
        """
        count, mean, scatter, shape = 0, 0.0, 0.0, ()
        for batch in [data] if isinstance(data, Tensor) else data:
            shape = batch.shape[1:]
            x = batch.flatten(1).double()
            batch_mean = x.mean(0)
            x = x - batch_mean
            total = count + len(x)
            gap = batch_mean - mean
            scatter = scatter + x.T @ x + torch.outer(gap, gap) * (count * len(x) / total)
            mean, count = mean + gap * (len(x) / total), total
        if count < 2:
            raise ValueError(f"PCA got {count} samples, allowed is 2 or more")
        eigenvalues, vectors = torch.linalg.eigh(scatter / (count - 1))
        eigenvalues = eigenvalues.flip(0).clamp(min=0)
        return cls(vectors.T.flip(0), eigenvalues, mean.view(shape), bands, cuts)

    def save(self, path: str | Path) -> None:
        """Write mean, eigenvalues and components (float64) as safetensors; bands and cuts are not part of the fit."""
        tensors = {"components": self.components, "eigenvalues": self.eigenvalues, "mean": self.mean}
        save_file({name: t.contiguous() for name, t in tensors.items()}, path)

    @classmethod
    def load(cls, path: str | Path, bands: int = 2, cuts: Sequence[float] | None = None) -> PCA:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged or holds something else.
        """
        try:
            return cls(**load_file(path), bands=bands, cuts=cuts)
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{path} is not a saved PCA: {error}") from None

    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients in the order of the components, (batch, D)."""
        return x.flatten(1) @ self._matrix("components", x).T

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return (coefficients @ self._matrix("components", coefficients)).unflatten(1, self.shape)

    def _low_pass(self, x: Tensor) -> list[Tensor]:
        components = self._matrix("components", x)
        total, result = torch.zeros_like(x.flatten(1)), []
        for start, end in zip([0, *self.ends], self.ends):
            part = components[start:end]
            total = total + (x.flatten(1) @ part.T) @ part
            result.append(total.view_as(x))
        return result
