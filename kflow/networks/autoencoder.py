"""Autoencoders: from images to the latents in which a flow is trained, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3×3 convolutions, added to what comes in."""

    def __init__(self, width: int):
        super().__init__()
        layers = (nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        more = (nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.layers = nn.Sequential(*layers, *more)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width) to the same."""
        return x + self.layers(x)


class Autoencoder(nn.Module):
    """A KL autoencoder (Kingma & Welling, 2014) that works on the latents' grid: fast on a CPU.

    Pixels are folded into channels first (pixel-unshuffle), so every convolution sees the small grid.

    Args:
        shape: (channel, height, width) of the images, values in [−1, 1].
        channels: of the latents.
        factor: by which height and width shrink; it divides them (else a ValueError).
        width, depth: channels of the convolutions, and residual blocks of the encoder; the decoder has twice as many.
    """

    def __init__(self, shape: Sequence[int], channels: int = 4, factor: int = 4, width: int = 96, depth: int = 2):
        super().__init__()
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(f"factor is {factor}, allowed are divisors of height {shape[1]} and width {shape[2]}")
        self.shape = (channels, shape[1] // factor, shape[2] // factor)
        folded = shape[0] * factor**2
        blocks = [Residual(width) for _ in range(3 * depth)]
        first = (nn.PixelUnshuffle(factor), nn.Conv2d(folded, width, 3, padding=1))
        last = (nn.Conv2d(width, folded, 3, padding=1), nn.PixelShuffle(factor))
        self.encoder = nn.Sequential(*first, *blocks[:depth], nn.Conv2d(width, 2 * channels, 1))
        self.decoder = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), *blocks[depth:], *last)
        # Latents are handed on with mean 0 and standard deviation 1 in each channel, over the training images.
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_scale", torch.ones(channels, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Latents (batch, channel, height, width), standardised, of images in [−1, 1]: the posterior's mean."""
        return (self.encoder(images).chunk(2, 1)[0].float() - self.latent_mean) / self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images, not clipped, of standardised latents."""
        return self.decoder(latents * self.latent_scale + self.latent_mean).float()

    def loss(self, images: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
        """Mean squared error of a pixel + kl_weight · KL of a latent value (nats), and the error alone: scalars."""
        mean, log_variance = (x.float() for x in self.encoder(images).chunk(2, 1))
        log_variance = log_variance.clamp(-20, 10)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = (self.decoder(latents).float() - images).square().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error + kl_weight * kl, error.detach()
