"""What is measured on samples."""

from kflow.metrics.bands import content_kept, leakage, way_of_bands
from kflow.metrics.calibration import calibrate, exchange_band
from kflow.metrics.classifier import agreement, classify, load_classifier, train_classifier
from kflow.metrics.cost import median_ratio, time_in_turn
from kflow.metrics.fidelity import (
    class_distances,
    class_dropping_ratio,
    distance_name,
    extract_features,
    fidelity,
    fidelity_of_draws,
    frechet_distance,
)
from kflow.metrics.trajectory import projection_error

__all__ = [
    "agreement",
    "calibrate",
    "class_distances",
    "class_dropping_ratio",
    "classify",
    "content_kept",
    "distance_name",
    "exchange_band",
    "extract_features",
    "fidelity",
    "fidelity_of_draws",
    "frechet_distance",
    "leakage",
    "load_classifier",
    "median_ratio",
    "projection_error",
    "time_in_turn",
    "train_classifier",
    "way_of_bands",
]
