"""The shape of a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor


def projection_error(trajectory: Tensor, components: int = 2, centred: bool = True) -> Tensor:
    r"""Relative error of projecting each trajectory on its own first principal components (Figure 7, B.2).

    ‖Ψ_k − Ψ̃_k‖ / ‖Ψ_k‖; one minus it is the paper's reconstruction ratio. The paper does not say whether the trajectory
    is centred before; it decides the curve (erratum 16).

    Args:
        trajectory: (T, batch, \*shape).
        components: how many.
        centred: subtract the trajectory's mean over T first, as in PCA.

    Returns (T, batch).
    """
    points = trajectory.flatten(2).transpose(0, 1).double()  # (batch, T, D)
    moved = points - points.mean(1, keepdim=True) if centred else points
    basis = torch.linalg.svd(moved, full_matrices=False).Vh[:, :components]
    rest = moved - moved @ basis.transpose(1, 2) @ basis
    return (rest.norm(dim=2) / points.norm(dim=2)).T
