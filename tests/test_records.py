"""Records: what is measured, with its origin."""

import json
import math
import re

import pytest

from kflow.records import PACKAGES, Record, describe_machine
from kflow_book.tables import read_curves, read_seeds, student_interval


def record(**changes) -> Record:
    values = {
        "name": "table-1", "values": {"fid": 4.5, "recall": 0.5}, "units": {"fid": "distance", "recall": "share"},
        "samples": 500, "seeds": [0, 1], "data": "digits", "data_hash": "abc", "experiment": "digits-db6",
        "experiment_hash": "def", "checkpoint_hash": "012", "seconds": 3.0, "settings": {"steps": 30},
    }  # fmt: skip
    return Record(**values | changes)


def test_a_record_comes_back(tmp_path):
    first = record()
    path = first.write(tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep" / "folder" / "table-1.json"
    assert Record.read(path) == first
    assert [p.name for p in path.parent.iterdir()] == ["table-1.json"], "no part file is left"


def test_a_record_says_with_what_it_was_made():
    made = record()
    assert made.versions.keys() == set(PACKAGES) and all(made.versions.values())
    assert {"processor", "instructions", "threads", "accelerator", "python"} == describe_machine().keys()
    assert made.machine == describe_machine()


def test_every_value_has_a_unit():
    with pytest.raises(
        ValueError, match=r"units are given for \['fid'\], allowed is one for each of \['fid', 'recall'\]"
    ):
        record(units={"fid": "distance"})
    with pytest.raises(ValueError, match="units are given for"):
        record(units={"fid": "distance", "recall": "share", "nfe": "calls"})


def test_a_record_is_replaced_whole(tmp_path, monkeypatch):
    path = record().write(tmp_path)
    before = path.read_text()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        record(values={"fid": 9.0, "recall": 0.1}).write(tmp_path)
    assert path.read_text() == before
    monkeypatch.undo()
    with pytest.raises(TypeError):
        record(values={"fid": object(), "recall": 0.1}).write(tmp_path)
    assert path.read_text() == before
    record(values={"fid": 9.0, "recall": 0.1}).write(tmp_path)
    assert Record.read(path).values["fid"] == 9.0


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "{}", '{"name": "x"}', '{"surprise": 1}'])
def test_another_file_is_no_record(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is no record"):
        Record.read(path)
    with pytest.raises(FileNotFoundError):
        Record.read(tmp_path / "nothing.json")


def test_a_record_is_plain_json(tmp_path):
    content = json.loads(record(settings={"ω": 1.5}).write(tmp_path).read_text())
    assert content["values"]["fid"] == 4.5 and content["settings"] == {"ω": 1.5}


def three_seeds(folder):
    for seed, (fd, curve) in enumerate([(1.0, [3.0, 4.0]), (2.0, [5.0, 6.0]), (6.0, [7.0, 8.0])]):
        name = f"a-seed{seed}-m" if seed else "a-m"
        values = {"fd": fd, "curve": curve, "by": {"2": fd}, "k": [0.0, 1.0]}
        record(name=name, values=values, units=dict.fromkeys(values, "share"), seeds=[seed]).write(folder)


def test_seeds_are_found_and_no_other_run(tmp_path):
    three_seeds(tmp_path)
    record(name="a-b-m").write(tmp_path)
    assert sorted(read_seeds("a", "m", tmp_path)) == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        read_seeds("b", "m", tmp_path)


def test_curves_one_row_a_point(tmp_path):
    three_seeds(tmp_path)
    frame = read_curves("m", {"a": "A"}, "curve", tmp_path)
    assert frame.columns.tolist() == ["model", "seed", "x", "y"] and len(frame) == 6
    assert frame.iloc[-1].tolist() == ["A", 2, 1.0, 8.0]
    assert read_curves("m", {"a": "A"}, "by", tmp_path).values.tolist()[0] == ["A", 0, 2.0, 1.0]


def test_students_interval():
    mean, half = student_interval([1.0, 2.0, 6.0])
    assert mean == 3 and half == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
