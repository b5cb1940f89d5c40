"""Trained models on disk: a folder of weights with the card of their experiment.

python -m kflow.checkpoint runs/digits-db6    promotes a finished run to checkpoints/, in half precision
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from kflow.amplitude import PCA
from kflow.experiment import Experiment
from kflow.storage import CARD, CHECKPOINTS, WEIGHTS, read_folder, write_folder
from kflow.velocity import KFlow


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
