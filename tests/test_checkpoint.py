"""Checkpoints appear whole or not at all, are checked when read, overwrite nothing, and are never pickles."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

import kflow.storage
from kflow.checkpoint import load_model, promote, save_model
from kflow.experiment import Experiment
from kflow.sample import sample
from kflow.storage import CARD, WEIGHTS, file_hash, flatten_state, nest_state, read_folder, write_folder

TENSORS = {
    "a.safetensors": {"x": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)},
    "b.safetensors": {"y": torch.randn(100, generator=torch.Generator().manual_seed(0))},
}


def random_model(**changes):
    experiment = Experiment(**{"network": "DiT-nano/8", **changes})
    torch.manual_seed(0)
    model = experiment.make_model()
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if name != "pos_embed":
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), experiment


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its experiment and its checkpoint; a test that damages the checkpoint copies it first."""
    model, experiment = random_model()
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, experiment, folder, loss=0.25, images=7)
    return model, experiment, folder


@pytest.fixture
def copy(saved, tmp_path):
    for path in saved[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_folder_comes_back(tmp_path):
    write_folder(tmp_path / "deep" / "folder", TENSORS, {"step": 3})
    tensors, card = read_folder(tmp_path / "deep" / "folder", "step")
    assert card["step"] == 3 and tensors.keys() == TENSORS.keys() == card["files"].keys()
    for name, values in TENSORS.items():
        assert card["files"][name] == file_hash(tmp_path / "deep" / "folder" / name)
        assert all(torch.equal(tensors[name][key], value) for key, value in values.items())


def test_what_an_optimizer_remembers_comes_back():
    weights = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = torch.optim.AdamW(weights)
    sum(w.square().sum() for w in weights).backward()
    optimizer.step()
    found, expected = nest_state(flatten_state(optimizer)), optimizer.state_dict()["state"]
    assert found.keys() == expected.keys() == {0, 1}
    for index, state in expected.items():
        assert found[index].keys() == state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(found[index][name], value) for name, value in state.items())


def test_tensors_that_are_views_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    write_folder(tmp_path / "f", {"a.safetensors": {"t": base.T, "part": base[1:]}}, {})
    (tensors,) = read_folder(tmp_path / "f")[0].values()
    assert torch.equal(tensors["t"], base.T) and torch.equal(tensors["part"], base[1:])


@pytest.mark.parametrize("call", ["save_file", "file_hash", "os.fsync", "os.replace"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch, call, count):
    module, _, name = call.rpartition(".")
    module = os if module else kflow.storage
    real, calls = getattr(module, name), []

    def fails_later(*arguments):
        calls.append(name)
        if len(calls) > count:
            assert not (tmp_path / "f").exists()
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, name, fails_later)
    if call == "os.replace" and count:
        write_folder(tmp_path / "other", TENSORS, {})
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "f", TENSORS, {})
    assert not (tmp_path / "f").exists()
    monkeypatch.undo()
    write_folder(tmp_path / "f", TENSORS, {})  # what the interrupted write left is no obstacle
    assert read_folder(tmp_path / "f")[0].keys() == TENSORS.keys()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_existing_folder_is_never_replaced(tmp_path):
    write_folder(tmp_path / "f", TENSORS, {"first": True})
    with pytest.raises(OSError):
        write_folder(tmp_path / "f", TENSORS, {"first": False})
    assert read_folder(tmp_path / "f")[1]["first"]


def test_a_model_comes_back_to_the_bit(saved):
    model, experiment, folder = saved
    again, loaded, card = load_model(folder)
    assert loaded == experiment and card["loss"] == 0.25 and card["images"] == 7
    assert card["parameters"] == sum(p.numel() for p in model.network.parameters())
    assert card["experiment"] == json.loads(json.dumps(experiment.to_dict()))
    assert all(torch.equal(value, again.network.state_dict()[k]) for k, value in model.network.state_dict().items())
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    noise, labels = torch.randn(2, 1, 32, 32), torch.tensor([1, 2])
    assert torch.equal(sample(again, noise, labels, steps=2).data, sample(model, noise, labels, steps=2).data)


def test_half_precision_halves_the_file_and_loads_as_float32(saved, tmp_path):
    model, experiment, folder = saved
    save_model(model, experiment, tmp_path / "half", half=True)
    sizes = [(place / WEIGHTS).stat().st_size for place in (folder, tmp_path / "half")]
    assert sizes[1] < 0.52 * sizes[0]
    again, *_ = load_model(tmp_path / "half")
    for name, value in again.network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.network.state_dict()[name].half().float())
    save_model(again, experiment, tmp_path / "twice", half=True)
    assert file_hash(tmp_path / "twice" / WEIGHTS) == file_hash(tmp_path / "half" / WEIGHTS)


def test_a_pca_model_comes_back_with_its_components(tmp_path, monkeypatch):
    model, experiment = random_model(decomposition="pca", bands=3, cuts=[0.1, 0.4])
    save_model(model, experiment, tmp_path / "m")
    monkeypatch.setattr("kflow.amplitude.PCA.fit", None)  # it is loaded, not fitted again
    again, *_ = load_model(tmp_path / "m")
    x = torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(again.path.decomposition.split(x), model.path.decomposition.split(x), atol=1e-5, rtol=0)
    assert again.path.decomposition.bands == 3
    assert torch.equal(again.path.decomposition.band_index, model.path.decomposition.band_index)
    (tmp_path / "m" / "pca.safetensors").unlink()
    with pytest.raises(ValueError, match="pca.safetensors is missing"):
        load_model(tmp_path / "m")


def test_nothing_is_overwritten(saved):
    model, experiment, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other, _ = random_model(seed=1)
    with pytest.raises(FileExistsError, match=f"{re.escape(str(folder))} exists: .*nothing is overwritten"):
        save_model(other, experiment, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_missing_checkpoint_says_how_to_train_one(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="there is no checkpoint in .*nowhere: train one with notebooks/03_train"
    ):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "one bit", "longer"])
def test_damaged_weights_are_named(copy, damage):
    path = copy / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "truncated": path.read_bytes()[:-1],
                "empty": b"",
                "one bit": bytes(content),
                "longer": path.read_bytes() + b"x",
            }[damage]
        )
    left = {p.name: p.read_bytes() for p in copy.iterdir()}
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is missing, truncated or changed"):
        load_model(copy)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == left


@pytest.mark.parametrize("text", ["", "{", '{"files": {', "[1]", "3", "{}", '{"files": {}}', "null"])
def test_a_damaged_card_is_named(copy, text):
    (copy / CARD).write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(copy / CARD))):
        load_model(copy)


def test_a_card_that_vouches_for_no_safetensors_file(copy):
    (copy / WEIGHTS).write_bytes(b"not tensors")
    card = json.loads((copy / CARD).read_text())
    card["files"][WEIGHTS] = file_hash(copy / WEIGHTS)
    (copy / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="model.safetensors is no safetensors file"):
        load_model(copy)


def test_weights_of_another_experiment_are_an_error(copy):
    card = json.loads((copy / CARD).read_text())
    card["experiment"]["network"] = "DiT-micro/8"
    (copy / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="model.safetensors does not fit its experiment"):
        load_model(copy)
    card["experiment"]["lr"] = 1
    (copy / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="there is no parameter 'lr'"):
        load_model(copy)


def test_nothing_is_ever_unpickled():
    root = Path(kflow.__file__).parent
    unsafe = re.compile(r"pickle|torch\.(load|save)\b|joblib|np\.load|load_state_dict_from_url|torch\.hub")
    plain = re.compile(r"np\.load\(.*, allow_pickle=False\)")  # arrays of numbers and names, nothing else
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unsafe.search(plain.sub("", line))
    ]
    assert not found, found


def test_what_is_written_is_safetensors_and_json(saved):
    names = sorted(path.name for path in saved[2].iterdir())
    assert names == [CARD, WEIGHTS]
    assert b"pickle" not in (saved[2] / WEIGHTS).read_bytes()[:100]


def test_promotion_halves_the_weights_keeps_the_facts_and_overwrites_nothing(saved, tmp_path):
    model, experiment, folder = saved
    (tmp_path / "run").mkdir()
    os.symlink(folder, tmp_path / "run" / "model")
    target = promote(tmp_path / "run", tmp_path / "kept")
    promoted, found, card = load_model(target)
    assert found == experiment and card["loss"] == 0.25 and card["images"] == 7 and card["weights"] == "float16"
    assert (target / WEIGHTS).stat().st_size < 0.6 * (folder / WEIGHTS).stat().st_size
    for name, value in model.network.state_dict().items():
        assert torch.equal(promoted.network.state_dict()[name], value.half().float())
    with pytest.raises(FileExistsError, match="kept"):
        promote(tmp_path / "run", target)
