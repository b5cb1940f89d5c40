"""What is measured on samples."""

from kflow.metrics.bands import way_of_bands
from kflow.metrics.classifier import agreement, classify, load_classifier, measure_agreement, train_classifier

__all__ = ["agreement", "classify", "load_classifier", "measure_agreement", "train_classifier", "way_of_bands"]
