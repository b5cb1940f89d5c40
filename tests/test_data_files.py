"""Data sets in files: prepared from their sources, checked, read; the real ones where they are."""

import csv
import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.client import HTTPResponse
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kflow.data import describe_data, files, load_data
from kflow.data.files import hash_of_files, prepare, prepared_file, read_image_folder

HERE = Path(os.environ.get("KFLOW_DATA") or files.ROOT / "data")
real = {name: pytest.mark.skipif(not (HERE / file[0]).exists(), reason=f"{name} is not here: see KFLOW_DATA")
        for name, file in files.PREPARED.items()}  # fmt: skip


def picture(size, mode="L", seed=0, form="PNG") -> bytes:
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture
def face_source(tmp_path):
    """A zip file in the form of the source repository's: four pictures, of which two are faces as we take them."""
    path, table = tmp_path / "source.zip", io.StringIO()
    writer = csv.writer(table)
    writer.writerows(
        [["user.id", "image", "emotion"], ["a", "b_0001.png", "HAPPINESS"], ["a", "c_0001.png", "Neutral"]]
    )
    with zipfile.ZipFile(path, "w") as archive:
        sizes = {"c_0001": (350, 350), "a_0001": (350, 350), "b_0001": (350, 350), "d_0001": (300, 350)}
        for name, size in sizes.items():
            mode = "RGB" if name == "b_0001" else "L"
            archive.writestr(f"facial_expressions-master/images/{name}.png", picture(size, mode, seed=len(name)))
        archive.writestr("facial_expressions-master/data/legend.csv", table.getvalue())
    return path


def test_faces_are_prepared_from_the_source(face_source, tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="no faces64.npz in .*python -m kflow.data prepare faces .*muxspace"):
        prepared_file("faces")
    with pytest.raises(ValueError, match="the content of faces64.npz has sha256 .*, allowed is 753ae6bf11d2"):
        prepare("faces", face_source)
    assert not (tmp_path / "data" / "faces64.npz").exists(), "what is not the data set is not put in its place"
    with np.load(tmp_path / "data" / "faces64.part") as made:
        assert made["names"].tolist() == ["a_0001.png", "c_0001.png"] and made["labels"].tolist() == ["?", "neutral"]
        images = made["images"]
    assert images.shape == (2, 64, 64) and images.dtype == np.uint8
    expected = Image.open(io.BytesIO(picture((350, 350), seed=6))).resize((64, 64), Image.LANCZOS)
    assert np.array_equal(images[0], np.asarray(expected))
    content = ("faces64.npz", "", hashlib.sha256(images.tobytes()).hexdigest())
    monkeypatch.setitem(files.PREPARED, "faces", content)
    assert prepare("faces", face_source) == tmp_path / "data" / "faces64.npz" == prepared_file("faces")


@pytest.fixture
def class_folders(tmp_path):
    for i, name in enumerate(["train/cat/1.png", "train/cat/0.png", "train/ant/0.png", "test/ant/0.png"]):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture((6, 4), "RGB", seed=i))
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as archive:
        for path in sorted((tmp_path / "folder").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "folder"))
    return tmp_path / "folder"


def test_class_folders_read_the_same_from_a_folder_and_a_zip_file(class_folders):
    for path in (class_folders, class_folders.with_suffix(".zip")):
        images, labels, classes = read_image_folder(path, "train")
        assert images.shape == (3, 3, 4, 6) and images.dtype == torch.uint8
        assert labels.tolist() == [0, 1, 1] and classes == ("ant", "cat")
        expected = np.asarray(Image.open(io.BytesIO(picture((6, 4), "RGB", seed=1)))).transpose(2, 0, 1)
        assert np.array_equal(images[1], expected), "cat/0 comes before cat/1"
        assert read_image_folder(path, "test", "L")[0].shape == (1, 1, 4, 6)
    assert hash_of_files(class_folders) == hash_of_files(class_folders.with_suffix(".zip"))


def test_wrong_folders_are_named(class_folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder or zip file .*nowhere"):
        read_image_folder(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="there is no valid/CLASS/NAME in"):
        read_image_folder(class_folders, "valid")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no .jpg or .jpeg or .png or .webp in .*empty"):
        read_image_folder(tmp_path / "empty", "train")
    (class_folders / "train/cat/2.png").write_bytes(picture((5, 4), "RGB"))
    with pytest.raises(ValueError, match="train/cat/2.png is 5×4, allowed is 6×4 as train/ant/0.png"):
        read_image_folder(class_folders, "train")


def test_what_is_no_source_is_named(face_source, tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", str(tmp_path / "data"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(picture((350, 350)))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.write(tmp_path / "other" / "a.png", "a.png")
    for source in (tmp_path / "other", tmp_path / "other.zip"):
        with pytest.raises(FileNotFoundError, match=f"there is no data/legend.csv in {source}$"):
            prepare("faces", source)
    face_source.write_bytes(face_source.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{face_source} is no whole zip file \(.*\): remove it, and get it again"):
        prepare("faces", face_source)


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Where a server of this machine has the files of tmp_path."""
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_that_was_interrupted_is_begun_again(face_source, address, tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(files.PREPARED, "faces", ("faces64.npz", f"{address}/{face_source.name}", ""))
    real, parts = HTTPResponse.read, []

    def read(self, size=None):
        parts.append(size)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return real(self, 100)

    with monkeypatch.context() as patch:
        patch.setattr(HTTPResponse, "read", read)
        with pytest.raises(KeyboardInterrupt):
            prepare("faces")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["faces-source.part"]
    with pytest.raises(ValueError, match="the content of faces64.npz has sha256"):  # of other faces, but whole
        prepare("faces")
    assert (tmp_path / "data" / "faces-source.zip").read_bytes() == face_source.read_bytes()


def test_cifar10_is_prepared_from_the_source(class_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(files.PREPARED, "cifar10", ("cifar10-images.zip", "", hash_of_files(class_folders)))
    path = prepare("cifar10", class_folders)
    assert hash_of_files(path) == hash_of_files(class_folders)
    data = load_data.__globals__["cifar10"].__wrapped__()
    assert (data.name, data.shape, len(data.train), len(data.test), data.classes) == (
        "cifar10",
        (3, 4, 6),
        3,
        1,
        ("ant", "cat"),
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/ant/9.png", picture((6, 4), "RGB"))
    with pytest.raises(ValueError, match="the content of cifar10-images.zip has sha256"):
        load_data.__globals__["cifar10"].__wrapped__()


def test_the_command_line(tmp_path):
    for arguments, says in [((), "usage"), (("prepare", "letters"), "data is 'letters', allowed are faces, cifar10")]:
        done = subprocess.run([sys.executable, "-m", "kflow.data", *arguments], capture_output=True, text=True)
        assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


@real["faces"]
def test_the_real_faces():
    data = load_data("faces")
    assert data.train.shape == (11_794, 1, 64, 64) and data.test.shape == (1_000, 1, 64, 64)
    assert data.shape == describe_data("faces").shape and data.classes == describe_data("faces").classes
    # The data's own description counts 6,713 neutral and 5,306 happy faces.
    assert torch.cat([data.train_labels, data.test_labels]).bincount().tolist() == [5306, 6713, 775]
    assert 100 < data.train.float().mean() < 160


@real["cifar10"]
@pytest.mark.slow
def test_the_real_cifar10():
    data = load_data("cifar10")
    assert data.train.shape == (50_000, 3, 32, 32) and data.test.shape == (10_000, 3, 32, 32)
    assert data.train_labels.bincount().tolist() == [5000] * 10
    assert data.shape == describe_data("cifar10").shape and data.classes == describe_data("cifar10").classes
