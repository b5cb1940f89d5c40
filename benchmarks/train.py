"""Images a second of our training loop beside a plain PyTorch loop, and what both have learned after as many images.

    python benchmarks/train.py [--network DiT-mini/4] [--images 25600] [--repeats 3] [--json results.json]

Ordinary flow matching on digits; the default network has 9.8 million parameters, 64 tokens; batch 128. *Plain*:
float32 weights, bf16 autocast, torch.compile, fused AdamW, scaled_dot_product_attention, tanh GELU, on all cores.
*Ours*: ``kflow.train`` with a process a core and 32 samples at a time. Each is timed in a process of its own, in turn,
from its 21st step; both draw the same images, noise and k, and keep an average of their weights. Exit status 1 if ours
is less than twice as fast, or its loss on held-out images more than 1 % higher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from kflow.checkpoint import load_model, save_model
from kflow.data import load_data
from kflow.experiment import Experiment
from kflow.networks.dit import Attention
from kflow.train import averaging, draw, set_learning_rate, train

WARM_UP = 20  # steps that are not timed: compiling, first touches
SETTINGS = {"decomposition": "identity", "bands": 1, "schedule": "linear", "batch_size": 128, "learning_rate": 1e-3}
LEAST, MOST = 2.0, 1.01  # ratio of speeds, of losses


def plain_attention(self: Attention, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


def train_plain(experiment: Experiment, folder: Path) -> float:
    """The loop that one would write first; images a second after the warm-up."""
    import kflow.networks.dit as dit

    dit.gelu, Attention.forward = lambda x: F.gelu(x, approximate="tanh"), plain_attention
    data = load_data(experiment.data)
    torch.manual_seed(experiment.seed)
    model = experiment.make_model(data)
    network = model.network
    average = AveragedModel(network, multi_avg_fn=averaging(experiment.ema_decay), use_buffers=False)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=experiment.learning_rate, betas=experiment.betas, weight_decay=experiment.weight_decay, fused=True
    )
    model.network, steps = torch.compile(network), experiment.images // experiment.batch_size
    for step in range(steps):
        if step == WARM_UP:
            start = time.perf_counter()
        set_learning_rate(optimizer, experiment, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(*draw(experiment, data, model, step)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, experiment.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(network)
    speed = (steps - WARM_UP) * experiment.batch_size / (time.perf_counter() - start)
    model.network = average.module
    save_model(model, experiment, folder / "model")
    return speed


def train_ours(experiment: Experiment, folder: Path) -> float | None:
    """``kflow.train``; images a second between two checkpoints' times, the first after the warm-up (None on rank 1)."""
    times = []

    class Clock(list):  # a look at the clock whenever the loop draws a batch
        def __call__(self, experiment, data, model, step, rank=0, ranks=1):
            if step >= WARM_UP:
                times.append(time.perf_counter())
            return draw(experiment, data, model, step, rank, ranks)

    import kflow.train as module

    module.draw = Clock()
    train(experiment, folder, progress=False)
    return (len(times) - 1) * experiment.batch_size / (times[-1] - times[0])


@torch.no_grad()
def held_out_loss(folder: Path) -> float:
    """Mean loss on 2,000 held-out images, at noise and k of one seed."""
    model, experiment, _ = load_model(folder / "model")
    source = torch.Generator().manual_seed(1)
    data = load_data(experiment.data)
    images = data.to_float(data.test[:2000])
    noise, k = torch.randn(images.shape, generator=source), torch.rand(len(images), generator=source)
    return float(model.loss(images, noise, k, data.test_labels[:2000]).mean())


def measure(kind: str, arguments: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Speed and held-out loss of one loop, in processes of its own."""
    cores, environment = os.cpu_count() or 1, dict(os.environ)
    command = [sys.executable, __file__, "--loop", kind, "--folder", str(folder), "--network", arguments.network]
    environment["OMP_NUM_THREADS"] = str(cores if kind == "plain" else 1)
    subprocess.run([*command, "--images", str(arguments.images)], env=environment, check=True)
    return json.loads((folder / "speed.json").read_text()), held_out_loss(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-mini/4")
    parser.add_argument("--images", type=int, default=25_600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    experiment = Experiment(name="benchmark", network=arguments.network, images=arguments.images, **SETTINGS)
    experiment = replace(experiment, checkpoint_images=10 * arguments.images, accelerator="cpu", compile=True)
    if arguments.loop:
        if arguments.loop == "plain":
            speed = train_plain(experiment, arguments.folder)
        else:
            cores = os.cpu_count() or 1
            ours = replace(experiment, devices=cores, strategy="ddp" if cores > 1 else "auto", micro_batch=32)
            speed = train_ours(ours, arguments.folder)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            (arguments.folder / "speed.json").write_text(json.dumps(speed))
        return
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for repeat in range(arguments.repeats):
        for kind, results in found.items():
            with tempfile.TemporaryDirectory() as folder:
                results.append(measure(kind, arguments, Path(folder)))
            print(f"{kind} {repeat + 1}: {results[-1][0]:.1f} images/s, held-out loss {results[-1][1]:.4f}", flush=True)
    speeds = [b[0] / a[0] for a, b in zip(*found.values(), strict=True)]
    losses = [b[1] / a[1] for a, b in zip(*found.values(), strict=True)]
    speed, loss = statistics.median(speeds), statistics.median(losses)
    print(f"ours over plain: speed {speed:.2f} ({min(speeds):.2f} to {max(speeds):.2f}), held-out loss {loss:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": found, "speed": speed, "loss": loss}, indent=2))
    sys.exit(int(speed < LEAST or loss > MOST))


if __name__ == "__main__":
    main()
