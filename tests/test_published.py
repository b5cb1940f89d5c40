"""The LFM baseline's released checkpoints, here random ones in their format, are runs like others."""

import pytest
import torch
import yaml
from published_dit import published_forward, published_names

from kflow.checkpoint import load_model
from kflow.networks import make_dit
from kflow.networks.dit import SIZES
from kflow.sample import sample
from kflow_book.published import convert, load_release, main

SHAPE, HEADS = (1, 32, 32), 2


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    """A network of a size that no experiment has."""
    monkeypatch.setitem(SIZES, "tiny", (32, 2, HEADS))


def released(classes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict in the release's format: its names, its table of classes, its wrapper."""
    generator = torch.Generator().manual_seed(seed)
    weights = published_names(make_dit("DiT-tiny/8", SHAPE, classes=max(classes, 2)).state_dict())
    weights["y_embedder.embedding_table.weight"] = torch.empty(classes + 1 if classes > 1 else 1, 32)
    return {
        f"module.{name}": value if name == "pos_embed" else 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in weights.items()
    }


def their_velocity(weights, state, t, labels):
    """Of the release at time t, from data (0) to noise (1)."""
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    return published_forward(plain, state, t, labels, 8, HEADS, torch.zeros(1))


@pytest.fixture
def release(tmp_path):
    """A function that writes a released file and an experiment for it."""

    def write(classes: int) -> tuple[dict, list[str]]:
        weights = released(classes)
        torch.save(weights, tmp_path / "model_475.pth")
        values = {"name": "x", "network": "DiT-tiny/8", "conditional": classes > 1, "wavelet": "haar"}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
        return weights, [str(tmp_path / "model_475.pth"), str(tmp_path / "x.yaml"), f"folder={tmp_path / 'run'}"]

    return write


@pytest.mark.parametrize("classes", [1, 10])
def test_a_released_checkpoint_becomes_a_run(release, tmp_path, capsys, classes):
    weights, arguments = release(classes)
    main(arguments)
    assert capsys.readouterr().out.strip() == str(tmp_path / "run")
    model, experiment, card = load_model(tmp_path / "run" / "model")
    assert (experiment.network, experiment.name) == ("LFM-DiT-tiny/8", "lfm-released-digits")
    assert (experiment.bands, experiment.schedule, card["source"]) == (1, "linear", "model_475.pth")
    state, k = torch.randn(3, *SHAPE), torch.tensor([0.0, 0.3, 1.0])
    labels = torch.tensor([0, 3, 10]) if classes > 1 else None  # 10: the null label
    ours = model.velocity(state, k, labels)
    theirs = their_velocity(weights, state, 1 - k, torch.zeros(3, dtype=torch.long) if labels is None else labels)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, -theirs, atol=1e-5, rtol=1e-5)


def test_sampling_is_the_releases_euler(release, tmp_path):
    """From noise at t = 1 to data at t = 0, against their direction."""
    weights, arguments = release(1)
    main(arguments)
    noise = torch.randn(2, *SHAPE)
    state, steps, nobody = noise, 4, torch.zeros(2, dtype=torch.long)
    for step in range(steps):
        t = torch.full((2,), 1 - step / steps)
        state = state - their_velocity(weights, state, t, nobody) / steps
    found = sample(load_model(tmp_path / "run" / "model")[0], noise, steps=steps).data
    torch.testing.assert_close(found, state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("module.blocks.1.mlp.fc2.bias"), "missing .*blocks.1.mlp.fc2.bias"),
        (lambda w: w.update({"module.blocks.7.attn.qkv.bias": torch.zeros(1)}), "unknown .*blocks.7.attn.qkv.bias"),
        (lambda w: w.update({"module.pos_embed": torch.zeros(1, 4, 32)}), "another shape .*pos_embed"),
        (lambda w: w.update({"module.y_embedder.embedding_table.weight": torch.zeros(7, 32)}), "have 7 classes"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, says):
    weights = released(1)
    change(weights)
    with pytest.raises(ValueError, match=says):
        load_release(make_dit("LFM-DiT-tiny/8", SHAPE), weights)


def test_a_wrong_file_is_an_error_and_nothing_is_written(release, tmp_path):
    _, arguments = release(1)
    (tmp_path / "model_475.pth").write_bytes(b"<html>Too many downloads</html>")
    with pytest.raises(SystemExit, match="error: .*model_475.pth holds no weights"):
        main(arguments)
    with pytest.raises(SystemExit, match="error: .*No such file"):
        main(["nowhere.pth", *arguments[1:]])
    with pytest.raises(SystemExit, match="usage"):
        main(arguments[:1])
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(release, tmp_path):
    _, (file, path, _) = release(1)
    convert(file, path, tmp_path / "run")
    with pytest.raises(FileExistsError):
        convert(file, path, tmp_path / "run")


def test_the_released_sizes_have_a_name():
    with torch.device("meta"):
        celebahq, imagenet = make_dit("LFM-DiT-L/2", (4, 32, 32)), make_dit("LFM-DiT-B/2", (4, 32, 32), classes=1000)
    assert len(celebahq.blocks) == 24 and imagenet.y_embedder.embedding_table.weight.shape == (1001, 768)
