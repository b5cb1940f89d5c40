"""Pages on photographs: samples in one picture, the training images nearest to a sample, what autoencoders keep."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from kflow.data import decode, encode, to_float, to_uint8


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


def rebuild(images: Tensor, autoencoder: nn.Module, desc: str = "encoding") -> Tensor:
    """Images (N, C, H, W) uint8 through an autoencoder and back."""
    return to_uint8(decode(encode(images, autoencoder, desc=desc), autoencoder))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, in dB, of each of two sets of images (N, C, H, W) uint8: (N,); at most 78."""
    errors = (images.double() - others.double()).square().flatten(1).mean(1)
    return 10 * (255**2 / errors.clamp(min=1e-3)).log10()
