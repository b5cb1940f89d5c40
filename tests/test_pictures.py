"""The paper's data sets in the formats in which users hold them, from files to a measurement; all tiny and random."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from kflow import metrics
from kflow.data import DATA, Images, describe_data, images_of, is_here, load_data, to_float, to_pixels, to_uint8
from kflow.data.latents import StableDiffusionAutoencoder
from kflow.experiment import Experiment
from kflow.networks import Classifier
from kflow.restore import Downsampling, degrade, plug_and_play
from kflow.sample import sample
from kflow.storage import WEIGHTS, write_folder
from kflow.train import train
from kflow_book import at_scale, pictures
from kflow_book.dry_run import find_problems
from kflow_book.measure import Trained
from kflow_book.pictures import Pictures, crop_picture, encode_shards, find_autoencoder, read_shards, shard_folder
from kflow_book.restoration import bicubic

ROOT = Path(__file__).parents[1]
COUNT = 10


def pixels(seed: int, height: int = 256, width: int = 256) -> np.ndarray:
    """Smooth colours, so that JPEG keeps them."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.BICUBIC))


def content(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def write_lmdb(path: Path, values: dict[str, bytes]) -> None:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**26) as records, records.begin(write=True) as opened:
        for key, value in values.items():
            opened.put(key.encode(), value)


def make_celebahq(folder: Path) -> None:
    """As NVAE and the LFM baseline have it: raw pixels under running numbers."""
    for split, first in (("train", 0), ("validation", COUNT)):
        values = {str(n): pixels(first + n).tobytes() for n in range(COUNT)}
        write_lmdb(folder / "celebahq" / f"{split}.lmdb", values)


def make_church(folder: Path) -> None:
    """As LSUN publishes it: WebP files under hashes, 256 on the shorter side."""
    values = {f"{n:040x}": content(pixels(n, 256, 256 + 16 * n), "WEBP") for n in range(COUNT)}
    write_lmdb(folder / "lsun" / "church_outdoor_train_lmdb", values)


def make_imagenet(folder: Path) -> None:
    """As it is unpacked: JPEG files of any size in a folder a class."""
    for split, first in (("train", 0), ("val", COUNT)):
        for n in range(COUNT):
            place = folder / "imagenet" / split / f"n{n % 2:08d}" / f"{n}.JPEG"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content(pixels(first + n, 300 + n, 520), "JPEG"))


MAKE = {"celebahq": make_celebahq, "church": make_church, "imagenet": make_imagenet}


def make_vae(folder: Path, **changes) -> Path:
    """A small random AutoencoderKL in diffusers' format."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    settings = {"block_out_channels": [4] * 4, "norm_num_groups": 2, "latent_channels": 4, "scaling_factor": 0.18215}
    torch.manual_seed(changes.pop("seed", 0))
    AutoencoderKL(**blocks | settings | {"layers_per_block": 1} | changes).save_pretrained(folder)
    return folder


@pytest.fixture
def vae(tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOW_VAE", str(make_vae(tmp_path / "vae")))
    pictures.load_stable_diffusion.cache_clear()
    yield tmp_path / "vae"
    pictures.load_stable_diffusion.cache_clear()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the data are; shards of four images; ImageNet has two classes."""
    monkeypatch.setenv("KFLOW_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pictures, "SHARD", 4)
    for name in ("imagenet", "imagenet-latents"):
        monkeypatch.setitem(DATA, name, replace(DATA[name], classes=("0", "1")))
    pictures.load.cache_clear()
    yield tmp_path / "data"
    pictures.load.cache_clear()


@pytest.mark.parametrize("name", MAKE)
def test_the_whole_way_from_files_to_a_measurement(name, place, vae, tmp_path, capsys):
    experiment = Experiment.load(
        ROOT / f"notebooks/experiments/paper/{name}-db6.yaml",
        name="tiny", network="DiT-nano/8", images=8, batch_size=4, micro_batch=0, accelerator="cpu",
        devices=1, num_nodes=1, strategy="auto", precision="32-true", compile=False,
    )  # fmt: skip
    assert experiment.data == f"{name}-latents" and not is_here(name) and not is_here(experiment.data)
    with pytest.raises(FileNotFoundError, match="python -m kflow_book.pictures"):
        load_data(experiment.data)
    MAKE[name](place)
    pictures.main([experiment.data])  # encode
    assert f"{2 * COUNT} latents" in capsys.readouterr().out
    latents, images = load_data(experiment.data), images_of(experiment.data)
    assert is_here(name) and is_here(experiment.data) and latents.classes == images.classes
    problems = find_problems(experiment, {"latents": 0, "checkpoints": 0})  # all is there, and of it too few
    count = f"has {COUNT} training images, the paper's {describe_data(name).count:,}"
    assert problems == [f"{experiment.data} {count}", f"{name} {count}"]
    with torch.no_grad():
        direct = find_autoencoder().encode(to_float(torch.stack([images.train[9], images.train[9].flip(2)])))
    torch.testing.assert_close(
        latents.to_float(latents.train[torch.tensor([9, COUNT + 9])]), direct, atol=2e-3, rtol=1e-3
    )

    run = train(experiment, tmp_path / "run", progress=False)  # two steps
    assert run.card["images"] == 8 and run.card["data_hash"] == latents.hash
    labels = torch.arange(6) % 2 if experiment.conditional else None
    result = sample(run.model, torch.randn(6, *latents.shape), labels, steps=4, guidance_scale=1.5)
    shown = to_uint8(to_pixels(result.data, experiment.data))  # decode
    assert shown.shape == (6, 3, 256, 256)
    classifier = Classifier((3, 256, 256), len(describe_data("imagenet").classes), 2)
    card = {"data": "imagenet", "test_accuracy": 0.0, "width": 2}
    write_folder(tmp_path / "features", {WEIGHTS: classifier.state_dict()}, card)
    found = [metrics.extract_features(x, tmp_path / "features", progress=False) for x in (shown, images.train[:6])]
    values = metrics.fidelity(*found)  # measure
    assert values["fd"] > 0 and 0 <= values["recall"] <= 1
    assert metrics.fidelity(found[1], found[1])["fd"] == pytest.approx(0, abs=1e-6)
    if name == "celebahq":
        restore_some(Trained(run.model, experiment), images)


def restore_some(trained: Trained, images: Images) -> None:
    """Table 10's last step of the way: what the chosen settings give, by the algorithm itself."""
    settings = {"samples": 2, "validation": 2, "calls": 2, "search_calls": 1, "tasks": ["super_resolution"]}
    values = at_scale.measure_restoration(trained, start=0.3, **settings)
    chosen = dict(values["chosen"]["super_resolution"])
    truth, operator = to_float(images.test[torch.tensor([0, COUNT - 1])]), Downsampling((3, 256, 256))
    seen = degrade(operator, truth, 0.05)
    first = bicubic(seen, operator) if chosen.pop("interpolated") else None
    options = {"start": 0.3, "first": first, "autoencoder": find_autoencoder(), **chosen}
    restored = plug_and_play(trained.model, seen, operator, **options).data
    error = (restored.clamp(-1, 1) - truth).square().mean((1, 2, 3))
    assert values["nfe"] == {"super_resolution": 2} and chosen["steps"] == 2
    assert values["super_resolution_psnr"] == pytest.approx(float((10 * (4 / error).log10()).mean()), abs=1e-3)
    assert len(values["super_resolution_ssim_interval"]) == 2


def test_pictures_are_read_as_they_are_stored(place):
    make_celebahq(place)
    make_church(place)
    make_imagenet(place)
    faces, churches, photographs = (load_data(name) for name in MAKE)
    assert [len(data.train) for data in (faces, churches, photographs)] == [COUNT] * 3
    assert [len(data.test) for data in (faces, churches, photographs)] == [COUNT, 0, COUNT], "LSUN's is not here"
    for number, key in enumerate(faces.train.names):
        assert np.array_equal(faces.train[number].permute(1, 2, 0), pixels(int(key)))
    wide = np.asarray(Image.open(io.BytesIO(content(pixels(5, 256, 336), "WEBP"))))
    assert np.array_equal(churches.train[5].permute(1, 2, 0), wide[:, 40:296]), "cropped around the centre"
    assert photographs.train.names[5] == "n00000001/1.JPEG" and photographs.train_labels.tolist() == [0] * 5 + [1] * 5
    assert photographs.train.shape == (COUNT, 3, 256, 256) and photographs.train[-1].shape == (3, 256, 256)
    some = photographs.train[torch.tensor([7, 2])]
    assert torch.equal(some[1], photographs.train[2]) and torch.equal(photographs.train[2:4][0], photographs.train[2])
    with zipfile.ZipFile(place / "imagenet.zip", "w") as archive:
        for path in sorted((place / "imagenet" / "train").rglob("*.JPEG")):
            archive.write(path, path.relative_to(place / "imagenet"))
    zipped = Pictures(place / "imagenet.zip")
    assert len(zipped) == COUNT and torch.equal(zipped[3], photographs.train[3])


def test_large_pictures_are_scaled_as_adm_scales_them():
    image = pixels(0, 1100, 1400)
    halved = Image.fromarray(image).resize((700, 550), Image.BOX).resize((350, 275), Image.BOX)
    expected = np.asarray(halved.resize((326, 256), Image.BICUBIC))[:, 35:291]
    assert np.array_equal(crop_picture(content(image), 256).permute(1, 2, 0), expected)
    small = crop_picture(content(pixels(0, 100, 130)), 256)
    assert small.shape == (3, 256, 256)


def test_what_is_not_there_or_not_right_is_said(place):
    with pytest.raises(FileNotFoundError, match="none of train.lmdb, train_lmdb, train.zip, train in .*KFLOW_DATA"):
        load_data("celebahq")
    make_imagenet(place)
    (place / "imagenet/train/n00000001/1.JPEG").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="n00000001/1.JPEG in .*train is no picture"):
        load_data("imagenet").train[5]
    (place / "imagenet/train/n00000007").mkdir()
    (place / "imagenet/train/n00000007/1.JPEG").write_bytes(b"")
    pictures.load.cache_clear()
    with pytest.raises(ValueError, match="has 3 class folders, allowed are 2"):
        load_data("imagenet")
    with pytest.raises(SystemExit, match="usage"):
        pictures.main(["faces-latents"])


def test_encoding_goes_on_where_it_was_killed(place, vae, monkeypatch):
    make_celebahq(place)
    name, data, autoencoder = "celebahq-latents", load_data("celebahq"), find_autoencoder()
    folder, encode, encoded = shard_folder(name), pictures.encode, []

    def killed(images, *rest):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(len(images))
        return encode(images, *rest)

    monkeypatch.setattr(pictures, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_shards(data, autoencoder, folder)
    with pytest.raises(FileNotFoundError, match="2 of 3 shards are missing, .*00001-of-00003 first"):
        read_shards(name)
    monkeypatch.setattr(pictures, "encode", lambda images, *rest: encoded.append(len(images)) or encode(images, *rest))
    assert encode_shards(data, autoencoder, folder) == []
    assert encoded == [4, 4, 4, 4, 4, 2, 2], "the shard that was there is kept, the cut one made again"
    whole = read_shards(name)
    assert len(whole.train) == 2 * COUNT and whole.shape == (4, 32, 32)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "00001-of-00003/model.safetensors" in maps.read_text(), "they are memory-mapped"

    # Two ranks make the same, each its share.
    monkeypatch.setenv("KFLOW_DATA", str(place.parent / "other"))
    assert len(encode_shards(data, autoencoder, shard_folder(name), 1, 2)) == 2
    assert encode_shards(data, autoencoder, shard_folder(name), 0, 2) == []
    again = read_shards(name)
    assert torch.equal(again.train[:], whole.train[:]) and again.hash == whole.hash
    parts = torch.cat(list(whole.train.split(7)))
    assert torch.equal(parts, torch.cat(whole.train.parts)) and torch.equal(
        parts[[13, 2]], whole.train[torch.tensor([13, 2])]
    )


def test_damaged_or_foreign_shards_are_named(place, vae, monkeypatch):
    make_church(place)
    name, data, autoencoder = "church-latents", load_data("church"), find_autoencoder()
    encode_shards(data, autoencoder, shard_folder(name))
    good = read_shards(name)
    monkeypatch.setenv("KFLOW_VAE", str(make_vae(place.parent / "second", seed=1)))
    with pytest.raises(ValueError, match="00000-of-00003 has autoencoder_hash .*, allowed is"):
        to_pixels(good.train[:1], name)
    with pytest.raises(ValueError, match="00000-of-00003 has autoencoder_hash .*, allowed is"):
        encode_shards(data, find_autoencoder(), shard_folder(name))
    path = shard_folder(name) / "00001-of-00003" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="00001-of-00003/model.safetensors is missing, truncated or changed"):
        read_shards(name)


def test_only_stable_diffusions_autoencoder_is_taken(tmp_path):
    assert (
        StableDiffusionAutoencoder(make_vae(tmp_path / "good")).hash
        != StableDiffusionAutoencoder(make_vae(tmp_path / "other", seed=1)).hash
    )
    with pytest.raises(OSError, match="KFLOW_VAE: no autoencoder in diffusers' format can be read from .*nowhere"):
        StableDiffusionAutoencoder(tmp_path / "nowhere")
    for changes, got in (
        ({"latent_channels": 16}, r"\(8, 16, 0.18215\)"),
        ({"scaling_factor": 0.13}, r"\(8, 4, 0.13\)"),
    ):
        with pytest.raises(ValueError, match=f"are {got}, allowed are .8, 4, 0.18215."):
            StableDiffusionAutoencoder(make_vae(tmp_path / got[-5:], **changes))
    (weights,) = (tmp_path / "good").glob("*.safetensors")
    (other,) = (make_vae(tmp_path / "more", layers_per_block=2)).glob("*.safetensors")
    other.write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match="lacks 64 weights, such as decoder.up_blocks.0.resnets.2"):
        StableDiffusionAutoencoder(tmp_path / "more")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="can be read from .*good"):
        StableDiffusionAutoencoder(tmp_path / "good")
    weights.unlink()
    with pytest.raises(OSError, match="can be read from .*good"):
        StableDiffusionAutoencoder(tmp_path / "good")


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_the_command_counts_the_ranks_as_torchrun_and_slurm_do(names, place, vae, monkeypatch, capsys):
    make_celebahq(place)
    monkeypatch.setenv(names[1], "2")
    for rank, says in (("1", "rank 1 is done, 2 shards of other ranks are missing"), ("0", f"{2 * COUNT} latents")):
        monkeypatch.setenv(names[0], rank)
        pictures.main(["celebahq-latents"])
        assert says in capsys.readouterr().out
