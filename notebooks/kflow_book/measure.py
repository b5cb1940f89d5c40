"""Computes the records that notebooks/measurements.yaml asks for and that are missing or stale.

python -m kflow_book.measure                         all of them (``make measure``)
python -m kflow_book.measure --check                 only says which they are; exit status 1 if any
python -m kflow_book.measure conditional runs/mine   one measurement of one run of yours: a row for the table

The paper's own measurements are in notebooks/measurements-paper.yaml; see :mod:`kflow_book.at_scale`.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from tqdm.auto import tqdm

from kflow.checkpoint import load_model
from kflow.data import describe_data, hash_data, load_data, to_pixels
from kflow.experiment import Experiment, check_same, choose_compile, choose_precision
from kflow.records import RECORDS, Record, describe_machine
from kflow.sample import sample
from kflow.steer import Steered
from kflow.storage import CARD, CHECKPOINTS, ROOT, RUNS, read_card
from kflow.velocity import KFlow

BATCH = 50  # samples at a time: the fastest on a CPU, where they stay in its cache
BOOK, PAPER = "measurements.yaml", "measurements-paper.yaml"  # what the book wants, and what paper-scale runs may have
COMPILED = 1000  # samples that repay compiling the network
Values = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained model with its origin; its noise is that of its seed, so runs of one seed start from the same.

    The noise is drawn on the CPU, and is the same on every ``device``, that of the model.
    """

    model: KFlow
    experiment: Experiment
    device: torch.device = torch.device("cpu")
    how: Values = field(default_factory=lambda: {"precision": "32-true", "compiled": False})  # it computed

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return describe_data(self.experiment.data).shape

    @property
    def classes(self) -> int:
        """How many."""
        return len(describe_data(self.experiment.data).classes)

    def images(self, samples: Tensor) -> Tensor:
        """Samples as images in [−1, 1], not clipped; latents are decoded."""
        return to_pixels(samples, self.experiment.data)

    def noise(self, samples: int) -> Tensor:
        """(samples, *shape)."""
        source = torch.Generator().manual_seed(self.experiment.seed)
        return torch.randn(samples, *self.shape, generator=source).to(self.device)

    def labels(self, samples: int) -> Tensor:
        """Every class in turn, (samples,)."""
        return torch.arange(samples, device=self.device) % self.classes

    def generate(
        self,
        noise: Tensor,
        labels: Tensor | None = None,
        what: str = "sampling",
        localised: bool = False,
        **options: Any,
    ) -> Tensor:
        """Samples (N, *shape), or trajectories (T, N, *shape) with ``trajectory=True``; options of :func:`sample`.

        The network computes as in training: in bf16 where the processor has it, compiled where that pays.
        """
        network = self.model.network
        self.how["precision"] = choose_precision(self.experiment)
        if len(noise) >= COMPILED and choose_compile(self.experiment):
            self.how["compiled"] = True
            torch._dynamo.reset()  # or what was measured before decides what is compiled
            network = torch.compile(network, dynamic=False)
        place = {"accelerator": self.device.type, "devices": 1 if self.device.index is None else [self.device.index]}
        network = Fabric(**place, precision=self.how["precision"]).setup_module(network)
        model = KFlow(network, self.model.path, self.model.output, self.model.loss_bands)
        model, parts = Steered(model, localised).eval(), []
        bar = {"desc": f"{self.experiment.name}: {what}", "disable": rank_zero_only.rank > 0}
        for i in tqdm(range(0, len(noise), BATCH), **bar):
            label = None if labels is None else labels[i : i + BATCH]
            result = sample(model, noise[i : i + BATCH], label, **options)
            parts.append(result.trajectory if options.get("trajectory") else result.data)
        return torch.cat(parts, 1 if options.get("trajectory") else 0)


def load_measurements(*files: str) -> dict[str, Values]:
    """notebooks/measurements.yaml, or other files: by name, the settings, ``measure`` and ``runs`` among them."""
    found: dict[str, Values] = {}
    for file in files or (BOOK,):
        found |= yaml.safe_load((ROOT / "notebooks" / file).read_text())
    return {name: found[name] for name in found if name != "units"}


def experiment_file(base: str) -> Path:
    """The YAML file of an experiment, the book's own or one of the paper's."""
    folder = ROOT / "notebooks" / "experiments"
    paper = folder / "paper" / f"{base}.yaml"
    return paper if paper.exists() else folder / f"{base}.yaml"


def named_experiment(name: str) -> Experiment:
    """The experiment of a run: that of a YAML file, or for NAME-seedN the same with another seed.

    Raises FileNotFoundError: there is no such file.
    """
    base, _, seed = name.partition("-seed")
    changes = {"seed": int(seed), "name": name} if seed else {}
    return Experiment.load(experiment_file(base), **changes)


def run_folder(name: str | Path) -> Path:
    """Where a run's weights are: committed, in ``runs/``, or in the folder of that name.

    Raises FileNotFoundError: nowhere; it says how to train it.
    """
    for folder in (CHECKPOINTS / name, RUNS / name / "model", Path(name) / "model", Path(name)):
        if (folder / CARD).exists():
            return folder
    base, _, seed = str(name).partition("-seed")
    command = f"python -m kflow.train {experiment_file(base).relative_to(ROOT)}"
    command += f" seed={seed} name={name}" if seed else ""
    raise FileNotFoundError(f"there is no run {name}: train it with {command}")


def wanted_settings(name: str) -> Values:
    """A measurement's settings as its records hold them, with the hashes of the networks and experiments they name."""
    found = load_measurements(BOOK, PAPER)[name]
    settings = {key: value for key, value in found.items() if key not in ("runs", "seeds")}
    for key in sorted({"features", "judge", "autoencoder"} & settings.keys()):
        with suppress(FileNotFoundError):  # one of torch-fidelity's networks
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
        name: of the measurement, in notebooks/measurements.yaml or notebooks/measurements-paper.yaml.
        run: name of a run, or its folder; None for a measurement of real data alone.
        changes: other settings than in the file.

    Raises ValueError if there is no such measurement, it lacks a run or needs none, or the run's weights are those of
    another experiment than its file's; FileNotFoundError without run.
    """
    found = load_measurements(BOOK, PAPER)
    if name not in found or ("runs" in found[name]) != (run is not None):
        allowed = ", ".join(key + (" RUN" if "runs" in value else "") for key, value in found.items())
        raise ValueError(f"measurement is {name} {run or ''}, allowed are {allowed}")
    settings, machine, origin, started = wanted_settings(name) | changes, describe_machine(), {}, time.perf_counter()
    arguments = {key: value for key, value in settings.items() if key != "measure" and not key.endswith("_hash")}
    torch.manual_seed(0)
    if run is None:
        data, title, seed, trained = settings.get("data", ""), name, 0, None
    else:
        model, experiment, card = load_model(run_folder(run))
        with suppress(FileNotFoundError):  # a run of the user's, with no file among the book's experiments
            check_same(experiment, named_experiment(str(run)), run_folder(run))
        data, title, seed = experiment.data, f"{experiment.name}-{name}", experiment.seed
        origin = {"experiment": experiment.name, "experiment_hash": experiment.hash}
        origin["checkpoint_hash"] = weights_hash(card)
        trained = Trained(model, experiment)
    from kflow_book import protocols  # here, since it takes Trained from above

    file, _, function = settings["measure"].rpartition(":")  # a protocol, or FILE:FUNCTION
    found = runpy.run_path(str(ROOT / file)) if file else vars(protocols)
    values = found[function if file else f"measure_{function}"](*([trained] if trained else []), **arguments)
    machine |= trained.how if trained else {}
    patterns = yaml.safe_load((ROOT / "notebooks" / "measurements.yaml").read_text())["units"]
    units = {key: next(unit for pattern, unit in patterns.items() if fnmatch(key, pattern)) for key in values}
    samples = settings.get("samples", settings.get("batch", 0)) or len(load_data(data).train)
    hashes, seconds = {"data_hash": load_data(data).hash if data else "", **origin}, time.perf_counter() - started
    return Record(
        title, values, units, samples, [seed], data, **hashes, seconds=seconds, settings=settings, machine=machine
    )


def wanted() -> Iterator[tuple[str, str | None]]:
    """Every measurement and run (seeds included; None for none) whose record the book shows."""
    for name, settings in load_measurements().items():
        if "runs" not in settings:
            yield name, None
        for run in settings.get("runs", ()):
            seeds = settings.get("seeds", {})
            for seed in seeds.get(run, seeds.get(run.split("-")[0], (0,))):
                yield name, f"{run}-seed{seed}" if seed else run


def find_fault(name: str, run: str | None, folder: str | Path = RECORDS) -> str | None:
    """Why a record must be computed (again): missing, or which of its inputs changed; None if it is good."""
    path = Path(folder) / (f"{run}-{name}.json" if run else f"{name}.json")
    if not path.exists():
        return "missing"
    record = Record.read(path)
    now: Values = {"settings": wanted_settings(name)}
    with suppress(FileNotFoundError):  # the data need not be here
        now["data_hash"] = hash_data(record.data) if record.data else ""
    if run:
        now["experiment_hash"] = named_experiment(run).hash
        with suppress(FileNotFoundError):  # nor the weights of seeds 1 and 2
            now["checkpoint_hash"] = weights_hash(read_card(run_folder(run)))
    changed = [key for key, value in now.items() if getattr(record, key) != value]
    return f"stale: its {', '.join(changed)} changed" if changed else None


def find_faults(folder: str | Path = RECORDS) -> dict[str, tuple[str, str | None, str]]:
    """What is missing or stale: by the record's name, the measurement, the run and the reason."""
    faults = ((f"{run}-{name}" if run else name, (name, run, find_fault(name, run, folder))) for name, run in wanted())
    return {title: fault for title, fault in faults if fault[2]}


def check_name(name: str, run: str | Path) -> None:
    """Raise a ValueError if a measurement of a run would replace the record of another run of the same name."""
    folder = run_folder(run)
    experiment = Experiment.make(**read_card(folder)["experiment"])
    path, committed = RECORDS / f"{experiment.name}-{name}.json", CHECKPOINTS / experiment.name
    another = path.exists() and Record.read(path).experiment_hash != experiment.hash
    if another or ((committed / CARD).exists() and folder.resolve() != committed):
        raise ValueError(f"{folder} is called {experiment.name}, and so is a run of the book: give yours another name")


def main(arguments: list[str]) -> None:
    """The command line."""
    try:
        if arguments and arguments != ["--check"]:
            if len(arguments) > 1 and arguments[0] in load_measurements():
                check_name(*arguments[:2])
            record = measure(*arguments[:2])
            if rank_zero_only.rank == 0:
                print(record.write(RECORDS / "paper" if arguments[0] in load_measurements(PAPER) else RECORDS))
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
