"""The paper's runs as page 13 lists them: what each would take, its commands, and the results that came back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

from kflow.experiment import Experiment
from kflow.records import RECORDS, Record
from kflow.storage import ROOT
from kflow_book.dry_run import Estimate, estimate
from kflow_book.measure import PAPER, load_measurements
from kflow_book.tables import TABLES

EXPERIMENTS = ROOT / "notebooks" / "experiments" / "paper"
# What notebooks/tables.yaml calls the paper's data sets, and rows without a run here or with one of another name.
DATA = {
    "CelebA-HQ 256": "celebahq",
    "ImageNet 256": "imagenet",
    "LSUN Church 256": "church",
    "COD-Cluster17-5K": "cod-cluster17-5k",
    "COD-Cluster17-10K": "cod-cluster17-10k",
    "COD-Cluster17-All": "cod-cluster17-all",
}
OTHER_NAMES = {"LFM (ADM)": "lfm-adm", "K-Flow (which is not said)": "db6", "K-Flow; here with two bands": "kflow"}


def list_files(first: str = "") -> list[Path]:
    """The experiments of the paper's rows, those whose names begin so."""
    return sorted(EXPERIMENTS.glob(f"{first}*.yaml"))


def describe_rows(path: Path) -> str:
    """Which rows of the paper's tables a file is for: its first line, a comment."""
    return path.read_text().splitlines()[0].removeprefix("# ").rstrip(".")


def estimate_runs(files: list[Path]) -> dict[str, Estimate]:
    """What each run would take, by name of the experiment."""
    return {path.stem: estimate(Experiment.load(path)) for path in files}


def show_estimates(estimates: dict[str, Estimate], gpu: str, price: float) -> pd.DataFrame:
    """One row a run: estimates for one kind of GPU.

    Args:
        estimates: of :func:`estimate_runs`.
        gpu: one of :data:`kflow_book.dry_run.GPUS`.
        price: of one such GPU for an hour.
    """
    rows = {
        name: {
            "rows of the paper": describe_rows(EXPERIMENTS / f"{name}.yaml"),
            "parameters, millions": found.parameters / 1e6,
            "GPUs": found.gpus,
            "GB of a GPU": sum(found.memory.values()) / 1e9,
            f"hours on {gpu}": found.hours[gpu],
            "GPU hours": found.hours[gpu] * found.gpus,
            "cost": found.hours[gpu] * found.gpus * price,
            "latents, GB": found.disk["latents"] / 1e9,
            "checkpoints, GB": found.disk["checkpoints"] / 1e9,
        }
        for name, found in estimates.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def show_number(value: float) -> str:
    """One digit after the point; what would read 0.0 and is not nothing is below 0.1."""
    return "below 0.1" if 0 < value < 0.05 else f"{value:,.1f}"


def list_commands(files: list[Path]) -> str:
    """For every run the commands that train it and measure it, for a shell."""
    measurements, lines = load_measurements(PAPER), []
    for path in files:
        experiment = Experiment.load(path)
        start = f"torchrun --nproc-per-node {experiment.devices}"
        if experiment.num_nodes > 1:
            start += f" --nnodes {experiment.num_nodes} --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500"
        run = path.stem
        lines += [f"# {describe_rows(path)}", f"{start} -m kflow.train {path.relative_to(ROOT)}"]
        for name, settings in measurements.items():
            if run in settings.get("runs", ()):
                alone = not settings["measure"].endswith(("measure_at_scale", "measure_restoration"))
                lines.append(f"{'python' if alone else start} -m kflow_book.measure {name} runs/{run}")
        lines.append("")
    return "\n".join(lines)


def printed_values() -> Iterator[tuple[str, str, dict[str, float]]]:
    """What the paper prints for the runs that have a file: run, measurement, values (notebooks/tables.yaml)."""
    runs = {path.stem for path in list_files()}
    for table in yaml.safe_load(TABLES.read_text()).values():
        for row in table["rows"]:
            kind = OTHER_NAMES.get(row["label"], row.get("run", "").partition("-")[2])
            run = f"{DATA.get(table.get('paper'))}-{kind}"
            if run in runs and row.get("paper"):
                yield run, f"paper-{row.get('measurement', table['measurement'])}", row["paper"]


def list_expected() -> pd.DataFrame:
    """The paper's values of the runs that have a file here, by run and measurement: what to expect.

    Where two tables print different values, the first one's: Table 2's before Table 6's.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for run, measurement, values in printed_values():
        rows[run, measurement] = values | rows.get((run, measurement), {})
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    return frame.rename_axis(["run", "measurement"])


def read_results(folder: str | Path = RECORDS / "paper") -> pd.DataFrame:
    """The records of paper-scale runs that came back, one row each; empty if there is none."""
    rows = []
    for path in sorted(Path(folder).glob("*.json")):
        record = Record.read(path)
        shown = {key: value for key, value in record.values.items() if isinstance(value, int | float)}
        rows.append({"record": record.name, "machine": record.machine.get("accelerator"), **shown})
    return pd.DataFrame(rows, columns=None if rows else ["record", "machine"])


def read_growth(record: Record) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What ``latents-scale`` holds: a row for each part, bands and size, and one for each part and bands.

    Returns two frames: seconds, bytes and ratio to one band; and the fitted exponents.
    """
    values, rows = record.values, []
    for name, seconds in values["seconds"].items():
        part, bands, size = name.split("_")
        row = {"part": part, "bands": int(bands), "size": int(size), "seconds": seconds}
        low, high = values["over_one_band_interval"].get(name, [float("nan")] * 2)
        ratio = {"ratio to one band": values["over_one_band"].get(name, float("nan")), "low": low, "high": high}
        rows.append({**row, "bytes": values["peak_memory"][name], **ratio})
    columns = {
        "time": "growth_seconds",
        "time, two largest": "growth_seconds_of_largest",
        "memory": "growth_memory",
        "memory, two largest": "growth_memory_of_largest",
    }
    exponents = pd.DataFrame({title: values[key] for title, key in columns.items()})
    exponents.index = pd.MultiIndex.from_tuples(
        [(part, int(bands)) for part, bands in (name.split("_") for name in exponents.index)], names=["part", "bands"]
    )
    return pd.DataFrame(rows), exponents
