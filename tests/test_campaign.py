"""A campaign trains what has no record, measures it, and shares the runs out among processes."""

import fcntl
from dataclasses import replace

import pytest

from kflow import checkpoint
from kflow.records import Record
from kflow.storage import read_card
from kflow_book import campaign, measure
from kflow_book.measure import named_experiment, wanted

TINY = {"images": 64, "batch_size": 32, "warmup_images": 0}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Runs and records in a folder of the test's, and experiments of two steps."""
    for module, name in ((campaign, "RUNS"), (measure, "RUNS"), (campaign, "RECORDS")):
        monkeypatch.setattr(module, name, tmp_path)
    monkeypatch.setattr(campaign, "wanted", lambda: [("nfe", "digits-db6-seed7"), ("bands", "digits-db6-seed7")])
    tiny = lambda name: replace(named_experiment(name), **TINY)  # noqa: E731
    for module in (campaign, measure):
        monkeypatch.setattr(module, "named_experiment", tiny)
    short = {"nfe": {"samples": 2, "tolerance": 0.1}, "bands": {"samples": 2, "steps": 4}}
    monkeypatch.setattr(campaign, "measure", lambda name, run: measure.measure(name, run, **short[name]))
    return tmp_path


def test_what_is_missing_is_trained_and_measured(place, monkeypatch):
    assert campaign.find_missing("digits-db6-seed7") == ["nfe", "bands"]
    assert campaign.work("digits-db6-seed7")
    for name in ("nfe", "bands"):
        record = Record.read(place / f"digits-db6-seed7-{name}.json")
        assert record.seeds == [7] and record.samples == 2
        assert record.experiment_hash == campaign.named_experiment("digits-db6-seed7").hash
    assert len({Record.read(path).checkpoint_hash for path in place.glob("*.json")}) == 1
    monkeypatch.setattr(campaign, "find_fault", lambda name, *_: None if name == "nfe" else "missing")
    monkeypatch.setattr(campaign, "train", lambda *_: pytest.fail("trained again"))
    before = (place / "digits-db6-seed7-nfe.json").stat().st_mtime_ns
    (place / "digits-db6-seed7-bands.json").unlink()
    assert campaign.work("digits-db6-seed7")
    assert (place / "digits-db6-seed7-bands.json").exists()
    assert (place / "digits-db6-seed7-nfe.json").stat().st_mtime_ns == before


def test_the_first_seed_is_measured_as_promoted_also_where_it_was_trained_before(place, monkeypatch):
    for module in (checkpoint, measure):
        monkeypatch.setattr(module, "CHECKPOINTS", place / "checkpoints")
    monkeypatch.setattr(campaign, "wanted", lambda: [("nfe", "digits-db6")])
    campaign.train(campaign.named_experiment("digits-db6"), place / "digits-db6")
    assert campaign.work("digits-db6")
    card = read_card(place / "checkpoints" / "digits-db6")
    assert card["weights"] == "float16"
    assert Record.read(place / "digits-db6-nfe.json").checkpoint_hash == measure.weights_hash(card)


def test_a_run_that_another_process_is_at_is_left_to_it(place, monkeypatch):
    monkeypatch.setattr(campaign, "train", lambda *_: pytest.fail("trained twice"))
    with open(place / ".digits-db6-seed7.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not campaign.work("digits-db6-seed7")


def test_runs_are_done_in_the_order_of_the_patterns():
    runs = {run for _, run in wanted() if run}
    assert set(campaign.choose_runs(["*"])) == runs
    chosen = campaign.choose_runs(["digits-lfm", "digits-*", "faces32-lfm"])
    assert chosen[0] == "digits-lfm" and chosen[-1] == "faces32-lfm" and "digits-db6" in chosen
    assert {run for run in runs if run.startswith("digits-lfm-seed")} <= set(chosen[: len(chosen) - 1])
    assert chosen[1].startswith("digits-lfm-seed"), "the seeds of a pattern come with it"
    with pytest.raises(ValueError, match="no run's name fits nobody, allowed are patterns for"):
        campaign.choose_runs(["nobody"])
