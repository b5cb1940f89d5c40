"""The published DiT's names and forward pass, from its description: what ours and the LFM release are held to."""

import torch
import torch.nn.functional as F
from torch import Tensor


def published_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("k_embedder.mlp", "t_embedder.mlp"): v for k, v in weights.items() if "bands" not in k}


def published_forward(w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, patch: int, heads: int, more: Tensor):
    """The published forward pass, written from its description; ``more`` is added to the condition (our bands)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    # TimestepEmbedder: cosines, then sines, of t / 10000^(i/128).
    rates = torch.tensor([10_000 ** (-i / 128) for i in range(128)])
    waves = torch.cat([torch.cos(t[:, None] * rates), torch.sin(t[:, None] * rates)], dim=-1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    c = c + w["y_embedder.embedding_table.weight"][y] + more

    n, _, height, width = x.shape
    x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    depth = sum(name.endswith("attn.qkv.weight") for name in w)
    for i in range(depth):
        block = f"blocks.{i}"
        a = linear(f"{block}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)  # msa: shift, scale, gate; mlp: the same
        h = modulate(norm(x), a[0], a[1])
        tokens, channels = h.shape[1:]
        qkv = linear(f"{block}.attn.qkv", h).reshape(n, tokens, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(n, tokens, channels)
        x = x + a[2].unsqueeze(1) * linear(f"{block}.attn.proj", h)
        h = modulate(norm(x), a[3], a[4])
        h = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", h), approximate="tanh"))
        x = x + a[5].unsqueeze(1) * h
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    x = linear("final_layer.linear", modulate(norm(x), shift, scale))

    # unpatchify: each token is a patch, stored (row, column, channel).
    channels = x.shape[-1] // patch**2
    image = torch.zeros(n, channels, height, width)
    for token in range(x.shape[1]):
        row, column = divmod(token, width // patch)
        square = x[:, token].reshape(n, patch, patch, channels).permute(0, 3, 1, 2)
        image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = square
    return image
