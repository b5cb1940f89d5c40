"""The paper's image data sets as users hold them, and their Stable Diffusion latents, encoded once into shards.

python -m kflow_book.pictures imagenet-latents                              in one process
torchrun --nproc-per-node 8 -m kflow_book.pictures imagenet-latents         or each process its share of the shards;
srun python -m kflow_book.pictures imagenet-latents                         the same under SLURM

A latent is the mean of the autoencoder's posterior; the LFM baseline draws from the posterior at every step.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from kflow.data import Images, describe_data, encode, load_data
from kflow.data.files import data_folder, open_files
from kflow.data.latents import Latents, StableDiffusionAutoencoder
from kflow.data.registry import SHARDS
from kflow.storage import CARD, WEIGHTS, read_card, read_folder, write_folder

#: name → folder in KFLOW_DATA, and its splits, train and test: celebahq/train.lmdb or celebahq/train/NAME.png or
#: celebahq/train.zip; lsun/church_outdoor_train_lmdb as LSUN unpacks it; imagenet/train/n01440764/NAME.JPEG.
PLACES = {
    "celebahq": ("celebahq", "train", "validation"),
    "church": ("lsun", "church_outdoor_train", "church_outdoor_val"),
    "imagenet": ("imagenet", "train", "val"),
}
SHARD = 1024  # images, of which each is there twice, as it is and mirrored: 16 MB of 32×32×4
AUTOENCODER = "stabilityai/sd-vae-ft-mse"  # the LFM baseline's
open_lmdb = cache(partial(lmdb.open, readonly=True, lock=False, readahead=False, meminit=False))  # once a process


def open_records(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """As :func:`kflow.data.files.open_files`, of an LMDB too."""
    if not (path / "data.mdb").exists():
        return open_files(path)
    records = open_lmdb(str(path))

    def read(name: str) -> bytes:
        with records.begin() as opened:
            return opened.get(name.encode())

    with records.begin() as opened:
        return [key.decode() for key in opened.cursor().iternext(values=False)], read


class Pictures:
    """The pictures of an LMDB, folder or zip file, like a tensor (N, 3, size, size) uint8; each is read when asked for.

    The values of an LMDB are files, as in LSUN's own, or the raw pixels of square pictures, as in that of CelebA-HQ
    which NVAE and the LFM baseline use. Pictures are halved while they are twice too large, scaled to ``size`` on the
    shorter side, and cropped around the centre, as ADM does it.
    """

    dtype = torch.uint8

    def __init__(self, path: Path, size: int = 256):
        self.path, self.size = path, size
        self.names, self._read = open_records(path)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __getitem__(self, chosen: int | slice | Tensor) -> Tensor | Pictures:
        """One picture (3, size, size); several for a tensor of indices (n,); a slice reads nothing.

        Raises ValueError: it cannot be read.
        """
        if isinstance(chosen, slice):
            part = copy.copy(self)
            part.names = self.names[chosen]
            return part
        if isinstance(chosen, Tensor) and chosen.dim():
            return torch.stack([self[index] for index in chosen.tolist()])
        try:
            return crop_picture(self._read(self.names[chosen]), self.size)
        except OSError as error:
            raise ValueError(f"{self.names[chosen]} in {self.path} is no picture: {error}") from None


def crop_picture(content: bytes, size: int) -> Tensor:
    """A picture's content as (3, size, size) uint8, see :class:`Pictures`. Raises OSError if it is none."""
    try:
        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")).convert("RGB")
    except UnidentifiedImageError:
        side = math.isqrt(len(content) // 3)
        if not side or len(content) != 3 * side**2:
            raise
        picture = Image.frombytes("RGB", (side, side), content)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return torch.from_numpy(np.array(picture)[top : top + size, left : left + size]).permute(2, 0, 1)


def find_split(name: str, test: bool = False) -> Path:
    """Where a split of one of the paper's data sets is: an LMDB, a zip file, or a folder of pictures.

    Raises FileNotFoundError, saying where it looked.
    """
    folder, *splits = PLACES[name]
    places = [data_folder() / folder / f"{splits[test]}{ending}" for ending in (".lmdb", "_lmdb", ".zip", "")]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(place.name for place in places)
    raise FileNotFoundError(f"there is none of {looked} in {places[0].parent}: KFLOW_DATA names the folder above it")


def read_pictures(name: str) -> Images:
    """One of the paper's data sets, with labels in the order of the class folders' names.

    The test split may be missing. The hash is of the pictures' names alone: reading all of them takes hours.

    Raises FileNotFoundError if the training split is missing, ValueError if there are not as many class folders as the
    data set has classes: the labels would be others.
    """
    classes, train = describe_data(name).classes, Pictures(find_split(name))
    try:
        test = Pictures(find_split(name, test=True))
    except FileNotFoundError:
        test = train[:0]
    folders = [
        [Path(file).parent.name for file in part.names] if classes else [""] * len(part) for part in (train, test)
    ]
    found = {folder: label for label, folder in enumerate(sorted({*folders[0], *folders[1]}))}
    if classes and len(found) != len(classes):
        raise ValueError(f"{train.path} has {len(found)} class folders, allowed are {len(classes)}")
    labels = [torch.tensor([found[folder] for folder in part], dtype=torch.int64) for part in folders]
    source_hash = hashlib.sha256("\n".join([*train.names, "", *test.names]).encode()).hexdigest()
    return Images(name, train, test, *labels, classes, source_hash)


class Shards:
    """Latents (N, channel, height, width) float16 in several memory-mapped files, indexed as one tensor."""

    dtype = torch.float16

    def __init__(self, parts: list[Tensor]):
        self.parts = parts
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.shape = torch.Size((int(self.ends[-1]), *parts[0].shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Those of a tensor of indices (n,), or of a slice: read into memory."""
        chosen = torch.arange(len(self))[chosen] if isinstance(chosen, slice) else chosen
        part = torch.bucketize(chosen, self.ends, right=True)
        places = zip(part.tolist(), (chosen - self.ends[part]).tolist())  # counted back from a part's end
        return torch.stack([self.parts[number][place] for number, place in places])

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them in order, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


def shard_folder(name: str) -> Path:
    """Where the latents of one of the paper's data sets are: in the folder ``latents`` beside the pictures."""
    return data_folder() / "latents" / name


def shards_of(folder: Path, count: int) -> list[Path]:
    """The folders of the shards of so many images."""
    total = -(-count // SHARD)
    return [folder / f"{number:05d}-of-{total:05d}" for number in range(total)]


def encode_shards(
    data: Images, autoencoder: StableDiffusionAutoencoder, folder: Path, rank: int = 0, ranks: int = 1
) -> list[Path]:
    """Encode one rank's share of the training images and of their mirror images; shards that are there are kept.

    Returns the shards that are not there yet, of other ranks. Raises ValueError: a shard that is there is of another
    autoencoder or of other pictures.
    """
    names_hash = hashlib.sha256("\n".join(data.train.names).encode()).hexdigest()
    facts = {
        "data": data.name,
        "count": len(data.train),
        "names_hash": names_hash,
        "autoencoder_hash": autoencoder.hash,
    }
    places = shards_of(folder, len(data.train))
    mine = list(enumerate(places))[rank::ranks]
    bar = tqdm(total=sum(min(SHARD, len(data.train) - SHARD * n) for n, _ in mine), desc=data.name, unit=" images")
    with ThreadPoolExecutor() as pool, bar:
        for number, place in mine:
            chosen = range(SHARD * number, min(SHARD * (number + 1), len(data.train)))
            if (place / CARD).exists():
                check_card(place, facts)
            else:
                pixels = torch.stack(list(pool.map(data.train.__getitem__, chosen)))
                both = {"as_is": pixels, "mirrored": pixels.flip(3)}.items()
                tensors = {key: torch.cat([encode(x, autoencoder, 64) for x in y.split(256)]) for key, y in both}
                tensors["labels"] = data.train_labels[chosen.start : chosen.stop]
                pixels_hash = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
                write_folder(place, {WEIGHTS: tensors}, {**facts, "pixels_hash": pixels_hash})
            bar.update(len(chosen))
    return [place for place in places if not (place / CARD).exists()]


def check_card(place: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """A shard's card. Raises ValueError if one of the facts is another there."""
    card = read_card(place)
    for key, value in facts.items():
        if card.get(key) != value:
            raise ValueError(
                f"{place} has {key} {card.get(key)!r}, allowed is {value!r}: remove the shards, or set it right"
            )
    return card


def read_shards(name: str) -> Latents:
    """The latents that :func:`encode_shards` wrote, each file checked by its hash; there is no test set.

    Raises FileNotFoundError if shards are missing, ValueError if some are damaged, of other origins, or too short.
    """
    folder, known = shard_folder(name), describe_data(name)
    command = f"python -m kflow_book.pictures {name}"
    first = next(iter(sorted(folder.glob("[0-9]*-of-*"))), None)
    if first is None:
        raise FileNotFoundError(f"there are no latents in {folder}: {command} makes them")
    facts = {key: read_card(first)[key] for key in ("data", "count", "names_hash", "autoencoder_hash")}
    places = shards_of(folder, facts["count"])
    missing = [place for place in places if not (place / CARD).exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(places)} shards are missing, {missing[0]} first: {command} goes on"
        )
    total, parts = hashlib.sha256(facts["autoencoder_hash"].encode()), []
    for place in tqdm(places, desc=f"{name}: reading", disable=rank_zero_only.rank > 0):
        total.update(check_card(place, facts)["pixels_hash"].encode())
        parts.append(read_folder(place)[0][WEIGHTS])
    train = Shards([part[key] for key in ("as_is", "mirrored") for part in parts])
    labels = torch.cat([part["labels"] for part in parts])
    allowed = (2 * facts["count"], *known.shape)
    if train.shape != allowed or 2 * len(labels) != len(train):
        raise ValueError(f"the latents in {folder} are {tuple(train.shape)}, allowed is {allowed}")
    nothing = torch.empty(0, *known.shape, dtype=Shards.dtype)
    return Latents(name, train, nothing, labels.repeat(2), labels[:0], known.classes, total.hexdigest())


def find(name: str) -> Path:
    """Where the files of a data set of this module are. Raises FileNotFoundError if nowhere."""
    if name not in SHARDS:
        return find_split(name)
    if not shard_folder(name).exists():
        raise FileNotFoundError(f"there is no folder {shard_folder(name)}")
    return shard_folder(name)


@cache
def load(name: str) -> Images:
    """A data set of this module by name: what :func:`kflow.data.load_data` calls."""
    return read_shards(name) if name in SHARDS else read_pictures(name)


@cache
def load_stable_diffusion(path: str) -> StableDiffusionAutoencoder:
    """Stable Diffusion's autoencoder, on the GPU if there is one; read once."""
    return StableDiffusionAutoencoder(path).to("cuda" if torch.cuda.is_available() else "cpu")


def find_autoencoder(name: str = "") -> StableDiffusionAutoencoder:
    """The autoencoder that KFLOW_VAE names, a folder in diffusers' format or a name on its hub; by default AUTOENCODER.

    Raises OSError if there is none or it is damaged, ValueError if it is not Stable Diffusion's, or not the one that
    made the latents ``name`` that are here.
    """
    autoencoder = load_stable_diffusion(os.environ.get("KFLOW_VAE") or AUTOENCODER)
    for place in sorted(shard_folder(name).glob("[0-9]*-of-*"))[:1] if name else ():
        check_card(place, {"autoencoder_hash": autoencoder.hash})
    return autoencoder


def main(arguments: list[str]) -> None:
    """The command line; torchrun and SLURM number their processes in the environment."""
    if len(arguments) != 1 or arguments[0] not in SHARDS:
        raise SystemExit(f"usage: python -m kflow_book.pictures {{{','.join(SHARDS)}}}")
    slurm = SLURMEnvironment.detect() and "RANK" not in os.environ
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if slurm else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, ranks, local = (int(os.environ.get(key, default)) for key, default in zip(names, (0, 1, 0)))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    (name,) = arguments
    try:
        data, folder = load_data(describe_data(name).images), shard_folder(name)
        missing = encode_shards(data, find_autoencoder(), folder, rank, ranks)
        if missing:
            print(f"{folder}: rank {rank} is done, {len(missing)} shards of other ranks are missing")
        else:
            print(f"{folder}: {len(load_data(name).train):,} latents, mirrored ones included, checked")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
