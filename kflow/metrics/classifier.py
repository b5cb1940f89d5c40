"""Judging classes: train the classifier that judges, and ask it what samples show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from kflow.data import Images, describe_data, to_float
from kflow.experiment import bf16_is_native
from kflow.networks import Classifier
from kflow.storage import CARD, WEIGHTS, read_folder, write_folder


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


def load_classifier(folder: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier in ``folder``, in float32, and its card.

    Raises:
        FileNotFoundError: none is there; it says how to train one.
        ValueError: a damaged file, or the card of something else.
    """
    if not (Path(folder) / CARD).exists():
        raise FileNotFoundError(f"there is no classifier in {folder}: train one with notebooks/00_features.ipynb")
    tensors, card = read_folder(Path(folder), "data", "test_accuracy")
    data = describe_data(card["data"])
    classifier = Classifier(data.shape, len(data.classes), card.get("width", 32))
    weights = {k: v.float() if v.is_floating_point() else v for k, v in tensors[WEIGHTS].items()}
    classifier.load_state_dict({**classifier.state_dict(), **weights})
    return classifier.eval().requires_grad_(False), card


def classify(classifier: Classifier, images: Tensor, batch_size: int = 500) -> Tensor:
    """The class of each image, (N,) int64; images (N, channel, height, width) in [−1, 1], clipped to it."""
    with torch.no_grad():
        parts = [classifier(part.clamp(-1, 1)).argmax(1) for part in images.split(batch_size)]
    return torch.cat(parts)


def agreement(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images that the classifier assigns to their label."""
    return float((classify(classifier, images) == labels).float().mean())
