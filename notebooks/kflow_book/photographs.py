"""Pages on photographs: samples in one picture, and the training images that are nearest to a sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.utils import make_grid

from kflow.data import to_float, to_uint8


def montage(images: Tensor, columns: int = 16) -> Tensor:
    """Images (N, C, H, W) in [−1, 1] (clipped) or uint8 as one, (1, C, height, width) uint8, a white pixel apart.

    One picture of many photographs is a tenth of the bytes of many pictures.
    """
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    channels = images.shape[1]
    return make_grid(images, nrow=columns, padding=1, pad_value=255)[:channels][None]


def nearest(found: Tensor, among: Tensor, batch: int = 1000) -> tuple[Tensor, Tensor]:
    """Of each feature (N, D) the Euclidean distance to the nearest of others (M, D), and which it is: both (N,)."""
    distances, indices = zip(*(torch.cdist(part, among).min(1) for part in found.split(batch)))
    return torch.cat(distances), torch.cat(indices)


def as_pixels(images: Tensor) -> Tensor:
    """Images (N, C, H, W) uint8 as features (N, D) whose distance is the root mean square difference of a pixel."""
    flat = to_float(images).flatten(1)
    return flat / flat.shape[1] ** 0.5
