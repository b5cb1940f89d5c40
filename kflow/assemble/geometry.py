"""Rotations: exponential and logarithm of SO(3), and the rotation between two poses of a rigid molecule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation_matrix(vector: Tensor) -> Tensor:
    """The exponential of SO(3) (Rodrigues): rotation vectors (..., 3), axis times angle in rad, to (..., 3, 3)."""
    # sin θ/θ and (1 − cos θ)/θ² = ½ (sin(θ/2)/(θ/2))² through sinc, which is smooth at 0; the clamp is for gradients.
    angle = vector.square().sum(-1).clamp(min=torch.finfo(vector.dtype).tiny).sqrt()[..., None, None] / torch.pi
    (x, y, z), zero = vector.unbind(-1), torch.zeros_like(vector[..., 0])
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3).to(cross) + torch.sinc(angle) * cross + torch.sinc(angle / 2).square() / 2 * cross @ cross


def rotation_vector(matrix: Tensor) -> Tensor:
    """The logarithm of SO(3): (..., 3, 3) to rotation vectors (..., 3), at most π long; at π either of the two.

    Through the quaternion q = (w, xyz), by the largest of the four rows of 4 q qᵀ: accurate at angle 0 and at π.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1, keepdim=True)
    skew = torch.stack([matrix[..., a, b] - matrix[..., b, a] for a, b in ((2, 1), (0, 2), (1, 0))], -1)
    rest = matrix + matrix.mT + torch.diag_embed((1 - trace).expand_as(diagonal))
    first = torch.cat([1 + trace, skew], -1)[..., None, :]
    rows = torch.cat([first, torch.cat([skew[..., None], rest], -1)], -2)
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    quaternion = F.normalize(torch.take_along_dim(rows, largest, -2).squeeze(-2), dim=-1)
    w, xyz = (quaternion * torch.where(quaternion[..., :1] < 0, -1.0, 1.0)).split([1, 3], -1)  # the shorter way round
    sine = xyz.norm(dim=-1, keepdim=True)
    return xyz * torch.where(sine > 0, 2 * torch.atan2(sine, w) / sine.clamp(min=torch.finfo(matrix.dtype).tiny), 2.0)


def fit_rotation(start: Tensor, final: Tensor) -> Tensor:
    """The rotation that takes start to final (Kabsch, in float64): (..., atoms, 3) about their means to (..., 3, 3).

    Where atoms lie in one line it is free about that line, and any is returned.
    """
    u, _, vt = torch.linalg.svd(final.double().mT @ start.double())
    signs = torch.stack([torch.ones_like(u[..., 0, 0])] * 2 + [torch.linalg.det(u @ vt)], -1)
    return (u * signs[..., None, :] @ vt).to(start.dtype)
