"""Folders of tensors on disk: safetensors and a JSON card, written atomically, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

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


def flatten_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, to be written: by ``INDEX.NAME``."""
    states = optimizer.state_dict()["state"].items()
    return {f"{index}.{name}": value for index, state in states for name, value in state.items()}


def nest_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What :func:`flatten_state` gave, as ``state`` of an optimizer's state_dict has it."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return state


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
