"""What is measured on samples."""

from kflow.metrics.bands import content_kept, leakage, way_of_bands
from kflow.metrics.classifier import agreement, classify, load_classifier
from kflow.metrics.fidelity import (
    class_distances,
    class_dropping_ratio,
    distance_name,
    extract_features,
    fidelity,
    fidelity_of_draws,
    frechet_distance,
)
from kflow.metrics.packing import packing_matching
from kflow.metrics.trajectory import projection_error
