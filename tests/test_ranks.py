"""Several processes do what one does: the same losses, states that any number goes on with, whole weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning_fabric import Fabric
from processes import check_parts, free_port, on_ranks, train_apart, train_until

from kflow.checkpoint import load_model
from kflow.experiment import Experiment
from kflow.ranks import gather, spread, whole
from kflow.train import read_log

ROOT = Path(__file__).parents[1]
VALUES = {
    "name": "tiny", "network": "DiT-nano/8", "wavelet": "haar", "images": 192, "batch_size": 16, "warmup_images": 100,
    "checkpoint_images": 32, "learning_rate": 3e-3, "precision": "32-true", "compile": False, "accelerator": "cpu",
    "ema_decay": 0.9, "devices": 1,
}  # fmt: skip
TWO = {"devices": 2, "strategy": "ddp"}
SHARDED = {"devices": 2, "strategy": "fsdp"}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run in one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train_until(VALUES, folder)
    return folder


def assert_same_run(folder: Path, one: Path) -> None:
    """The same loss curve within 1e-4, the same averaged weights, and nothing left over."""
    log, expected = read_log(folder), read_log(one)
    assert log["step"].tolist() == expected["step"].tolist() and len(log) == 6
    for column in ("loss", "loss_band_0", "loss_band_1"):
        np.testing.assert_allclose(log[column], expected[column], rtol=1e-4)
    (model, experiment, card), (reference, _, other) = (load_model(path / "model") for path in (folder, one))
    assert experiment.hash == Experiment(**VALUES).hash and card["parameters"] == other["parameters"]
    weights = reference.network.state_dict()
    assert weights.keys() == model.network.state_dict().keys()
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-4, rtol=1e-3, msg=name)
    assert not (folder / "state").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "changes"),
    [("srun", TWO | {"micro_batch": 3}), ("torchrun", SHARDED)],
    ids=["ddp, started by srun", "fsdp, started by torchrun"],
)
def test_two_ranks_have_the_losses_and_weights_of_one(one, tmp_path, launcher, changes):
    on_ranks(tmp_path, train_until, VALUES | changes, tmp_path / "run", launcher=launcher)
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("way", [[{}, TWO, SHARDED, {}], [{}, SHARDED, TWO, {}]], ids=["ddp, fsdp", "fsdp, ddp"])
def test_a_state_resumes_on_any_number_of_ranks(one, tmp_path, way):
    for stop, changes in zip([3, 6, 9, 0], way, strict=True):
        if changes:
            on_ranks(tmp_path, train_until, VALUES | changes, tmp_path / "run", stop)
        else:
            train_until(VALUES, tmp_path / "run", stop)
        if stop:
            newest = max(path.name for path in (tmp_path / "run" / "state").iterdir())
            assert newest == f"{stop // 2 * 2:09d}"
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [TWO, SHARDED], ids=["ddp", "fsdp"])
def test_machines_that_see_other_states_do_not_train_on_a_mixture(tmp_path, changes):
    train_until(VALUES, tmp_path / "0", stop=3)
    on_ranks(tmp_path, train_apart, VALUES | changes, tmp_path)
    assert not any((tmp_path / rank / "model").exists() for rank in "01")


@pytest.mark.slow
def test_torchrun_on_the_command_line(one, tmp_path):
    """Through the real launcher; a batch that the ranks do not divide is an error in one line."""
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(VALUES | TWO))
    command = [sys.executable, "-m", "torch.distributed.run", f"--master-port={free_port()}", "--nproc-per-node=2"]
    command += ["-m", "kflow.train", str(path), f"folder={tmp_path / 'run'}", "batch_size=15"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode and "error: batch_size is 15, allowed are multiples of 2 ranks" in found.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_on_one_rank_nothing_is_shared():
    fabric = Fabric(accelerator="cpu", devices=1)
    assert torch.equal(gather(fabric, torch.arange(3)), torch.arange(3)[None])
    tensors = {"a": torch.ones(2), "b": torch.zeros(1)}
    for same in (whole(tensors), spread(tensors, {"a": torch.zeros(2)})):
        assert same.keys() == tensors.keys() and all(torch.equal(same[name], x) for name, x in tensors.items())


@pytest.mark.slow
def test_whole_and_spread_are_opposites(tmp_path):
    on_ranks(tmp_path, check_parts, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0.txt", "1.txt"}
