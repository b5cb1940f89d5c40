"""Algorithm 1: what is drawn, what is learned, and that no interruption changes it."""

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning_fabric import Fabric

import kflow.train
from kflow.checkpoint import load_model
from kflow.data import load_data, to_float
from kflow.experiment import Experiment, bf16_is_native
from kflow.networks.dit import SIZES
from kflow.train import choose_compile, choose_precision, draw, main, read_log, set_learning_rate, train

ROOT = Path(__file__).parents[1]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """A network of a size that no experiment has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (32, 2, 2))
        yield


def tiny(**changes) -> Experiment:
    """A run of 40 steps; a checkpoint every 16."""
    values = {
        "name": "tiny", "network": "DiT-tiny/8", "images": 640, "batch_size": 16, "warmup_images": 100,
        "checkpoint_images": 256, "learning_rate": 3e-3, "precision": "32-true", "compile": False, "accelerator": "cpu",
        "ema_decay": 0.9, "betas": (0.9, 0.99),
    }  # fmt: skip
    haar = {} if "decomposition" in changes else {"wavelet": "haar"}
    return Experiment(**values | haar | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run, for the tests that only look at one."""
    return train(tiny(), tmp_path_factory.mktemp("run") / "tiny", progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder / "model")[0].network.state_dict()


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Killed(BaseException):
    """Stands for a SIGKILL in tests that stop a run in the same process."""


def stop_at(monkeypatch, name: str, call: int) -> None:
    """Make the ``call``-th call of kflow.train.NAME end the run, before it does anything."""
    real, calls = getattr(kflow.train, name), []

    def stops(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(kflow.train, name, stops)


# --- Algorithm 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conditional": False, "output": "displacement", "decomposition": "fourier", "draw_k": "w"},
        {"loss_bands": "active", "learning_rate_decay": "none", "weight_decay": 0.1, "clip_norm": 0.05, "bands": 3},
    ],
    ids=["default", "displacement", "active"],
)
def test_training_is_algorithm_1(tmp_path, changes):
    """Against a plain loop: every weight and every average the same."""
    experiment = tiny(images=150, **changes)
    trained = train(experiment, tmp_path / "run", progress=False)

    data = load_data("digits")
    torch.manual_seed(experiment.seed)
    model = experiment.make_model(data)
    project, schedule = model.path.decomposition.project, model.path.schedule
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, experiment.learning_rate, (0.9, 0.99), weight_decay=experiment.weight_decay
    )
    average, losses = None, []
    for step in range(10):  # 150 images are nine batches and a bit
        images = 16 * step
        rate = experiment.learning_rate * min(1, (images + 16) / 100)
        if experiment.learning_rate_decay == "cosine":
            rate *= (1 + np.cos(np.pi * images / 150)) / 2
        optimizer.param_groups[0]["lr"] = rate

        phi, epsilon, k, labels = draw(experiment, data, model, step)
        w, rates = schedule(k)
        bands = [project(phi - epsilon, b) for b in range(model.path.bands)]

        def along(values, bands=bands):
            return sum(values[:, b].view(-1, 1, 1, 1) * part for b, part in enumerate(bands))

        output = model.network(epsilon + along(w), k, w, labels)
        if experiment.output == "velocity":
            error, counted = output - along(rates), rates > 0
        else:
            error, counted = output - (phi - epsilon), w < 1
        if experiment.output == "displacement" or experiment.loss_bands == "active":
            error = sum(counted[:, b].view(-1, 1, 1, 1) * project(error, b) for b in range(model.path.bands))
        loss = (error**2).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, experiment.clip_norm)
        optimizer.step()

        decay = min(0.9, (1 + step) / (10 + step))
        new = copy.deepcopy(model.network.state_dict())
        average = new if step == 0 else {n: decay * average[n] + (1 - decay) * value for n, value in new.items()}

    start = trained.experiment.make_model(data).network.state_dict()
    for name, value in trained.model.network.state_dict().items():
        torch.testing.assert_close(value, average[name], atol=3e-5, rtol=1e-3, msg=name)
    assert max((average[n] - start[n]).abs().max() for n in start) > 0.01, "something was learned"
    assert trained.log["loss"].iloc[-1] == pytest.approx(np.mean(losses), rel=1e-4)
    assert trained.log["step"].tolist() == [10]


def test_the_loss_goes_down(tmp_path):
    log = train(tiny(images=4_800, warmup_images=300), tmp_path / "run", progress=False).log
    assert log["loss"].tail(3).mean() < 0.75 * log["loss"].head(1).mean()
    for band in range(2):
        assert log[f"loss_band_{band}"].tail(3).mean() < 0.85 * log[f"loss_band_{band}"].head(1).mean()


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    experiment, fabric, data = tiny(), Fabric(accelerator="cpu"), load_data("digits")
    model, found = experiment.make_model(data), {}
    drawn, model.network = draw(experiment, data, model, 0), fabric.setup_module(model.network)
    for size in (0, 5):
        model.network.zero_grad()
        losses = kflow.train.backward(fabric, model, drawn, size)
        found[size] = [losses, *(p.grad.clone() for p in model.network.parameters() if p.requires_grad)]
    assert len(found[0][0]) == experiment.batch_size and found[0][0].min() > 0
    for whole, parts in zip(*found.values(), strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_a_network_that_says_nothing_has_the_loss_of_the_target():
    experiment = tiny()
    data = load_data("digits")
    model = experiment.make_model(data)  # at first the output is zero
    images, noise, k, labels = draw(experiment, data, model, 0)
    expected = model.path.velocity(images, noise, k).square().mean((1, 2, 3))
    torch.testing.assert_close(model.loss(images, noise, k, labels).detach(), expected)


# --- what is drawn


@pytest.fixture(scope="module")
def drawing():
    data, experiment = load_data("digits"), tiny()
    return experiment, data, experiment.make_model(data)


def test_draws_are_a_function_of_seed_and_step_alone(drawing):
    experiment, data, model = drawing
    torch.manual_seed(1)
    first = draw(experiment, data, model, 7)
    kflow.train.shuffle.cache_clear()
    torch.manual_seed(2)
    draw(experiment, data, model, 3)
    again = draw(experiment, data, model, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (draw(experiment, data, model, 8), draw(tiny(seed=1), data, model, 7)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_draws_have_their_distributions(drawing):
    experiment, data, model = tiny(batch_size=4096), *drawing[1:]
    images, noise, k, _ = draw(experiment, data, model, 0)
    assert images.shape == noise.shape == (4096, 1, 32, 32) and images.dtype == noise.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    assert k.min() >= 0 and k.max() < 1 and abs(float(k.mean()) - 0.5) < 0.02
    assert torch.histc(k, 8, 0, 1).std() < 60
    uniform = draw(tiny(batch_size=4096, draw_k="w"), data, model, 0)[2]
    assert torch.histc(model.path.schedule(uniform)[0].mean(1), 8, 0, 1).std() < 60
    assert torch.histc(uniform, 8, 0, 1).std() > 60


def test_ranks_share_out_the_batch(drawing):
    experiment, data, model = drawing
    whole = draw(experiment, data, model, 5)
    for ranks in (2, 3):
        parts = [draw(experiment, data, model, 5, rank, ranks) for rank in range(ranks)]
        for index, value in enumerate(whole):
            joined = torch.empty_like(value)
            for rank in range(ranks):
                joined[rank::ranks] = parts[rank][index]
            assert torch.equal(joined, value) and sum(len(part[index]) for part in parts) == len(value)


def test_an_epoch_visits_every_image_once_with_its_label(drawing):
    _, data, model = drawing
    experiment = tiny(batch_size=700, label_dropout=0.0)
    drawn = [draw(experiment, data, model, step) for step in range(20)]
    images, labels = torch.cat([d[0] for d in drawn]), torch.cat([d[3] for d in drawn])

    def rows(images, labels):
        return sorted((x.numpy().tobytes(), int(label)) for x, label in zip(images, labels, strict=True))

    everything = rows(to_float(data.train), data.train_labels)
    epochs = [rows(images[start : start + 4500], labels[start : start + 4500]) for start in (0, 4500, 9000)]
    assert epochs == [everything] * 3
    assert not torch.equal(images[:4500], images[4500:9000]), "another order in every epoch"


def test_a_batch_may_be_larger_than_the_data(drawing):
    _, data, model = drawing
    images, _, k, labels = draw(tiny(batch_size=10_000), data, model, 3)
    assert len(images) == len(k) == len(labels) == 10_000


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_labels_are_dropped_at_their_share(drawing, share):
    _, data, model = drawing
    labels = draw(tiny(batch_size=20_000, label_dropout=share), data, model, 0)[3]
    assert abs(float((labels == 10).float().mean()) - share) < 0.011
    assert labels.min() == 0 and labels.max() <= 10
    kept = draw(tiny(batch_size=20_000, label_dropout=0.0), data, model, 0)[3]
    assert torch.equal(labels[labels < 10], kept[labels < 10])
    assert draw(tiny(conditional=False), data, model, 0)[3] is None


# --- the schedule of the learning rate, the average


def test_learning_rate_warms_up_and_decays():
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)

    def rates(**changes):
        experiment = tiny(images=1600, warmup_images=320, learning_rate=0.5, **changes)
        result = []
        for step in range(100):
            set_learning_rate(optimizer, experiment, step)
            result.append(optimizer.param_groups[0]["lr"])
        return result

    constant = rates(learning_rate_decay="none")
    assert constant[0] == pytest.approx(0.5 / 20) and constant[9] == pytest.approx(0.25)
    assert constant[19:] == [0.5] * 81
    cosine = rates()
    assert cosine == pytest.approx([c * (1 + np.cos(np.pi * i / 100)) / 2 for i, c in enumerate(constant)])
    assert 0 < cosine[-1] < 0.001 and cosine[0] == constant[0]
    set_learning_rate(optimizer, tiny(warmup_images=0, learning_rate=0.5), 0)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_average_is_its_recursion(decay):
    values = torch.randn(30, 5)
    layer = torch.nn.Linear(5, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=kflow.train.averaging(decay))
    expected = None
    for n, value in enumerate(values):
        layer.weight.data.copy_(value)
        average.update_parameters(layer)
        rate = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else rate * expected + (1 - rate) * value
        torch.testing.assert_close(average.module.weight[0], expected)


# --- runs, logs, records


def test_a_finished_run_has_model_card_and_logs(run):
    experiment, data = tiny(), load_data("digits")
    expected = {"experiment": experiment.to_dict(), "images": 640, "precision": "32-true", "compiled": False}
    assert expected | {"data_hash": data.hash} == {k: run.card[k] for k in (*expected, "data_hash")}
    assert run.card["seconds"] > 0 and run.card["loss"] == pytest.approx(run.log["loss"].mean())
    assert sorted(p.name for p in run.folder.iterdir()) == ["log", "model", "tensorboard"], "the states are gone"
    assert run.log["step"].tolist() == [16, 20, 32, 40]
    assert run.log["images"].tolist() == [256, 320, 512, 640]
    assert {"loss", "loss_band_0", "loss_band_1"} < set(run.log.columns) and not run.log.isna().any().any()


def test_tensorboard_has_the_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run.folder / "tensorboard").glob("version_*")
    events = EventAccumulator(str(folder)).Reload()
    assert {"loss", "loss_band_0", "loss_band_1", "images"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == run.log["step"].tolist()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(run.log["loss"].tolist(), rel=1e-5)


def test_a_finished_run_is_only_loaded(run, monkeypatch):
    before = contents(run.folder)
    monkeypatch.setattr(kflow.train, "draw", None)
    again = train(
        tiny(precision="bf16-mixed", compile="auto", checkpoint_images=1), run.folder
    )  # the machine may differ
    assert contents(run.folder) == before
    assert again.experiment == run.experiment and again.card == run.card
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "says"), [({"seed": 1}, "seed = 0, asked is 1"), ({"images": 1280}, "images = 640, asked is 1280")]
)
def test_another_experiment_in_the_folder_is_an_error(run, changes, says):
    before = contents(run.folder)
    with pytest.raises(ValueError, match=f"holds a run with {says}: .*nothing is overwritten"):
        train(tiny(**changes), run.folder, progress=False)
    assert contents(run.folder) == before


def test_runs_live_under_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(kflow.train, "RUNS", tmp_path)
    assert train(tiny(images=16, name="short"), progress=False).folder == tmp_path / "short"
    assert (tmp_path / "short" / "model" / "card.json").exists()


def test_the_log_of_a_folder_without_a_run_is_empty(tmp_path):
    assert read_log(tmp_path).empty
    (tmp_path / "log" / "version_0").mkdir(parents=True)
    (tmp_path / "log" / "version_0" / "metrics.csv").touch()  # killed before the first line
    assert read_log(tmp_path).empty


def test_of_a_step_done_twice_the_later_line_counts(tmp_path):
    for version, lines in ((0, "20,0.5\n40,0.4\n"), (2, "40,0.3\n60,0.2\n"), (10, "60,0.1\n")):
        path = tmp_path / "log" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("step,loss\n" + lines)
    assert read_log(tmp_path).to_dict("list") == {"step": [20, 40, 60], "loss": [0.5, 0.3, 0.1]}


def test_bands_that_no_k_fell_into_are_missing_values(tmp_path):
    """And the columns of the log never change: rewriting the file could lose lines if the run is killed meanwhile."""
    log = train(tiny(batch_size=1, images=4, checkpoint_images=1), tmp_path / "run", progress=False).log
    assert log["step"].tolist() == [1, 2, 3, 4]
    bands = log[["loss_band_0", "loss_band_1"]]
    assert (bands.isna().sum(axis=1) == 1).all() and bands.sum(axis=1).tolist() == pytest.approx(log["loss"].tolist())


# --- interruptions, in this process


@pytest.mark.parametrize("stopped", [("draw", 1), ("draw", 17), ("draw", 24), ("write_folder", 2), ("save_model", 1)])
def test_an_interrupted_run_ends_in_the_same_weights(run, tmp_path, monkeypatch, stopped):
    stop_at(monkeypatch, *stopped)
    with pytest.raises(Killed):
        train(tiny(), tmp_path / "run", progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    again = train(tiny(checkpoint_images=512), tmp_path / "run", progress=False)
    assert_same_weights(run.folder, again.folder)
    assert again.log["step"].is_unique and again.log["step"].iloc[-1] == 40


def test_two_states_are_kept_and_the_newest_counts(tmp_path, monkeypatch):
    stop_at(monkeypatch, "draw", 36)
    with pytest.raises(Killed):
        train(tiny(checkpoint_images=128), tmp_path / "run", progress=False)
    assert sorted(p.name for p in (tmp_path / "run" / "state").iterdir()) == ["000000024", "000000032"]
    monkeypatch.undo()
    steps = []
    real = kflow.train.draw
    monkeypatch.setattr(kflow.train, "draw", lambda *a, **o: steps.append(a[3]) or real(*a, **o))
    train(tiny(), tmp_path / "run", progress=False)
    assert steps == list(range(32, 40))


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """The folder of a run that was stopped after 33 of 40 steps."""
    with monkeypatch.context() as patch:
        stop_at(patch, "draw", 34)
        with pytest.raises(Killed):
            train(tiny(), tmp_path / "run", progress=False)
    return tmp_path / "run"


@pytest.mark.parametrize("file", ["network.safetensors", "average.safetensors", "optimizer.safetensors", "card.json"])
def test_a_truncated_state_is_an_error_that_names_it(half_done, file):
    path = half_done / "state" / "000000032" / file
    path.write_bytes(path.read_bytes()[:-20])
    before = contents(half_done / "state")
    says = f"{file} is .*truncated or changed.*; remove {path.parent} to go on from the state before it"
    with pytest.raises(ValueError, match=says):
        train(tiny(), half_done, progress=False)
    assert contents(half_done / "state") == before
    if file == "card.json":  # the way out that the error suggests
        shutil.rmtree(path.parent)
        assert train(tiny(), half_done, progress=False).log["step"].iloc[-1] == 40


def test_another_experiment_does_not_resume(half_done):
    before = contents(half_done)
    with pytest.raises(ValueError, match="holds a run with learning_rate = 0.003, asked is 0.001"):
        train(tiny(learning_rate=0.001), half_done, progress=False)
    assert contents(half_done) == before


def test_what_a_state_holds(half_done):
    state = half_done / "state" / "000000032"
    names = {"network.safetensors", "average.safetensors", "optimizer.safetensors", "card.json"}
    assert {p.name for p in state.iterdir()} == names


# --- a loss that is not finite


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, monkeypatch, bad):
    """The 38th step: after the state of step 32, and between two lines of the log."""
    asked = []
    real = kflow.velocity.KFlow.loss

    def poisoned(self, data, noise, k, labels=None):
        asked.append(k)
        losses = real(self, data, noise, k, labels)
        if len(asked) != 38:
            return losses
        if bad == "loss":
            return losses * torch.where(torch.arange(len(k)) == 5, torch.nan, 1.0)
        return Overflow.apply(losses)

    monkeypatch.setattr(kflow.velocity.KFlow, "loss", poisoned)
    with pytest.raises(FloatingPointError) as error:
        train(tiny(), tmp_path / "run", progress=False)
    message = str(error.value)
    assert "at step 38," in message and "learning_rate is 0.003" in message and "checkpoint stays" in message
    if bad == "loss":
        k = float(asked[37][5])
        assert message.startswith("the loss is nan and") and f"k = {k:.4f}, band {int(k >= 0.5)}:" in message
    else:
        assert "gradient's norm nan" in message or "gradient's norm inf" in message
    assert sorted(p.name for p in (tmp_path / "run" / "state").iterdir()) == ["000000016", "000000032"]
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert train(tiny(), tmp_path / "run", progress=False).log["step"].iloc[-1] == 40, "the last state is good"


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * torch.inf


def test_a_poisoned_network_is_never_written(tmp_path, monkeypatch):
    """A gradient overflows in the very step after which a state is due: its loss was still finite."""
    real, calls = kflow.velocity.KFlow.loss, []

    def poisoned(self, *arguments):
        calls.append(1)
        losses = real(self, *arguments)
        return Overflow.apply(losses) if len(calls) == 32 else losses

    monkeypatch.setattr(kflow.velocity.KFlow, "loss", poisoned)
    with pytest.raises(FloatingPointError, match="at step 32"):
        train(tiny(), tmp_path / "run", progress=False)
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["000000016"]


def test_an_absurd_learning_rate_stops_with_a_message(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(tiny(learning_rate=1e30).to_dict()))
    with pytest.raises(
        SystemExit, match=r"error: the loss is (nan|inf) .* at step \d+, k = 0\.\d+, band [01]: stopped"
    ):
        main([str(path), f"folder={tmp_path / 'run'}"])


# --- the command line


def test_the_command_line(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(tiny().to_dict()))
    main([str(path), f"folder={tmp_path / 'run'}", "images=32", "learning_rate=1e-3", "cuts=null", "betas=[0.9, 0.99]"])
    experiment = load_model(tmp_path / "run" / "model")[1]
    assert (experiment.images, experiment.learning_rate, experiment.betas) == (32, 0.001, (0.9, 0.99))
    assert f"{tmp_path / 'run' / 'model'}: loss " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: python -m kflow.train EXPERIMENT.yaml"),
        (["seed=1"], "usage"),
        (["x.yaml", "seed"], "usage"),
        (["nowhere.yaml"], "error: .*nowhere.yaml"),
        (["x.yaml", "sede=1"], "error: there is no parameter 'sede' .*allowed are name, data"),
        (["x.yaml", "seed=one"], "error: seed is 'one', allowed is int"),
        (["x.yaml", "betas=[0.9"], "error: "),
        (["x.yaml", "data=letters"], "error: data is 'letters', allowed are digits, faces, faces32, cifar10"),
        (["x.yaml", "network=DiT-H/2"], "error: network is 'DiT-H/2', allowed are DiT-SIZE/PATCH"),
        (["x.yaml", "wavelet=db99"], "error: wavelet is 'db99'"),
    ],
)
def test_the_command_line_says_what_is_wrong_and_writes_nothing(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kflow.train, "RUNS", tmp_path / "runs")
    Path("x.yaml").write_text(yaml.safe_dump(tiny().to_dict()))
    with pytest.raises(SystemExit, match=says) as error:
        main(arguments)
    assert "Traceback" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.yaml"]


# --- the machine


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": "two"}, "accelerator is 'cpu', devices is 'two', num_nodes is 1, strategy is 'auto': .*int > 0"),
        ({"strategy": "all"}, "devices is 'auto', num_nodes is 1, strategy is 'all': .*invalid strategy name"),
        pytest.param(
            {"accelerator": "gpu"}, "accelerator is 'gpu', devices is 'auto', .*No supported gpu", marks=NO_GPU
        ),
    ],
)
def test_a_machine_that_is_not_this_one_is_an_error_that_names_what_was_asked(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        train(tiny(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_precision_auto_is_bf16_only_where_it_is_native(monkeypatch):
    assert choose_precision(tiny(precision="bf16-mixed")) == "bf16-mixed"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choose_precision(tiny(precision="auto")) == "32-true"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision(tiny(precision="auto")) == "bf16-mixed"


@pytest.mark.parametrize("compiles", [True, "auto"])
def test_without_a_compiler_nothing_is_compiled_and_it_says_so(tmp_path, monkeypatch, capsys, compiles):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not choose_compile(tiny(compile=compiles, images=1_000_000))
    assert "There is no C++ compiler" in capsys.readouterr().err
    compiler = tmp_path / ("clang++" if sys.platform == "darwin" else "g++")
    compiler.touch(mode=0o755)
    assert choose_compile(tiny(compile=compiles, images=1_000_000))
    assert not choose_compile(tiny(compile="auto", images=1000)), "a short run does not repay it"
    assert not choose_compile(tiny(compile=False, images=1_000_000))
    monkeypatch.setenv("CXX", "c++-of-another-name")
    assert not choose_compile(tiny(compile=compiles, images=1_000_000))


def test_a_run_without_a_compiler_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    finished = train(tiny(compile=True, images=32), tmp_path / "run", progress=False)
    assert finished.card["compiled"] is False and "There is no C++ compiler" in capsys.readouterr().err


@pytest.mark.parametrize("decomposition", ["identity", "fourier", "meyer", "pca"])
def test_every_decomposition_trains_and_comes_back(tmp_path, decomposition):
    bands = {"bands": 1, "schedule": "linear"} if decomposition == "identity" else {}
    finished = train(tiny(images=32, decomposition=decomposition, **bands), tmp_path / "run", progress=False)
    model, experiment, _ = load_model(finished.folder / "model")
    assert experiment.decomposition == decomposition and np.isfinite(finished.card["loss"])
    assert model.path.decomposition.bands == experiment.bands


# --- a real process, killed

#: Kills itself at its n-th fsync, that is in the middle of writing a checkpoint.
AT_FSYNC = """
import os, signal, sys
real, left = os.fsync, [int(sys.argv[1])]
def fsync(file):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(file)
os.fsync = fsync
from kflow.train import main
main(sys.argv[2:])
"""


def start(command: list[str], yaml_file: Path, folder: Path, threads: int = 1) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, *command, str(yaml_file), f"folder={folder}"]
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder.parent
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]


def kill_when(process: subprocess.Popen, folder: Path, pattern: str, delay: float) -> None:
    """SIGKILL, some time after something appeared in the folder."""
    while process.poll() is None and not any(folder.glob(pattern)):
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [
        "32-true",
        pytest.param("bf16-mixed", marks=pytest.mark.skipif(not bf16_is_native("cpu"), reason="bf16 is not native")),
    ],
)
def test_a_killed_run_ends_in_the_same_weights(tmp_path, precision):
    experiment = tiny(network="DiT-nano/8", images=1600, precision=precision, checkpoint_images=160)
    path, folder = tmp_path / "x.yaml", tmp_path / "killed"
    path.write_text(yaml.safe_dump(experiment.to_dict()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    never = train(experiment, tmp_path / "never", progress=False)
    torch.set_num_threads(threads)

    choose = random.Random(0)
    # In the middle of the second checkpoint: of each, four files are synced.
    process = start(["-c", AT_FSYNC, str(4 + choose.randint(2, 3))], path, folder)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert sorted(p.name for p in (folder / "state").iterdir()) == [".000000020.part", "000000010"]
    if precision == "32-true":
        # At any moment of a later step, and while the finished model is written.
        kill_when(start(["-m", "kflow.train"], path, folder), folder, "state/0*40", choose.uniform(0, 0.05))
        assert not (folder / "model").exists()
        kill_when(start(["-m", "kflow.train"], path, folder), folder, ".model.part", choose.uniform(0, 0.003))
    last = start(["-m", "kflow.train"], path, folder)
    finish(last)

    assert_same_weights(never.folder, folder)
    log = read_log(folder)
    assert log["step"].tolist() == never.log["step"].tolist()
    np.testing.assert_allclose(log["loss"], never.log["loss"], rtol=1e-6)
    assert not (folder / "state").exists() or (folder / "model").exists()
    assert load_model(folder / "model")[2]["precision"] == precision


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="nothing is compiled without a C++ compiler")
def test_a_killed_run_ends_in_the_same_weights_compiled_and_on_two_threads(tmp_path):
    # Threads that add up gradients in whatever order they come would show here.
    experiment = Experiment(images=1280, checkpoint_images=320, compile=True)
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(experiment.to_dict()))
    finish(start(["-m", "kflow.train"], path, tmp_path / "never", threads=2))
    process = start(["-c", AT_FSYNC, "7"], path, tmp_path / "killed", threads=2)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    finish(start(["-m", "kflow.train"], path, tmp_path / "killed", threads=2))
    assert load_model(tmp_path / "never" / "model")[2]["compiled"]
    assert_same_weights(tmp_path / "never", tmp_path / "killed")
