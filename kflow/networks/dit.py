"""The diffusion transformer (Peebles & Xie, 2023) with a K-amplitude embedding (§3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kflow.networks.embedding import KAmplitudeEmbedding, LabelEmbedding, sincos_positions

#: name → (width, depth, heads). S to XL as published; the others are ours, for the CPU.
SIZES = {
    "nano": (96, 4, 4),
    "micro": (128, 6, 4),
    "mini": (256, 8, 8),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCHES = (2, 4, 8)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form; trained on the CPU, the same function written with a sigmoid: its gradient is cheaper."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * x * (1 + 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


class Attention(nn.Module):
    """Multi-head self-attention. On the CPU it is written as two matrix products: faster there, forth and back."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if x.device.type == "cpu":
            attended = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1).to(v.dtype) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """A transformer block, modulated by the condition (adaLN-zero: it starts as the identity)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (batch, tokens, width), condition (batch, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        hidden = gelu(self.mlp["fc1"](modulate(self.norm2(x), shift2, scale2)))
        return x + gate2[:, None] * self.mlp["fc2"](hidden)


class FinalLayer(nn.Module):
    def __init__(self, width: int, patch_size: int, channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_size**2 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Diffusion transformer: patches, adaLN-zero blocks, class labels with a null class.

    Modules and weights carry the names of the published DiT, but for the embedding of k (``t_embedder`` there).

    Args:
        shape: (channel, height, width) of the state.
        patch_size: side of a patch; divides height and width.
        width, depth, heads: of the transformer; heads divides width, 4 divides width.
        bands: number of bands, embedded with k.
        classes: number of classes; 0 for an unconditional network.

    Raises ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        bands: int = 1,
        classes: int = 0,
    ):
        super().__init__()
        channels, rows, columns = shape
        if rows % patch_size or columns % patch_size:
            raise ValueError(f"patch_size is {patch_size}, allowed are divisors of height {rows} and width {columns}")
        if width % heads or width % 4:
            raise ValueError(f"width is {width}, allowed are multiples of 4 and of heads = {heads}")
        self.patch_size = patch_size
        self.classes = self.null_label = classes  # the label after the last means "no class"
        self.grid = (rows // patch_size, columns // patch_size)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch_size, patch_size)})
        self.k_embedder = KAmplitudeEmbedding(width, bands)
        if classes:
            self.y_embedder = LabelEmbedding(classes, width)
        self.pos_embed = nn.Parameter(sincos_positions(width, *self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size, channels)
        self._initialise()

    def _initialise(self) -> None:
        for block in self.blocks:
            for layer in (block.attn.qkv, block.attn.proj, block.mlp["fc1"], block.mlp["fc2"]):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        projection = self.x_embedder["proj"]
        nn.init.xavier_uniform_(projection.weight.data.flatten(1))
        nn.init.zeros_(projection.bias)
        last = self.final_layer
        for layer in (*(block.adaLN_modulation[1] for block in self.blocks), last.adaLN_modulation[1], last.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor, k: Tensor, weights: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output for states (batch, channel, height, width).

        Args:
            state: Ψ_k.
            k: (batch,) in [0, 1].
            weights: (batch, B), the band weights at k.
            labels: (batch,) whole numbers from 0 to the number of classes (the null label), or None for no class.

        Returns (batch, channel, height, width).
        """
        dtype = self.final_layer.linear.weight.dtype
        condition = self.k_embedder(k, weights)
        if self.classes:
            if labels is None:
                labels = torch.full((len(state),), self.null_label, device=state.device)
            condition = condition + self.y_embedder(labels)
        x = self.x_embedder["proj"](state.to(dtype)).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        x = self.final_layer(x, condition)
        x = x.view(len(x), *self.grid, self.patch_size, self.patch_size, state.shape[1])
        return torch.einsum("nhwpqc->nchpwq", x).reshape(state.shape)


class LatentFlowDiT(DiT):
    """The DiT of the LFM baseline's release: its time, not scaled, and its output run from data to noise."""

    def forward(self, state: Tensor, k: Tensor, weights: Tensor, labels: Tensor | None = None) -> Tensor:
        """As :class:`DiT`, which embeds 1000 k."""
        return -super().forward(state, (1 - k) / 1000, weights, labels)


def make_dit(name: str, shape: Sequence[int], bands: int = 1, classes: int = 0) -> DiT:
    """A DiT by name, such as ``DiT-L/2``: size nano, micro, mini (ours), S, B, L or XL, patch size 2, 4 or 8; with
    ``LFM-`` in front a :class:`LatentFlowDiT`.

    Raises ValueError: another name.
    """
    size, _, patch = name.removeprefix("LFM-").removeprefix("DiT-").partition("/")
    if not name.startswith(("DiT-", "LFM-DiT-")) or size not in SIZES or patch not in map(str, PATCHES):
        raise ValueError(
            f"network is {name!r}, allowed are DiT-SIZE/PATCH with SIZE in {', '.join(SIZES)} and "
            f"PATCH in {', '.join(map(str, PATCHES))}, ADM, ADM-church, ADM-micro and ADM-nano"
        )
    width, depth, heads = SIZES[size]
    kind = LatentFlowDiT if name.startswith("LFM-") else DiT
    return kind(shape, int(patch), width, depth, heads, bands, classes)
