"""Pages on photographs: samples in one picture, the training images nearest to a sample, what autoencoders keep."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from kflow.checkpoint import load_model
from kflow.data import decode, encode, images_of, to_float, to_uint8
from kflow.records import RECORDS, Record
from kflow.storage import CHECKPOINTS
from kflow_book.measure import Trained


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


def with_mirrored(images: Tensor) -> Tensor:
    """Images (N, C, H, W) and after them their mirror images, (2 N, C, H, W)."""
    return torch.cat([images, images.flip(3)])


def neighbour_rows(run: str, measurement: str, count: int) -> Tensor:
    """The first ``count`` samples of a committed model, then the training images nearest to them in pixels, then in
    features, as its record of :func:`~kflow_book.protocols.measure_copies` names them: (3 count, C, H, W) uint8.

    Raises FileNotFoundError: there is no such record, or the training images are not here.
    """
    record = Record.read(RECORDS / f"{run}-{measurement}.json")
    model, experiment, _ = load_model(CHECKPOINTS / run)
    trained, train = Trained(model, experiment), with_mirrored(images_of(experiment.data).train)
    labels = trained.labels(count) if experiment.conditional else None
    samples = trained.generate(trained.noise(count), labels, steps=record.settings["steps"])
    found = [train[record.values[f"neighbours_{look}"][:count]] for look in ("pixels", "features")]
    return torch.cat([to_uint8(trained.images(samples)), *found])


def rebuild(images: Tensor, autoencoder: nn.Module, desc: str = "encoding") -> Tensor:
    """Images (N, C, H, W) uint8 through an autoencoder and back."""
    return to_uint8(decode(encode(images, autoencoder, desc=desc), autoencoder))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, in dB, of each of two sets of images (N, C, H, W) uint8: (N,); at most 78."""
    errors = (images.double() - others.double()).square().flatten(1).mean(1)
    return 10 * (255**2 / errors.clamp(min=1e-3)).log10()
