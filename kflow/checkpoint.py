"""Weights and training states on disk: safetensors and JSON, written atomically, checked when read.

python -m kflow.checkpoint runs/digits-db6    promotes a finished run to checkpoints/, in half precision
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kflow.amplitude import PCA
from kflow.experiment import Experiment
from kflow.velocity import KFlow

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS, RUNS = ROOT / "checkpoints", ROOT / "runs"  # committed weights, and where training writes
WEIGHTS, CARD = "model.safetensors", "card.json"


def file_hash(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_folder(folder: Path, tensors: dict[str, dict[str, Tensor]], card: dict[str, Any]) -> None:
    """Write a folder of safetensors files and a card with their hashes; it appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, values in tensors.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, part / name)
    card = {**card, "files": {name: file_hash(part / name) for name in tensors}}
    (part / CARD).write_text(json.dumps(card, indent=2) + "\n")
    for path in part.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    os.replace(part, folder)


def read_card(folder: str | Path) -> dict[str, Any]:
    """A folder's card alone.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated or changed.
    """
    path = Path(folder) / CARD
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is truncated or changed: {error}") from None


def read_folder(folder: Path, *keys: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`write_folder` wrote, with a card that has these keys.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: a file is missing, truncated or changed; it is named.
    """
    card = read_card(folder)
    missing = [key for key in ("files", *keys) if key not in card]
    if missing:
        raise ValueError(f"{folder / CARD} lacks {', '.join(missing)}: it is truncated or the card of something else")
    tensors = {}
    for name, expected in card["files"].items():
        path = folder / name
        if not path.exists() or file_hash(path) != expected:
            raise ValueError(f"{path} is missing, truncated or changed: its sha256 is not the card's {expected[:12]}…")
        try:
            tensors[name] = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None
    return tensors, card


def save_model(model: KFlow, experiment: Experiment, folder: str | Path, half: bool = False, **facts: Any) -> None:
    """Write a model's network (and its PCA, if it has one) with a card.

    Args:
        model: the model; of its network the state is written.
        experiment: what it was trained as.
        folder: where; must not exist.
        half: in half precision (float16), for committing.
        facts: further entries of the card: data hash, losses, wall time.

    Raises FileExistsError: the folder exists; nothing is overwritten.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it first, nothing is overwritten")
    weights = {k: v.half() if half and v.is_floating_point() else v for k, v in model.network.state_dict().items()}
    tensors = {WEIGHTS: weights}
    decomposition = model.path.decomposition
    if isinstance(decomposition, PCA):
        tensors["pca.safetensors"] = {
            name: getattr(decomposition, name).float() for name in ("components", "eigenvalues", "mean")
        }
    parameters = sum(p.numel() for p in model.network.parameters())
    write_folder(folder, tensors, {"experiment": experiment.to_dict(), "parameters": parameters, **facts})


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> tuple[KFlow, Experiment, dict[str, Any]]:
    """A trained model in float32, ready to sample, with its experiment and card.

    Raises:
        FileNotFoundError: no such checkpoint; it says how to train one.
        ValueError: a damaged file, or weights that do not fit the experiment.
    """
    folder = Path(folder)
    if not (folder / CARD).exists():
        raise FileNotFoundError(f"there is no checkpoint in {folder}: train one with notebooks/03_train.ipynb")
    tensors, card = read_folder(folder, "experiment")
    experiment = Experiment.make(**card["experiment"])
    decomposition = None
    if "pca.safetensors" in tensors:
        decomposition = PCA(**tensors["pca.safetensors"], bands=experiment.bands, cuts=experiment.cuts)
    model = experiment.make_model(decomposition=decomposition)
    try:
        model.network.load_state_dict({k: v.float() for k, v in tensors[WEIGHTS].items()})
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit its experiment: {error}") from None
    return model.to(device).eval().requires_grad_(False), experiment, card


def promote(run: str | Path, folder: str | Path | None = None) -> Path:
    """Copy a finished run's weights to ``checkpoints/NAME`` in half precision, with its card, for committing.

    Raises:
        FileNotFoundError: the run is not finished.
        FileExistsError: there is such a checkpoint already.
    """
    model, experiment, card = load_model(Path(run) / "model")
    folder = Path(folder or CHECKPOINTS / experiment.name)
    facts = {key: value for key, value in card.items() if key not in ("experiment", "parameters", "files")}
    save_model(model, experiment, folder, half=True, weights="float16", **facts)
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m kflow.checkpoint RUN [RUN ...]")
    try:
        print(*(promote(run) for run in sys.argv[1:]), sep="\n")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
