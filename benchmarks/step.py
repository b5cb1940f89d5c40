"""What K-Flow adds to a training step and to a sampling step of DiT-S/2 at 32×32×4, all measured in one run.

    python benchmarks/step.py [--json results.json] [--repeats 5]

A step of this network takes seconds and is never timed to better than some per cent, while the limits are one and two
per cent. So the ratios that decide are put together from parts: what the path (or the solver) costs by itself, with a
network that costs nothing, timed over many repeats with cold caches, as a share of the whole step. The ratios of whole
steps, interleaved, stand beside them with the smallest and the largest of the repeats, between which the median lies
with probability 1 − 2^(1 − repeats). Exit status 1 if a ratio put together from parts exceeds its limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from kflow.amplitude import PCA, Fourier, Identity, KAmplitude, Meyer, Wavelet
from kflow.flow import HardBump, Linear, Path
from kflow.networks import make_dit
from kflow.sample import sample
from kflow.velocity import KFlow

BATCH, SHAPE, CLASSES = 32, (4, 32, 32), 1000
TRAINING_LIMIT, SAMPLING_LIMIT = 1.01, 1.02
PART_REPEATS, SAMPLING_STEPS = 50, 10


class Nothing(nn.Module):
    """A network that costs nothing: it returns a tensor that it has."""

    classes = null_label = CLASSES

    def __init__(self):
        super().__init__()
        self.output = torch.randn(BATCH, *SHAPE)

    def forward(self, *_) -> Tensor:
        return self.output


def decompositions() -> dict[str, KAmplitude]:
    size = torch.Size(SHAPE).numel()
    components = torch.linalg.qr(torch.randn(size, size)).Q
    return {
        "Fourier": Fourier(SHAPE),
        "db6": Wavelet(SHAPE, "db6"),
        "haar": Wavelet(SHAPE, "haar"),
        "Meyer": Meyer(SHAPE),
        "PCA": PCA(components, torch.ones(size), torch.zeros(SHAPE)),
    }


def training_step(model: KFlow, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...]) -> Callable[[], None]:
    def step() -> None:
        model.loss(*batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(candidates: dict[str, Callable[[], object]], repeats: int, cold: bool = False) -> dict[str, list[float]]:
    """Seconds of every repeat of every candidate, interleaved, after a warm-up; ``cold`` empties the caches before."""
    other_data = torch.zeros(2**24 if cold else 1)  # 64 MiB
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(-1, repeats):
        for name, call in candidates.items():
            other_data.add_(1)
            start = time.perf_counter()
            call()
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def compare(
    whole: dict[str, list[float]], parts: dict[str, float], base: str, base_part: float, limit: float
) -> list[dict[str, object]]:
    """Print and return, for every part, its ratio to the base: put together from parts, and of whole steps."""
    step = statistics.median(whole[base])
    print(f"\n{base}: {step:.3f} s{'':<22}{'own cost':>12}{'ratio':>10}{'limit':>8}   whole steps: median (interval)")
    rows = []
    for name, part in parts.items():
        ratio = 1 + (part - base_part) / step
        row = {"name": name, "seconds": part, "ratio": ratio, "limit": limit, "met": ratio <= limit}
        line = f"{name:<44}{1e3 * part:>9.2f} ms{ratio:>10.4f}{limit:>8}"
        if name in whole:
            paired = [a / b for a, b in zip(whole[name], whole[base], strict=True)]
            row["whole"] = {"median": statistics.median(paired), "interval": [min(paired), max(paired)]}
            line += f"   {statistics.median(paired):.3f} ({min(paired):.3f} to {max(paired):.3f})"
        print(line + ("" if row["met"] else "  EXCEEDED"))
        rows.append(row)
    return rows


def training(found: dict[str, KAmplitude], batch: tuple[Tensor, ...], repeats: int) -> list[dict[str, object]]:
    """Ratios of a K-Flow training step to an LFM step."""
    paths = {"LFM step": Path(Identity(SHAPE), Linear())}
    paths |= {name: Path(decomposition, HardBump(2)) for name, decomposition in found.items()}
    nothing = Nothing()
    alone = {name: KFlow(nothing, path) for name, path in paths.items()}
    times = measure({name: lambda m=m: m.loss(*batch) for name, m in alone.items()}, PART_REPEATS, cold=True)
    parts = {name: statistics.median(values) for name, values in times.items()}

    steps = {}
    for bands in (1, 2):  # two networks, which differ in the embedding of the band weights; the second serves all bases
        network = make_dit("DiT-S/2", SHAPE, bands, CLASSES)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4, fused=True)
        for name, path in paths.items():
            if path.bands == bands:
                steps[name] = training_step(KFlow(network, path), optimizer, batch)
    base = parts.pop("LFM step")
    return compare(measure(steps, repeats), parts, "LFM step", base, TRAINING_LIMIT)


@torch.no_grad()
def sampling(found: dict[str, KAmplitude], batch: tuple[Tensor, ...], repeats: int) -> list[dict[str, object]]:
    """Ratios of a sampling step to a bare call of the network."""
    noise, labels = batch[1], batch[3]
    weights = torch.rand(BATCH, 2)
    network, nothing = make_dit("DiT-S/2", SHAPE, 2, CLASSES).eval(), Nothing()
    kinds = {"velocity, euler": ("db6", "velocity", "euler")}
    kinds |= {f"displacement, euler, {name}": (name, "displacement", "euler") for name in found}
    kinds |= {"displacement, increment, db6": ("db6", "displacement", "increment")}

    def steps(network: nn.Module, kind: tuple[str, str, str], count: int) -> Callable[[], object]:
        name, output, solver = kind
        model = KFlow(network, Path(found[name], HardBump(2)), output)
        return lambda: sample(model, noise, labels, steps=count, solver=solver)

    times = measure({n: steps(nothing, k, SAMPLING_STEPS) for n, k in kinds.items()}, PART_REPEATS, cold=True)
    parts = {name: statistics.median(values) / SAMPLING_STEPS for name, values in times.items()}
    candidates = {"two network calls": lambda: [network(noise, batch[2], weights, labels) for _ in range(2)]}
    candidates |= {n: steps(network, kinds[n], 2) for n in ("velocity, euler", "displacement, increment, db6")}
    whole = {name: [t / 2 for t in values] for name, values in measure(candidates, repeats).items()}
    whole["network call"] = whole.pop("two network calls")
    return compare(whole, parts, "network call", 0.0, SAMPLING_LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=FilePath, help="also write the results here")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of whole steps (default 5)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    found = decompositions()
    batch = (
        torch.randn(BATCH, *SHAPE),
        torch.randn(BATCH, *SHAPE),
        torch.rand(BATCH),
        torch.randint(CLASSES, (BATCH,)),
    )
    print(f"DiT-S/2, batch {BATCH} of {SHAPE}, float32 on the CPU, {torch.get_num_threads()} threads")
    results = {
        "batch": BATCH,
        "shape": SHAPE,
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "training": training(found, batch, arguments.repeats),
        "sampling": sampling(found, batch, arguments.repeats),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(row["met"] for row in results["training"] + results["sampling"]) else 1


if __name__ == "__main__":
    sys.exit(main())
