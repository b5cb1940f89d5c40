"""What a model costs beside another: seconds of sampling and of a training step, all in turn in one run, as ratios.

    python benchmarks/cost.py [RUN ...]

``make measure`` calls :func:`measure_cost` for the record ``digits-cost``. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from kflow.data import load_data
from kflow.experiment import Experiment
from kflow.sample import sample
from kflow.train import draw
from kflow.velocity import KFlow
from kflow_book.measure import named_experiment


def time_in_turn(calls: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of each call in every round, all calls in turn, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for count in tqdm(range(rounds + 1), desc="timing"):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if count:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(values: list[float], base: list[float]) -> tuple[float, list[float]]:
    """Median of paired ratios, and its distribution-free interval of at least 95 % (of order statistics).

    Raises:
        ValueError: fewer than six pairs, which carry no such interval.
    """
    ratios = sorted(a / b for a, b in zip(values, base, strict=True))
    if len(ratios) < 6:
        raise ValueError(f"there are {len(ratios)} pairs, allowed are 6 or more: fewer carry no 95 % interval")
    out = max(int(binom.ppf(0.025, len(ratios), 0.5)) - 1, 0)  # so many may lie beyond each end
    return statistics.median(ratios), [ratios[out], ratios[-1 - out]]


def measure_cost(
    data: str, models: list[str], samples: int, steps: int, rounds: int, device: str = "cpu"
) -> dict[str, Any]:
    """Seconds of sampling and of a training step, in turn, and ratios to the first; networks as initialised."""
    calls, noise = {}, torch.randn(samples, *load_data(data).shape, device=device)
    for name in models:
        experiment = named_experiment(name)
        model = experiment.make_model().to(device)
        calls[f"sampling_{name}"] = lambda m=model: sample(m, noise, steps=steps)
        calls[f"training_{name}"] = training_step(experiment, model, device)
    seconds = time_in_turn(calls, rounds)
    values: dict[str, Any] = {"seconds": {name: sorted(times)[rounds // 2] for name, times in seconds.items()}}
    for name in calls:
        base = f"{name.split('_')[0]}_{models[0]}"
        if name != base:
            values[name], values[f"{name}_interval"] = median_ratio(seconds[name], seconds[base])
    return values


def training_step(experiment: Experiment, model: KFlow, device: str = "cpu") -> Callable[[], None]:
    """A step of Algorithm 1, drawing included, without clipping and moving average."""
    optimizer = torch.optim.AdamW([p for p in model.network.parameters() if p.requires_grad], fused=True)

    def run() -> None:
        drawn = draw(experiment, load_data(experiment.data), model, 0)
        model.loss(*tree_map_only(Tensor, lambda x: x.to(device), drawn)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


if __name__ == "__main__":
    found = measure_cost("digits", sys.argv[1:] or ["digits-lfm", "digits-fourier", "digits-db6"], 50, 30, 15)
    for name, value in found.items():
        if name.endswith("_interval"):
            print("{}: {:.3f} ({:.3f} to {:.3f})".format(name[:-9], found[name[:-9]], *value))
