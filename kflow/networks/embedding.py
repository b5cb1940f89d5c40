"""What a network is told besides the state: the scaling parameter, the band weights, the class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KAmplitudeEmbedding(nn.Module):
    """Embeds k and the band weights at k, in place of a time embedding (§3.3, *A flexible plug-in version*).

    k is embedded as DiT embeds its time step (sinusoids of 1000 k, then a perceptron); a linear map of the band
    weights, zero at first, is added. Without it the module is DiT's ``t_embedder``.

    Args:
        width: size of the embedding.
        bands: number of bands.
        frequencies: size of the sinusoidal embedding.
    """

    def __init__(self, width: int, bands: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.bands = nn.Linear(bands, width, bias=False)
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.bands.weight)

    def forward(self, k: Tensor, weights: Tensor) -> Tensor:
        """k (batch,) and weights (batch, B) to (batch, width)."""
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=k.device, dtype=torch.float32) / half)
        angles = 1000 * k[:, None].float() * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight.dtype)
        return self.mlp(waves) + self.bands(weights.to(waves.dtype))


class LabelEmbedding(nn.Module):
    """A table of class embeddings with one more row for "no class", the null label (= number of classes)."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """labels (batch,) to (batch, width)."""
        # A product with one-hot rows: the gradient of a look-up, once compiled, adds up in an order that varies.
        table = self.embedding_table.weight
        return F.one_hot(labels, len(table)).to(table.dtype) @ table


def sincos_positions(width: int, rows: int, columns: int) -> Tensor:
    """Fixed 2-D sine-cosine position embedding of DiT, (1, rows·columns, width): columns first, then rows."""
    rates = 1 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = []
    for position in (x, y):
        angles = position.flatten()[:, None].double() * rates
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1)[None].float()
