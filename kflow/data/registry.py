"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from torch import Tensor

from kflow.data.files import prepared_file
from kflow.data.images import CIFAR10, EXPRESSIONS, Images, cifar10, digits, faces, faces32
from kflow.data.latents import decode, encode_data, load_autoencoder
from kflow.storage import CHECKPOINTS


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set without its files."""

    load: Callable[[], Images]
    shape: tuple[int, ...]  # (channel, height, width)
    classes: tuple[str, ...]
    file: str = ""  # what it is read from, in kflow.data.files; digits come with a package
    autoencoder: str = ""  # in checkpoints/, of latents
    images: str = ""  # the data set of their images


def _latents(images: str) -> DataSet:
    pixels, autoencoder = PIXELS[images], f"{images}-autoencoder"
    load = cache(lambda: encode_data(pixels.load(), autoencoder))
    return DataSet(load, (4, 16, 16), pixels.classes, pixels.file, autoencoder, images)


PIXELS = {
    "digits": DataSet(digits, (1, 32, 32), tuple("0123456789")),
    "faces": DataSet(faces, (1, 64, 64), EXPRESSIONS, "faces"),
    "faces32": DataSet(faces32, (1, 32, 32), EXPRESSIONS, "faces"),
    "cifar10": DataSet(cifar10, (3, 32, 32), CIFAR10, "cifar10"),
}


def _clusters(name: str) -> DataSet:  # they serve one page of the book, which is where their loaders are
    return DataSet(lambda: import_module("kflow_book.crystals").LOADERS[name](), (17, 6), ())


SETS = "crystals crystals-half crystals-quarter cod-cluster17-5k cod-cluster17-10k cod-cluster17-all"
CLUSTERS = {name: _clusters(name) for name in SETS.split()}
DATA = PIXELS | CLUSTERS | {f"{name}-latents": _latents(name) for name in ("faces", "cifar10")}


def describe_data(name: str) -> DataSet:
    """Shape and classes of a data set, which need not be here.

    Raises ValueError: there is no such data set.
    """
    if name not in DATA:
        raise ValueError(f"data is {name!r}, allowed are {', '.join(DATA)}")
    return DATA[name]


def load_data(name: str) -> Images:
    """A data set by name; latents are encoded where they have not been yet.

    Raises:
        ValueError: another name, or files whose content is not what it should be.
        FileNotFoundError: its files are not there; it says how to get them.
    """
    return describe_data(name).load()


def is_here(name: str) -> bool:
    """Whether the files of a data set are here (ValueError if there is no such data set)."""
    file = describe_data(name).file
    try:
        return not file or bool(prepared_file(file))
    except FileNotFoundError:
        return False


def images_of(name: str) -> Images:
    """The images of a data set: of latents, those that they encode. Errors as :func:`load_data`."""
    return load_data(describe_data(name).images or name)


def to_pixels(samples: Tensor, name: str) -> Tensor:
    """Images (N, channel, height, width), not clipped, of samples of a data set: latents are decoded."""
    autoencoder = describe_data(name).autoencoder
    return decode(samples, load_autoencoder(CHECKPOINTS / autoencoder)[0]) if autoencoder else samples
