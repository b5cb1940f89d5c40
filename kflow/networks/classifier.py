"""Small convolutional classifiers: the judge that says which class a sample shows, and the feature networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Residual-free convolutional classifier for small images.

    Args:
        shape: (channel, height, width), at least 8×8.
        classes: number of classes.
        width: channels of the first stage; doubled twice.
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 32):
        super().__init__()
        stages, channels = [], shape[0]
        for scale in (1, 2, 4):
            for _ in range(2):
                stages += [
                    nn.Conv2d(channels, width * scale, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width * scale),
                    nn.ReLU(),
                ]
                channels = width * scale
            stages.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)
        self.register_buffer("feature_mean", torch.zeros(7 * width))
        self.register_buffer("feature_scale", torch.ones(7 * width))

    def features(self, images: Tensor) -> Tensor:
        """Means over space of all three stages' outputs, (batch, 7·width), of images (batch, channel, height, width).

        The first stage sees details, the last what the class is. ``feature_mean`` and ``feature_scale`` standardise
        them.
        """
        pooled = []
        for layer in self.stages:
            images = layer(images)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(images.mean((2, 3)))
        return (torch.cat(pooled, 1) - self.feature_mean) / self.feature_scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        return self.head(F.dropout(self.stages(images).mean((2, 3)), 0.2, self.training))
