"""Latents: a data set encoded once by an autoencoder, kept on disk, memory-mapped."""

from __future__ import annotations

import fcntl
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm

from kflow.data.images import Images, to_float
from kflow.networks import Autoencoder
from kflow.storage import CARD, CHECKPOINTS, RUNS, WEIGHTS, read_folder, write_folder


@dataclass(frozen=True)
class Latents(Images):
    """A data set of latents: ``train`` and ``test`` are (N, channel, height, width) float16, about standard normal.

    The second half of ``train`` are the latents of the mirrored images. The hash is of the images and the autoencoder's
    weights: latents differ in the last bit from one machine to the next.
    """

    def to_float(self, samples: Tensor) -> Tensor:
        """Some of ``train`` or ``test`` as float32."""
        return samples.float()


class StableDiffusionAutoencoder(nn.Module):
    """A diffusers AutoencoderKL behind the interface of :class:`~kflow.networks.Autoencoder`.

    Args:
        path: a folder in diffusers' format, or a name on its hub.

    Raises OSError if there is none or it is damaged, ValueError if weights are missing, or if it is not Stable
    Diffusion's: f = 8, 4 channels, scale 0.18215.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        from diffusers import AutoencoderKL

        options = {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
        try:
            self.vae, found = AutoencoderKL.from_pretrained(path, **options)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise OSError(f"KFLOW_VAE: no autoencoder in diffusers' format can be read from {path}: {error}") from None
        if missing := found["missing_keys"]:
            raise ValueError(f"KFLOW_VAE: {path} lacks {len(missing)} weights, such as {min(missing)}")
        config = self.vae.config
        got = (2 ** (len(config.block_out_channels) - 1), config.latent_channels, config.scaling_factor)
        if got != (8, 4, 0.18215):
            raise ValueError(f"KFLOW_VAE: f, channels and scale of {path} are {got}, allowed are (8, 4, 0.18215)")
        self.eval().requires_grad_(False)

    @property
    def hash(self) -> str:
        """sha256 of the weights, in the order of their names."""
        weights = sorted(self.vae.state_dict().items())
        return hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for _, value in weights)).hexdigest()

    def encode(self, images: Tensor) -> Tensor:
        """Latents, scaled, of images (batch, 3, height, width) in [−1, 1]: the posterior's mean."""
        latents = self.vae.encode(images.to(self.vae.device)).latent_dist.mean * self.vae.config.scaling_factor
        return latents.to(images.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, not clipped, of scaled latents."""
        images = self.vae.decode(latents.to(self.vae.device) / self.vae.config.scaling_factor).sample
        return images.to(latents.device)


def load_autoencoder(folder: str | Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder that ``kflow_book.training`` wrote into a folder, in float32, and its card.

    Raises:
        FileNotFoundError: none is there; it says how to train one.
        ValueError: a damaged file, or the card of something else.
    """
    if not (Path(folder) / CARD).exists():
        raise FileNotFoundError(
            f"there is no autoencoder in {folder}: train one with kflow_book.training.train_autoencoder"
        )
    tensors, card = read_folder(Path(folder), "autoencoder")
    autoencoder = Autoencoder(**card["autoencoder"])
    autoencoder.load_state_dict({name: value.float() for name, value in tensors[WEIGHTS].items()})
    return autoencoder.eval().requires_grad_(False), card


@torch.no_grad()
def encode(images: Tensor, autoencoder: nn.Module, batch_size: int = 100, desc: str = "encoding") -> Tensor:
    """Latents (N, channel, height, width) float16 of images (N, channel, height, width) uint8."""
    parts = tqdm(images.split(batch_size), desc=desc, disable=len(images) < 10 * batch_size)
    return torch.cat([autoencoder.encode(to_float(part)).half() for part in parts])


@torch.no_grad()
def decode(latents: Tensor, autoencoder: nn.Module, batch_size: int = 100) -> Tensor:
    """Images (N, channel, height, width), not clipped, of latents; in batches."""
    return torch.cat([autoencoder.decode(part.float()) for part in latents.split(batch_size)])


def hash_latents(data: Images, card: dict[str, Any]) -> str:
    """The hash of a data set's latents: of the images, and of the weights of the autoencoder with this card."""
    return hashlib.sha256(f"{data.hash} {card['files'][WEIGHTS]}".encode()).hexdigest()


def encode_data(data: Images, name: str, folder: str | Path | None = None) -> Latents:
    """The latents of a data set, read from ``runs/latents`` or encoded and written there.

    Args:
        data: the images. name: of the autoencoder in ``checkpoints/``; or ``folder``: where it is.

    Raises FileNotFoundError or ValueError as :func:`load_autoencoder`.
    """
    autoencoder, card = load_autoencoder(folder or CHECKPOINTS / name)
    origin = hash_latents(data, card)
    place = RUNS / "latents" / f"{data.name}-{origin[:12]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one encodes, the others wait and read
        if not (place / CARD).exists():
            train = torch.cat([data.train, data.train.flip(3)])
            latents = {"train": encode(train, autoencoder, desc=f"{data.name}: encoding")}
            latents["test"] = encode(data.test, autoencoder)
            card = {"data": data.name, "data_hash": data.hash, "autoencoder": str(name)}
            write_folder(place, {WEIGHTS: latents}, card)
    latents = read_folder(place, "data")[0][WEIGHTS]  # memory-mapped
    labels = (data.train_labels.repeat(2), data.test_labels)
    return Latents(f"{data.name}-latents", latents["train"], latents["test"], *labels, data.classes, origin)
