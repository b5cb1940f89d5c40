"""The judge: a small convolutional classifier that says which class a sample shows."""

from __future__ import annotations

from collections.abc import Sequence

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

    def features(self, images: Tensor) -> Tensor:
        """Globally pooled features, (batch, 4·width), of images (batch, channel, height, width)."""
        return self.stages(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        return self.head(F.dropout(self.features(images), 0.2, self.training))
