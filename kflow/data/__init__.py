"""Where samples come from."""

from kflow.data.images import Images, load_data, to_float, to_uint8
