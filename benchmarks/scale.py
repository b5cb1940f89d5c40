"""How time and memory of a training step, of the transform and of the sampler grow with the latents' size.

    python -m benchmarks.scale [--quick] [--json results.json]

Latents of four channels, 16² to 128², db6 in two and three bands beside one band (LFM); all calls in turn in one run,
as ratios. ``make measure`` calls :func:`measure_scale` for the record ``latents-scale``: some minutes on two cores.
Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import weakref
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.cost import median_ratio, time_in_turn
from kflow.amplitude import Identity, Wavelet
from kflow.flow import HardBump, Linear, Path
from kflow.networks import make_dit
from kflow.sample import sample
from kflow.velocity import KFlow

CHANNELS = 4


def make_model(network: str, size: int, bands: int) -> KFlow:
    """db6 in some bands with the hard bump; with one band ordinary flow matching."""
    shape = (CHANNELS, size, size)
    if bands == 1:
        return KFlow(make_dit(network, shape), Path(Identity(shape), Linear()))
    return KFlow(make_dit(network, shape, bands), Path(Wavelet(shape, "db6", bands - 1), HardBump(bands)))


def make_calls(network: str, size: int, bands: int, batch: int, steps: int) -> dict[str, Callable[[], object]]:
    """A training step, the transform (state and velocity of 16 samples, Eq. 8 and 9) and sampling, of one size."""
    model = make_model(network, size, bands)
    data, noise = torch.randn(2, batch, CHANNELS, size, size)
    k, optimizer = torch.rand(batch), torch.optim.AdamW(model.network.parameters(), fused=True)

    def step() -> None:
        model.loss(data, noise, k).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    many = torch.randn(2, 16, CHANNELS, size, size), torch.rand(16)
    return {
        "step": step,
        "transform": lambda: model.path.sample(*many[0], many[1]),
        "sampler": lambda: sample(model, noise, steps=steps),
    }


class PeakMemory(TorchDispatchMode):
    """Watches operations: ``peak`` is the most bytes of tensors that they made and that lived at the same time."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id_of(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_iter(made):
            if isinstance(x, Tensor) and id_of(x) not in given | self.known:  # a view of what was there is nothing new
                size = x.untyped_storage().nbytes()
                self.known.add(id_of(x))
                self.held += size
                self.peak = max(self.peak, self.held)
                weakref.finalize(x.untyped_storage(), self.free, id_of(x), size)
        return made

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


def id_of(tensor: Tensor) -> int:
    """Which memory a tensor is a view of."""
    return tensor.untyped_storage()._cdata


def peak_memory(call: Callable[[], object]) -> int:
    """The most bytes of tensors that a call holds beyond what is held before it; called once before, to warm up."""
    call()
    with PeakMemory() as found:
        call()
    return found.peak


def growth(values: dict[int, float]) -> float:
    """The exponent a of value ∝ (size²)^a over the sizes, by least squares in logarithms."""
    return float(np.polyfit(2 * np.log(list(values)), np.log(list(values.values())), 1)[0])


def measure_scale(
    network: str, sizes: list[int], bands: list[int], batch: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Seconds, peak memory, their growth with the number of latent values, and ratios to one band.

    Args:
        network: a DiT by name. sizes: of the latents. bands: how many; the first is what ratios are to.
        batch: samples of a step and of the sampler. steps: of the sampler.
        rounds: how often everything is timed, in turn.

    Returns mappings, by ``PART_BANDS_SIZE`` or ``PART_BANDS`` (part: step, transform, sampler); ``…_of_largest`` is the
    growth between the two largest sizes.
    """
    calls = {
        f"{part}_{count}_{size}": call
        for size in sizes
        for count in bands
        for part, call in make_calls(network, size, count, batch, steps).items()
    }
    memory = {name: peak_memory(call) for name, call in calls.items()}
    seconds = time_in_turn(calls, rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    values: dict[str, Any] = {"seconds": medians, "peak_memory": memory}
    kinds = [f"{part}_{count}" for part in ("step", "transform", "sampler") for count in bands]
    for title, found in (("growth_seconds", medians), ("growth_memory", memory)):
        for ending, chosen in (("", sizes), ("_of_largest", sorted(sizes)[-2:])):
            values[title + ending] = {k: growth({size: found[f"{k}_{size}"] for size in chosen}) for k in kinds}
    pairs = {
        f"{part}_{count}_{size}": (seconds[f"{part}_{count}_{size}"], seconds[f"{part}_{bands[0]}_{size}"])
        for part in ("step", "sampler")
        for count in bands[1:]
        for size in sizes
    }
    ratios = {name: median_ratio(*pair) for name, pair in pairs.items()}
    values["over_one_band"] = {name: ratio for name, (ratio, _) in ratios.items()}
    return values | {"over_one_band_interval": {name: interval for name, (_, interval) in ratios.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes, one and two bands: some seconds")
    parser.add_argument("--json", type=FilePath)
    arguments = parser.parse_args()
    sizes, bands = ([16, 32], [1, 2]) if arguments.quick else ([16, 32, 64, 128], [1, 2, 3])
    found = measure_scale("DiT-nano/4", sizes, bands, batch=1, steps=3, rounds=6 if arguments.quick else 25)
    for kind, exponent in found["growth_seconds"].items():
        print(f"{kind}: time grows as values^{exponent:.2f}, memory as values^{found['growth_memory'][kind]:.2f}")
    for name, ratio in found["over_one_band"].items():
        print("{}: {:.3f} ({:.3f} to {:.3f}) of one band".format(name, ratio, *found["over_one_band_interval"][name]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
