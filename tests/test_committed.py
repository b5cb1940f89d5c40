"""What is committed is whole, belongs to its experiment and its data, and does what the book says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kflow.checkpoint import load_model
from kflow.data import hash_data, is_here, load_autoencoder, load_data, to_float
from kflow.experiment import Experiment
from kflow.metrics import agreement, load_classifier
from kflow.storage import CHECKPOINTS, WEIGHTS
from kflow_book.measure import Trained, load_measurements
from kflow_book.photographs import psnr, rebuild
from kflow_book.protocols import measure_agreement
from kflow_book.tables import read_seeds

ROOT = Path(__file__).parents[1]
MODELS = sorted(path for path in CHECKPOINTS.iterdir() if (ROOT / f"notebooks/experiments/{path.name}.yaml").exists())


def test_there_are_checkpoints_of_the_papers_three_decompositions_and_of_the_baseline():
    assert {"digits-lfm", "digits-fourier", "digits-db6", "digits-pca"} <= {path.name for path in MODELS}


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_a_checkpoint_is_its_experiments_on_its_data_at_the_common_budget(folder):
    model, experiment, card = load_model(folder)
    assert experiment == Experiment.load(ROOT / f"notebooks/experiments/{folder.name}.yaml")
    if is_here(experiment.data):
        assert card["data_hash"] == hash_data(experiment.data)
    group = folder.name.split("-")[0]  # runs that stand in one table
    budgets = {"crystals": 20_000, "faces": 120_000, "cifar10": 240_000}
    budgets |= {"faces-lfm-dit": 208_000}  # equal time
    budgets |= {"showcase-faces": 3 * 120_000, "showcase-cifar10": 3 * 240_000}  # in no table with others
    assert card["images"] == experiment.images == budgets.get(folder.name, budgets.get(group, Experiment().images))
    most = 4_000_000 if experiment.data.endswith("-latents") else 800_000
    assert card["parameters"] == sum(p.numel() for p in model.network.parameters()) < most
    assert (folder / WEIGHTS).stat().st_size < 8_000_000


def test_the_committed_default_draws_the_digits_it_is_asked_for():
    folder = CHECKPOINTS / "digits-db6"
    right, wrong = (Trained(*load_model(folder)[:2]) for _ in range(2))
    with torch.no_grad():
        wrong.model.network.y_embedder.embedding_table.weight.copy_(
            wrong.model.network.y_embedder.embedding_table.weight.roll(1, 0)
        )
    good, bad = (
        measure_agreement(model, "digits-judge", samples=100, steps=20, guidance_scale=1.5) for model in (right, wrong)
    )
    assert good["judge_agreement"] >= 0.98
    assert good["agreement_interval"][0] < good["agreement"] < good["agreement_interval"][1]
    assert good["agreement"] >= 0.85
    assert bad["agreement"] < 0.3, "the judge must tell a model that draws the wrong digits"


def test_the_committed_judge_of_photographs_knows_images_that_it_never_saw():
    judge, card = load_classifier(CHECKPOINTS / "cifar10-judge")
    assert card["test_accuracy"] >= 0.85 and card["test_images"] == 10_000
    if not is_here("cifar10"):
        pytest.skip("the images of cifar10 are not here (python -m kflow.data prepare cifar10)")
    images = load_data("cifar10")
    some = images.test[::10], images.test_labels[::10]
    assert card["data_hash"] == images.hash
    assert agreement(judge, to_float(some[0]), some[1]) == pytest.approx(card["test_accuracy"], abs=0.04)


def test_the_best_guided_model_of_photographs_draws_the_class_asked_for_half_the_time():
    runs = load_measurements()["guided-cifar10"]["runs"]
    best = max((read_seeds(run, "guided-cifar10")[0] for run in runs), key=lambda record: record.values["agreement"])
    assert best.samples == 5000 and best.values["agreement"] >= 0.5
    assert best.values["dropped"]["agreement"] < best.values["agreement"], "it must be the class that brings it"


@pytest.mark.parametrize(("data", "least"), [("faces", 34), ("cifar10", 28)])
def test_a_committed_autoencoder_rebuilds_photographs_that_it_never_saw(data, least):
    autoencoder, card = load_autoencoder(CHECKPOINTS / f"{data}-autoencoder")
    assert autoencoder.shape == (4, 16, 16) and card["test_psnr"] >= least
    if not is_here(data):
        pytest.skip(f"the images of {data} are not here (python -m kflow.data prepare {data})")
    images = load_data(data)
    assert card["data_hash"] == images.hash
    some = images.test[:: len(images.test) // 500]
    assert float(psnr(some, rebuild(some, autoencoder)).mean()) == pytest.approx(card["test_psnr"], abs=0.5)
