"""Algorithm 1 on Lightning Fabric.

python -m kflow.train notebooks/experiments/digits-lfm.yaml [key=value ...]
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn import Module
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from kflow.checkpoint import load_model, save_model
from kflow.data import Images, load_data
from kflow.experiment import Experiment, check_same, choose_compile, choose_precision
from kflow.ranks import gather, shard, spread, whole
from kflow.storage import RUNS, flatten_state, nest_state, read_folder, write_folder
from kflow.velocity import KFlow

LOG_STEPS = 20


@dataclass(frozen=True)
class Run:
    """A finished training run: its folder, its averaged (EMA) model, its experiment and its card."""

    folder: Path
    model: KFlow
    experiment: Experiment
    card: dict[str, Any]

    @property
    def log(self) -> pd.DataFrame:
        """Losses over the run, one row every few steps: step, images, loss, and loss of each band (NaN if unseen)."""
        return read_log(self.folder)


def train(experiment: Experiment, folder: str | Path | None = None, progress: bool = True) -> Run:
    """Train, or go on with, an experiment (Algorithm 1); a finished run is only loaded.

    What is drawn at a step (data, noise, k, dropped labels) is a function of the seed and the step alone, so a run that
    was killed and started again ends in the same weights, bit for bit on one machine, as one that was never stopped.

    Args:
        experiment: what to train.
        folder: where the run lives; ``runs/NAME`` if not given.
        progress: show a progress bar.

    Raises:
        ValueError: the folder holds another experiment's run or a damaged checkpoint; ranks do not divide batch_size or
            see different states; this machine lacks the accelerator, devices or strategy.
        FloatingPointError: the loss is not finite; the last good checkpoint stays.
    """
    folder = Path(folder or RUNS / experiment.name)
    if (folder / "model" / "card.json").exists():
        model, done, card = load_model(folder / "model")
        check_same(done, experiment, folder)
        return Run(folder, model, done, card)

    data = load_data(experiment.data)
    precision, sharded = choose_precision(experiment), experiment.strategy == "fsdp"
    loggers = [CSVLogger(folder, "log", flush_logs_every_n_steps=1), TensorBoardLogger(folder, "tensorboard")]
    machine = {key: getattr(experiment, key) for key in ("accelerator", "devices", "num_nodes", "strategy")}
    strategy = {"strategy": ModelParallelStrategy(lambda network, _: shard(network))} if sharded else {}
    try:
        fabric = Fabric(**machine | strategy, precision=precision, loggers=loggers)
    except Exception as error:
        raise ValueError(f"{', '.join(f'{k} is {v!r}' for k, v in machine.items())}: {error}") from error
    fabric.launch()
    if experiment.batch_size % fabric.world_size:
        raise ValueError(f"batch_size is {experiment.batch_size}, allowed are multiples of {fabric.world_size} ranks")
    torch.manual_seed(experiment.seed)
    model = fabric.to_device(experiment.make_model(data))
    plain = model.network
    empty = copy.deepcopy(plain).to("meta")  # to be filled at the end: a sharded network cannot be written as it is
    average = AveragedModel(plain, multi_avg_fn=averaging(experiment.ema_decay), use_buffers=False)
    network = torch.compile(plain) if choose_compile(experiment) else plain
    model.network = fabric.setup_module(network)
    if sharded:
        shard(average.module)
    settings = {"lr": experiment.learning_rate, "betas": experiment.betas, "weight_decay": experiment.weight_decay}
    optimizer = AdamW([p for p in plain.parameters() if p.requires_grad], **settings, fused=True)
    step, seconds = resume(fabric, folder, experiment, plain, average, optimizer)
    optimizer = fabric.setup_optimizers(optimizer)

    last = -(-experiment.images // experiment.batch_size)
    every = max(1, experiment.checkpoint_images // experiment.batch_size)
    pending: list[tuple[int, Tensor, Tensor, Tensor]] = []
    started = time.perf_counter() - seconds
    shown = {"desc": experiment.name, "unit": " images", "unit_scale": True, "mininterval": 0.5}
    shown |= {"total": last * experiment.batch_size, "initial": step * experiment.batch_size}
    bar = tqdm(**shown, disable=not progress or fabric.global_rank != 0)
    while step < last:
        set_learning_rate(optimizer, experiment, step)
        drawn = draw(experiment, data, model, step, fabric.global_rank, fabric.world_size)
        losses = backward(fabric, model, drawn, experiment.micro_batch)
        norm = fabric.clip_gradients(model.network, optimizer, max_norm=experiment.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(plain)
        step += 1
        pending.append((step, *(gather(fabric, share).T.flatten() for share in (drawn[2], losses)), norm))
        bar.update(experiment.batch_size)
        if step % LOG_STEPS == 0 or step % every == 0 or step == last:
            values = summarise(pending, model, experiment)
            fabric.log_dict(values, step)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            pending.clear()
        if step % every == 0 and step < last:
            card = {"experiment": experiment.to_dict(), "step": step, "seconds": time.perf_counter() - started}
            write_state(fabric, folder, card, plain, average, optimizer)
    bar.close()

    weights = whole(average.module.state_dict())
    if fabric.is_global_zero:
        for logger in loggers:
            logger.finalize("success")
        empty.load_state_dict(weights, assign=True)
        model.network = empty
        facts = {
            "images": last * experiment.batch_size,
            "loss": read_log(folder)["loss"].tail(50).mean(),
            "seconds": time.perf_counter() - started,
            "precision": precision,
            "compiled": network is not plain,
            "data_hash": data.hash,
        }
        save_model(model.cpu(), experiment, folder / "model", **facts)
        shutil.rmtree(folder / "state", ignore_errors=True)
    fabric.barrier()
    return Run(folder, *load_model(folder / "model"))


def backward(fabric: Fabric, model: KFlow, drawn: tuple, micro_batch: int = 0) -> Tensor:
    """Losses (batch,) of what :func:`draw` gave, and the gradient of their mean, ``micro_batch`` samples at a time.

    Activations of few samples stay in a processor's cache, or fit a small GPU; 0 takes the batch at once.
    """
    count, losses = len(drawn[2]), []
    for i in range(0, count, micro_batch or count):
        part = tree_map_only(Tensor, lambda x: fabric.to_device(x[i : i + (micro_batch or count)]), drawn)  # noqa: B023
        with fabric.no_backward_sync(model.network, enabled=0 < micro_batch < count - i):
            loss = model.loss(*part)
            fabric.backward(loss.sum() / count)
        losses.append(loss.detach())
    return torch.cat(losses)


def draw(
    experiment: Experiment, data: Images, model: KFlow, step: int, rank: int = 0, ranks: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What step ``step`` trains on: data, noise, k and labels of one batch, of which each rank takes its share.

    A function of the seed and the step alone: the random state and data order of a run are its step number.
    """
    size, count = experiment.batch_size, len(data.train)
    positions = torch.arange(step * size, (step + 1) * size)
    epochs = range(int(positions[0]) // count, int(positions[-1]) // count + 1)
    orders = torch.stack([shuffle(experiment.seed, epoch, count) for epoch in epochs])
    chosen = orders[positions // count - epochs[0], positions % count]
    source = generator(experiment.seed, 2, step)
    k = model.path.schedule.draw(size, source, experiment.draw_k)
    samples, noise, labels = data.draw(chosen, source, experiment.label_dropout if experiment.conditional else None)
    return tree_map_only(Tensor, lambda x: x[rank::ranks], (samples, noise, k, labels))


@lru_cache(maxsize=4)
def shuffle(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which an epoch visits the data, (count,)."""
    return torch.randperm(count, generator=generator(seed, 1, epoch))


def generator(*key: int) -> torch.Generator:
    """A random generator that depends on the whole key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def averaging(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """An exponential moving average of weights, whose first steps count less: decay min(d, (1 + n)/(10 + n))."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        rate = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, rate)

    return update


def set_learning_rate(optimizer: Optimizer, experiment: Experiment, step: int) -> None:
    """Linear warm-up, then constant or cosine decay to zero."""
    images = step * experiment.batch_size
    factor = min(1.0, (images + experiment.batch_size) / max(experiment.warmup_images, 1))
    if experiment.learning_rate_decay == "cosine":
        factor *= 0.5 * (1 + np.cos(np.pi * images / experiment.images))
    for group in optimizer.param_groups:
        group["lr"] = experiment.learning_rate * float(factor)


def summarise(
    pending: list[tuple[int, Tensor, Tensor, Tensor]], model: KFlow, experiment: Experiment
) -> dict[str, float]:
    """Mean loss of the last steps, in all and by the band that moves most at k (NaN if none did).

    Args:
        pending: of each step its number, k (batch,), losses (batch,) and the norm of the gradient.

    Raises FloatingPointError: a loss or a gradient is not finite, with the step, and k and band of its largest loss.
    """
    for step, k, losses, norm in pending:
        if not (losses.isfinite().all() and norm.isfinite()):
            worst = int(losses.argmax())  # NaN counts as the largest
            band = int(model.path.schedule(k)[1].argmax(1)[worst])
            raise FloatingPointError(
                f"the loss is {float(losses[worst])} and the gradient's norm {float(norm)} at step {step}, "
                f"k = {float(k[worst]):.4f}, band {band}: stopped, the last checkpoint stays "
                f"(learning_rate is {experiment.learning_rate}, try a smaller one)"
            )
    k = torch.cat([k for _, k, _, _ in pending]).cpu()
    losses = torch.cat([losses for _, _, losses, _ in pending]).cpu()
    bands = model.path.schedule(k)[1].argmax(1)
    values = {"images": float(pending[-1][0] * experiment.batch_size), "loss": float(losses.mean())}
    return values | {f"loss_band_{b}": float(losses[bands == b].mean()) for b in range(model.path.bands)}


def write_state(
    fabric: Fabric, folder: Path, card: dict[str, Any], network: Module, average: AveragedModel, optimizer: Optimizer
) -> None:
    """Write the training state after its card's step, atomically, and drop the one before the last; on every rank."""
    tensors = {
        "network.safetensors": whole(network.state_dict()),
        "average.safetensors": whole({**average.module.state_dict(), "n_averaged": average.n_averaged}),
        "optimizer.safetensors": whole(flatten_state(optimizer)),
    }
    if not fabric.is_global_zero:
        return
    write_folder(folder / "state" / f"{card['step']:09d}", tensors, card)
    for old in sorted((folder / "state").glob("[0-9]*"))[:-2]:
        shutil.rmtree(old)


def resume(
    fabric: Fabric, folder: Path, experiment: Experiment, network: Module, average: AveragedModel, optimizer: Optimizer
) -> tuple[int, float]:
    """Load the newest training state, if there is one; returns its step and the seconds trained until then.

    Raises ValueError: it is damaged or another experiment's, or other ranks see another one.
    """
    states = sorted((folder / "state").glob("[0-9]*"))
    steps = gather(fabric, torch.tensor(int(states[-1].name) if states else 0)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"ranks found states of steps {steps}, allowed is one: {folder} must be on a disk that all machines share"
        )
    if not states:
        return 0, 0.0
    try:
        tensors, card = read_folder(states[-1], "experiment", "step", "seconds")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; remove {states[-1]} to go on from the state before it") from None
    check_same(Experiment.make(**card["experiment"]), experiment, folder)
    network.load_state_dict(spread(tensors["network.safetensors"], network.state_dict()))
    averaged = tensors["average.safetensors"]
    average.n_averaged.copy_(averaged.pop("n_averaged"))
    average.module.load_state_dict(spread(averaged, average.module.state_dict()))
    state = nest_state(tensors["optimizer.safetensors"])
    for moments, weight in zip(state.values(), optimizer.param_groups[0]["params"]):
        moments |= spread(moments, dict.fromkeys(("exp_avg", "exp_avg_sq"), weight))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return card["step"], card["seconds"]


def read_log(folder: str | Path) -> pd.DataFrame:
    """The log of a run, over all its interruptions; where a step was done twice, the later one counts."""
    parts = sorted(Path(folder).glob("log/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    parts = [part for part in parts if part.stat().st_size]  # a run may have been killed before its first line
    if not parts:
        return pd.DataFrame(columns=["step", "images", "loss"])
    log = pd.concat([pd.read_csv(part) for part in parts])
    return log.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def main(arguments: list[str]) -> None:
    """The command line: a YAML file, then ``key=value`` changes."""
    if not arguments or "=" in arguments[0] or not all("=" in argument for argument in arguments[1:]):
        raise SystemExit("usage: python -m kflow.train EXPERIMENT.yaml [key=value ...]")
    changes: dict[str, Any] = dict(argument.split("=", 1) for argument in arguments[1:])
    folder = changes.pop("folder", None)
    try:
        changes = {key: yaml.safe_load(value) for key, value in changes.items()}
        run = train(Experiment.load(arguments[0], **changes), folder)
    except (ValueError, OSError, FloatingPointError, yaml.YAMLError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{run.folder / 'model'}: loss {run.card['loss']:.4f}, {run.card['seconds']:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
