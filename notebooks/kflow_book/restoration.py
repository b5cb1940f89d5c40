"""How Table 10 is measured: tasks, search on validation images, methods and the ablation; its table and picture.

Every method sees the same measurements. Its settings are searched on validation images (of the training data, as
the test images must not be looked at), with at most ``calls`` network calls an image, averages included. Algorithm 4 is
measured twice: from Hᵀ y, with each path's own start (``measure_restoration``), and with its start and its first image
searched too, for every path alike (``measure_searched``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from skimage import metrics, restoration, transform
from torch import Tensor
from tqdm.auto import tqdm

from kflow.checkpoint import load_model
from kflow.data import Images, load_data, to_float
from kflow.records import RECORDS, Record
from kflow.restore import Blurring, Downsampling, Inpainting, Operator, degrade, plug_and_play
from kflow.velocity import KFlow
from kflow_book.measure import Trained, load_measurements, run_folder
from kflow_book.peers import d_flow, flow_priors, ot_ode
from kflow_book.tables import student_interval

Values = dict[str, Any]
Method = Callable[..., Tensor]
BATCH = 50
HEADERS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
PEERS = {"restoration-ot-ode": "OT-ODE", "restoration-d-flow": "D-Flow", "restoration-flow-priors": "Flow-Priors"}
SEARCHED = ("restoration-searched", "restoration-searched-others")
# Table 10 as printed, CelebA at 128×128.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "degraded": {"super_resolution": (10.17, 0.182), "inpainting": (22.12, 0.742)},
    "PnP-Diff": {"super_resolution": (31.20, 0.893)},
    "PnP-GS": {"super_resolution": (30.69, 0.889)},
    "OT-ODE": {"super_resolution": (31.05, 0.902), "inpainting": (28.84, 0.914)},
    "D-Flow": {"super_resolution": (29.17, 0.833), "inpainting": (25.30, 0.805)},
    "Flow-Priors": {"super_resolution": (28.35, 0.717), "inpainting": (29.40, 0.858)},
    "PnP-Flow (LFM)": {"super_resolution": (31.49, 0.907), "inpainting": (30.59, 0.943)},
    "K-Flow; here db6": {"super_resolution": (32.51, 0.934), "inpainting": (30.49, 0.943)},
}
# The noise levels, the blur's width and the box's share of the side (40 of 128) are those of PnP-Flow.
TASKS: dict[str, tuple[str, Callable[[tuple[int, ...]], Operator], float]] = {
    "super_resolution": ("super-resolution ×2", Downsampling, 0.05),
    "inpainting": ("box inpainting", lambda shape: Inpainting.box(shape, round(shape[-1] * 40 / 128)), 0.05),
    "denoising": ("denoising", Operator, 0.2),
    "deblurring": ("Gaussian deblurring", Blurring, 0.05),
}


def validation_images(data: Images, count: int) -> Tensor:
    """Training images at equal distances, (count, *shape) in [−1, 1]."""
    return to_float(data.train[torch.linspace(0, len(data.train) - 1, count).long()])


def measured_images(data: Images, count: int) -> Tensor:
    """Test images at equal distances, (count, *shape) in [−1, 1]."""
    return to_float(data.test[torch.linspace(0, len(data.test) - 1, count).long()])


def quality(restored: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
    """PSNR (dB) and SSIM (7×7 window) of each image, clipped to [−1, 1]; the data range is 2. scikit-image's."""
    pairs = list(zip(truth.numpy(), restored.clamp(-1, 1).numpy(), strict=True))
    return {
        "psnr": np.array([metrics.peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs]),
        "ssim": np.array([metrics.structural_similarity(a, b, data_range=2, channel_axis=0) for a, b in pairs]),
    }


def summarise(restored: Tensor, truth: Tensor, task: str) -> Values:
    """Means over images, and Student's 95 % intervals over images."""
    values: Values = {}
    for name, numbers in quality(restored, truth).items():
        mean, half = student_interval(numbers)
        values |= {f"{task}_{name}": mean, f"{task}_{name}_interval": [mean - half, mean + half]}
    return values


def search(method: Method, candidates: Iterable[Values], measurement: Tensor, operator: Operator, truth: Tensor):
    """The candidate with the highest mean PSNR (the first of equals), and that PSNR."""
    scores = [
        (float(quality(method(measurement, operator, **options), truth)["psnr"].mean()), options)
        for options in candidates
    ]
    return max(scores, key=lambda score: score[0])


def in_batches(method: Method, measurement: Tensor, operator: Operator, **options: Any) -> Tensor:
    """A method on every measurement, a batch at a time, each with its own noise."""
    parts = measurement.split(BATCH)
    return torch.cat([method(part, operator, seed=seed, **options) for seed, part in enumerate(parts)])


def plug_and_play_method(model: KFlow, task: str) -> Method:
    """Algorithm 4 with the paper's start; from pure noise with one band, where it is PnP-Flow.

    Among its options, ``first`` is the first image by name: ``Hᵀ y`` or ``interpolated``.
    """
    start = 0.0 if model.path.bands == 1 else 0.3

    def method(y: Tensor, operator: Operator, first: str = "Hᵀ y", **options: Any) -> Tensor:
        image = INTERPOLATIONS[task](y, operator) if first == "interpolated" else None
        return plug_and_play(model, y, operator, **{"start": start, "first": image, **options}).data

    return method


def measure_restoration(trained: Trained, samples: int, validation: int, calls: int, tasks: list[str]) -> Values:
    """Algorithm 4 from Hᵀ y (PnP-Flow, with one band): step sizes are searched first, then steps against averages."""
    values: Values = {"chosen": {}, "validation_psnr": {}, "nfe": {}}
    data = load_data(trained.experiment.data)
    truth, held = measured_images(data, samples), validation_images(data, validation)
    for task in tqdm(tasks, desc=f"{trained.experiment.name}: restoration"):
        _, make, noise_level = TASKS[task]
        operator, method = make(trained.shape), plug_and_play_method(trained.model, task)
        seen, y = degrade(operator, held, noise_level, seed=1), degrade(operator, truth, noise_level)
        sizes = [{"step_size": size, "exponent": e} for size, e in ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.8, 0.0))]
        _, best = search(method, ({**size, "steps": calls // 2} for size in sizes), seen, operator, held)
        shapes = [{**best, "steps": calls // n, "averages": n} for n in (1, 2, 5)]
        score, best = search(method, shapes, seen, operator, held)
        values["chosen"][task], values["validation_psnr"][task] = best, score
        values["nfe"][task] = best["steps"] * best["averages"]
        values |= summarise(in_batches(method, y, operator, **best), truth, task)
        if task == "super_resolution":
            half = in_batches(method, y, operator, **{**best, "steps": best["steps"] // 2})
            values[f"{task}_half_psnr"] = float(quality(half, truth)["psnr"].mean())
    return values


def search_in_turn(
    model: KFlow, task: str, calls: int, score: Callable[[Values], float]
) -> tuple[dict[str, dict[str, float]], list[tuple[float, Values]]]:
    """What Algorithm 4 leaves open, one thing after the other, each with the best of what came before.

    Returns the PSNR by what was varied and its value, and all settings that were tried with their PSNR.
    """
    tried: list[tuple[float, Values]] = []
    best: Values = {
        "start": 0.3,
        "first": "Hᵀ y",
        "step_size": 1.0,
        "exponent": 0.0,
        "steps": calls // 4,
        "averages": 2,
    }
    shapes = [(calls // n, n) for n in (1, 2, 4)] + [(calls // 2, 1), (calls // 4, 2), (calls // 4, 1)]
    names = ("Hᵀ y", "interpolated") if task in INTERPOLATIONS else ("Hᵀ y",)
    sizes = [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.8, 0.0)]
    starts = {  # pure noise forgets x₀, except where a velocity is silent
        f"{start:g}, {first}": {"start": start, "first": first}
        for start in (0.0, 0.3)
        for first in (names if start or (model.path.bands > 1 and model.output == "velocity") else names[:1])
    }
    stages: dict[str, dict[str, Values]] = {
        "start, x₀": starts,
        "step size": (
            {f"{c:g}·(1 − k)^{e:g}": {"step_size": c, "exponent": e} for c, e in sizes}
            | {
                f"(1 − w)^{e:g} by band, start {start:g}": {"step_by_band": True, "exponent": e, "start": start}
                for e in (0.5, 1.0)
                for start in (0.0, 0.3)
                if model.output == "displacement"
            }
        ),
        "steps × draws": {f"{steps} × {n}": {"steps": steps, "averages": n} for steps, n in shapes},
        "start, x₀ again": starts,
    }
    found: dict[str, dict[str, float]] = {}
    for stage, choices in stages.items():
        found[stage] = {}
        for label, change in choices.items():
            options = {**best, **change}
            known = [psnr for psnr, other in tried if other == options]
            found[stage][label] = known[0] if known else score(options)
            tried.append((found[stage][label], options))
        best = max(tried, key=lambda one: one[0])[1]
    return found, tried


def measure_searched(trained: Trained, samples: int, validation: int, calls: int, tasks: list[str]) -> Values:
    """Algorithm 4 (PnP-Flow, with one band) with its start, first image, step sizes, draws and iterations searched.

    The paper's velocity output has the paper's step sizes, one for the image; with our displacement output, steps by
    band are offered too. ``super_resolution_half_psnr``: the best of what was tried with half the network calls.
    """
    values: Values = {"chosen": {}, "validation_psnr": {}, "nfe": {}}
    data = load_data(trained.experiment.data)
    truth, held = measured_images(data, samples), validation_images(data, validation)
    for task in tqdm(tasks, desc=f"{trained.experiment.name}: restoration, searched"):
        _, make, noise_level = TASKS[task]
        operator, method = make(trained.shape), plug_and_play_method(trained.model, task)
        seen, y = degrade(operator, held, noise_level, seed=1), degrade(operator, truth, noise_level)
        by_change, tried = search_in_turn(
            trained.model,
            task,
            calls,
            lambda options: float(quality(method(seen, operator, **options), held)["psnr"].mean()),  # noqa: B023
        )
        score, best = max(tried, key=lambda one: one[0])
        values["chosen"][task], values["validation_psnr"][task] = best, score
        values["nfe"][task] = best["steps"] * best["averages"]
        values[f"{task}_psnr_by_change"] = by_change
        values |= summarise(in_batches(method, y, operator, **best), truth, task)
        if task == "super_resolution":
            half = [one for one in tried if one[1]["steps"] * one[1]["averages"] <= calls // 2]
            options = max(half, key=lambda one: one[0])[1]
            restored = in_batches(method, y, operator, **options)
            values[f"{task}_half_psnr"] = float(quality(restored, truth)["psnr"].mean())
            values["chosen"][f"{task}_half"] = options
    return values


def peer_method(model: KFlow, peer: str, noise_level: float, spent: list[int]) -> Method:
    """OT-ODE, D-Flow or Flow-Priors; ``spent`` gets the network calls of each use."""

    def method(y: Tensor, operator: Operator, **options: Any) -> Tensor:
        if peer == "ot-ode":
            found = ot_ode(model, y, operator, noise_level, **options)
        else:
            found = {"d-flow": d_flow, "flow-priors": flow_priors}[peer](model, y, operator, **options)
        spent.append(found.nfe)
        return found.data

    return method


def measure_peer(trained: Trained, peer: str, samples: int, validation: int, calls: int, tasks: list[str]) -> Values:
    """A peer on the same trained flow: ``ot-ode`` (its settings searched first, then its steps), ``d-flow`` or
    ``flow-priors``. One line search of D-Flow's L-BFGS serves a whole batch, where the method fits each image."""
    values: Values = {"chosen": {}, "validation_psnr": {}, "nfe": {}}
    data = load_data(trained.experiment.data)
    truth, held = measured_images(data, samples), validation_images(data, validation)
    for task in tqdm(tasks, desc=f"{trained.experiment.name}: {peer}"):
        _, make, noise_level = TASKS[task]
        operator, spent = make(trained.shape), []
        method = peer_method(trained.model, peer, noise_level, spent)
        candidates = {
            "ot-ode": [
                {"steps": calls // 2, "start": start, "constant": constant}
                for start in (0.1, 0.3)
                for constant in (True, False)
            ],
            "d-flow": [{"iterations": max(1, calls // 15), "penalty": penalty} for penalty in (1e-3, 1e-1)],
            "flow-priors": [{"steps": calls // 2, "weight": w, "rate": r} for w in (1e2, 1e4) for r in (0.01, 0.1)],
        }[peer]
        seen, y = degrade(operator, held, noise_level, seed=1), degrade(operator, truth, noise_level)
        score, best = search(method, candidates, seen, operator, held)
        if peer == "ot-ode":
            counts = [{**best, "steps": calls // n} for n in (1, 2, 4)]
            score, best = search(method, counts, seen, operator, held)
        restored = in_batches(method, y, operator, **best)
        values["chosen"][task], values["validation_psnr"][task], values["nfe"][task] = best, score, spent[-1]
        values |= summarise(restored, truth, task)
    return values


def each(images: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A function of one channel, (height, width) to (height, width), on every channel of every image."""
    result = [[function(channel) for channel in image] for image in images.double().numpy()]
    return torch.from_numpy(np.array(result)).float()


def bicubic(y: Tensor, operator: Downsampling) -> Tensor:
    """Bicubic interpolation that puts every measured pixel where it was taken."""
    size = operator.shape[1:]
    place = transform.AffineTransform(scale=(1 / operator.factor, 1 / operator.factor))
    return each(y, lambda x: transform.warp(x, place, output_shape=size, order=3, mode="edge"))


def biharmonic(y: Tensor, operator: Inpainting) -> Tensor:
    """The hidden pixels from the biharmonic equation; the others as measured."""
    hidden = (1 - operator.mask).bool().numpy()
    return each(y, lambda x: restoration.inpaint_biharmonic(x, hidden))


def total_variation(y: Tensor, operator: Operator, weight: float) -> Tensor:
    return each(y, lambda x: restoration.denoise_tv_chambolle(x, weight))


def non_local_means(y: Tensor, operator: Operator, strength: float) -> Tensor:
    options = {"patch_size": 5, "patch_distance": 6, "sigma": TASKS["denoising"][2], "h": strength * 0.2}
    return each(y, lambda x: restoration.denoise_nl_means(x, **options))


def richardson_lucy(y: Tensor, operator: Blurring, iterations: int) -> Tensor:
    """On intensities in [0, 1], as the method asks for, continued periodically as the blur is; its response: 13×13."""
    impulse = torch.zeros(1, *operator.shape)
    middle = [n // 2 for n in operator.shape[1:]]
    impulse[..., middle[0], middle[1]] = 1
    psf = operator(impulse)[0, 0, middle[0] - 6 : middle[0] + 7, middle[1] - 6 : middle[1] + 7].double().numpy()
    inner = tuple(slice(n, -n) for n in middle)

    def sharpen(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, [(n, n) for n in middle], mode="wrap")
        return restoration.richardson_lucy(padded, psf, iterations)[inner]

    return 2 * each(((y + 1) / 2).clamp(0, 1), sharpen) - 1


# The first image that is called interpolated; a noisy image is one already. Eight iterations: enough on both sets.
INTERPOLATIONS: dict[str, Method] = {
    "super_resolution": bicubic,
    "inpainting": biharmonic,
    "deblurring": partial(richardson_lucy, iterations=8),
}


CLASSICAL: dict[str, tuple[str, Method, list[Values]]] = {
    "bicubic": ("super_resolution", bicubic, [{}]),
    "biharmonic": ("inpainting", biharmonic, [{}]),
    "total variation": ("denoising", total_variation, [{"weight": w} for w in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)]),
    "non-local means": ("denoising", non_local_means, [{"strength": h} for h in (0.5, 0.7, 0.9, 1.2, 1.6)]),
    "Richardson–Lucy": ("deblurring", richardson_lucy, [{"iterations": n} for n in (3, 5, 8, 12, 20, 30)]),
}


def measure_classical(data: str, samples: int, validation: int, fewer: int) -> Values:
    """The measurement itself (Hᵀ y), and scikit-image's methods, each on its task; bicubic and biharmonic also on the
    ``fewer`` images of D-Flow and Flow-Priors."""
    images = load_data(data)
    truth, held = measured_images(images, samples), validation_images(images, validation)
    values: Values = {"chosen": {}, "validation_psnr": {}, "degraded": {}}
    for task, (_, make, noise_level) in TASKS.items():
        operator = make(images.shape)
        seen, y = degrade(operator, held, noise_level, seed=1), degrade(operator, truth, noise_level)
        values["degraded"] |= summarise(operator.adjoint(y), truth, task)
        for name, (own, method, candidates) in CLASSICAL.items():
            if own == task:
                score, best = search(method, candidates, seen, operator, held)
                values["chosen"][name], values["validation_psnr"][name] = best, score
                values[name] = summarise(method(y, operator, **best), truth, task)
            if own == task and candidates == [{}]:
                few = measured_images(images, fewer)
                restored = method(degrade(operator, few, noise_level), operator)
                values[f"{name}, {fewer} images"] = summarise(restored, few, task)
    return values


def measure_ablation(trained: Trained, samples: int, calls: int, tasks: list[str]) -> Values:
    """What start, step size, averaging and the denoiser do: PSNR on validation images, one change at a time.

    The base: start 0.3, step size 1 throughout, no averaging, ``calls`` steps.
    """
    held, values = validation_images(load_data(trained.experiment.data), samples), {}
    for task in tqdm(tasks, desc=f"{trained.experiment.name}: ablation"):
        _, make, noise_level = TASKS[task]
        operator = make(trained.shape)
        y = degrade(operator, held, noise_level, seed=1)
        changes: dict[str, dict[str, Values]] = {
            "start": {f"{k:g}": {"start": k} for k in (0.0, 0.15, 0.3, 0.5, 0.7)},
            "exponent": {f"{e:g}": {"exponent": e} for e in (0.0, 0.5, 1.0)},
            "draws a step": {str(n): {"averages": n, "steps": calls // n} for n in (1, 2, 5)},
            "start 0, draws a step": {str(n): {"averages": n, "steps": calls // n, "start": 0.0} for n in (1, 2, 5)},
            "steps": {str(calls // n): {"steps": calls // n} for n in (4, 2, 1)},
            "denoiser": {"ours": {}, "as cited in E.9": {"printed": True}},
            "step by band, exponent": {f"{e:g}": {"step_by_band": True, "exponent": e} for e in (0.5, 1.0)},
            "step by band, exponent 0.5, start": {
                f"{k:g}": {"step_by_band": True, "exponent": 0.5, "start": k} for k in (0.0, 0.15)
            },
        }
        base = {"start": 0.3, "steps": calls, "exponent": 0.0}
        values[f"{task}_psnr_by_change"] = {
            change: {
                label: float(
                    quality(plug_and_play(trained.model, y, operator, **{**base, **options}).data, held)["psnr"].mean()
                )
                for label, options in options_by_label.items()
            }
            for change, options_by_label in changes.items()
        }
    return values


def measure_restoration_time(data: str, task: str, samples: int, rounds: int) -> Values:
    """Processor seconds an image of every method of a task, with its record's settings, all in turn: medians."""
    _, make, noise_level = TASKS[task]
    images = load_data(data)
    operator = make(images.shape)
    y, uses = degrade(operator, measured_images(images, samples), noise_level), {}
    chosen = Record.read(RECORDS / f"{data}-restoration-classical.json").values["chosen"]
    for name, (own, method, _) in CLASSICAL.items():
        if own == task:
            uses[name] = partial(method, y, operator, **chosen[name])
    for measurement, run in table_runs(data):
        settings = Record.read(RECORDS / f"{run}-{measurement}.json").values["chosen"]
        if task in settings and measurement != "restoration":
            model, peer = load_model(run_folder(run))[0], load_measurements()[measurement].get("peer")
            method = peer_method(model, peer, noise_level, []) if peer else plug_and_play_method(model, task)
            uses[label_of(run, measurement)] = partial(method, y, operator, **settings[task])
    seconds: dict[str, list[float]] = {name: [] for name in uses}
    for _ in tqdm(range(rounds), desc=f"{data}: time of {TASKS[task][0]}"):
        for name, use in uses.items():
            start = time.process_time()  # what else the machine does is not counted
            use()
            seconds[name].append((time.process_time() - start) / samples)
    return {"seconds": {name: float(np.median(found)) for name, found in seconds.items()}}


def label_of(run: str, measurement: str = SEARCHED[0]) -> str:
    """A row of the table in words."""
    if measurement in PEERS:
        return PEERS[measurement]
    kind = run.split("-", 1)[1]
    if measurement == "restoration":
        return {"lfm": "PnP-Flow, own start", "db6": "K-Flow from Hᵀ y", "db6-displacement": "ours, from Hᵀ y"}[kind]
    return {"lfm": "PnP-Flow (LFM)", "db6": "K-Flow; here db6", "db6-displacement": "ours: displacement, db6"}[kind]


def table_runs(data: str) -> Iterator[tuple[str, str]]:
    """The measurements and runs of a data set's rows, in their order."""
    for measurement in (*PEERS, "restoration", *SEARCHED):
        for run in load_measurements().get(measurement, {}).get("runs", ()):
            if run.startswith(f"{data}-"):
                yield measurement, run


def cost_table(data: str, task: str = "super_resolution", folder: str | Path = RECORDS) -> pd.DataFrame:
    """Network calls an image, and processor seconds (all methods timed in turn), of one task."""
    rows = {}
    for measurement, run in table_runs(data):
        values = Record.read(Path(folder) / f"{run}-{measurement}.json").values
        if task in values["nfe"] and measurement != "restoration":
            rows[label_of(run, measurement)] = {"network calls": str(values["nfe"][task])}
    for name, seconds in Record.read(Path(folder) / f"{data}-restoration-time.json").values["seconds"].items():
        rows.setdefault(name, {"network calls": ""})["processor seconds an image"] = f"{seconds:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index")


def table_10(data: str, folder: str | Path = RECORDS) -> pd.DataFrame:
    """Table 10: the paper's columns (CelebA) beside ours, with half the width of the 95 % interval over images.

    Args:
        data: the data set; its rows are the runs named in notebooks/measurements.yaml.
        folder: of the records.
    """
    classical = Record.read(Path(folder) / f"{data}-restoration-classical.json").values
    found: dict[str, Values] = {"degraded": classical["degraded"]}
    names = [name for name in classical if name.split(",")[0] in CLASSICAL]
    if not any(measurement == "restoration-d-flow" for measurement, _ in table_runs(data)):
        names = [name for name in names if name in CLASSICAL]  # nothing else is on fewer images
    found |= {name: classical[name] for name in names}
    for measurement, run in table_runs(data):
        values = Record.read(Path(folder) / f"{run}-{measurement}.json").values
        found[label_of(run, measurement)] = found.get(label_of(run, measurement), {}) | values
    rows = {}
    for name in [*found, *(name for name in PAPER if name not in found)]:
        row: Values = {}
        for task, numbers in PAPER.get(name, {}).items():
            row |= {
                ("paper (CelebA)", f"{TASKS[task][0]}, {key}"): f"{n:g}" for key, n in zip(HEADERS.values(), numbers)
            }
        values = found.get(name, {})
        for task, (title, *_) in TASKS.items():
            for key, digits in (("psnr", 2), ("ssim", 3)):
                if f"{task}_{key}" in values:
                    mean, (_, high) = values[f"{task}_{key}"], values[f"{task}_{key}_interval"]
                    row[f"here ({data})", f"{title}, {HEADERS[key]}"] = f"{mean:.{digits}f} ± {high - mean:.{digits}f}"
        rows[name] = row
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame[[c for c in frame if c[0].startswith("paper")] + [c for c in frame if c[0].startswith("here")]]


def table_minutes(data: str, folder: str | Path = RECORDS) -> float:
    """What a data set's rows took to compute in minutes, searches included, as its records say."""
    names = [f"{run}-{measurement}" for measurement, run in table_runs(data)] + [f"{data}-restoration-classical"]
    return sum(Record.read(Path(folder) / f"{name}.json").seconds for name in names) / 60


def by_task(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """:func:`table_10` in parts that fit a page: of each task its title, and the rows that have a number for it."""
    for title, *_ in TASKS.values():
        part = table[[column for column in table if column[1].startswith(title)]]
        names = [(who, header.removeprefix(f"{title}, ")) for who, header in part]
        part = part.set_axis(pd.MultiIndex.from_tuples(names), axis=1)
        yield title[0].upper() + title[1:], part[(part != "").any(axis=1)]


def ablation_table(runs: Iterable[str], folder: str | Path = RECORDS) -> pd.DataFrame:
    """PSNR (dB) on the validation images: rows are changes and their values, columns runs and tasks."""
    columns = {}
    for run in runs:
        for task, changes in Record.read(Path(folder) / f"{run}-restoration-ablation.json").values.items():
            title = TASKS[task.removesuffix("_psnr_by_change")][0]
            values = {(change, label): value for change, by in changes.items() for label, value in by.items()}
            columns[label_of(run), title] = values
    return pd.DataFrame(columns).rename_axis(["change", "value"])


def first_table(data: str, folder: str | Path = RECORDS) -> pd.DataFrame:
    """PSNR (dB) on validation images by start and x₀, 10 steps of 2 draws, γ = 1; the last row: without a flow."""
    columns: dict[tuple[str, str], dict[str, float]] = {}
    classical = Record.read(Path(folder) / f"{data}-restoration-classical.json").values["validation_psnr"]
    for task, (title, *_) in TASKS.items():
        best = max(classical[name] for name, (own, *_) in CLASSICAL.items() if own == task)
        for measurement, run in table_runs(data):
            values = Record.read(Path(folder) / f"{run}-{measurement}.json").values
            if measurement in SEARCHED and task in values["nfe"]:
                found = values[f"{task}_psnr_by_change"]["start, x₀"]
                columns[title, label_of(run)] = {**found, "best classical method": best}
    frame = pd.DataFrame(columns).rename_axis("start, x₀")
    return pd.concat([frame.drop("best classical method").sort_index(), frame.loc[["best classical method"]]])


def restore_live(data: str, task: str, truth: Tensor, calls: int) -> dict[str, Tensor]:
    """Degraded, every method's restoration with the settings of its record, and the truth.

    ``calls`` bounds the steps, but those of D-Flow and Flow-Priors, which do nothing within so few.
    """
    _, make, noise_level = TASKS[task]
    operator = make(tuple(truth.shape[1:]))
    y = degrade(operator, truth, noise_level)
    pictures = {"degraded": operator.adjoint(y)}
    classical = Record.read(RECORDS / f"{data}-restoration-classical.json").values["chosen"]
    pictures |= {
        name: method(y, operator, **classical[name]) for name, (own, method, _) in CLASSICAL.items() if own == task
    }
    for measurement, run in table_runs(data):
        chosen = Record.read(RECORDS / f"{run}-{measurement}.json").values["chosen"]
        peer = load_measurements()[measurement].get("peer")
        if task in chosen and measurement != "restoration":
            model, options = load_model(run_folder(run))[0], chosen[task]
            if peer in (None, "ot-ode"):
                options = {**options, "steps": min(options["steps"], calls)}
            method = peer_method(model, peer, noise_level, []) if peer else plug_and_play_method(model, task)
            pictures[label_of(run, measurement)] = method(y, operator, **options)
    return {**pictures, "truth": truth}
