"""Networks v_θ, the classifiers that judge samples, autoencoders."""

from collections.abc import Sequence

from kflow.networks.autoencoder import Autoencoder
from kflow.networks.classifier import Classifier
from kflow.networks.dit import DiT, make_dit
from kflow.networks.unet import UNETS, UNet


def make_network(name: str, shape: Sequence[int], bands: int = 1, classes: int = 0) -> DiT | UNet:
    """A network by name: ``DiT-SIZE/PATCH`` (:func:`make_dit`), or one of UNETS (:class:`UNet`).

    Shape, bands and classes are as for :class:`DiT`. Raises ValueError: another name, or a shape that does not divide.
    """
    if name in UNETS:
        return UNet(shape, *UNETS[name], bands, classes)
    return make_dit(name, shape, bands, classes)
