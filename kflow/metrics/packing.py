"""How near a generated cluster comes to its crystal packing (E.10, Table 11)."""

from __future__ import annotations

from torch import Tensor


def packing_matching(found: Tensor, real: Tensor) -> Tensor:
    """PM as COD-Cluster17's evaluation computes it: the root mean square difference of two pairwise-distance matrices.

    The mean is over all N² entries, the zero diagonal among them. Points are compared by their index.

    Args:
        found, real: (..., N, 3), Å: of atoms for PM (atom), of molecules' centres for PM (center).

    Returns (...), Å.
    """
    distances = ((x[..., :, None, :] - x[..., None, :, :]).square().sum(-1).sqrt() for x in (found, real))
    return (next(distances) - next(distances)).square().mean((-2, -1)).sqrt()
