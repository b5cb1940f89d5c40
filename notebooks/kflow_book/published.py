"""The LFM baseline's released DiTs (github.com/VinAIResearch/LFM) as runs of ours, sampled and measured like them.

python -m kflow_book.published model_475.pth notebooks/experiments/paper/celebahq-lfm.yaml
python -m kflow_book.published model_875.pth notebooks/experiments/paper/imagenet-lfm.yaml network=DiT-B/2

The first file is one of the release's, whose page links them; the YAML file says data and classes. The run is
``runs/lfm-released-DATA``, or what ``name=NAME`` gives.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from kflow.checkpoint import save_model
from kflow.experiment import READ_BY, Experiment
from kflow.networks import DiT
from kflow.storage import RUNS, file_hash


def load_published(network: DiT, weights: dict[str, Tensor]) -> None:
    """Load the weights of the published DiT, by name, into a network of the same size.

    The time embedding becomes the embedding of k; of an output doubled by a learned sigma the first half is kept; the
    embedding of the band weights, which DiT lacks, stays as it is.

    Args:
        network: of the published size.
        weights: the published ``state_dict``.

    Raises ValueError: names or shapes that do not fit, which it lists.
    """
    renamed = {name.replace("t_embedder.", "k_embedder."): value for name, value in weights.items()}
    own = network.state_dict()
    rows = own["final_layer.linear.weight"].shape[0]
    if renamed.get("final_layer.linear.weight", torch.empty(0)).shape[:1] == (2 * rows,):
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            # Rows are ordered (patch row, patch column, channel): the first half of the channels, not of the rows.
            value = renamed[name].unflatten(0, (network.patch_size**2, -1))
            renamed[name] = value[:, : value.shape[1] // 2].flatten(0, 1)
    missing = own.keys() - renamed.keys() - {"k_embedder.bands.weight"}
    unknown = renamed.keys() - own.keys()
    wrong = [n for n in own.keys() & renamed.keys() if own[n].shape != renamed[n].shape]
    if missing or unknown or wrong:
        raise ValueError(
            f"the weights do not fit: missing {sorted(missing)[:4]}, unknown {sorted(unknown)[:4]}, "
            f"of another shape {sorted(wrong)[:4]}"
        )
    network.load_state_dict({**own, **renamed})


def load_release(network: DiT, weights: dict[str, Tensor]) -> None:
    """Load the release's weights into a :class:`~kflow.networks.dit.LatentFlowDiT` of the same size.

    The release saves a network as its launcher wrapped it, so names may begin with ``module.``. Its unconditional
    networks have a table of one class, whose row is added to every condition: here to the time embedding's bias.

    Args:
        network: of the released size; with classes, of as many.
        weights: the released ``state_dict``.

    Raises ValueError: names or shapes that do not fit, which it lists.
    """
    weights = {name.removeprefix("module."): value.float() for name, value in weights.items()}
    table, bias = "y_embedder.embedding_table.weight", "t_embedder.mlp.2.bias"
    if not network.classes and table in weights and bias in weights:
        rows = weights.pop(table)
        if len(rows) != 1:
            raise ValueError(f"the weights have {len(rows)} classes, an unconditional network has one")
        weights[bias] = weights[bias] + rows[0]
    load_published(network, weights)


def convert(file: str | Path, path: str | Path, folder: str | Path | None = None, **changes: Any) -> Path:
    """Write a released checkpoint as a finished run, and return its folder.

    Args:
        file: the released ``.pth`` file, read without unpickling anything but tensors.
        path: the YAML file of the experiment that has its data and network; ``changes`` are of its keys.
        folder: of the run; by default ``runs/NAME``.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: there is such a run; nothing is overwritten.
        ValueError: the file holds no weights, or weights that do not fit.
    """
    given = Experiment.load(path, **changes)
    lfm = {"network": f"LFM-{given.network}", "decomposition": "identity", "bands": 1, "schedule": "linear"}
    lfm |= {key: getattr(Experiment, key) for key in READ_BY}  # which neither of the two reads
    name = changes.get("name", f"lfm-released-{given.data.removesuffix('-latents')}")
    experiment = Experiment.load(path, **changes | lfm | {"name": name})
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        weights = weights.get("model_dict", weights)  # a file to go on from holds more
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise ValueError(f"{file} holds no weights: {str(error).splitlines()[0]}") from None
    model = experiment.make_model()
    load_release(model.network, weights)
    place = Path(folder or RUNS / name) / "model"
    save_model(model, experiment, place, source=Path(file).name, source_hash=file_hash(file))
    return place.parent


def main(arguments: list[str]) -> None:
    """The command line."""
    if len(arguments) < 2 or not all("=" in argument for argument in arguments[2:]):
        raise SystemExit("usage: python -m kflow_book.published RELEASED.pth EXPERIMENT.yaml [key=value ...]")
    try:
        changes = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in arguments[2:])}
        print(convert(*arguments[:2], changes.pop("folder", None), **changes))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
