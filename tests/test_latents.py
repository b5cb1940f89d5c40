"""Autoencoders, and data sets of latents: encoded once, checked, and decoded to the same images."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import AutoencoderKL

from kflow.data import (
    Images,
    decode,
    describe_data,
    encode,
    hash_data,
    is_here,
    load_autoencoder,
    load_data,
    to_float,
    to_pixels,
)
from kflow.data import latents as latents_module
from kflow.data.latents import StableDiffusionAutoencoder, encode_data
from kflow.networks import Autoencoder
from kflow.records import RECORDS, Record
from kflow_book import training
from kflow_book.photographs import psnr, rebuild
from kflow_book.training import train_autoencoder

SIZES = {"channels": 4, "factor": 4, "width": 16, "depth": 1}


@pytest.fixture(scope="module")
def few() -> Images:
    data = load_data("digits")
    return Images("few", data.train[:256], data.test[:64], data.train_labels[:256], data.test_labels[:64], data.classes)


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder") / "few-autoencoder"
    return train_autoencoder(few, folder, images=6400, batch_size=32, progress=False, **SIZES), folder


def test_training_beats_the_best_constant_image_and_keeps_its_promises(few, trained):
    autoencoder, folder = trained
    loaded, card = load_autoencoder(folder)
    found = float(psnr(few.test, rebuild(few.test, loaded)).mean())
    assert found == pytest.approx(card["test_psnr"], abs=0.02), "the card holds what the written weights do"
    mean = few.train.double().mean(0)
    error = (few.test.double() - mean).square().flatten(1).mean(1)
    assert found > float((10 * (255**2 / error).log10()).mean()) + 4
    again = decode(encode(few.test, loaded), loaded)
    per_image = ((again.clamp(-1, 1) - to_float(few.test)) * 127.5).square().flatten(1).mean(1)
    assert found == pytest.approx(float((10 * (255**2 / per_image).log10()).mean()), abs=0.05)
    z = encode(few.train, loaded).float()
    assert z.mean((0, 2, 3)).abs().max() < 0.01 and (z.std((0, 2, 3)) - 1).abs().max() < 0.01
    with pytest.raises(FileExistsError):
        train_autoencoder(few, folder, images=32, **SIZES)


def test_a_training_that_was_cut_goes_on_and_ends_the_same(few, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STATE_IMAGES", 64)
    options = {"images": 8 * 32, "batch_size": 32, "progress": False, **SIZES}
    whole = train_autoencoder(few, tmp_path / "whole", **options)
    real, calls = Autoencoder.loss, []

    def loss(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Autoencoder, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(few, tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ValueError, match="cut-state holds a training with kl_weight = 0.0001, asked is 1.0"):
        train_autoencoder(few, tmp_path / "cut", kl_weight=1.0, **options)
    again = train_autoencoder(few, tmp_path / "cut", **options)
    assert len(calls) == 6 + 4, "from the state after four steps"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"], "the state is gone"


def test_a_data_set_is_encoded_once(few, trained, tmp_path, monkeypatch):
    autoencoder, folder = trained
    monkeypatch.setattr(latents_module, "RUNS", tmp_path)
    first = encode_data(few, "few-autoencoder", folder)
    assert first.shape == (4, 8, 8) == autoencoder.shape and first.train.dtype == torch.float16
    with torch.no_grad():
        direct = autoencoder.encode(to_float(torch.cat([few.train[3:4], few.train[3:4].flip(3)])))
    assert torch.allclose(first.to_float(first.train[[3, 256 + 3]]), direct, atol=2e-3)
    assert torch.equal(first.train_labels, few.train_labels.repeat(2)) and len(first.test) == len(few.test)
    monkeypatch.setattr(latents_module, "encode", lambda *_, **__: pytest.fail("encoded again"))
    second = encode_data(few, "few-autoencoder", folder)
    assert torch.equal(second.train, first.train) and second.hash == first.hash
    other = Images(
        *(getattr(few, name) for name in ("name", "test", "train", "test_labels", "train_labels", "classes"))
    )
    with pytest.raises(BaseException, match="encoded again"):
        encode_data(other, "few-autoencoder", folder)


def test_of_two_that_want_the_same_latents_one_encodes(few, trained, tmp_path, monkeypatch):
    """Threads stand for processes: each opens the lock for itself."""
    real, calls = latents_module.encode, []

    def slow(*arguments, **options):
        calls.append(arguments)
        time.sleep(0.3)
        return real(*arguments, **options)

    monkeypatch.setattr(latents_module, "RUNS", tmp_path)
    monkeypatch.setattr(latents_module, "encode", slow)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: encode_data(few, "few-autoencoder", trained[1]), range(2))
    assert len(calls) == 2, "train and test, once"
    assert torch.equal(first.train, second.train) and first.hash == second.hash


@pytest.mark.parametrize("data", ["faces", "cifar10"])
def test_the_hash_of_latents_is_known_before_they_are_encoded(data, monkeypatch):
    if not is_here(data):
        pytest.skip(f"the images of {data} are not here (python -m kflow.data prepare {data})")
    monkeypatch.setattr(latents_module, "encode", lambda *_, **__: pytest.fail("encoded"))
    found = Record.read(RECORDS / f"{data}-latents-energy.json").data_hash  # that of the latents as they were loaded
    assert hash_data(f"{data}-latents") == found != hash_data(data)
    assert hash_data("digits") == load_data("digits").hash


def test_shape_and_classes_are_known_without_the_files(monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", "/nowhere")
    assert describe_data("faces-latents").shape == (4, 16, 16) and len(describe_data("cifar10").classes) == 10
    with pytest.raises(ValueError, match="data is 'mnist', allowed are digits"):
        describe_data("mnist")
    assert not is_here("faces-latents") and not is_here("cifar10") and is_here("digits")
    images = torch.rand(2, 1, 32, 32)
    assert to_pixels(images, "digits") is images


def test_an_autoencoder_that_is_not_there_or_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_autoencoder"):
        load_autoencoder(tmp_path)
    with pytest.raises(ValueError, match="factor is 3"):
        Autoencoder((1, 32, 32), factor=3)


def test_stable_diffusion_autoencoders_are_read_in_their_own_format(tmp_path):
    """A small random one, written by diffusers: scaled as latent diffusion scales it, and back."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(
        block_out_channels=[8] * 4, norm_num_groups=4, latent_channels=4, scaling_factor=0.18215, **blocks
    )
    vae.save_pretrained(tmp_path / "vae")
    autoencoder = StableDiffusionAutoencoder(tmp_path / "vae").eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = autoencoder.encode(images)
        assert torch.allclose(latents, 0.18215 * vae.eval().encode(images).latent_dist.mode(), atol=1e-6)
        assert torch.allclose(autoencoder.decode(latents), vae.decode(latents / 0.18215).sample, atol=1e-5)
    with pytest.raises(OSError):
        StableDiffusionAutoencoder(tmp_path / "none")
