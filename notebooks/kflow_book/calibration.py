"""What a feature network sees: Fréchet distances between real sets, one of them spoilt in a known way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm.auto import tqdm

from kflow.amplitude import Fourier, KAmplitude, Wavelet
from kflow.data import Images, to_float, to_uint8
from kflow.metrics.fidelity import extract_features, fidelity_of_draws, frechet_distance


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; sigma in pixels."""
    return gaussian_blur(images, 2 * int(3 * sigma) + 1, sigma) if sigma else images


def noise(images: Tensor, sigma: float) -> Tensor:
    """White noise; sigma in units of the images' range [−1, 1]."""
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def occlusion(images: Tensor, share: float) -> Tensor:
    """A grey square over a share of the area, at a random place in each image."""
    height, width = images.shape[2:]
    side, source = round(share**0.5 * min(height, width)), torch.Generator().manual_seed(0)
    top, left = (torch.randint(n - side + 1, (len(images), 1, 1), generator=source) for n in (height, width))
    y, x = torch.arange(height)[:, None], torch.arange(width)
    hidden = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    return images.masked_fill(hidden[:, None], 0.0)


def contrast(images: Tensor, loss: float) -> Tensor:
    """Contrast lowered by a share: values move towards grey."""
    return images * (1 - loss)


def band_noise(images: Tensor, sigma: float, band: int) -> Tensor:
    """White noise in one of db6's two bands; sigma as for :func:`noise`."""
    return images + Wavelet(images.shape[1:], "db6").split(noise(0 * images, sigma))[band]


def exchange_band(images: Tensor, decomposition: KAmplitude, band: int) -> Tensor:
    """Every image with one band of another image of the set."""
    other = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return images + decomposition.split(other - images)[band]


HELD_OUT = 5000  # images at most, as many as are generated
SHARES = {"_precision": "precision", "_recall": "recall"}
IMBALANCE = (0.0, 0.25, 0.5, 0.75, 1.0)
DEGRADATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur": (blur, (0.0, 0.4, 0.6, 0.8, 1.2)),
    "noise": (noise, (0.0, 0.05, 0.1, 0.2, 0.4)),
    "occlusion": (occlusion, (0.0, 0.02, 0.05, 0.1, 0.2)),
    "contrast": (contrast, (0.0, 0.05, 0.1, 0.2, 0.4)),
    "noise, low band": (partial(band_noise, band=0), (0.0, 0.1, 0.2, 0.4, 0.8)),
    "noise, high band": (partial(band_noise, band=1), (0.0, 0.05, 0.1, 0.2, 0.4)),
}


def held_out(data: Images) -> Tensor:
    """The held-out images that samples are compared with, at most 5,000."""
    return data.test[:: -(-len(data.test) // HELD_OUT)]


def calibrate(data: Images, network: str | Path, images: int | None = None, progress: bool = True) -> dict[str, Any]:
    """Fréchet distances of spoilt training images to the held-out ones, means over disjoint draws of equal count.

    Args:
        data, network: the data set; the network as for :func:`~kflow.metrics.extract_features`.
        images: how many training images are spoilt; None: all.

    Returns:
        ``floor`` and its draws (all untouched images in random order), ``floor_balanced`` and its draws (as many of
        each class in every draw, as in the held-out set and in class-conditional samples; only where the classes are
        equally large), precision and recall of both; of every degradation a mapping from strength to distance;
        ``imbalance``, by the share of the images of the upper half of classes that are replaced by such of the lower
        half; ``exchange``, by decomposition and band; ``count``, of disjoint sets of training images, by size.
    """
    test = held_out(data)
    real, count = extract_features(test, network, progress=False), len(test)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    untouched, labels = extract_features(data.train[order], network, progress=False), data.train_labels[order]

    def mean(images: Tensor) -> float:
        features = extract_features(to_uint8(images), network, progress=False)
        draws = [frechet_distance(part, real) for part in features.split(count) if len(part) == count]
        return sum(draws) / len(draws)

    found: dict[str, Any] = {}
    members = [(labels == c).nonzero().flatten() for c in range(len(data.classes))]
    chosen = {"floor": torch.arange(len(labels))}
    if len({*map(len, members)}) == 1:
        chosen["floor_balanced"] = torch.stack(members, 1).flatten()
    for name, those in chosen.items():
        draws = fidelity_of_draws(untouched[those], real)
        found[f"{name}_draws"] = draws["fd"]
        found |= {name + end: sum(draws[k]) / len(draws[k]) for end, k in {"": "fd", **SHARES}.items()}
    clean, labels = to_float(data.train[order[:images]]), labels[:images]
    for name, (spoil, strengths) in tqdm(DEGRADATIONS.items(), desc="degradations", disable=not progress):
        found[name] = {str(strength): mean(spoil(clean, strength)) for strength in strengths}
    upper = labels >= len(data.classes) // 2
    lower_images = clean[~upper]
    found["imbalance"] = {}
    for share in IMBALANCE:
        spoilt, replaced = clean.clone(), upper.nonzero().flatten()
        replaced = replaced[: int(share * len(replaced))]
        spoilt[replaced] = lower_images[torch.arange(len(replaced)) % len(lower_images)]
        found["imbalance"][str(share)] = mean(spoilt)
    bands = {"db6": Wavelet(data.shape, "db6"), "Fourier": Fourier(data.shape)}
    found["exchange"] = {
        f"{name}, {part}": mean(exchange_band(clean, decomposition, band))
        for name, decomposition in bands.items()
        for band, part in enumerate(("low", "high"))
    }
    half = len(untouched) // 2
    found["count"] = {
        str(n): frechet_distance(untouched[:n], untouched[half : half + n])
        for n in (50, 100, 200, 500, 1000, 2000, 5000, 10_000)
        if n <= half
    }
    return found
