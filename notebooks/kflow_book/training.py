"""Training the networks that measure and encode: judges, feature networks, autoencoders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from kflow.data import Images, decode, encode, to_float, to_uint8
from kflow.experiment import bf16_is_native
from kflow.metrics import agreement
from kflow.networks import Autoencoder, Classifier
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


def train_classifier(
    data: Images,
    folder: str | Path,
    images: int = 90_000,
    batch_size: int = 100,
    seed: int = 0,
    width: int = 32,
    tone: bool = False,
    mirror: bool = False,
    progress: bool = True,
) -> Classifier:
    """Train a judge or a feature network on the training images; its card holds its test accuracy.

    Images are shifted, turned and scaled a little at random; AdamW with a one-cycle learning rate; bf16 where the
    processor has it.

    Args:
        data: what to train on; the test images are only measured on.
        folder: where to write; must not exist.
        images: length of the training.
        width: of the network; a feature network of width w gives 7·w features.
        tone: vary contrast and add noise in training, for a feature network that does not take a shade of grey, which
            nobody sees, for a difference in content.
        mirror: also mirror half of the images left to right: for photographs, not for digits.

    Raises FileExistsError: the folder exists.
    """
    if Path(folder).exists():
        raise FileExistsError(f"{folder} exists: remove it first, nothing is overwritten")
    torch.manual_seed(seed)
    started = time.perf_counter()
    classifier = Classifier(data.shape, len(data.classes), width).to(memory_format=torch.channels_last)
    steps = images // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="classifier", disable=not progress):
        chosen = torch.randint(len(data.train), (batch_size,))
        views = jitter(to_float(data.train[chosen]))
        if mirror:
            views = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.5, views.flip(3), views)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_native("cpu")):
            logits = classifier(change_tone(views) if tone else views)
        loss = F.cross_entropy(logits.float(), data.train_labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    classifier.eval().requires_grad_(False)
    with torch.no_grad():  # features standardised over the training images, so that every stage counts
        features = torch.cat([classifier.features(to_float(part)) for part in data.train.split(500)])
        classifier.feature_mean.copy_(features.mean(0))
        classifier.feature_scale.copy_(features.std(0).clamp(min=1e-3))
    classifier.half().float()  # judged as it is written
    accuracy = agreement(classifier, to_float(data.test), data.test_labels)
    card = {
        "data": data.name,
        "data_hash": data.hash,
        "images": steps * batch_size,
        "seed": seed,
        "width": width,
        "tone": tone,
        "mirror": mirror,
        "test_accuracy": accuracy,
        "test_images": len(data.test),
        "seconds": time.perf_counter() - started,
    }
    weights = {name: t.half() if t.is_floating_point() else t for name, t in classifier.state_dict().items()}
    write_folder(Path(folder), {WEIGHTS: weights}, card)
    return classifier


def jitter(images: Tensor, shift: float = 0.08, turn: float = 0.2, scale: float = 0.12) -> Tensor:
    """Small random affine maps of images (batch, channel, height, width); shift as share of the width, turn in rad."""
    draws = torch.rand(4, len(images)) * 2 - 1
    angle, size = draws[0] * turn, 1 + draws[1] * scale
    rows = (
        torch.stack([angle.cos() * size, -angle.sin() * size, draws[2] * 2 * shift]),
        torch.stack([angle.sin() * size, angle.cos() * size, draws[3] * 2 * shift]),
    )
    grid = F.affine_grid(torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def change_tone(images: Tensor, contrast: float = 0.3, noise: float = 0.15) -> Tensor:
    """Contrast lowered by a share of up to ``contrast``, and white noise of up to ``noise``, at random."""
    lost, level = torch.rand(2, len(images), 1, 1, 1)
    return images * (1 - contrast * lost) + noise * level * torch.randn_like(images)
