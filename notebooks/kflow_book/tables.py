"""Tables and curves of records, as the pages show them."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from kflow.records import RECORDS, Record
from kflow.storage import ROOT

TABLES = ROOT / "notebooks" / "tables.yaml"
#: the tables that say how a run is called; later ones have the last word
LABELS = (
    "ablations",
    "equal_time_faces",
    "faces",
    "showcase_faces",
    "table_2_cifar10",
    "table_9_cifar10",
    "class_dropping_cifar10",
    "showcase_cifar10",
)


def read_seeds(run: str, measurement: str, folder: str | Path = RECORDS) -> dict[int, Record]:
    """The records of a run with all its training seeds, by seed.

    Raises FileNotFoundError: there is not even that of seed 0.
    """
    first = Record.read(Path(folder) / f"{run}-{measurement}.json")
    others = [Record.read(path) for path in sorted(Path(folder).glob(f"{run}-seed*-{measurement}.json"))]
    return {record.seeds[0]: record for record in (first, *others)}


def student_interval(values: Any) -> tuple[float, float]:
    """Mean of values (N,), N ≥ 2, and half the width of its 95 % interval."""
    values = np.asarray(values, dtype=float)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(half)


def get_value(record: Record, key: str) -> Any:
    """A record's value by its key; ``dropped/fd`` reaches into a mapping. NaN where there is none."""
    value: Any = record.values
    for part in key.split("/"):
        value = value.get(part, math.nan)
    return value


def model_label(run: str, width: int = 16) -> str:
    """A run as the tables call it, in lines of about so many characters; its name, where they do not."""
    tables = yaml.safe_load(TABLES.read_text())
    labels = {}
    for name in LABELS:
        rows = [row for row in tables[name]["rows"] if "run" in row and "measurement" not in row]
        labels |= {row["run"]: row["label"] for row in rows}
    return "\n".join(wrap(labels.get(run, run), width))


def read_curves(measurement: str, runs: dict[str, str], key: str, folder: str | Path = RECORDS) -> pd.DataFrame:
    """Values that are curves, for drawing: one row a point.

    Args:
        measurement: whose records.
        runs: labels of the models by run.
        key: of the value, a mapping from x to y, or a list (whose x are the record's ``k``, or steps' numbers).

    Returns columns ``model``, ``seed``, ``x``, ``y``.
    """
    rows = []
    for run, label in runs.items():
        for seed, record in read_seeds(run, measurement, folder).items():
            curve = record.values[key]
            points = curve.items() if isinstance(curve, dict) else zip(record.values.get("k", range(len(curve))), curve)
            rows += [(label, seed, float(x), y) for x, y in points]
    return pd.DataFrame(rows, columns=["model", "seed", "x", "y"])


def read_table(name: str, folder: str | Path = RECORDS) -> pd.DataFrame:
    """A table in the form of one of the paper's, from notebooks/tables.yaml and the records.

    Returns one row a model: what the paper prints (``paper (DATA): …``), and what is measured here (``here (DATA): …``:
    the mean over training seeds, their standard deviation, and their number).
    """
    table, rows = yaml.safe_load(TABLES.read_text())[name], {}
    paper, here = (f"{who} ({table[who]})" if who in table else who for who in ("paper", "here"))
    for row in table["rows"]:
        values: dict[str, Any] = {f"{paper}: {key}": value for key, value in row.get("paper", {}).items()}
        if "run" in row:
            records = read_seeds(row["run"], row.get("measurement", table["measurement"]), folder).values()
            for header, key in (table["columns"] | row.get("columns", {})).items():
                found = np.array([get_value(record, key) for record in records], dtype=float)
                values[f"{here}: {header}"] = found.mean()
                values[f"{here}: {header}, sd"] = found.std(ddof=1) if len(found) > 1 else math.nan
            values["seeds"] = len(records)
        if "record" in row:  # that stands on no trained run
            found = Record.read(Path(folder) / f"{row['record']}.json")
            values |= {f"{here}: {header}": found.values[key] for header, key in row["values"].items()}
        rows[row["label"]] = values
    frame = pd.DataFrame.from_dict(rows, orient="index")
    order = [c for c in frame if c.startswith("paper")] + [c for c in frame if c.startswith("here")] + ["seeds"]
    return frame[order]


def give_or_take(value: float, spread: float, digits: int = 2) -> str:
    """A value ± its spread, to be read: a narrow column may break it, but before the sign alone."""
    return f"{value:.{digits}f} ±\N{NO-BREAK SPACE}{spread:.{digits}f}"


def show_table(frame: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A table of :func:`read_table` to be read: mean ± standard deviation in one cell, empty where there is none."""
    shown = pd.DataFrame(index=frame.index)
    for name in frame:
        if name.startswith("here") and not name.endswith(", sd"):
            both = zip(frame[name], frame[f"{name}, sd"])
            shown[name] = [
                "" if math.isnan(mean) else f"{mean:.{digits}f}" if math.isnan(sd) else give_or_take(mean, sd, digits)
                for mean, sd in both
            ]
        elif not name.endswith(", sd"):
            shown[name] = ["" if math.isnan(value) else f"{value:g}" for value in frame[name]]
    parts = [name.rpartition(": ") for name in shown]
    return shown.set_axis(pd.MultiIndex.from_tuples([(group, header) for group, _, header in parts]), axis=1)


def read_cost(name: str, folder: str | Path = RECORDS) -> pd.DataFrame:
    """What models cost beside the first, from a record of ``benchmarks/cost.py``: one row a model, as text.

    Returns medians of paired ratios with their 95 % intervals, and the median seconds.
    """
    cost = Record.read(Path(folder) / f"{name}.json")
    first, *others = cost.settings["models"]
    rows: dict[str, dict[str, str]] = {}
    for run in (first, *others):
        row = rows[model_label(run, 80)] = {}
        for kind in ("sampling", "training"):
            ratio, interval = (cost.values.get(f"{kind}_{run}{key}", ()) for key in ("", "_interval"))
            row[f"{kind} / {model_label(first)}"] = f"{ratio:.3f}" if run in others else ""
            row[f"{kind}, interval"] = "{:.3f} to {:.3f}".format(*interval) if run in others else ""
        row[f"s, {cost.samples} samples"] = f"{cost.values['seconds'][f'sampling_{run}']:.3f}"
    return pd.DataFrame.from_dict(rows, orient="index")
