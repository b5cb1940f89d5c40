"""Judging classes: train the classifier that judges, and ask it what samples show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kflow.data import describe_data
from kflow.networks import Classifier
from kflow.storage import CARD, WEIGHTS, read_folder


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
