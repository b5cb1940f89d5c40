"""Starts functions on several processes, for tests of what they do together; they are forked from a warm server."""

import json
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kflow.train
from kflow.checkpoint import load_model
from kflow.data import to_uint8
from kflow.experiment import Experiment
from kflow.networks import make_dit
from kflow.ranks import shard, spread, whole
from kflow.storage import CHECKPOINTS
from kflow_book import at_scale
from kflow_book.measure import Trained

WAIT = 240  # seconds


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def variables(launcher: str, rank: int, ranks: int, port: str) -> dict[str, str]:
    """What torchrun or srun tells a process."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if launcher == "srun":
        slurm = {"JOB_NAME": "kflow", "JOB_ID": 1, "NTASKS": ranks, "NTASKS_PER_NODE": ranks, "NNODES": 1, "NODEID": 0}
        slurm |= {"JOB_NODELIST": "localhost", "PROCID": rank, "LOCALID": rank}
        return common | {f"SLURM_{key}": str(value) for key, value in slurm.items()}
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return common | {"TORCHELASTIC_RUN_ID": "1"} | {key: str(value) for key, value in torchrun.items()}


def work(environment: dict[str, str], errors: Path, function: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception:
        errors.write_text(traceback.format_exc())
        raise


def on_ranks(folder: Path, function: Callable, *arguments: Any, ranks: int = 2, launcher: str = "torchrun") -> None:
    """Call ``function(*arguments)`` on some ranks; an AssertionError with what went wrong if it fails on one."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:  # the server looks for it where this process does
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    errors = [folder / f"error-{rank}.txt" for rank in range(ranks)]
    processes = [
        context.Process(target=work, args=(variables(launcher, rank, ranks, port), path, function, arguments))
        for rank, path in enumerate(errors)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT)
    hanging = [process.kill() for process in processes if process.is_alive()]
    found = [path.read_text() for path in errors if path.exists()]
    assert not found and not hanging, "\n".join([f"{len(hanging)} hang", *found])


class Stopped(BaseException):
    """Stands for a kill."""


def train_until(values: dict[str, Any], folder: Path, stop: int = 0) -> None:
    """Train an experiment, and stop before the batch of step ``stop`` is drawn, if it is not 0."""
    real = kflow.train.draw

    def draw(experiment, data, model, step, *ranks):
        if stop and step == stop:
            raise Stopped
        return real(experiment, data, model, step, *ranks)

    kflow.train.draw = draw
    try:
        kflow.train.train(Experiment(**values), folder, progress=False)
    except Stopped:
        pass
    finally:
        kflow.train.draw = real


def train_apart(values: dict[str, Any], folder: Path) -> None:
    """Each rank in a folder of its own, as on machines that share no disk: an error on all, and nothing is trained."""
    folder = folder / os.environ["RANK"]
    says = rf"ranks found states of steps \[2, 0\], allowed is one: {folder} must be on a disk that all machines share"
    with pytest.raises(ValueError, match=says):
        kflow.train.train(Experiment(**values), folder, progress=False)


def check_parts(folder: Path) -> None:
    """A sharded network holds parts of its weights, which come back whole and go out again."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    network = make_dit("DiT-nano/8", (1, 32, 32))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert shard(network) is network
    parts = network.state_dict()
    here, everywhere = (
        sum(x.numel() for x in found) for found in ([x.to_local() for x in parts.values()], before.values())
    )
    assert 0.4 * everywhere < here < 0.6 * everywhere
    assert all(torch.equal(value, before[name]) for name, value in whole(parts).items())
    again = spread({**before, "step": torch.tensor(3)}, parts)
    assert all(torch.equal(again[name].to_local(), part.to_local()) for name, part in parts.items())
    assert torch.equal(again["step"], torch.tensor(3))
    (folder / f"{rank}.txt").touch()


SMALL = {"features": "digits-features", "samples": 50, "steps": 4, "reference": 70, "guidance_scale": 1.5}
SMALL |= {"drop_class_at": 0.3, "classes": 2, "class_count": 10}


def measure_small(folder: Path) -> None:
    """Measure a committed model as at the paper's scale, 16 samples at a time; write what each rank saw."""
    trained, seen = Trained(*load_model(CHECKPOINTS / "digits-db6")[:2]), []
    fabric = at_scale.start_ranks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at_scale, "PART", 16)
        patch.setattr(at_scale, "to_uint8", lambda images: seen.append(to_uint8(images)) or seen[-1])
        values = at_scale.measure_at_scale(trained, **SMALL)
    name = f"{fabric.global_rank}-of-{fabric.world_size}"
    (folder / f"{name}.json").write_text(json.dumps(values))
    save_file({f"{i}": part for i, part in enumerate(seen)}, folder / f"{name}.safetensors")


def check_order(folder: Path) -> None:
    """Parts come back in order, however many there are for two ranks."""
    fabric = at_scale.start_ranks()
    assert fabric.world_size == 2
    for count, part in [(7, 2), (7, 3), (8, 4), (1, 5), (9, 1)]:
        found = at_scale.over_ranks(lambda chosen: torch.arange(20)[chosen, None] ** 2, count, fabric, part)
        assert torch.equal(found, torch.arange(count)[:, None] ** 2)
