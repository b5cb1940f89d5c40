"""Training the networks that measure and encode: judges, feature networks, autoencoders.

python -m kflow_book.training NAME ...    trains those of NETWORKS into runs/, and goes on with what was cut
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from kflow.data import Images, encode, load_data, to_float
from kflow.experiment import bf16_is_native
from kflow.metrics import agreement
from kflow.networks import Autoencoder, Classifier
from kflow.storage import RUNS, WEIGHTS, flatten_state, nest_state, read_folder, write_folder
from kflow_book.photographs import psnr, rebuild

STATE_IMAGES = 100_000  # between two states of a training, from which it goes on after an interruption


def fit(
    module: nn.Module,
    loss: Callable[[], tuple[Tensor, Tensor]],
    folder: Path,
    facts: dict[str, Any],
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warm_up: float,
    clip_norm: float = math.inf,
    **bar: Any,
) -> float:
    """Train a module: AdamW, one-cycle learning rate, bf16 where the processor has it.

    Now and then the state is written beside ``folder``, and the random state set anew from the seed and the step; so a
    training that was cut goes on, and ends on one machine as one that was not.

    Args:
        loss: of one batch that it draws itself, and an error for the progress bar: two scalars.
        facts: what the card will say of the training, ``images`` and ``seed`` among it.
        warm_up: share of the steps in which the learning rate rises.
        bar: options of the progress bar.

    Returns the seconds that it took, over all interruptions. Raises ValueError: the state is of other facts.
    """
    steps, every = facts["images"] // batch_size, STATE_IMAGES // batch_size
    facts = {**facts, "batch_size": batch_size, "learning_rate": learning_rate, "weight_decay": weight_decay}
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=weight_decay, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=warm_up)
    state = folder.with_name(f"{folder.name}-state")
    start, seconds = resume(state, module, optimizer, facts)
    rates.last_epoch = start
    started, progress = time.perf_counter() - seconds, tqdm(initial=start, total=steps, mininterval=0.5, **bar)
    for step in range(start, steps):
        if step and step % every == 0:
            if step > start:
                tensors = {WEIGHTS: module.state_dict(), "optimizer.safetensors": flatten_state(optimizer)}
                card = {name: optimizer.param_groups[0][name] for name in ("lr", "betas")}
                card |= {"step": step, "seconds": time.perf_counter() - started, "facts": facts}
                write_folder(state / f"{step:09d}", tensors, card)
                for old in sorted(state.glob("[0-9]*"))[:-2]:
                    shutil.rmtree(old)
            torch.manual_seed(facts["seed"] * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_native("cpu")):
            value, error = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        rates.step()
        progress.update()
        if step % 20 == 0:
            progress.set_postfix(error=f"{float(error):.4g}")
    progress.close()
    shutil.rmtree(state, ignore_errors=True)
    module.eval().requires_grad_(False)
    return time.perf_counter() - started


def resume(
    state: Path, module: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> tuple[int, float]:
    """Load the newest state that :func:`fit` wrote, if there is one; its step, and the seconds trained until then."""
    places = sorted(state.glob("[0-9]*"))
    if not places:
        return 0, 0.0
    tensors, card = read_folder(places[-1], "step", "seconds", "lr", "betas", "facts")
    for key, value in facts.items():
        if card["facts"].get(key) != value:
            raise ValueError(
                f"{state} holds a training with {key} = {card['facts'].get(key)!r}, asked is {value!r}: "
                "remove it, or give another folder"
            )
    module.load_state_dict(tensors[WEIGHTS])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": nest_state(tensors["optimizer.safetensors"])})
    optimizer.param_groups[0] |= {name: card[name] for name in ("lr", "betas")}
    return card["step"], card["seconds"]


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

    The card holds the held-out PSNR, and mean and standard deviation of the latents over the training images.

    Args:
        data: what to train on; the test images are only measured on.
        folder: where to write; must not exist.
        images: length of the training.
        kl_weight: see :meth:`~kflow.networks.Autoencoder.loss`.
        sizes: channels, factor, width, depth of :class:`~kflow.networks.Autoencoder`; by default latents are 16 high.

    Raises FileExistsError: the folder exists.
    """
    folder = new_folder(folder)
    sizes = {"channels": 4, "factor": data.shape[1] // 16, **sizes}
    torch.manual_seed(seed)
    autoencoder = Autoencoder(data.shape, **sizes)

    def loss() -> tuple[Tensor, Tensor]:
        batch = to_float(data.train[torch.randint(len(data.train), (batch_size,))])
        mirrored = torch.rand(batch_size, 1, 1, 1) < 0.5
        return autoencoder.loss(torch.where(mirrored, batch.flip(3), batch), kl_weight)

    facts = {
        "data": data.name,
        "data_hash": data.hash,
        "autoencoder": {"shape": list(data.shape), **sizes},
        "images": images // batch_size * batch_size,
        "seed": seed,
        "kl_weight": kl_weight,
    }
    options = {"weight_decay": 0.01, "warm_up": 0.1, "clip_norm": 1.0, "disable": not progress}
    name = f"{data.name}: autoencoder"
    seconds = fit(autoencoder, loss, folder, facts, batch_size, learning_rate, **options, desc=name)
    autoencoder.half().float()  # measured as it is written
    latents = encode(data.train, autoencoder).float()
    autoencoder.latent_mean.copy_(latents.mean((0, 2, 3))[:, None, None])
    autoencoder.latent_scale.copy_(latents.std((0, 2, 3))[:, None, None])
    card = {
        **facts,
        "seconds": seconds,
        "test_psnr": float(psnr(data.test, rebuild(data.test, autoencoder)).mean()),
        "latent_mean": autoencoder.latent_mean.flatten().tolist(),
        "latent_scale": autoencoder.latent_scale.flatten().tolist(),
    }
    weights = {name: t.half() if "latent_" not in name else t for name, t in autoencoder.state_dict().items()}
    write_folder(folder, {WEIGHTS: weights}, card)
    return autoencoder


def new_folder(folder: str | Path) -> Path:
    """The folder, if there is none yet; otherwise a FileExistsError."""
    if Path(folder).exists():
        raise FileExistsError(f"{folder} exists: remove it first, nothing is overwritten")
    return Path(folder)


def train_classifier(
    data: Images,
    folder: str | Path,
    images: int = 90_000,
    batch_size: int = 100,
    seed: int = 0,
    width: int = 32,
    tone: bool = False,
    mirror: bool = False,
    turn: float = 0.2,
    scale: float = 0.12,
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
        turn, scale: how much they are turned and scaled, see :func:`jitter`.

    Raises FileExistsError: the folder exists.
    """
    folder = new_folder(folder)
    torch.manual_seed(seed)
    classifier = Classifier(data.shape, len(data.classes), width).to(memory_format=torch.channels_last)

    def loss() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.train), (batch_size,))
        views, labels = jitter(to_float(data.train[chosen]), turn=turn, scale=scale), data.train_labels[chosen]
        if mirror:
            views = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.5, views.flip(3), views)
        logits = classifier(change_tone(views) if tone else views).float()
        return F.cross_entropy(logits, labels, label_smoothing=0.05), (logits.argmax(1) != labels).float().mean()

    facts = {
        "data": data.name,
        "data_hash": data.hash,
        "images": images // batch_size * batch_size,
        "seed": seed,
        "width": width,
        "tone": tone,
        "mirror": mirror,
        "turn": turn,
        "scale": scale,
    }
    options = {"learning_rate": 3e-3, "weight_decay": 0.05, "warm_up": 0.3, "disable": not progress}
    seconds = fit(classifier, loss, folder, facts, batch_size, **options, desc=f"{data.name}: classifier")
    with torch.no_grad():  # features standardised over the training images, so that every stage counts
        features = torch.cat([classifier.features(to_float(part)) for part in data.train.split(500)])
        classifier.feature_mean.copy_(features.mean(0))
        classifier.feature_scale.copy_(features.std(0).clamp(min=1e-3))
    classifier.half().float()  # judged as it is written
    accuracy = agreement(classifier, to_float(data.test), data.test_labels)
    card = {**facts, "seconds": seconds, "test_accuracy": accuracy, "test_images": len(data.test)}
    weights = {name: t.half() if t.is_floating_point() else t for name, t in classifier.state_dict().items()}
    write_folder(folder, {WEIGHTS: weights}, card)
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


#: The networks that measure and encode: what trains each of them.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "digits-judge": partial(train_classifier, seed=0),
    "digits-features": partial(train_classifier, seed=1, width=16, tone=True),
    "faces-features": partial(train_classifier, images=200_000, seed=1, width=24, tone=True, mirror=True),
    "faces-autoencoder": partial(train_autoencoder, images=250_000),
    "cifar10-judge": partial(train_classifier, images=750_000, seed=0, width=48, mirror=True, turn=0, scale=0),
    "cifar10-features": partial(train_classifier, images=400_000, seed=1, width=32, tone=True, mirror=True),
    "cifar10-autoencoder": partial(train_autoencoder, images=250_000),
}


def main(names: list[str]) -> None:
    """The command line."""
    if not names or set(names) - NETWORKS.keys():
        raise SystemExit(f"usage: python -m kflow_book.training NAME ..., with NAME one of {', '.join(NETWORKS)}")
    for name in names:
        if not (RUNS / name).exists():
            NETWORKS[name](load_data(name.partition("-")[0]), RUNS / name)
        print(f"{RUNS / name} is there")


if __name__ == "__main__":
    main(sys.argv[1:])
