"""What is committed is whole, belongs to its experiment and its data, and does what the book says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kflow.checkpoint import CHECKPOINTS, WEIGHTS, load_model
from kflow.data import load_data
from kflow.experiment import Experiment
from kflow.metrics import load_classifier, measure_agreement
from kflow.records import Record
from kflow.train import Run

ROOT = Path(__file__).parents[1]
MODELS = sorted(path for path in CHECKPOINTS.iterdir() if (ROOT / f"notebooks/experiments/{path.name}.yaml").exists())


def test_there_are_checkpoints_of_the_papers_three_decompositions_and_of_the_baseline():
    assert {"digits-lfm", "digits-fourier", "digits-db6", "digits-pca"} <= {path.name for path in MODELS}


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_a_checkpoint_is_its_experiments_on_its_data_at_the_common_budget(folder):
    model, experiment, card = load_model(folder)
    assert experiment == Experiment.load(ROOT / f"notebooks/experiments/{folder.name}.yaml")
    assert card["data_hash"] == load_data(experiment.data).hash
    assert card["images"] == experiment.images == Experiment().images
    assert card["parameters"] == sum(p.numel() for p in model.network.parameters()) < 800_000
    assert (folder / WEIGHTS).stat().st_size < 8_000_000


def test_the_committed_default_draws_the_digits_it_is_asked_for():
    folder = CHECKPOINTS / "digits-db6"
    judge, judge_card = load_classifier(CHECKPOINTS / "digits-judge")
    assert judge_card["test_accuracy"] >= 0.98
    run = Run(folder, *load_model(folder))
    wrong = Run(folder, *load_model(folder))
    with torch.no_grad():
        wrong.model.network.y_embedder.embedding_table.weight.copy_(
            wrong.model.network.y_embedder.embedding_table.weight.roll(1, 0)
        )
    good, bad = (
        measure_agreement(r, judge, judge_card, samples=100, steps=20).values["agreement"] for r in (run, wrong)
    )
    assert good >= 0.85
    assert bad < 0.3, "the judge must tell a model that draws the wrong digits"


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_record_is_of_a_known_experiment_and_of_todays_data(path):
    record = Record.read(path)
    experiment = Experiment.load(ROOT / f"notebooks/experiments/{record.experiment}.yaml")
    assert record.experiment_hash == experiment.hash
    assert record.data_hash == load_data(record.data).hash
