"""Bands of a cluster of molecules: the spectrum of the graph of their distances (E.10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kflow.amplitude import KAmplitude

CUTS = {1: (), 2: (4,), 3: (4, 9)}


class GraphLaplacian(KAmplitude):
    r"""Signals on molecules, in the eigenvectors of the Laplacian of their pairwise distances, one graph a cluster.

    Weights are :math:`W_{ij} = \exp(-d_{ij}^2 / \bar d^2)`, with the mean distance :math:`\bar d` of centres, and
    :math:`L = D - W`. Small eigenvalues are low scaling. The default cuts count modes as spherical harmonics do
    (1, 3, 5, …): the first four are about a constant and three slopes, so the low band shifts, stretches and shears.

    Args:
        centres: (batch, molecules, 3) of the start, which is known when a packing is generated.
        channels: numbers that a molecule has; a signal is (batch, molecules, channels).
        bands: number of bands.
        cuts: bands − 1 rising numbers of modes; if not given 4 for two bands, 4 and 9 for three.

    Raises ValueError: impossible cuts.
    """

    def __init__(self, centres: Tensor, channels: int = 6, bands: int = 2, cuts: Sequence[float] | None = None):
        count = centres.shape[1]
        cuts = [int(cut) for cut in (CUTS.get(bands, ()) if cuts is None else cuts)]
        if len(cuts) != bands - 1 or not all(low < high for low, high in zip([0, *cuts], [*cuts, count])):
            raise ValueError(f"cuts is {cuts}, allowed are {bands - 1} rising numbers of modes from 1 to {count - 1}")
        points = centres.double()
        distance = (points[:, None] - points[:, :, None]).norm(dim=-1)
        mean = distance.sum((1, 2), keepdim=True) / (count * (count - 1))
        weight = torch.exp(-((distance / mean) ** 2))
        index = torch.bucketize(torch.arange(count), torch.tensor(cuts).long(), right=True)[:, None]
        modes = torch.linalg.eigh(torch.diag_embed(weight.sum(2)) - weight).eigenvectors
        super().__init__((count, channels), bands, index, {"modes": modes})

    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients by mode, smallest eigenvalue first: (batch, molecules, channels)."""
        return self._matrix("modes", x).mT @ x

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return self._matrix("modes", coefficients) @ coefficients
