"""What a run would take, and what would stop it, before a GPU is touched.

python -m kflow_book.dry_run notebooks/experiments/paper/celebahq-db6.yaml [key=value ...]

Everything printed here is an estimate from stated assumptions, but for the number of parameters and the problems.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from kflow.assemble import ClusterNetwork
from kflow.assemble.network import ENVIRONMENT
from kflow.data import DATA, describe_data, images_of, is_here, load_data
from kflow.data.files import data_folder
from kflow.data.registry import PICTURES, SHARDS
from kflow.experiment import AssemblyExperiment, Experiment
from kflow.networks import make_network
from kflow.storage import RUNS
from kflow_book.crystals import MOLECULES
from kflow_book.pictures import AUTOENCODER, find_autoencoder

#: name → FLOP/s in bf16 and in float32, bytes of memory: the makers' figures, dense. The paper names the H20 (E.7).
GPUS = {"H20": (148e12, 44e12, 96e9), "A100": (312e12, 19.5e12, 80e9), "H100": (989e12, 67e12, 80e9)}
UTILISATION = 0.4  # of these FLOP/s, what a transformer of this size is assumed to reach
BACKWARD = 2  # times the FLOPs forward: the gradient of a product are two products
ATOMS = 40  # of a molecule of COD-Cluster17, assumed
STATES = 2  # training states that a run keeps on disk


@dataclass(frozen=True)
class Estimate:
    """What a run would take; bytes are of one GPU but for the disk's.

    Attributes:
        name: of the experiment.
        gpus, steps: how many.
        parameters: of the network.
        memory: bytes for weights, gradients, optimizer, averaged weights, activations.
        flops: of a step, over all GPUs; the network's alone: the decompositions' are below a thousandth of DiT-L/2's.
        hours: by GPU of GPUS, of the whole run on ``gpus`` of them.
        disk: bytes for latents and for checkpoints.
        problems: what would stop the run, or make it another than the paper's.
    """

    name: str
    gpus: int
    steps: int
    parameters: int
    memory: dict[str, float]
    flops: float
    hours: dict[str, float]
    disk: dict[str, float]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        memory = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in self.memory.items())
        disk = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in self.disk.items())
        lines = [
            f"{self.name}: {self.parameters:,} parameters, {self.steps:,} steps on {self.gpus} GPUs",
            f"memory of a GPU, GB: {sum(self.memory.values()) / 1e9:.1f} ({memory})",
            f"FLOPs of a step: {self.flops:.3g}",
            *(f"hours on {self.gpus} {gpu}: {hours:.1f}" for gpu, hours in self.hours.items()),
            f"disk, GB: {disk}",
            *(f"problem: {problem}" for problem in self.problems),
            f"Hours are estimated at {UTILISATION:.0%} of the GPUs' FLOP/s, activations of a step not compiled.",
        ]
        return "\n".join(lines)


class FlashAttention(TorchFunctionMode):
    """Attention as GPUs compute it, without keeping its matrix: without a GPU torch would choose a form that does."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = [*args, *(kwargs or {}).values()][:3]
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


@lru_cache
def look_at(network: str, shape: tuple[int, ...], bands: int, classes: int, batch: int, half: bool) -> tuple[int, ...]:
    """Parameters of a network, FLOPs forward of a batch, and bytes that are kept for its backward pass.

    Nothing is allocated or computed: all tensors are fake ones of a GPU that need not be there.

    Args:
        network, shape, bands, classes: as for :func:`~kflow.networks.make_network`; or ``molecules`` or ``atoms``.
        batch: samples at a time.
        half: under autocast to bf16, as a GPU trains.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), FlashAttention():
        if network in AssemblyExperiment.choices["network"]:
            model = ClusterNetwork(bands, free=network == "atoms")
            atoms = torch.empty(batch, MOLECULES, ATOMS, dtype=torch.long)
            inputs = (torch.empty(*atoms.shape, 3), atoms, torch.empty(*atoms.shape, ENVIRONMENT))
            inputs += (torch.empty(batch), torch.empty(batch, bands))
        else:
            model = make_network(network, shape, bands, classes)
            inputs = (torch.empty(batch, *shape), torch.empty(batch), torch.empty(batch, bands))
            inputs += (torch.empty(batch, dtype=torch.long),) if classes else ()
        own, kept = {id_of(parameter) for parameter in model.parameters()}, {}

        def keep(tensor: Tensor) -> Tensor:
            if id_of(tensor) not in own:
                kept[id_of(tensor)] = tensor.untyped_storage()
            return tensor

        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", half)  # torch.autocast would ask for a GPU
        try:
            with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
                model(*inputs).float().square().mean()
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return parameters, counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


def id_of(tensor: Tensor) -> int:
    """Which memory a tensor is a view of."""
    return tensor.untyped_storage()._cdata


def estimate(experiment: Experiment) -> Estimate:
    """What a run would take; it need not be possible here."""
    known = describe_data(experiment.data)
    gpus = experiment.num_nodes * (experiment.devices if isinstance(experiment.devices, int) else 1)
    batch = -(-experiment.batch_size // gpus)
    at_once = min(experiment.micro_batch or batch, batch)
    half, classes = experiment.precision != "32-true", len(known.classes) if experiment.conditional else 0
    key = (experiment.network, known.shape, experiment.bands, classes, at_once, half)
    parameters, forward, activations = look_at(*key)
    parts = gpus if experiment.strategy.startswith("fsdp") else 1
    copies = 2 if experiment.strategy.startswith("ddp") and gpus > 1 else 1  # DDP sends gradients from buckets
    single = 4 * parameters
    memory = {
        "weights": single / parts,
        "gradients": copies * single / parts,
        "optimizer": 2 * single / parts,
        "averaged weights": single / parts,
        "activations": activations,
    }
    flops = (1 + BACKWARD) * forward * experiment.batch_size / at_once
    steps = -(-experiment.images // experiment.batch_size)
    hours = {gpu: steps * flops / (gpus * UTILISATION * speed[not half]) / 3600 for gpu, speed in GPUS.items()}
    latents = 2 * 2 * known.count * torch.Size(known.shape).numel() if experiment.data in SHARDS else 0
    disk = {"latents": latents, "checkpoints": STATES * 4 * single + single}
    problems = [*find_problems(experiment, disk)]
    if experiment.batch_size % gpus:
        problems.append(f"batch_size is {experiment.batch_size}, allowed are multiples of the {gpus} GPUs")
    for gpu, (*_, size) in GPUS.items():
        if sum(memory.values()) > size:
            problems.append(
                f"a step needs {sum(memory.values()) / 1e9:.0f} GB, {gpu} has {size / 1e9:.0f}: set micro_batch"
            )
    return Estimate(experiment.name, gpus, steps, parameters, memory, flops, hours, disk, tuple(problems))


def find_problems(experiment: Experiment, disk: dict[str, float]) -> list[str]:
    """What is missing or wrong with the data, the autoencoder and the disk; all of it, not the first alone."""
    known, problems = describe_data(experiment.data), []
    if experiment.conditional and not known.classes:
        problems.append(f"conditional is True, {experiment.data} has no classes")
    parts = {experiment.data: 2 if experiment.data in SHARDS else 1, known.images: 1}  # latents are there mirrored, too
    for name, times in parts.items():
        try:
            if name:
                found = len((load_data if name == experiment.data else images_of)(name).train) // times
                if name in (*PICTURES, *SHARDS) and found != DATA[name].count:  # of clusters, some are left out
                    problems.append(f"{name} has {found:,} training images, the paper's {DATA[name].count:,}")
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if experiment.data in SHARDS:
        if not os.environ.get("KFLOW_VAE"):
            problems.append(f"KFLOW_VAE is not set: diffusers would take {AUTOENCODER} from its cache or its hub")
        else:
            try:
                find_autoencoder(experiment.data)
            except (OSError, ValueError) as error:
                problems.append(str(error))
    needs = {data_folder(): 0 if is_here(experiment.data) else disk["latents"], RUNS: disk["checkpoints"]}
    for folder, size in needs.items():
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if (free := shutil.disk_usage(place).free) < size:
            problems.append(f"{folder} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} are needed")
    return problems


def main(arguments: list[str]) -> None:
    """The command line: a YAML file, then ``key=value`` changes; exit status 1 if there are problems."""
    if not arguments or "=" in arguments[0] or not all("=" in argument for argument in arguments[1:]):
        raise SystemExit("usage: python -m kflow_book.dry_run EXPERIMENT.yaml [key=value ...]")
    changes = dict(argument.split("=", 1) for argument in arguments[1:])
    try:
        changes = {key: yaml.safe_load(value) for key, value in changes.items()}
        found = estimate(Experiment.load(arguments[0], **changes))
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise SystemExit(f"error: {error}") from None
    print(found)
    raise SystemExit(bool(found.problems))


if __name__ == "__main__":
    main(sys.argv[1:])
