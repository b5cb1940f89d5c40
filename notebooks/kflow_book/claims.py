"""The claims ledger: rules from notebooks/claims.yaml, numbers from records, verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from kflow.records import RECORDS, Record
from kflow.storage import ROOT
from kflow_book.measure import load_measurements
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


COLUMNS = ["topic", "claim", "source", "paper", "here", "rule", "verdict", "reading", "records"]
TOPICS = {
    "The data": ("digits-energy", "faces-latents-energy", "cifar10-latents-energy"),
    "Quality without a class": ("unconditional",),
    "Quality with a class": ("conditional", "guided/fd", "guided/recall", "guided-cifar10/fd", "guided-cifar10/recall"),
    "Dropping the class": ("guided", "dropping"),
    "Cost": ("nfe", "digits-cost", "faces-cost", "steps"),
    "Trajectories": ("trajectory",),
    "Steering": ("steering", "localised"),
    "Restoration": ("restoration",),
    "Molecular packing": ("packing",),
}
COLOURS = {"supported": "#d5ecdf", "not supported": "#f9d9c6", "undecided": "#f2f2f2", "awaits": "white"}
OURS = "our question|control|^not shown$"  # in the source or the paper's figure of a row that the paper does not state
STYLE = """<style>
.ledger { width: 100%; font-size: 0.85em; table-layout: fixed }
.ledger td, .ledger th { vertical-align: top; text-align: left }
.ledger th:nth-child(1) { width: 38% }
.ledger th:nth-child(2), .ledger th:nth-child(3) { width: 19% }
.ledger th:nth-child(4) { width: 9% }
.ledger summary { cursor: pointer }
.ledger p { margin: 0.4em 0 0; overflow-wrap: anywhere }
</style>"""


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
        if "value" in rule or not rule.keys() & {"awaits", "choose"}:
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
    """The ledger, one row a claim.

    Returns its ``topic``, the claim, source, the paper's figure, ours with its 95 % interval, rule, verdict, and the
    ``reading`` and ``records`` behind it.
    """
    rows = []
    for rule in load_rules(path):
        row = {"topic": find_topic(rule), "claim": rule["claim"], "source": rule["source"]}
        row |= {"paper": str(rule.get("paper", "")), "reading": rule.get("reading", "")}
        if "awaits" in rule:
            row["rule"] = rule_in_words(rule) if "value" in rule else ""
            rows.append({**row, "verdict": f"awaits {rule['awaits']}"})
        elif "choose" not in rule:
            found = judge_claim(rule, folder)
            unit = Record.read(Path(folder) / f"{found.records[0]}.json").units.get(rule["value"].split("/")[1])
            row["here"] = in_words(rule, found, unit)
            row |= {"rule": rule_in_words(rule), "records": ", ".join(found.records)}
            needed = f"; {found.needed or 'over 100'} seeds would decide"
            needed *= found.verdict == "undecided" and found.seeds > 0
            rows.append({**row, "verdict": found.verdict + needed})
    return pd.DataFrame(rows, columns=COLUMNS).fillna("")


def find_topic(rule: dict[str, Any]) -> str:
    """What a rule is about, from what it measures."""
    value = rule.get("value", "")
    if "awaits" in rule:
        return "Not decided yet"
    return next((topic for topic, names in TOPICS.items() if value.startswith(names)), "Other")


def rule_in_words(rule: dict[str, Any]) -> str:
    """Where the interval must lie: ``< 1.1``, ``> 0``, or ``0.667 to 1.5``."""
    limit, kind = rule["limit"], rule["rule"]
    if kind == "within":
        return f"{1 / limit if rule['compare'] == 'ratio' else -limit:.3g} to {limit:g}"
    return {"below": "< ", "above": "> "}[kind] + f"{limit:g}"


def show_ledger(table: pd.DataFrame) -> str:
    """The ledger as HTML, a table for each topic; a click on a claim opens how it is read and on what it stands."""
    parts = []
    for topic, rows in table.groupby("topic", sort=False):
        lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in ('claim', 'paper', 'here', 'rule', 'verdict'))}</tr>"]
        for row in rows.map(escape).itertuples():
            colour = next(colour for word, colour in COLOURS.items() if row.verdict.startswith(word))
            names = row.records.replace(", ", ", <wbr>")
            more = [row.source, row.reading, f"records: {names}" if names else ""]
            more = "".join(f"<p>{text}</p>" for text in more if text)
            claim = f"<details><summary>{row.claim}</summary>{more}</details>"
            cells = "".join(f"<td>{text}</td>" for text in (claim, row.paper, row.here, row.rule))
            lines.append(f'<tr>{cells}<td style="background-color: {colour}; color: black">{row.verdict}</td></tr>')
        parts.append(f'<h3>{escape(topic)}</h3><table class="dataframe ledger">{"".join(lines)}</table>')
    return STYLE + "".join(parts)


def count_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """How many of the paper's claims, and of this book's own questions and controls, have which verdict."""
    verdict = table["verdict"].str.extract(f"^({'|'.join(COLOURS)})")[0]
    ours = table["source"].str.contains(OURS) | table["paper"].str.contains(OURS)
    whose = ours.map({False: "the paper's claims", True: "our questions and controls"})
    return pd.crosstab(verdict, whose).reindex(list(COLOURS), fill_value=0).rename_axis(index=None, columns=None)


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
    first, *ends = (digits_beside(x, rule["limit"]) for x in numbers)
    return first + kind + (" ({} to {})".format(*ends) if ends else "")


def digits_beside(value: float, limit: float) -> str:
    """A number in three digits, or in as many as it takes to tell it from a limit that it is not."""
    found = (f"{value:.{digits}g}" for digits in range(3, 9))
    return next((text for text in found if abs(float(text)) != abs(limit) or abs(value) == abs(limit)), f"{value:g}")


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
    for run in load_measurements()["bands"]["runs"]:
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
