"""Where samples come from."""

from kflow.data.images import Images, to_float, to_uint8
from kflow.data.latents import decode, encode, load_autoencoder
from kflow.data.registry import DATA, describe_data, hash_data, images_of, is_here, load_data, to_pixels
