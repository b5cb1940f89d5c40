"""ADM's U-Net (Dhariwal & Nichol, 2021) with a K-amplitude embedding: diffusers' layers, the LFM baseline's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kflow.networks.embedding import LabelEmbedding

#: name → (width, its multiple at each level, levels with attention, residual blocks a level). ADM is LFM's for
#: CelebA-HQ 256 (its "16 8" are downsampling rates, of which a 32×32 latent has one), ADM-church its for LSUN Church
#: 256; the last two are ours, for the CPU.
UNETS = {
    "ADM": (256, (1, 2, 2, 2), (3,), 2),
    "ADM-church": (256, (1, 2, 3, 4), (3,), 2),
    "ADM-micro": (64, (1, 1, 2), (1, 2), 1),
    "ADM-nano": (64, (1, 1, 1), (1, 2), 1),
}
HEADS = 4


class UNet(nn.Module):
    """ADM's U-Net: residual blocks with scale and shift from the embedding, attention at low resolution.

    Args:
        shape: (channel, height, width) of the state; the levels halve height and width.
        width, multiples: channels of the first level, and of every level as a multiple of it.
        attention, blocks: levels with attention, and residual blocks of a level.
        bands, classes: as for :class:`~kflow.networks.DiT`.

    Raises ValueError: height or width cannot be halved often enough.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int,
        multiples: Sequence[int],
        attention: Sequence[int],
        blocks: int,
        bands: int = 1,
        classes: int = 0,
    ):
        super().__init__()
        from diffusers import UNet2DModel
        from diffusers.models.attention_processor import Attention

        halvings = 2 ** (len(multiples) - 1)
        if shape[1] % halvings or shape[2] % halvings:
            raise ValueError(f"shape is {tuple(shape)}, allowed are heights and widths divisible by {halvings}")
        kinds = ["Attn" if level in attention else "" for level in range(len(multiples))]
        self.unet = UNet2DModel(
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=[width * multiple for multiple in multiples],
            layers_per_block=blocks,
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
            attention_head_dim=width * multiples[-1] // HEADS,
            attn_norm_num_groups=32,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        self.classes = self.null_label = classes  # the label after the last means "no class"
        self.bands = nn.Linear(bands, 4 * width, bias=False)
        nn.init.zeros_(self.bands.weight)
        if classes:
            self.y_embedder = LabelEmbedding(classes, 4 * width)
        for module in self.unet.modules():
            if isinstance(module, Attention):
                module.set_processor(Attend())
        for name, module in self.unet.named_modules():  # as ADM: every block starts as the identity
            if name.endswith(("conv2", "to_out.0", "conv_out")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, state: Tensor, k: Tensor, weights: Tensor, labels: Tensor | None = None) -> Tensor:
        """As :meth:`DiT.forward`; k goes where ADM has its time, as 1000 k."""
        condition = self.bands(weights.to(self.bands.weight.dtype))
        if self.classes:
            if labels is None:
                labels = torch.full((len(state),), self.null_label, device=state.device)
            condition = condition + self.y_embedder(labels)
        return self.unet(state.to(self.bands.weight.dtype), 1000 * k.float(), condition).sample


class Attend:
    """Attention of the U-Net; in bf16 on the CPU as two matrix products, a third faster there, forth and back."""

    def __call__(self, attention: nn.Module, states: Tensor, temb: Tensor | None = None, **options: Any) -> Tensor:
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        slow = states.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        return (AttnProcessor() if slow else AttnProcessor2_0())(attention, states, temb=temb, **options)
