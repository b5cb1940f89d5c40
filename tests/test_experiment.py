"""Parameters of a run: what is impossible is an error that names the key, its value and what is allowed."""

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kflow.amplitude import PCA, Fourier, Identity, Meyer, Wavelet
from kflow.data import load_data
from kflow.experiment import CHOICES, HARDWARE, NOT_NEGATIVE, POSITIVE, READ_BY, Experiment, bf16_is_native
from kflow.flow import HardBump, Linear, SoftBump

EXPERIMENTS = sorted((Path(__file__).parents[1] / "notebooks" / "experiments").rglob("*.yaml"))
KEYS = [field.name for field in dataclasses.fields(Experiment)]
SHAPE = (1, 32, 32)

IMPOSSIBLE = [
    ("data", 3, "str"),
    ("name", None, "str"),
    ("conditional", 1, "bool"),
    ("conditional", "yes", "bool"),
    ("label_dropout", 1.0, "0 up to, not including, 1"),
    ("label_dropout", -0.1, "0 up to, not including, 1"),
    ("label_dropout", True, "float"),
    ("decomposition", "wavelets", "identity, fourier, wavelet, meyer, pca"),
    ("bands", 0, "positive"),
    ("bands", 2.0, "int"),
    ("bands", True, "int"),
    ("bands", "two", "int"),
    ("bands", 1, "2 or more"),
    ("cuts", 0.5, "tuple"),
    ("cuts", ["a"], "float"),
    ("schedule", "bump", "linear, hard, soft"),
    ("connection", "quintic", "cubic, meyer, linear"),
    ("intervals", [1, 2, 3], "2 positive numbers"),
    ("intervals", [1, -1], "2 positive numbers"),
    ("order", "up", "low-to-high, high-to-low"),
    ("soft_width", 0, "positive"),
    ("soft_degree", 0, "positive"),
    ("soft_degree", 1.5, "int"),
    ("draw_k", "uniform", "k, w"),
    ("output", "noise", "velocity, displacement"),
    ("loss_bands", "none", "all, active"),
    ("images", 0, "positive"),
    ("images", 1e5, "int"),
    ("batch_size", -1, "positive"),
    ("learning_rate", 0, "positive"),
    ("learning_rate", math.nan, "float"),
    ("learning_rate", math.inf, "float"),
    ("learning_rate", "fast", "float"),
    ("learning_rate", [1e-3], "float"),
    ("learning_rate_decay", "linear", "none, cosine"),
    ("warmup_images", -1, "0 or more"),
    ("betas", [0.9], "two numbers"),
    ("betas", [0.9, 1.0], "two numbers"),
    ("betas", 0.9, "tuple"),
    ("weight_decay", -0.1, "0 or more"),
    ("clip_norm", 0.0, "positive"),
    ("ema_decay", 1, "0 up to, not including, 1"),
    ("seed", -1, "0 or more"),
    ("seed", None, "int"),
    ("precision", "fp16", "auto, 32-true, bf16-mixed"),
    ("compile", "always", "True, False, auto"),
    ("compile", 1, "bool | str"),
    ("checkpoint_images", 0, "positive"),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("key", "value", "allowed"), IMPOSSIBLE, ids=lambda x: str(x)[:12])
def test_impossible_values_are_short_errors(tmp_path, key, value, allowed):
    path = write(tmp_path, yaml.safe_dump({key: value}))
    with pytest.raises(ValueError) as error:
        Experiment.load(path)
    message = str(error.value)
    shown = str(value[-1] if isinstance(value, list) else value)
    assert message.startswith(f"{key} is ") and shown in message and "allowed" in message and allowed in message
    assert "\n" not in message and len(message) < 200


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1).filter(lambda key: key not in KEYS), st.integers() | st.text() | st.none())
def test_unknown_keys_are_errors_that_list_the_known_ones(key, value):
    with pytest.raises(ValueError) as error:
        Experiment.make(**{key: value})
    message = str(error.value)
    assert repr(key) in message and repr(value) in message and all(known in message for known in KEYS)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(POSITIVE + NOT_NEGATIVE)), st.integers(max_value=-1) | st.floats(max_value=-1e-9))
def test_no_length_or_rate_is_negative(key, value):
    with pytest.raises(ValueError, match=f"^{key} is "):
        Experiment.make(**{key: value})


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CHOICES)), st.text(max_size=8))
def test_choices_are_exactly_those_listed(key, value):
    if value not in CHOICES[key]:
        with pytest.raises(ValueError, match=f"^{key} is "):
            Experiment.make(**{key: value})


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KEYS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=2), x, max_size=2),
        max_leaves=4,
    ),
)
def test_any_yaml_value_is_taken_or_refused_by_its_key(key, value):
    try:
        experiment = Experiment.make(**{key: value})
    except ValueError as error:
        assert key.removeprefix("soft_") in str(error)
    else:
        taken = getattr(experiment, key)
        assert taken == (tuple(value) if isinstance(value, list) else float(value) if type(taken) is float else value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "list"),
        ("just words", "str"),
        ("a: [1, 2", "not YAML"),
        ("bands: 2\n\tschedule: hard", "not YAML"),
        ("1: 2", "there is no parameter '1'"),
        ("cls: 2", "there is no parameter 'cls'"),
        ("lr: 0.1", "there is no parameter 'lr' (value 0.1), allowed are name, data"),
    ],
)
def test_files_that_hold_no_parameters_are_errors(tmp_path, text, says):
    with pytest.raises(ValueError) as error:
        Experiment.load(write(tmp_path, text))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_values_of_the_library_are_checked_where_they_are_used():
    for changes, says in [
        ({"wavelet": "db99"}, "wavelet is 'db99'"),
        ({"wavelet": "bior2.2"}, "bior2.2"),
        ({"boundary": "zero"}, "boundary is 'zero'"),
        ({"bands": 7}, "64"),
        ({"decomposition": "fourier", "cuts": [0.5, 0.4], "bands": 3}, "cuts is"),
        ({"decomposition": "fourier", "cuts": [0.5], "bands": 3}, "cuts is"),
    ]:
        with pytest.raises(ValueError, match=says):
            Experiment.make(**changes).make_decomposition(SHAPE)
    for changes, says in [
        ({"network": "DiT-Z/2"}, "network is 'DiT-Z/2'"),
        ({"data": "letters"}, "data is 'letters', allowed are digits, faces, faces32, cifar10"),
        ({"output": "displacement", "loss_bands": "active"}, "loss_bands is 'active'"),
    ]:
        with pytest.raises(ValueError, match=says):
            Experiment.make(**changes).make_model()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cuts": [0.3]}, r"cuts is \(0.3,\), allowed for decomposition wavelet is None"),
        ({"decomposition": "fourier", "wavelet": "nonsense"}, "wavelet is 'nonsense', .* fourier is 'db6'"),
        ({"decomposition": "meyer", "boundary": "zero"}, "boundary is 'zero', .* meyer is 'periodization'"),
        ({"schedule": "linear", "intervals": [1, 2, 3]}, r"intervals is \(1.0, 2.0, 3.0\), .* schedule linear is None"),
        ({"schedule": "linear", "connection": "nonsense"}, "connection is 'nonsense', .* linear is 'cubic'"),
        ({"schedule": "linear", "order": "upside"}, "order is 'upside', .* linear is 'low-to-high'"),
        ({"schedule": "soft", "connection": "meyer"}, "connection is 'meyer', .* soft is 'cubic'"),
        ({"soft_width": 0.3}, "soft_width is 0.3, .* schedule hard is 0.5"),
        ({"schedule": "linear", "soft_degree": 3}, "soft_degree is 3, .* schedule linear is 2"),
    ],
)
def test_what_nothing_reads_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Experiment.make(**values)
    for name, (choice, *choices) in READ_BY.items():  # the names are those of keys and choices
        assert {name, choice} <= set(KEYS) and set(choices) <= {*CHOICES[choice], "graph"}


@pytest.mark.parametrize("data", ["celebahq", "church-latents"])
def test_without_classes_nothing_is_conditional(data):
    with pytest.raises(ValueError, match=f"conditional is True, allowed for data {data} is False"):
        Experiment(data=data).make_model()


def test_identity_has_one_band():
    with pytest.raises(ValueError, match="bands is 2, allowed for decomposition identity is 1"):
        Experiment(decomposition="identity")


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'", "1E-3"])
def test_numbers_as_people_write_them(tmp_path, text):
    assert Experiment.load(write(tmp_path, f"learning_rate: {text}")).learning_rate == 0.001


def test_whole_numbers_pass_as_floats_and_lists_as_tuples(tmp_path):
    experiment = Experiment.load(write(tmp_path, "weight_decay: 1\nintervals: [1, 2]\nbetas: [0.9, 0.95]"))
    assert (experiment.weight_decay, experiment.intervals, experiment.betas) == (1.0, (1.0, 2.0), (0.9, 0.95))
    assert isinstance(experiment.weight_decay, float)


def test_changes_win_over_the_file(tmp_path):
    path = write(tmp_path, "seed: 1\nname: a")
    assert Experiment.load(path, seed=2) == Experiment(name="a", seed=2)
    assert Experiment.load(write(tmp_path, "")) == Experiment()
    with pytest.raises(ValueError, match="there is no parameter 'sede'"):
        Experiment.load(path, sede=2)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_committed_experiment_loads_and_comes_back(path, tmp_path):
    experiment = Experiment.load(path)
    assert experiment.name == path.stem, "a run lives in runs/NAME: two files must not share one"
    again = Experiment.load(write(tmp_path, yaml.safe_dump(experiment.to_dict())))
    assert again == experiment and again.hash == experiment.hash
    assert experiment.make_schedule().bands == experiment.bands
    if experiment.decomposition not in ("pca", "graph"):  # which take a fit, or a batch of clusters
        assert experiment.make_decomposition(SHAPE).bands == experiment.bands


def test_there_are_experiments():
    assert EXPERIMENTS


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**40),
            "bands": st.integers(2, 4),
            "learning_rate": st.floats(1e-8, 1),
            "ema_decay": st.floats(0, 0.9999),
            "name": st.text(min_size=1, max_size=5),
            "schedule": st.sampled_from(CHOICES["schedule"]),
            "compile": st.sampled_from(CHOICES["compile"]),
        },
    )
)
def test_experiments_come_back_from_yaml(values):
    experiment = Experiment(**values)
    text = yaml.safe_dump(experiment.to_dict())
    again = Experiment.make(**yaml.safe_load(text))
    assert again == experiment and again.hash == experiment.hash


def test_the_hash_ignores_the_machine_and_nothing_else():
    other = {
        "accelerator": "cpu", "devices": 2, "num_nodes": 3, "strategy": "ddp", "precision": "32-true", "compile": False,
        "checkpoint_images": 7, "name": "x", "data": "y", "conditional": False, "label_dropout": 0.2,
        "network": "DiT-S/2", "decomposition": "fourier", "bands": 3, "wavelet": "haar", "boundary": "orthogonalized",
        "cuts": (0.3,), "schedule": "soft", "connection": "meyer", "intervals": (1, 3), "order": "high-to-low",
        "soft_width": 0.6, "soft_degree": 3, "draw_k": "w", "output": "displacement", "loss_bands": "active",
        "images": 7, "batch_size": 7, "learning_rate": 0.5, "learning_rate_decay": "none", "warmup_images": 7,
        "betas": (0.8, 0.9), "weight_decay": 0.1, "clip_norm": 2.0, "ema_decay": 0.5, "seed": 7, "micro_batch": 4,
    }  # fmt: skip
    assert other.keys() == set(KEYS), "a new parameter needs a line here"
    for key, value in other.items():
        base = Experiment(**dict([READ_BY[key][:2]] if key in READ_BY else []))
        changed = dataclasses.replace(base, **{key: value})
        assert (changed.hash == base.hash) == (key in HARDWARE), key


def test_only_the_machine_may_differ_between_a_run_and_its_continuation():
    assert set(HARDWARE) == {
        "accelerator", "devices", "num_nodes", "strategy", "precision", "compile", "checkpoint_images",
        "micro_batch",
    }  # fmt: skip


def test_what_an_experiment_builds():
    pictures = load_data("digits")
    kinds = {"fourier": Fourier, "wavelet": Wavelet, "meyer": Meyer, "pca": PCA}
    for name, kind in kinds.items():
        decomposition = Experiment(decomposition=name).make_decomposition(SHAPE, pictures)
        assert type(decomposition) is kind and decomposition.bands == 2 and decomposition.shape == SHAPE
    assert type(Experiment(decomposition="identity", bands=1).make_decomposition(SHAPE)) is Identity
    for name, kind in {"linear": Linear, "hard": HardBump, "soft": SoftBump}.items():
        assert type(Experiment(schedule=name).make_schedule()) is kind
    torch.manual_seed(0)
    model = Experiment(network="DiT-nano/8", bands=3, output="displacement").make_model(pictures)
    assert (model.output, model.loss_bands, model.network.classes, model.path.bands) == ("displacement", "all", 10, 3)
    assert model.path.schedule.joins == pytest.approx((1 / 3, 2 / 3))
    assert Experiment(network="DiT-nano/8", conditional=False).make_model(pictures).network.classes == 0
    given = Fourier(SHAPE, 2)
    assert Experiment(network="DiT-nano/8").make_model(pictures, given).path.decomposition is given


def test_an_experiment_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().seed = 1


@pytest.mark.parametrize(
    ("limit", "native"),
    [(None, True), ("ALL", True), ("AVX512_CORE_BF16", True), ("AVX512_CORE_FP16", True), ("AVX512_CORE_AMX", True),
     ("avx2", False), ("AVX512_CORE", False), ("SSE41", False), ("AVX512_CORE_VNNI", False)],
)  # fmt: skip
def test_bf16_is_native_where_the_processor_has_it_and_may_use_it(monkeypatch, limit, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setitem(os.environ, "ONEDNN_MAX_CPU_ISA", limit)
    assert bf16_is_native() is native
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not bf16_is_native()
