"""Measuring on several ranks gives what one rank gives: the same images from the same seeds, the same values."""

import json

import pytest
import torch
import yaml
from processes import SMALL, check_order, measure_small, on_ranks
from safetensors.torch import load_file

from kflow import metrics
from kflow.checkpoint import load_model
from kflow.data import load_data, to_uint8
from kflow.records import RECORDS
from kflow.sample import sample
from kflow.storage import CHECKPOINTS, ROOT
from kflow_book import at_scale, measure
from kflow_book.measure import BOOK, PAPER, load_measurements, wanted

PAPER_MEASUREMENTS = load_measurements(PAPER)


@pytest.mark.slow
def test_two_ranks_measure_what_one_measures(tmp_path):
    measure_small(tmp_path)
    on_ranks(tmp_path, measure_small, tmp_path)
    values = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")]
    assert values[1] == values[2] and values[0].keys() == values[1].keys()
    for key, value in values[0].items():
        assert values[1][key] == pytest.approx(value, rel=1e-6), key
    images = [list(load_file(tmp_path / f"{name}.safetensors").values()) for name in ("0-of-1", "0-of-2", "1-of-2")]
    # 50 samples are four parts, 20 are two, twice: part by part to one rank and the other.
    assert [len(part) for part in images[0]] == [16, 16, 16, 2, 16, 4, 16, 4]
    for index, part in enumerate(images[0]):
        assert torch.equal(images[1 + index % 2][index // 2], part)


@pytest.mark.slow
def test_the_measurement_is_its_definition(tmp_path):
    """Noise, features and distances written out."""
    measure_small(tmp_path)
    values, data = json.loads((tmp_path / "0-of-1.json").read_text()), load_data("digits")
    model, experiment, _ = load_model(CHECKPOINTS / "digits-db6")
    source = torch.Generator().manual_seed(0)
    real = data.train[torch.randperm(len(data.train), generator=source)[:70]]
    chosen = torch.randperm(10, generator=source)[:2]

    def look(images):
        return metrics.extract_features(images, CHECKPOINTS / "digits-features", progress=False)

    def generate(labels, **options):
        noise = torch.randn(len(labels), 1, 32, 32, generator=torch.Generator().manual_seed(experiment.seed))
        return look(to_uint8(sample(model, noise, labels, steps=4, guidance_scale=1.5, **options).data))

    generated = generate(torch.arange(50) % 10)
    assert values["fd"] == pytest.approx(metrics.frechet_distance(generated, look(real)), rel=0.02)
    assert values["count"] == [50, 70] and values["classes"] == chosen.tolist()
    shares = metrics.fidelity(generated, look(real)[:50])
    assert values["recall"] == pytest.approx(shares["recall"], abs=0.03)
    assert values["precision"] == pytest.approx(shares["precision"], abs=0.03)
    labels, ratios = chosen.repeat(10), []
    kept, dropped = generate(labels), generate(labels, drop_class_at=0.3)
    for label in chosen:
        members = look(data.train[data.train_labels == label][:10])
        before, after = (metrics.frechet_distance(x[labels == label], members) for x in (kept, dropped))
        ratios.append(after / before)
    assert values["cdr"] == pytest.approx(sum(ratios) / 2, rel=0.02)


@pytest.mark.slow
def test_parts_come_back_in_order(tmp_path):
    on_ranks(tmp_path, check_order, tmp_path)


def test_the_papers_measurements_have_its_settings():
    guided = PAPER_MEASUREMENTS["paper-guided"]
    expected = {"guidance_scale": 1.5, "drop_class_at": 0.3, "classes": 5, "samples": 50_000, "steps": 30}
    assert expected.items() <= guided.items() and guided["features"] == metrics.fidelity.__globals__["INCEPTION"]
    assert set(SMALL) <= guided.keys()
    assert PAPER_MEASUREMENTS["paper-unconditional"]["samples"] == 50_000


def test_the_book_wants_none_of_them():
    assert not PAPER_MEASUREMENTS.keys() & load_measurements(BOOK).keys()
    assert not {name for name, _ in wanted()} & PAPER_MEASUREMENTS.keys()


@pytest.mark.parametrize("name", PAPER_MEASUREMENTS)
def test_every_paper_measurement_speaks_of_experiments(name):
    settings = PAPER_MEASUREMENTS[name]
    for run in settings.get("runs", settings.get("models")):
        path = measure.experiment_file(run)
        assert path.parent.name == "paper" and yaml.safe_load(path.read_text())["name"] == run
        with pytest.raises(FileNotFoundError, match=f"kflow.train {path.relative_to(ROOT)}"):
            measure.run_folder(run)


def test_a_paper_record_goes_to_a_folder_of_its_own(monkeypatch, capsys):
    written = []

    class Found:
        def write(self, folder):
            written.append(folder)

    monkeypatch.setattr(measure, "measure", lambda *arguments: Found())
    monkeypatch.setattr(measure, "check_name", lambda *arguments: None)
    measure.main(["paper-nfe", "runs/x"])
    measure.main(["nfe", "runs/x"])
    monkeypatch.setattr(measure.rank_zero_only, "rank", 1)
    measure.main(["nfe", "runs/x"])
    assert written == [RECORDS / "paper", RECORDS]


def test_one_rank_is_this_process():
    fabric = at_scale.start_ranks()
    assert fabric.world_size == 1 and fabric is at_scale.start_ranks()
