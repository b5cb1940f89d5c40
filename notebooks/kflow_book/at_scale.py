"""The paper's measurements at its own scale, on one GPU or on many: samples and real images are shared out over ranks.

python -m kflow_book.measure paper-guided runs/imagenet-fourier
torchrun --nproc-per-node 8 -m kflow_book.measure paper-guided runs/imagenet-fourier

Which image comes of which noise, and which images are computed together, does not depend on the number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from tqdm.auto import tqdm

from kflow import metrics
from kflow.data import describe_data, images_of, to_uint8
from kflow.ranks import gather
from kflow.restore import Operator, degrade, plug_and_play
from kflow.storage import CARD, CHECKPOINTS
from kflow_book import protocols, restoration
from kflow_book.measure import Trained

Values = dict[str, Any]
PART = 500  # samples or real images at a time: those of a part are computed by one rank
RESTORED = 10  # images restored at a time


@cache
def start_ranks() -> Fabric:
    """The processes that torchrun or SLURM started, or this one alone; each with a GPU of its own if there are any."""
    count, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if SLURMEnvironment.detect() and "LOCAL_WORLD_SIZE" not in os.environ:
        count, nodes = (int(os.environ[name]) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
        local = count // nodes
    fabric = Fabric(devices=local, num_nodes=count // local, strategy="ddp" if count > 1 else "auto")
    fabric.launch()
    if fabric.device.type == "cuda":
        torch.cuda.set_device(fabric.device)  # torch-fidelity takes the current one
    return fabric


def over_ranks(function: Callable[[slice], Tensor], count: int, fabric: Fabric, part: int) -> Tensor:
    """``function`` of every part of ``count`` things, each computed by one rank; all results in order, on every rank.

    Args:
        function: of a slice with n things; returns (n, …).
        count: how many things.
        fabric: the ranks. part: things at a time; the last part may be smaller.
    """
    rank, ranks = fabric.global_rank, fabric.world_size
    starts = range(rank * part, count, ranks * part)
    found = [function(slice(i, min(i + part, count))) for i in tqdm(starts, disable=rank > 0)]
    mine = torch.cat(found or [function(slice(0, 1))[:0]])  # a rank without a part still knows the shape
    rounds = -(-count // (ranks * part))
    padded = mine.new_zeros(rounds * part, *mine.shape[1:])
    padded[: len(mine)] = mine
    return gather(fabric, padded).unflatten(1, (rounds, part)).transpose(0, 1).flatten(0, 2)[:count].to(mine.device)


def features_of(images: Tensor, features: str) -> Tensor:
    """Features (N, D) float32 of images (N, channel, height, width) uint8, on the CPU.

    Args:
        images: of a part.
        features: a network in ``checkpoints/``, or one of torch-fidelity's: KFLOW_FEATURES may name its weights' file.
    """
    ours = CHECKPOINTS / features
    network, weights = (ours, None) if (ours / CARD).exists() else (features, os.environ.get("KFLOW_FEATURES"))
    return metrics.extract_features(images, network, weights, progress=False).float().cpu()


def measure_at_scale(
    trained: Trained,
    features: str,
    samples: int,
    steps: int,
    reference: int,
    guidance_scale: float | None = None,
    drop_class_at: float | None = None,
    classes: int = 0,
    class_count: int = 0,
) -> Values:
    """Fréchet distance, precision and recall against training images; with ``drop_class_at`` also CDR (E.6).

    Args:
        trained: a run; without classes if ``guidance_scale`` is None.
        features: see :func:`features_of`; with ``inception-v3-compat`` the distance is FID.
        samples, steps: how many, and Euler steps.
        reference: training images at most, drawn with seed 0. Precision and recall compare equal counts.
        guidance_scale: ω of Algorithm 3.
        drop_class_at: τ of Algorithm 3, for the CDR of ``classes`` classes drawn with seed 0, from ``class_count``
            samples and training images of each.
    """
    fabric, images = start_ranks(), images_of(trained.experiment.data)
    # Samples are float32 or bf16 as in training; a part is small enough not to be compiled for.
    trained = replace(trained, model=trained.model.to(fabric.device), device=fabric.device)
    if fabric.global_rank == 0:
        features_of(images.train[torch.zeros(1, dtype=torch.long)], features)  # may fetch weights, once
    fabric.barrier()

    def of_samples(labels: Tensor | None, count: int, **options: Any) -> Tensor:
        noise = trained.noise(count)

        def compute(part: slice) -> Tensor:
            label = None if labels is None else labels[part]
            found = trained.generate(noise[part], label, steps=steps, guidance_scale=guidance_scale or 1.0, **options)
            return features_of(to_uint8(trained.images(found)).cpu(), features)

        return over_ranks(compute, count, fabric, PART)

    def of_images(chosen: Tensor) -> Tensor:
        return over_ranks(lambda part: features_of(images.train[chosen[part]], features), len(chosen), fabric, PART)

    source = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(images.train), generator=source)[:reference]
    real = of_images(chosen)
    generated = of_samples(None if guidance_scale is None else trained.labels(samples), samples)
    count = min(len(real), len(generated))
    pair = (found[:count].to(fabric.device) for found in (generated, real))
    # by rows: the whole matrix of distances of 50,000 samples has 10 GB, on every rank
    shares = prc_features_to_metric(*pair, prc_neighborhood=3, save_cpu_ram=True, verbose=False)
    values: Values = {"fd": metrics.frechet_distance(generated, real), "count": [len(generated), len(real)]}
    values |= {"precision": shares[KEY_METRIC_PRECISION], "recall": shares[KEY_METRIC_RECALL]}
    if drop_class_at is None:
        return values
    chosen = torch.randperm(trained.classes, generator=source)[:classes]
    labels = chosen.repeat(class_count)
    members = [(images.train_labels == label).nonzero().flatten()[:class_count] for label in chosen]
    known = (of_images(torch.cat(members)), images.train_labels[torch.cat(members)], chosen.tolist(), class_count)
    kept, dropped = (of_samples(labels, len(labels), drop_class_at=at) for at in (None, drop_class_at))
    before, after = (metrics.class_distances(found, labels, *known) for found in (kept, dropped))
    return values | {"classes": chosen.tolist(), **metrics.class_dropping_ratio(before, after)}


def measure_evaluations(trained: Trained, samples: int, tolerance: float) -> Values:
    """:func:`~kflow_book.protocols.measure_evaluations` on a GPU, if there is one (Table 7)."""
    device = start_ranks().device
    trained = replace(trained, model=trained.model.to(device), device=device)
    return protocols.measure_evaluations(trained, samples, tolerance)


def measure_restoration(
    trained: Trained, samples: int, validation: int, calls: int, search_calls: int, start: float, tasks: list[str]
) -> Values:
    """Algorithm 4 among latents, PnP-Flow for a run with one band (Table 10): PSNR and SSIM of held-out images.

    The data step stays among the pixels; images are shared out over ranks.

    Args:
        trained: a run on latents.
        samples, validation: test images, and training images on which step sizes and first image are searched.
        calls, search_calls: steps of one network call, for the table and in the search.
        start: k of the first step; 0.3 in the paper, 0 for PnP-Flow.
        tasks: of :data:`kflow_book.restoration.TASKS`.
    """
    fabric, data = start_ranks(), images_of(trained.experiment.data)
    make_autoencoder = describe_data(trained.experiment.data).autoencoder
    if make_autoencoder is None:
        raise ValueError(f"data is {trained.experiment.data}, allowed are latents: of pixels, measure restoration")
    model, autoencoder = trained.model.to(fabric.device), make_autoencoder()
    truth, held = restoration.measured_images(data, samples), restoration.validation_images(data, validation)
    values: Values = {"chosen": {}, "validation_psnr": {}, "nfe": {task: calls for task in tasks}}
    for task in tasks:
        _, make, noise_level = restoration.TASKS[task]
        operator = make(tuple(truth.shape[1:]))

        def method(y: Tensor, operator: Operator, interpolated: bool, **options: Any) -> Tensor:
            def compute(part: slice) -> Tensor:
                first = restoration.INTERPOLATIONS[task](y[part], operator) if interpolated else None  # noqa: B023
                first = None if first is None else first.to(fabric.device)
                options_of = {"start": start, "first": first, "autoencoder": autoencoder, "seed": part.start, **options}
                return plug_and_play(model, y[part].to(fabric.device), operator, **options_of).data.cpu()

            return over_ranks(compute, len(y), fabric, RESTORED)

        candidates = [
            {"interpolated": first, "step_size": size, "exponent": exponent, "steps": search_calls}
            for first in ((False, True) if start and task in restoration.INTERPOLATIONS else (False,))
            for size, exponent in ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.8, 0.0))
        ]
        seen = degrade(operator, held, noise_level, seed=1)
        score, best = restoration.search(method, candidates, seen, operator, held)
        values["chosen"][task], values["validation_psnr"][task] = {**best, "steps": calls}, score
        restored = method(degrade(operator, truth, noise_level), operator, **values["chosen"][task])
        values |= restoration.summarise(restored, truth, task)
    return values
