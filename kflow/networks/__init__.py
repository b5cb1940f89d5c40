"""Networks v_θ, and the classifier that judges samples."""

from kflow.networks.classifier import Classifier
from kflow.networks.dit import DiT, load_published, make_dit
