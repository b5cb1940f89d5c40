"""Records are whole, fresh, and come out again: of every table one, drawn at random, is computed anew."""

import math
import random
import re

import pytest
import yaml

from kflow.measure import find_fault, find_faults, load_measurements, measure, named_experiment, run_folder, wanted
from kflow.records import RECORDS, TABLES, Record, get_value, read_seeds, read_table, show_table
from kflow.storage import CHECKPOINTS, ROOT

MEASUREMENTS = load_measurements()


def drawn(name: str) -> str:
    """A run of a measurement, drawn with its name as seed."""
    return random.Random(name).choice(MEASUREMENTS[name]["runs"])


def again(name: str, **changes) -> tuple[dict, Record]:
    """Values of a record computed anew with some settings changed, and the record that is committed."""
    run = drawn(name)
    return measure(name, run, **changes).values, Record.read(RECORDS / f"{run}-{name}.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unconditional", "conditional", "guided"])
def test_the_first_draw_of_a_fidelity_record(name):
    """Of ten draws the first: the noise of 500 samples is the beginning of that of 5,000."""
    changes = {"samples": 500} | ({"class_count": 50} if name == "guided" else {})
    values, record = again(name, **changes)
    for part, committed in ((values, record.values), (values.get("dropped"), record.values.get("dropped"))):
        if part:
            assert part["fd"] == pytest.approx(committed["draws"]["fd"][0], rel=0.02)
            assert part["precision"] == pytest.approx(committed["draws"]["precision"][0], abs=0.02)
            assert part["recall"] == pytest.approx(committed["draws"]["recall"][0], abs=0.02)
    if name == "guided":
        assert values["cdr"] == pytest.approx(record.values["cdr_by_count"]["50"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "relative", "absolute"),
    [
        ("agreement", 0.01, 0.0),
        ("bands", 0.02, 0.002),
        ("trajectory", 0.02, 0.002),
        ("steering", 0.02, 0.01),
        ("nfe", 0.02, 0.5),
    ],
)
def test_a_whole_record(name, relative, absolute):
    values, record = again(name)
    assert values.keys() == record.values.keys()
    for key, value in values.items():
        assert value == pytest.approx(record.values[key], rel=relative, abs=absolute), key


@pytest.mark.slow
def test_the_beginning_of_a_curve():
    values, record = again("steps", evaluations=[2])
    for key, curve in values.items():
        assert curve["2"] == pytest.approx(record.values[key]["2"], rel=0.02), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-energy", "digits-calibration"])
def test_a_record_of_real_data(name):
    values, committed = measure(name).values, Record.read(RECORDS / f"{name}.json").values
    assert values.keys() == committed.keys()
    for key, value in values.items():
        if key == "norms":
            for name, norms in value.items():
                assert norms == pytest.approx(committed[key][name], rel=1e-4)
        else:
            assert value == pytest.approx(committed[key], rel=0.01), key


def test_no_record_is_missing_or_stale():
    assert find_faults() == {}


def test_every_record_is_asked_for():
    asked = {f"{run}-{name}" if run else name for name, run in wanted()}
    assert {path.stem for path in RECORDS.glob("*.json")} <= asked


@pytest.fixture
def copied(tmp_path):
    """A folder with one good record."""
    record = Record.read(RECORDS / "digits-db6-bands.json")
    record.write(tmp_path)
    return tmp_path, record


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"data_hash": "other"}, "stale: its data_hash changed"),
        ({"experiment_hash": "other"}, "stale: its experiment_hash changed"),
        ({"checkpoint_hash": "other"}, "stale: its checkpoint_hash changed"),
        ({"settings": {"samples": 3}}, "stale: its settings changed"),
    ],
)
def test_what_makes_a_record_stale(copied, change, fault):
    folder, record = copied
    Record(**{**vars(record), **change}).write(folder)
    assert find_fault("bands", "digits-db6", folder) == fault


def test_a_missing_record_is_a_fault(tmp_path):
    assert find_fault("bands", "digits-db6", tmp_path) == "missing"
    assert len(find_faults(tmp_path)) == len(list(wanted()))


def test_runs_with_other_seeds_are_the_same_experiment_with_another_seed():
    first, second = named_experiment("digits-haar"), named_experiment("digits-haar-seed2")
    assert (second.seed, second.name) == (2, "digits-haar-seed2")
    differing = {key for key, value in first.to_dict().items() if value != second.to_dict()[key]}
    assert differing == {"seed", "name"}


def test_a_run_that_is_not_there_is_named_with_the_command_that_trains_it():
    assert run_folder("digits-lfm") == CHECKPOINTS / "digits-lfm"
    command = "python -m kflow.train notebooks/experiments/digits-lfm.yaml seed=99 name=digits-lfm-seed99"
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        run_folder("digits-lfm-seed99")


@pytest.mark.parametrize("arguments", [("condtional", "digits-lfm"), ("conditional",), ("digits-energy", "digits-lfm")])
def test_a_wrong_measurement_is_named(arguments):
    with pytest.raises(
        ValueError, match=f"measurement is {arguments[0]} .*allowed are unconditional RUN, .*digits-energy"
    ):
        measure(*arguments)


def test_a_table_is_means_over_seeds_beside_the_papers_numbers():
    table = read_table("table_1")
    records = read_seeds("digits-db6", "unconditional")
    mean = sum(record.values["fd"] for record in records.values()) / len(records)
    assert table.loc["K-Flow db6", "here (digits): FD (digits features)"] == pytest.approx(mean)
    assert table.loc["K-Flow db6", ["paper (CelebA-HQ 256): FID", "paper (CelebA-HQ 256): recall"]].tolist() == [
        4.99,
        0.46,
    ]
    assert math.isnan(table.loc["LDM", "here (digits): recall"]), "nothing measured: NaN"
    shown = show_table(table)
    assert shown.loc["LDM", ("here (digits)", "recall")] == "" and shown.loc["LDM", ("", "seeds")] == ""
    assert re.fullmatch(r"\d+\.\d\d( ± \d+\.\d\d)?", shown.loc["K-Flow db6", ("here (digits)", "FD (digits features)")])


@pytest.mark.parametrize("name", yaml.safe_load(TABLES.read_text()))
def test_every_table_speaks_of_what_is_measured(name):
    table = yaml.safe_load(TABLES.read_text())[name]
    for row in table["rows"]:
        if "run" in row:
            measurement = row.get("measurement", table["measurement"])
            # A row that no trained model makes is a measurement of its own, RUN-MEASUREMENT.
            assert row["run"] in MEASUREMENTS[measurement]["runs"] or f"{row['run']}-{measurement}" in MEASUREMENTS
    assert (ROOT / "notebooks" / "measurements.yaml").exists() and len(read_table(name)) == len(table["rows"])


def test_values_inside_values():
    record = Record("n", {"a": {"b": 2.0}}, {"a": "share"}, 1, [0], "digits", "hash")
    assert get_value(record, "a/b") == 2.0
    assert get_value(record, "c") != get_value(record, "c")
