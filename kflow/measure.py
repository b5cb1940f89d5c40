"""Computes the records that notebooks/measurements.yaml asks for and that are missing or stale.

python -m kflow.measure                         all of them (``make measure``)
python -m kflow.measure --check                 only says which they are; exit status 1 if any
python -m kflow.measure conditional runs/mine   one measurement of one run of yours: a row for the table
"""

from __future__ import annotations

import hashlib
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from scipy.stats import binomtest
from torch import Tensor
from tqdm.auto import tqdm

from kflow import metrics
from kflow.amplitude import PCA, Fourier, Identity, Meyer, Wavelet
from kflow.checkpoint import CARD, CHECKPOINTS, ROOT, RUNS, load_model, read_card
from kflow.data import Images, load_data, to_float, to_uint8
from kflow.experiment import Experiment, choose_compile, choose_precision
from kflow.flow.schedule import band_intervals
from kflow.records import RECORDS, Record, describe_machine
from kflow.sample import sample
from kflow.velocity import KFlow

BATCH = 50  # samples at a time: the fastest on a CPU, where they stay in its cache
COMPILED = 1000  # samples that repay compiling the network
SEEDS = (0,)  # those whose records the book shows; 1 and 2 are being trained and measured
Values = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained model with its origin; its noise is that of its seed, so runs of one seed start from the same."""

    model: KFlow
    experiment: Experiment

    @property
    def data(self) -> Images:
        return load_data(self.experiment.data)

    def noise(self, samples: int) -> Tensor:
        """(samples, *shape)."""
        source = torch.Generator().manual_seed(self.experiment.seed)
        return torch.randn(samples, *self.data.shape, generator=source)

    def labels(self, samples: int) -> Tensor:
        """Every class in turn, (samples,)."""
        return torch.arange(samples) % len(self.data.classes)

    def generate(self, noise: Tensor, labels: Tensor | None = None, what: str = "sampling", **options: Any) -> Tensor:
        """Samples (N, *shape), or trajectories (T, N, *shape) with ``trajectory=True``; options of :func:`sample`.

        The network computes as in training: in bf16 where the processor has it, compiled where that pays.
        """
        network = self.model.network
        if len(noise) >= COMPILED and choose_compile(self.experiment):
            torch._dynamo.reset()  # or what was measured before decides what is compiled
            network = torch.compile(network, dynamic=False)
        network = Fabric(accelerator="cpu", precision=choose_precision(self.experiment)).setup_module(network)
        model, parts = KFlow(network, self.model.path, self.model.output, self.model.loss_bands).eval(), []
        for i in tqdm(range(0, len(noise), BATCH), desc=f"{self.experiment.name}: {what}"):
            label = None if labels is None else labels[i : i + BATCH]
            result = sample(model, noise[i : i + BATCH], label, **options)
            parts.append(result.trajectory if options.get("trajectory") else result.data)
        return torch.cat(parts, 1 if options.get("trajectory") else 0)


@cache
def real_features(data: str, features: str) -> tuple[Tensor, Tensor]:
    """Features of the training and of the held-out images."""
    images = load_data(data)
    return tuple(
        metrics.extract_features(x, CHECKPOINTS / features, progress=False) for x in (images.train, images.test)
    )


def measure_fidelity(
    trained: Trained,
    features: str,
    samples: int,
    steps: int,
    guidance_scale: float | None = None,
    judge: str = "",
    drop_class_at: float | None = None,
    class_count: int = 0,
) -> Values:
    """Fidelity against the held-out images in disjoint draws; with classes, what the judge says.

    ``drop_class_at`` measures too what dropping the class there changes, from the same noise; FID(c) is taken against
    ``class_count`` training images of each class: the held-out ones are too few.
    """
    data, labels = trained.data, None if guidance_scale is None else trained.labels(samples)
    options = {"steps": steps, "guidance_scale": guidance_scale or 1.0}
    real_train, real_test = real_features(data.name, features)

    def look(images: Tensor) -> tuple[Values, Tensor]:
        found = metrics.extract_features(to_uint8(images), CHECKPOINTS / features, progress=False)
        draws = metrics.fidelity_of_draws(found, real_test)
        values: Values = {name: sum(draw) / len(draw) for name, draw in draws.items()}
        values |= {"draws": draws, "count": len(real_test)}
        if labels is not None:
            classifier, _ = metrics.load_classifier(CHECKPOINTS / judge)
            values["agreement"] = metrics.agreement(classifier, images, labels)
        return values, found

    kept = trained.generate(trained.noise(samples), labels, **options)
    values, before = look(kept)
    if drop_class_at is None:
        return values
    dropped = trained.generate(trained.noise(samples), labels, "class dropped", drop_class_at=drop_class_at, **options)
    values["dropped"], after = look(dropped)
    counts = [*(n for n in (25, 50, 100, 200) if n < class_count), class_count]
    real = (real_train, data.train_labels, range(len(data.classes)))
    pairs = {n: [metrics.class_distances(x, labels, *real, n) for x in (before, after)] for n in counts}
    values |= metrics.class_dropping_ratio(*pairs[class_count])
    values["class_fd"], values["dropped"]["class_fd"] = (float(d.mean()) for d in pairs[class_count])
    values["cdr_by_count"] = {str(n): metrics.class_dropping_ratio(*pair)["cdr"] for n, pair in pairs.items()}
    ruler = Wavelet(data.shape, "db6")
    others = kept.roll(len(data.classes), 0)  # of the same class
    values["detail_kept"] = float(metrics.content_kept(kept, dropped, others, ruler)[1])
    energy = [float(ruler.energy(x)[:, 1].sum()) for x in (dropped, kept)]
    return values | {"detail_energy": energy[0] / energy[1]}


def measure_agreement(trained: Trained, judge: str, samples: int, steps: int, guidance_scale: float) -> Values:
    """How often the judge gives a class-conditional sample the class that it was asked for; 95 % Wilson interval."""
    classifier, card = metrics.load_classifier(CHECKPOINTS / judge)
    labels = trained.labels(samples)
    images = trained.generate(trained.noise(samples), labels, steps=steps, guidance_scale=guidance_scale)
    right = int((metrics.classify(classifier, images) == labels).sum())
    interval = list(binomtest(right, samples).proportion_ci(method="wilson"))
    return {
        "agreement": right / samples,
        "agreement_interval": interval,
        "judge_agreement": card["test_accuracy"],
        "judge_images": card["test_images"],
    }


def measure_bands(trained: Trained, samples: int, steps: int) -> Values:
    """Leakage, and how finished and waiting bands keep still, along class-conditional trajectories."""
    experiment, path = trained.experiment, trained.model.path
    labels = trained.labels(samples)
    trajectory = trained.generate(trained.noise(samples), labels, steps=steps, trajectory=True)
    k = sample(trained.model, trained.noise(1), labels[:1], steps=steps, trajectory=True).k
    gone, left = metrics.way_of_bands(trajectory, path.decomposition)
    outside = metrics.leakage(trajectory, k, path)
    starts, ends = band_intervals(experiment.bands, experiment.intervals, experiment.order)
    first, last = starts.index(min(starts)), ends.index(max(ends))
    join, start = (int((k - at).abs().argmin()) for at in (ends[first], starts[last]))
    ways = {"left_at_join": left[join, first], "gone_at_join": gone[join, last], "gone_at_start": gone[start, last]}
    ways = {name: float(way) for name, way in ways.items()}
    return {"leakage": float(outside.mean()), "leakage_by_step": outside.tolist(), **ways}


def measure_trajectory(trained: Trained, samples: int, steps: int) -> Values:
    """Error of projecting trajectories on two components, and the ratio of its means over the two bands' stages."""
    trajectory = trained.generate(trained.noise(samples), steps=steps, trajectory=True)
    k = torch.linspace(0, 1, len(trajectory))
    stages = (k <= 0.5, k >= 0.5) if trained.experiment.order == "low-to-high" else (k >= 0.5, k <= 0.5)
    values: Values = {"k": k.tolist()}
    for name, centred in (("centred", True), ("uncentred", False)):
        error = metrics.projection_error(trajectory, centred=centred).mean(1)
        low, high = (float(error[stage].mean()) for stage in stages)
        values |= {f"{name}_error": error.tolist(), f"{name}_low_over_high": low / high}
    return values


def measure_steering(trained: Trained, samples: int, steps: int) -> Values:
    """What stays the same where one band's noise is shared and the other's not (Algorithm 2); LFM in db6's bands."""
    ruler = trained.model.path.decomposition
    ruler = Wavelet(ruler.shape, "db6") if isinstance(ruler, Identity) else ruler
    first, second, third = trained.noise(3 * samples).split(samples)
    low = ruler.split(second - first)[0]
    noises = {"plain": first, "independent": third, "high_noise": first + low, "low_noise": second - low}
    results = {name: trained.generate(noise, what=name, steps=steps) for name, noise in noises.items()}
    values = {}
    for shared in ("high_noise", "low_noise"):
        kept = metrics.content_kept(results["plain"], results[shared], results["independent"], ruler)
        values |= {f"low_kept_by_{shared}": float(kept[0]), f"high_kept_by_{shared}": float(kept[-1])}
    return values


def measure_evaluations(trained: Trained, samples: int, tolerance: float) -> Values:
    """Network evaluations of dopri5 (Table 7): each sample alone, without classes, in float32."""
    counts = [
        sample(trained.model, noise[None], solver="dopri5", tolerance=tolerance).nfe
        for noise in tqdm(trained.noise(samples), desc=f"{trained.experiment.name}: evaluations")
    ]
    return {"nfe": sum(counts) / samples, "nfe_sd": float(torch.tensor(counts).double().std())}


def measure_steps(trained: Trained, features: str, samples: int, evaluations: list[int]) -> Values:
    """Fréchet distance by number of evaluations, for each stepper, asked at the step's start and middle."""
    values: Values = {}
    real = real_features(trained.experiment.data, features)[1]
    for solver in ("euler", "increment") if trained.model.output == "displacement" else ("euler",):
        for ask in ("start", "middle"):
            for steps in evaluations:
                options = {"what": f"{solver}, {ask}, {steps}", "steps": steps, "solver": solver, "ask": ask}
                images = to_uint8(trained.generate(trained.noise(samples), trained.labels(samples), **options))
                found = metrics.extract_features(images, CHECKPOINTS / features, progress=False)
                draws = metrics.fidelity_of_draws(found, real)["fd"]
                values.setdefault(f"fd_{solver}_{ask}", {})[str(steps)] = sum(draws) / len(draws)
    return values


def measure_energy(data: str, bands: dict[str, int], resamples: int) -> Values:
    """Mean norm of each band of real images (Figure 6), and the largest ratio of a band's to that of the one before."""
    images = to_float(load_data(data).train)
    make = {
        "Fourier": lambda n: Fourier(images.shape[1:], n),
        "Meyer": lambda n: Meyer(images.shape[1:], n - 1),
        "PCA": lambda n: PCA.fit([images], n),
    }
    wavelet = lambda name: lambda n: Wavelet(images.shape[1:], name.lower(), n - 1)  # noqa: E731
    found = {name: make.get(name, wavelet(name))(n) for name, n in bands.items()}
    norms = {name: d.energy(images - d.mean if name == "PCA" else images).sqrt() for name, d in found.items()}

    def largest(chosen: Tensor | slice) -> float:
        means = [n[chosen].mean(0) for n in norms.values()]
        return max(float((mean[1:] / mean[:-1]).max()) for mean in means)

    source = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(images), (len(images),), generator=source) for _ in range(resamples)]
    interval = torch.tensor([largest(draw) for draw in draws]).quantile(torch.tensor([0.025, 0.975]))
    means = {name: n.mean(0).tolist() for name, n in norms.items()}
    return {"norms": means, "largest_ratio": largest(slice(None)), "largest_ratio_interval": interval.tolist()}


def measure_calibration(data: str, features: str) -> Values:
    """What the feature network sees in real images: :func:`~kflow.metrics.calibrate`."""
    return metrics.calibrate(load_data(data), CHECKPOINTS / features)


def load_measurements() -> dict[str, Values]:
    """notebooks/measurements.yaml: by name, the settings, ``measure`` and ``runs`` among them."""
    found = yaml.safe_load((ROOT / "notebooks" / "measurements.yaml").read_text())
    return {name: found[name] for name in found if name != "units"}


def named_experiment(name: str) -> Experiment:
    """The experiment of a run: that of a YAML file, or for NAME-seedN the same with another seed.

    Raises FileNotFoundError: there is no such file.
    """
    base, _, seed = name.partition("-seed")
    changes = {"seed": int(seed), "name": name} if seed else {}
    return Experiment.load(ROOT / "notebooks" / "experiments" / f"{base}.yaml", **changes)


def run_folder(name: str | Path) -> Path:
    """Where a run's weights are: committed, in ``runs/``, or in the folder of that name.

    Raises FileNotFoundError: nowhere; it says how to train it.
    """
    for folder in (CHECKPOINTS / name, RUNS / name / "model", Path(name) / "model", Path(name)):
        if (folder / CARD).exists():
            return folder
    base, _, seed = str(name).partition("-seed")
    command = f"python -m kflow.train notebooks/experiments/{base}.yaml" + (f" seed={seed} name={name}" if seed else "")
    raise FileNotFoundError(f"there is no run {name}: train it with {command}")


def wanted_settings(name: str) -> Values:
    """A measurement's settings as its records hold them, with the hashes of the networks and experiments they name."""
    settings = {key: value for key, value in load_measurements()[name].items() if key != "runs"}
    for key in sorted({"features", "judge"} & settings.keys()):
        settings[f"{key}_hash"] = weights_hash(read_card(CHECKPOINTS / settings[key]))
    if "models" in settings:
        settings["models_hash"] = [named_experiment(model).hash for model in settings["models"]]
    return settings


def weights_hash(card: Values) -> str:
    """sha256 of a checkpoint's weights; of all its files' where there are more (PCA)."""
    hashes = list(card["files"].values())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def measure(name: str, run: str | Path | None = None, **changes: Any) -> Record:
    """Compute one record.

    Args:
        name: of the measurement, in notebooks/measurements.yaml.
        run: name of a run, or its folder; None for a measurement of real data alone.
        changes: other settings than in the file.

    Raises ValueError if there is no such measurement, or it lacks a run or needs none; FileNotFoundError without run.
    """
    found = load_measurements()
    if name not in found or ("runs" in found[name]) != (run is not None):
        allowed = ", ".join(key + (" RUN" if "runs" in value else "") for key, value in found.items())
        raise ValueError(f"measurement is {name} {run or ''}, allowed are {allowed}")
    settings, machine, origin, started = wanted_settings(name) | changes, describe_machine(), {}, time.perf_counter()
    arguments = {key: value for key, value in settings.items() if key != "measure" and not key.endswith("_hash")}
    torch.manual_seed(0)
    if run is None:
        data, title, seed, first = settings["data"], name, 0, ()
    else:
        model, experiment, card = load_model(run_folder(run))
        data, title, seed = experiment.data, f"{experiment.name}-{name}", experiment.seed
        origin = {"experiment": experiment.name, "experiment_hash": experiment.hash}
        origin["checkpoint_hash"] = weights_hash(card)
        first, machine["precision"] = (Trained(model, experiment),), choose_precision(experiment)
        machine["compiled"] = settings["samples"] >= COMPILED and choose_compile(experiment)
    file, _, function = settings["measure"].rpartition(":")  # a function here, or FILE:FUNCTION
    found = runpy.run_path(str(ROOT / file)) if file else globals()
    values = found[function if file else f"measure_{function}"](*first, **arguments)
    patterns = yaml.safe_load((ROOT / "notebooks" / "measurements.yaml").read_text())["units"]
    units = {key: next(unit for pattern, unit in patterns.items() if fnmatch(key, pattern)) for key in values}
    samples, seconds = settings.get("samples", len(load_data(data).train)), time.perf_counter() - started
    hashes = {"data_hash": load_data(data).hash, **origin}
    return Record(
        title, values, units, samples, [seed], data, **hashes, seconds=seconds, settings=settings, machine=machine
    )


def wanted() -> Iterator[tuple[str, str | None]]:
    """Every measurement and run (seeds included; None for none) whose record the book shows."""
    for name, settings in load_measurements().items():
        for seed in SEEDS if "runs" in settings else (None,):
            for run in settings.get("runs", (None,)):
                yield name, f"{run}-seed{seed}" if seed else run


def find_fault(name: str, run: str | None, folder: str | Path = RECORDS) -> str | None:
    """Why a record must be computed (again): missing, or which of its inputs changed; None if it is good."""
    path = Path(folder) / (f"{run}-{name}.json" if run else f"{name}.json")
    if not path.exists():
        return "missing"
    record = Record.read(path)
    now: Values = {"settings": wanted_settings(name), "data_hash": load_data(record.data).hash}
    if run:
        now["experiment_hash"] = named_experiment(run).hash
        with suppress(FileNotFoundError):  # weights of seeds 1 and 2 need not be here
            now["checkpoint_hash"] = weights_hash(read_card(run_folder(run)))
    changed = [key for key, value in now.items() if getattr(record, key) != value]
    return f"stale: its {', '.join(changed)} changed" if changed else None


def find_faults(folder: str | Path = RECORDS) -> dict[str, tuple[str, str | None, str]]:
    """What is missing or stale: by the record's name, the measurement, the run and the reason."""
    faults = ((f"{run}-{name}" if run else name, (name, run, find_fault(name, run, folder))) for name, run in wanted())
    return {title: fault for title, fault in faults if fault[2]}


def main(arguments: list[str]) -> None:
    """The command line."""
    try:
        if arguments and arguments != ["--check"]:
            print(measure(*arguments[:2]).write(RECORDS))
            return
        faults = find_faults()
        for title, (name, run, fault) in faults.items():
            print(f"{title}: {fault}", flush=True)
            if not arguments:
                measure(name, run).write(RECORDS)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if arguments and faults:
        raise SystemExit(f"{len(faults)} records are missing or stale: make measure")


if __name__ == "__main__":
    main(sys.argv[1:])
