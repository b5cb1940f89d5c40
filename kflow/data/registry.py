"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kflow.data.files import prepared_file
from kflow.data.images import CIFAR10, EXPRESSIONS, Images, cifar10, digits, faces, faces32
from kflow.data.latents import decode, encode_data, hash_latents, load_autoencoder
from kflow.storage import CHECKPOINTS


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set without its files."""

    load: Callable[[], Images]
    shape: tuple[int, ...]  # (channel, height, width)
    classes: tuple[str, ...]
    path: Callable[[], Path] | None = None  # where its files are, or a FileNotFoundError; digits come with a package
    autoencoder: Callable[[], nn.Module] | None = None  # of latents
    images: str = ""  # of latents: the data set of their images
    count: int = 0  # training samples, of the paper's sets
    hash: Callable[[], str] | None = None  # of latents: theirs, known before they are encoded


def _latents(images: str) -> DataSet:
    pixels, name = PIXELS[images], f"{images}-autoencoder"
    load = cache(lambda: encode_data(pixels.load(), name))
    autoencoder = lambda: load_autoencoder(CHECKPOINTS / name)[0]  # noqa: E731
    origin = lambda: hash_latents(load_data(images), load_autoencoder(CHECKPOINTS / name)[1])  # noqa: E731
    return DataSet(load, (4, 16, 16), pixels.classes, pixels.path, autoencoder, images, hash=origin)


PIXELS = {
    "digits": DataSet(digits, (1, 32, 32), tuple("0123456789")),
    "faces": DataSet(faces, (1, 64, 64), EXPRESSIONS, partial(prepared_file, "faces")),
    "faces32": DataSet(faces32, (1, 32, 32), EXPRESSIONS, partial(prepared_file, "faces")),
    "cifar10": DataSet(cifar10, (3, 32, 32), CIFAR10, partial(prepared_file, "cifar10")),
}


def _book(module: str, function: str, *arguments: str) -> Callable[[], Any]:
    # What serves one page of the book, or the paper's scale, is loaded there.
    return lambda: getattr(import_module(f"kflow_book.{module}"), function)(*arguments)


def _clusters(name: str) -> DataSet:
    return DataSet(_book("crystals", "load", name), (17, 6), (), count=COD.get(name, 0))


def _pictures(name: str, count: int, classes: int, latents: bool) -> DataSet:
    shape, labels = (4, 32, 32) if latents else (3, 256, 256), tuple(map(str, range(classes)))
    load, path, autoencoder = (_book("pictures", f, name) for f in ("load", "find", "find_autoencoder"))
    images = name.removesuffix("-latents") if latents else ""
    return DataSet(load, shape, labels, path, autoencoder if latents else None, images, count)


# Training samples and classes of the paper's sets: CelebA-HQ as NVAE and the LFM baseline split it, COD-Cluster17 the
# first four fifths of 5,000, 10,000 and about 133,000.
COD = {"cod-cluster17-5k": 4_000, "cod-cluster17-10k": 8_000, "cod-cluster17-all": 106_400}
PAPER = {"celebahq": (27_000, 0), "church": (126_227, 0), "imagenet": (1_281_167, 1000)}
CLUSTERS = {name: _clusters(name) for name in ("crystals", "crystals-half", "crystals-quarter", *COD)}
LATENTS = {f"{name}-latents": _latents(name) for name in ("faces", "cifar10")}
PICTURES = {name: _pictures(name, *known, False) for name, known in PAPER.items()}
SHARDS = {f"{name}-latents": _pictures(f"{name}-latents", *known, True) for name, known in PAPER.items()}
DATA = PIXELS | CLUSTERS | LATENTS | PICTURES | SHARDS


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


def hash_data(name: str) -> str:
    """The hash of a data set, as :func:`load_data` has it; latents need not be encoded for it."""
    known = describe_data(name)
    return known.hash() if known.hash else known.load().hash


def is_here(name: str) -> bool:
    """Whether the files of a data set are here (ValueError if there is no such data set)."""
    path = describe_data(name).path
    try:
        return not path or bool(path())
    except FileNotFoundError:
        return False


def images_of(name: str) -> Images:
    """The images of a data set: of latents, those that they encode. Errors as :func:`load_data`."""
    return load_data(describe_data(name).images or name)


def to_pixels(samples: Tensor, name: str) -> Tensor:
    """Images (N, channel, height, width), not clipped, of samples of a data set: latents are decoded."""
    autoencoder = describe_data(name).autoencoder
    return decode(samples, autoencoder()) if autoencoder else samples
