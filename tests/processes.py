"""Starts functions on several processes, for tests of what they do together; they are forked from a warm server."""

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

import kflow.train
from kflow.experiment import Experiment
from kflow.networks import make_dit
from kflow.ranks import shard, spread, whole

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
    context.set_forkserver_preload([__name__, "kflow_book.protocols"])
    with pytest.MonkeyPatch.context() as patch:  # the server looks for those two where this process does
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
