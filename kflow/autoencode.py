"""Training an autoencoder for latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kflow.data import Images, decode, encode, to_float, to_uint8
from kflow.experiment import bf16_is_native
from kflow.networks import Autoencoder
from kflow.storage import WEIGHTS, write_folder


def train_autoencoder(
    data: Images,
    folder: str | Path,
    images: int = 300_000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    kl_weight: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
    **sizes: Any,
) -> Autoencoder:
    """Train an autoencoder on the training images and their mirror images, and write it with its card.

    AdamW with a one-cycle learning rate; bf16 where the processor has it. The card holds the held-out PSNR.

    Args:
        data: what to train on; the test images are only measured on.
        folder: where to write; must not exist.
        images: length of the training.
        kl_weight: see :meth:`~kflow.networks.Autoencoder.loss`.
        sizes: channels, factor, width, depth of :class:`~kflow.networks.Autoencoder`; by default latents are 16 high.

    Raises FileExistsError: the folder exists.
    """
    if Path(folder).exists():
        raise FileExistsError(f"{folder} exists: remove it first, nothing is overwritten")
    sizes = {"channels": 4, "factor": data.shape[1] // 16, **sizes}
    torch.manual_seed(seed)
    started = time.perf_counter()
    autoencoder = Autoencoder(data.shape, **sizes)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), weight_decay=0.01, fused=True)
    steps = images // batch_size
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    bar = tqdm(range(steps), desc=f"{data.name}: autoencoder", disable=not progress, mininterval=0.5)
    for step in bar:
        batch = to_float(data.train[torch.randint(len(data.train), (batch_size,))])
        mirrored = torch.rand(batch_size, 1, 1, 1) < 0.5
        batch = torch.where(mirrored, batch.flip(3), batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_native("cpu")):
            loss, error = autoencoder.loss(batch, kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % 20 == 0:
            bar.set_postfix(psnr=f"{-10 * float((error / 4).log10()):.2f} dB")
    autoencoder.eval().requires_grad_(False).half().float()  # measured as it is written
    latents = encode(data.train, autoencoder).float()
    autoencoder.latent_mean.copy_(latents.mean((0, 2, 3))[:, None, None])
    autoencoder.latent_scale.copy_(latents.std((0, 2, 3))[:, None, None])
    card = {
        "data": data.name,
        "data_hash": data.hash,
        "autoencoder": {"shape": list(data.shape), **sizes},
        "images": steps * batch_size,
        "kl_weight": kl_weight,
        "seed": seed,
        "test_psnr": psnr(data.test, autoencoder),
        "seconds": time.perf_counter() - started,
    }
    weights = {name: t.half() if "latent_" not in name else t for name, t in autoencoder.state_dict().items()}
    write_folder(Path(folder), {WEIGHTS: weights}, card)
    return autoencoder


def psnr(images: Tensor, autoencoder: Autoencoder) -> float:
    """Peak signal-to-noise ratio of the reconstructions of images (N, channel, height, width) uint8, in dB.

    The mean over images of each one's.
    """
    again = to_uint8(decode(encode(images, autoencoder), autoencoder))
    errors = (again.double() - images.double()).square().flatten(1).mean(1).clamp(min=1e-3)
    return float((10 * (255**2 / errors).log10()).mean())
