"""Fréchet and kernel distance, precision and recall, through torch-fidelity, in any of its feature networks or ours."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from kflow.data import to_float
from kflow.metrics.classifier import load_classifier
from kflow.storage import CARD

OURS, INCEPTION = "kflow-classifier", "inception-v3-compat"


class ClassifierFeatures(FeatureExtractorBase):
    """A classifier of ours, trained by ``00_features``, as torch-fidelity's feature extractor ``kflow-classifier``.

    torch-fidelity's own interface takes it too, with its folder as ``feature_extractor_weights_path``.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | Path, **_):
        super().__init__(name, features_list)
        self.classifier, _ = load_classifier(feature_extractor_weights_path)

    get_provided_features_list = staticmethod(lambda: ("features",))
    get_default_feature_layer_for_metric = staticmethod(lambda metric: "features")
    can_be_compiled = staticmethod(lambda: False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features of images (batch, channel, height, width) uint8: a tuple of one tensor (batch, D)."""
        return (self.classifier.features(to_float(images)),)


if OURS not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(OURS, ClassifierFeatures)


def extract_features(
    images: Tensor, network: str | Path, weights: str | Path | None = None, batch_size: int = 100, progress: bool = True
) -> Tensor:
    """Features of images, in double precision.

    Args:
        images: (N, channel, height, width) uint8.
        network: the folder of a classifier of ours (``checkpoints/digits-features``), or one of torch-fidelity's names:
            ``inception-v3-compat`` (with it the Fréchet distance is FID), ``vgg16``, ``dinov2-vit-b-14``, …
        weights: for torch-fidelity's networks, a file of their weights; None: torch-fidelity fetches them.
        batch_size, progress: images at a time; whether to show a progress bar.

    Returns (N, D) float64. Raises ValueError if the images are not uint8 or there is no such network, FileNotFoundError
    if there are no such weights.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, allowed is torch.uint8 (see kflow.data.to_uint8)")
    name = OURS if (ours := (Path(network) / CARD).exists()) else str(network)
    if name not in FEATURE_EXTRACTORS_REGISTRY or (name == OURS) != ours:
        names = ", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY.keys() - {OURS}))
        raise ValueError(f"feature network is {str(network)!r}, allowed are a folder of 00_features, and {names}")
    if weights and not Path(weights).exists():
        raise FileNotFoundError(f"there are no weights of {network} in {weights}")
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
    path, cuda = str(network if ours else weights or "") or None, torch.cuda.is_available()
    extractor = create_feature_extractor(name, [layer], cuda, feature_extractor_weights_path=path, verbose=False)
    coloured = images if ours or images.shape[1] == 3 else images.expand(-1, 3, -1, -1)  # as torch-fidelity's need them
    dataset = Subset(coloured, range(len(images)))
    found = get_featuresdict_from_dataset(dataset, extractor, batch_size, cuda, save_cpu_ram=True, verbose=progress)
    return found[layer].double()


def distance_name(network: str | Path) -> str:
    """What the Fréchet distance in a network's features is called: only Inception's is FID."""
    name = Path(network).name
    return "FID" if name == INCEPTION else f"FD ({name.removesuffix('-features')} features)"


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, D) (Heusel et al. 2017; Eq. 25 per class).

    It depends on N: compare equal counts only.
    """
    statistics = [fid_features_to_statistics(features.double().cpu()) for features in (generated, real)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def fidelity(generated: Tensor, real: Tensor, neighbours: int = 3) -> dict[str, float]:
    """How generated images compare with real ones, as features of equal count.

    Args:
        generated, real: (N, D) features, from :func:`extract_features`.
        neighbours: k of the k-nearest-neighbour manifolds of precision and recall (Kynkäänniemi et al. 2019).

    Returns:
        ``fd``, the Fréchet distance; ``precision``, ``recall``, shares; ``kid``, the unbiased kernel distance of all N
        against all N (Bińkowski et al. 2018).

    Raises ValueError: the counts differ.
    """
    if len(generated) != len(real):
        raise ValueError(
            f"there are {len(generated)} generated and {len(real)} real features, allowed are equal counts"
        )
    shares = prc_features_to_metric(generated, real, prc_neighborhood=neighbours, verbose=False)
    kernel = kid_features_to_metric(generated, real, kid_subsets=1, kid_subset_size=len(real), verbose=False)
    return {
        "fd": frechet_distance(generated, real),
        "precision": shares[KEY_METRIC_PRECISION],
        "recall": shares[KEY_METRIC_RECALL],
        "kid": kernel[KEY_METRIC_KID_MEAN],
    }


def fidelity_of_draws(generated: Tensor, real: Tensor) -> dict[str, list[float]]:
    """:func:`fidelity` of disjoint draws of generated features (n·N, D), each as many as the real ones (N, D).

    Returns of each measure its n values. Raises ValueError if there are fewer generated than real features.
    """
    if len(generated) < len(real):
        raise ValueError(f"there are {len(generated)} generated features, allowed are {len(real)} or more")
    draws = [fidelity(part, real) for part in generated.split(len(real)) if len(part) == len(real)]
    return {name: [draw[name] for draw in draws] for name in draws[0]}


def class_distances(
    generated: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, classes: list[int], count: int
) -> Tensor:
    """FID(c) of Eq. 25 for each class, from the first ``count`` features of the class on both sides.

    Args:
        generated, real: features (N, D), (M, D), with labels (N,), (M,).
        classes, count: which classes, and how many of each.

    Returns (len(classes),) float64; their mean is the class-conditional FID of Eq. 24. Raises ValueError if a class has
    fewer features.
    """
    distances = []
    for c in classes:
        pair = generated[labels == c][:count], real[real_labels == c][:count]
        if min(map(len, pair)) < count or count < 2:
            raise ValueError(f"count is {count}, allowed are 2 to {min(map(len, pair))} for class {c}")
        distances.append(frechet_distance(*pair))
    return torch.tensor(distances, dtype=torch.float64)


def class_dropping_ratio(before: Tensor, after: Tensor) -> dict[str, float]:
    """How much dropping the class costs (E.6), from FID(c) of every class, the class kept (before) and dropped (after).

    Returns:
        ``cdr``, E[after/before], which fits the paper's numbers, and ``cdr_printed``, E[before/after], as the paper
        prints it (erratum 12). Few samples bias every FID(c) upwards and pull both to 1.
    """
    return {"cdr": float((after / before).mean()), "cdr_printed": float((before / after).mean())}
