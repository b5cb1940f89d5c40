"""How Table 10 is measured: tasks, search on validation images, methods and the ablation; its table and picture.

Every method sees the same measurements. Its settings are searched on validation images (of the training data, as
the test images must not be looked at), with at most ``calls`` network calls an image, averages included.
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


def plug_and_play_method(model: KFlow) -> Method:
    """Algorithm 4 with the paper's start; from pure noise with one band, where it is PnP-Flow."""
    start = 0.0 if model.path.bands == 1 else 0.3
    return lambda y, operator, **options: plug_and_play(model, y, operator, **{"start": start, **options}).data


def measure_restoration(trained: Trained, samples: int, validation: int, calls: int, tasks: list[str]) -> Values:
    """Algorithm 4 (PnP-Flow, with one band): step sizes are searched first, then steps against averages."""
    method, values = plug_and_play_method(trained.model), {"chosen": {}, "validation_psnr": {}, "nfe": {}}
    data = load_data(trained.experiment.data)
    truth, held = measured_images(data, samples), validation_images(data, validation)
    for task in tqdm(tasks, desc=f"{trained.experiment.name}: restoration"):
        _, make, noise_level = TASKS[task]
        operator = make(trained.shape)
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
    """A peer on the same trained flow: ``ot-ode``, ``d-flow`` or ``flow-priors``."""
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
            best = {**best, "steps": calls}
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
    """On intensities in [0, 1], as the method asks for; the blur's impulse response, 13×13."""
    impulse = torch.zeros(1, *operator.shape)
    middle = [n // 2 for n in operator.shape[1:]]
    impulse[..., middle[0], middle[1]] = 1
    psf = operator(impulse)[0, 0, middle[0] - 6 : middle[0] + 7, middle[1] - 6 : middle[1] + 7].double().numpy()
    return 2 * each(((y + 1) / 2).clamp(0, 1), lambda x: restoration.richardson_lucy(x, psf, iterations)) - 1


CLASSICAL: dict[str, tuple[str, Method, list[Values]]] = {
    "bicubic": ("super_resolution", bicubic, [{}]),
    "biharmonic": ("inpainting", biharmonic, [{}]),
    "total variation": ("denoising", total_variation, [{"weight": w} for w in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)]),
    "non-local means": ("denoising", non_local_means, [{"strength": h} for h in (0.5, 0.7, 0.9, 1.2, 1.6)]),
    "Richardson–Lucy": ("deblurring", richardson_lucy, [{"iterations": n} for n in (3, 5, 8, 12, 20, 30)]),
}


def measure_classical(data: str, samples: int, validation: int) -> Values:
    """The measurement itself (Hᵀ y), and scikit-image's methods, each on its task."""
    images = load_data(data)
    truth, held = measured_images(images, samples), validation_images(images, validation)
    values: Values = {"chosen": {}, "degraded": {}}
    for task, (_, make, noise_level) in TASKS.items():
        operator = make(images.shape)
        seen, y = degrade(operator, held, noise_level, seed=1), degrade(operator, truth, noise_level)
        values["degraded"] |= summarise(operator.adjoint(y), truth, task)
        for name, (own, method, candidates) in CLASSICAL.items():
            if own == task:
                _, best = search(method, candidates, seen, operator, held)
                values["chosen"][name] = best
                values[name] = summarise(method(y, operator, **best), truth, task)
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
    """Seconds an image of every method of a task, with the settings of its record, all in turn: medians over rounds."""
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
        if task in settings:
            model, peer = load_model(run_folder(run))[0], load_measurements()[measurement].get("peer")
            method = peer_method(model, peer, noise_level, []) if peer else plug_and_play_method(model)
            uses[PEERS.get(measurement) or label_of(run)] = partial(method, y, operator, **settings[task])
    seconds: dict[str, list[float]] = {name: [] for name in uses}
    for _ in tqdm(range(rounds), desc=f"{data}: time of {TASKS[task][0]}"):
        for name, use in uses.items():
            start = time.perf_counter()
            use()
            seconds[name].append((time.perf_counter() - start) / samples)
    return {"seconds": {name: float(np.median(found)) for name, found in seconds.items()}}


def label_of(run: str) -> str:
    """A run of the table in words."""
    kinds = {"lfm": "PnP-Flow (LFM)", "db6": "K-Flow; here db6", "db6-displacement": "K-Flow db6, displacement (ours)"}
    return kinds[run.split("-", 1)[1]]


def table_runs(data: str) -> Iterator[tuple[str, str]]:
    """The measurements and runs of a data set's rows, in their order."""
    for measurement in (*PEERS, "restoration"):
        for run in load_measurements().get(measurement, {}).get("runs", ()):
            if run.startswith(f"{data}-"):
                yield measurement, run


def cost_table(data: str, task: str = "super_resolution", folder: str | Path = RECORDS) -> pd.DataFrame:
    """Network calls an image, and seconds (all methods timed in turn), of one task."""
    rows = {}
    for measurement, run in table_runs(data):
        values = Record.read(Path(folder) / f"{run}-{measurement}.json").values
        if task in values["nfe"]:
            rows[PEERS.get(measurement) or label_of(run)] = {"network calls": str(values["nfe"][task])}
    for name, seconds in Record.read(Path(folder) / f"{data}-restoration-time.json").values["seconds"].items():
        rows.setdefault(name, {"network calls": ""})["seconds an image"] = f"{seconds:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index")


def table_10(data: str, folder: str | Path = RECORDS) -> pd.DataFrame:
    """Table 10: the paper's columns (CelebA) beside ours, with half the width of the 95 % interval over images.

    Args:
        data: the data set; its rows are the runs named in notebooks/measurements.yaml.
        folder: of the records.
    """
    classical = Record.read(Path(folder) / f"{data}-restoration-classical.json").values
    found: dict[str, Values] = {"degraded": classical["degraded"]}
    found |= {name: classical[name] for name in CLASSICAL}
    for measurement, run in table_runs(data):
        found[PEERS.get(measurement) or label_of(run)] = Record.read(Path(folder) / f"{run}-{measurement}.json").values
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


def restore_live(models: dict[str, KFlow], task: str, truth: Tensor, calls: int) -> dict[str, Tensor]:
    """Degraded, each model's restoration with the settings of its record, and the truth; ``calls`` bounds the steps."""
    _, make, noise_level = TASKS[task]
    operator = make(tuple(truth.shape[1:]))
    y = degrade(operator, truth, noise_level)
    pictures = {"degraded": operator.adjoint(y)}
    for run, model in models.items():
        chosen = Record.read(RECORDS / f"{run}-restoration.json").values["chosen"][task]
        chosen = {**chosen, "steps": min(chosen["steps"], calls)}
        pictures[label_of(run)] = plug_and_play_method(model)(y, operator, **chosen)
    return {**pictures, "truth": truth}
