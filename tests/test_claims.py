"""The ledger: rules that are whole, verdicts on made-up records, every verdict with its records."""

import math

import pytest
import yaml

from kflow.records import RECORDS, Record
from kflow_book.claims import (
    count_verdicts,
    decide,
    digits_beside,
    in_words,
    judge_claim,
    ledger,
    load_rules,
    rule_in_words,
    show_ledger,
)
from kflow_book.measure import load_measurements


def write(folder, run, measurement, values, seed=None):
    title = f"{run}-seed{seed}" if seed else run
    units = dict.fromkeys(values, "share")
    Record(f"{title}-{measurement}", values, units, 10, [seed or 0], "digits", "hash").write(folder)


def write_three(folder, run, values):
    for seed, value in enumerate(values):
        write(folder, run, "conditional", {"fd": value}, seed)


@pytest.fixture
def records(tmp_path):
    write_three(tmp_path, "base", [10.0, 20.0, 40.0])
    write_three(tmp_path, "half", [5.05, 10.0, 19.8])
    write_three(tmp_path, "same", [10.1, 20.0, 39.6])
    write_three(tmp_path, "wild", [5.0, 40.0, 40.0])
    return tmp_path


def rule(**changes):
    first = {"claim": "c", "value": "conditional/fd", "of": "half", "against": "base", "compare": "ratio"}
    return first | {"rule": "below", "limit": 1.0} | changes


def test_runs_are_paired_by_seed(records):
    found = judge_claim(rule(), records)
    assert found.verdict == "supported" and found.seeds == 3
    # Ratios 0.505, 0.5, 0.495: Student's t with two degrees of freedom is 4.3027
    logs = [math.log(x) for x in (0.505, 0.5, 0.495)]
    mean = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 2) / math.sqrt(3)
    assert found.estimate == pytest.approx(math.exp(mean))
    assert found.interval == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-6)
    assert found.records == tuple(
        f"{run}{seed}-conditional" for run in ("half", "base") for seed in ("", "-seed1", "-seed2")
    )


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"rule": "above"}, "not supported"),
        ({"of": "same", "rule": "within", "limit": 1.1}, "supported"),
        ({"of": "half", "rule": "within", "limit": 1.1}, "not supported"),
        ({"of": "same"}, "undecided"),
        ({"of": "wild", "rule": "within", "limit": 1.1}, "undecided"),
        ({"compare": "difference", "rule": "below", "limit": 30.0}, "supported"),
        ({"compare": "difference", "rule": "within", "limit": 1.0}, "undecided"),
        ({"against": None, "limit": 1000.0}, "supported"),
    ],
)
def test_verdicts(records, changes, verdict):
    assert judge_claim(rule(**changes), records).verdict == verdict


def test_an_undecided_claim_says_how_many_seeds_would_decide(records):
    # Ratios 1.01, 1, 0.99: t·0.01/√n < 0.01 first holds for n = 7, where t is 2.447
    assert judge_claim(rule(of="same", limit=1.01), records).needed == 7
    assert judge_claim(rule(of="wild"), records).needed is None, "its mean is 1: no number of seeds would"


def test_one_seed_decides_nothing(tmp_path):
    write(tmp_path, "base", "conditional", {"fd": 10.0})
    write(tmp_path, "half", "conditional", {"fd": 1.0})
    found = judge_claim(rule(), tmp_path)
    assert (found.verdict, found.estimate) == ("undecided, too few seeds", pytest.approx(0.1))
    assert found.interval is None


def test_a_record_of_real_data_brings_its_own_interval(tmp_path):
    write(tmp_path, "digits", "energy", {"ratio": 0.5, "ratio_interval": [0.4, 0.6]})
    found = judge_claim({"value": "digits-energy/ratio", "rule": "below", "limit": 1.0, "compare": "ratio"}, tmp_path)
    assert (found.verdict, found.interval, found.seeds) == ("supported", (0.4, 0.6), 0)


def test_a_missing_record_is_an_error_and_no_verdict(records):
    with pytest.raises(FileNotFoundError, match="gone-conditional.json"):
        judge_claim(rule(of="gone"), records)


@pytest.mark.parametrize(
    ("low", "high", "kind", "limit", "verdict"),
    [
        (0.8, 1.0, "below", 1.0, "supported"),
        (0.8, 1.01, "below", 1.0, "undecided"),
        (1.01, 1.2, "below", 1.0, "not supported"),
        (1.01, 1.2, "above", 1.0, "supported"),
        (0.92, 1.09, "within", 1.1, "supported"),
        (0.90, 1.09, "within", 1.1, "undecided"),
        (0.5, 0.9, "within", 1.1, "not supported"),
    ],
)
def test_the_whole_interval_decides(low, high, kind, limit, verdict):
    assert decide({"rule": kind, "limit": limit, "compare": "ratio"}, low, high) == verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": 2.0}, r"'c' has \['limits'\], allowed are claim, source"),
        ({"rule": "under"}, "'c': rule is 'under', allowed are below, above, within"),
        ({"compare": "sum"}, "'c': compare is 'sum', allowed are ratio, difference"),
        ({"limit": "1.1"}, "'c' lacks a value, or a limit with a decimal point"),
    ],
)
def test_a_bad_rule_is_named(tmp_path, change, message):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([rule(**change)]))
    with pytest.raises(ValueError, match=message):
        load_rules(tmp_path / "claims.yaml")


@pytest.mark.parametrize(
    ("changes", "unit", "text"),
    [
        ({"of": "half"}, "squared", "0.5 × (0.488 to 0.513)"),
        ({"of": "half", "against": None, "compare": "difference", "limit": 1.0}, "dB", "11.6 dB (-7.03 to 30.3)"),
        ({"compare": "difference"}, "dB", "11.7 dB less (-7.58 to 31)"),
        ({"of": "base", "against": "half", "compare": "difference"}, "share", "11.7 more (-7.58 to 31)"),
    ],
)
def test_a_verdict_in_words(records, changes, unit, text):
    changed = {key: value for key, value in rule(**changes).items() if value is not None}
    assert in_words(changed, judge_claim(changed, records), unit) == text


def test_every_rule_speaks_of_what_is_measured():
    measured = load_measurements()
    for each in load_rules():
        if "awaits" in each or "choose" in each:
            continue
        name = each["value"].split("/")[0]
        assert name in measured, each["claim"]
        for run in (each.get("of"), each.get("against")):
            assert run is None or run in measured[name]["runs"], each["claim"]


def test_every_verdict_stands_on_records():
    table = ledger()
    assert len(table) == len([each for each in load_rules() if "choose" not in each])
    for each in load_rules():
        if "awaits" not in each and "choose" not in each:
            assert all((RECORDS / f"{name}.json").exists() for name in judge_claim(each).records)
    assert set(table["verdict"].str.split(" ").str[0].str.strip(",;")) <= {"supported", "not", "undecided", "awaits"}


def test_every_row_has_a_topic_and_its_records_on_the_page():
    table = ledger()
    assert "Other" not in set(table["topic"])
    page = show_ledger(table)
    assert page.count("<details>") == len(table) and "nan" not in page
    for name in table["records"].str.split(", ").explode():
        assert name in page
    assert int(count_verdicts(table).to_numpy().sum()) == len(table)


def test_a_number_is_told_from_its_limit():
    assert digits_beside(1.0978, 1.1) == "1.098" and digits_beside(1.1, 1.1) == "1.1"
    assert digits_beside(1.08, 1.1) == "1.08" and digits_beside(-0.24996, 0.25) == "-0.24996"


def test_a_rule_in_words():
    assert rule_in_words(rule(limit=1.1)) == "< 1.1" and rule_in_words(rule(rule="above", limit=0.0)) == "> 0"
    assert rule_in_words(rule(rule="within", limit=1.5)) == "0.667 to 1.5"
    assert rule_in_words(rule(rule="within", limit=0.02, compare="difference")) == "-0.02 to 0.02"
