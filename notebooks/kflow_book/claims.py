"""The claims ledger: rules from notebooks/claims.yaml, numbers from records, verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from kflow.records import RECORDS, Record
from kflow.storage import ROOT
from kflow_book.tables import read_seeds, student_interval

RULES = ROOT / "notebooks" / "claims.yaml"
UNITS = ("dB", "Å", "degrees")  # that a value is shown with; the others are shares, ratios and counts
CHOICE = ("choose", "left", "gone")
KEYS = (
    "claim",
    "source",
    "paper",
    "reading",
    "value",
    "of",
    "against",
    "against_value",
    "compare",
    "rule",
    "limit",
    "awaits",
)


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim."""

    verdict: str  # supported, not supported, or undecided
    estimate: float  # the ratio, difference or value that is judged
    interval: tuple[float, float] | None  # its 95 % interval; None with fewer than three seeds
    seeds: int  # 0 for a record that stands on no trained run
    needed: int | None  # seeds that would decide, if mean and spread stayed; None if no number would
    records: tuple[str, ...]  # that it stands on


def load_rules(path: str | Path = RULES) -> list[dict[str, Any]]:
    """The rules, in order.

    Raises ValueError: an unknown key, or a rule that is neither judged, awaited nor a choice; the claim is named.
    """
    rules = yaml.safe_load(Path(path).read_text())
    for rule in rules:
        unknown = rule.keys() - {*KEYS, *CHOICE}
        if unknown or "claim" not in rule:
            raise ValueError(f"{rule.get('claim')!r} has {sorted(unknown)}, allowed are {', '.join(KEYS)}")
        if not rule.keys() & {"awaits", "choose"}:
            for key, allowed in (("rule", ("below", "above", "within")), ("compare", ("ratio", "difference"))):
                if rule.setdefault(key, "ratio" if key == "compare" else None) not in allowed:
                    raise ValueError(f"{rule['claim']!r}: {key} is {rule[key]!r}, allowed are {', '.join(allowed)}")
            if "value" not in rule or not isinstance(rule.get("limit"), float):
                raise ValueError(f"{rule['claim']!r} lacks a value, or a limit with a decimal point")
    return rules


def judge_claim(rule: dict[str, Any], folder: str | Path = RECORDS) -> Verdict:
    """Hold a rule against the records.

    Ratios are judged by their logarithms. The interval is Student's over the seeds; runs are paired by seed.

    Raises FileNotFoundError: a record is missing.
    """
    name, key = rule["value"].split("/")
    if "of" not in rule:
        record = Record.read(Path(folder) / f"{name}.json")
        interval = tuple(record.values[f"{key}_interval"])
        return Verdict(decide(rule, *interval), record.values[key], interval, 0, None, (record.name,))
    ratio = rule["compare"] == "ratio"
    transform, back = (np.log, math.exp) if ratio else (np.asarray, float)
    sides = [(rule["of"], name, key)]
    if rule.get("against"):
        sides.append((rule["against"], *rule.get("against_value", rule["value"]).split("/")))
    groups = [read_seeds(run, measurement, folder) for run, measurement, _ in sides]
    common = sorted(set.intersection(*(set(group) for group in groups)))
    values = [transform([group[seed].values[side[2]] for seed in common]) for group, side in zip(groups, sides)]
    values = values[0] - values[1] if len(values) == 2 else values[0]
    names = tuple(group[seed].name for group in groups for seed in common)
    if len(common) < 3:
        return Verdict("undecided, too few seeds", back(values.mean()), None, len(common), None, names)
    mean, half = student_interval(values)
    low, high = back(mean - half), back(mean + half)
    verdict = decide(rule, low, high)
    needed = count_seeds(rule, mean, values.std(ddof=1), back) if verdict == "undecided" else None
    return Verdict(verdict, back(mean), (low, high), len(common), needed, names)


def decide(rule: dict[str, Any], low: float, high: float) -> str:
    """The verdict of a rule on an interval."""
    limit = rule["limit"]
    bottom, top = -math.inf, math.inf
    if rule["rule"] in ("below", "within"):
        top = limit
    if rule["rule"] == "above":
        bottom = limit
    elif rule["rule"] == "within":
        bottom = 1 / limit if rule["compare"] == "ratio" else -limit
    if bottom <= low and high <= top and not (low == high and rule["rule"] != "within" and low == limit):
        return "supported"
    return "not supported" if high < bottom or low > top else "undecided"


def count_seeds(rule: dict[str, Any], mean: float, deviation: float, back, most: int = 100) -> int | None:
    """Seeds with which the interval would decide, if mean and standard deviation stayed; None if more than ``most``."""
    for n in range(3, most + 1):
        half = student.ppf(0.975, n - 1) * deviation / math.sqrt(n)
        if decide(rule, back(mean - half), back(mean + half)) != "undecided":
            return n
    return None


def ledger(folder: str | Path = RECORDS, path: str | Path = RULES) -> pd.DataFrame:
    """The ledger, one row a claim: source, the paper's figure, ours with its 95 % interval, rule, verdict."""
    rows = []
    for rule in load_rules(path):
        row = {"claim": rule["claim"], "source": rule["source"], "paper": str(rule.get("paper", ""))}
        if "awaits" in rule:
            rows.append({**row, "verdict": f"awaits {rule['awaits']}"})
        elif "choose" not in rule:
            found = judge_claim(rule, folder)
            unit = Record.read(Path(folder) / f"{found.records[0]}.json").units.get(rule["value"].split("/")[1])
            row["here"] = in_words(rule, found, unit)
            row["rule"] = {"below": "< ", "above": "> ", "within": "within "}[rule["rule"]] + f"{rule['limit']:g}"
            needed = f"; {found.needed or 'over 100'} seeds would decide"
            needed *= found.verdict == "undecided" and found.seeds > 0
            rows.append({**row, "verdict": found.verdict + needed})
    return pd.DataFrame(rows, columns=["claim", "source", "paper", "here", "rule", "verdict"]).fillna("")


def in_words(rule: dict[str, Any], found: Verdict, unit: str | None) -> str:
    """What is judged, with its interval: a value, ``1.1 ×``, or ``1.44 dB less`` (of a negative difference)."""
    numbers = (found.estimate, *(found.interval or ()))
    unit = f" {unit}" if unit in UNITS else ""
    kind = unit
    if "against" in rule and rule["compare"] == "ratio":
        kind = " ×"
    elif "against" in rule and found.estimate < 0:
        numbers, kind = (-numbers[0], *(-x for x in reversed(numbers[1:]))), f"{unit} less"
    elif "against" in rule:
        kind = f"{unit} more"
    return f"{numbers[0]:.3g}{kind}" + (" ({:.3g} to {:.3g})".format(*numbers[1:]) if numbers[1:] else "")


def choose_variant(folder: str | Path = RECORDS, path: str | Path = RULES) -> pd.DataFrame:
    """The best steerable variant, by the rule with ``choose``: one row a variant, best first.

    Steerable: when the first band's interval ends, at most ``left`` of its way is left, and at most ``gone`` of the
    last band's way is gone.

    Returns:
        means over seeds of the Fréchet distance (class-conditional, guidance 1) and of both shares, whether it is
        ``steerable``, and the number of ``seeds``.
    """
    (rule,) = (rule for rule in load_rules(path) if "choose" in rule)
    rows = {}
    for run in sorted({Record.read(path).experiment.split("-seed")[0] for path in Path(folder).glob("*-bands.json")}):
        distances, bands = (read_seeds(run, name, folder).values() for name in ("conditional", "bands"))
        mean = lambda records, key: float(np.mean([record.values[key] for record in records]))  # noqa: E731
        rows[run] = {
            "fd": mean(distances, "fd"),
            "left_at_join": mean(bands, "left_at_join"),
            "gone_at_join": mean(bands, "gone_at_join"),
            "seeds": len(distances),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame["steerable"] = (frame["left_at_join"] <= rule["left"]) & (frame["gone_at_join"] <= rule["gone"])
    return frame.sort_values(["steerable", "fd"], ascending=[False, True])
