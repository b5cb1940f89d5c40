"""Networks v_θ, the classifiers that judge samples, autoencoders."""

from kflow.networks.autoencoder import Autoencoder
from kflow.networks.classifier import Classifier
from kflow.networks.dit import DiT, load_published, make_dit
