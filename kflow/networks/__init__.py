"""Networks v_θ, the classifiers that judge samples, autoencoders."""

from kflow.networks.autoencoder import Autoencoder
from kflow.networks.classifier import Classifier
from kflow.networks.dit import DiT, make_dit
from kflow.networks.unet import UNETS, UNet


def make_network(name, shape, bands=1, classes=0, out_channels=None):
    """A network by name: ``DiT-SIZE/PATCH`` (:func:`make_dit`), or one of UNETS (:class:`UNet`)."""
    if name in UNETS:
        return UNet(shape, *UNETS[name], bands, classes, out_channels)
    return make_dit(name, shape, bands, classes, out_channels)
