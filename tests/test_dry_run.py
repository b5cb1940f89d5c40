"""The dry run: what it counts, against torch on small networks, and what it finds; the paper's experiments pass it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from kflow.data import describe_data
from kflow.experiment import AssemblyExperiment, Experiment
from kflow.flow import HardBump, Linear
from kflow.networks import make_network
from kflow_book import dry_run
from kflow_book.dry_run import GPUS, UTILISATION, estimate, find_problems, look_at, main
from kflow_book.paper_runs import list_expected, show_number

ROOT = Path(__file__).parents[1]
PAPER = sorted((ROOT / "notebooks" / "experiments" / "paper").glob("*.yaml"))
ROWS = yaml.safe_load((ROOT / "notebooks" / "paper_rows.yaml").read_text())


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_experiments_pass_the_dry_run(path, monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", "/nowhere")
    monkeypatch.delenv("KFLOW_VAE", raising=False)
    experiment = Experiment.load(path)
    found = estimate(experiment)
    assert experiment.name == path.stem and "hours on" in str(found)
    # The data are not here, and that is all there is to say.
    assert found.problems and all("/nowhere" in p or "KFLOW_VAE is not set" in p for p in found.problems)
    assert sum(found.memory.values()) < min(memory for *_, memory in GPUS.values())
    count, epochs = describe_data(experiment.data).count, {"celebahq": 500, "imagenet": 900, "church": 600, "cod": 100}
    wanted = 500 if experiment.network == "ADM-church" else epochs[path.stem.split("-")[0]]
    assert experiment.images / count == pytest.approx(wanted, rel=0.005)


def test_the_papers_settings_are_those_of_its_tables():
    found = {path.stem: Experiment.load(path) for path in PAPER}
    for name, learning_rate, batch, gpus in (("celebahq", 2e-4, 32, 2), ("imagenet", 1e-4, 240, 16)):  # Table 4
        for experiment in (e for key, e in found.items() if key.startswith(name) and "adm" not in key):
            assert (experiment.network, experiment.learning_rate, experiment.betas) == (
                "DiT-L/2", learning_rate, (0.9, 0.999),
            )  # fmt: skip
            assert experiment.devices * experiment.num_nodes == gpus and experiment.batch_size == gpus * batch
    for name, experiment in found.items():
        if isinstance(experiment, AssemblyExperiment):
            continue
        assert experiment.conditional == (name.split("-")[0] == "imagenet") and experiment.output == "velocity"
        assert type(experiment.make_schedule()) is (Linear if "-lfm" in name else HardBump)
        assert experiment.bands == (1 if "-lfm" in name else 3 if "three-bands" in name else 2)
        if experiment.decomposition != "pca":
            assert experiment.make_decomposition((4, 32, 32)).bands == experiment.bands
    assert found["imagenet-db6-reversed"].order == "high-to-low" and found["imagenet-db6"].order == "low-to-high"
    assert len({experiment.hash for experiment in found.values()}) == len(found)


def test_every_row_of_the_papers_tables_has_its_experiment_and_every_experiment_a_row():
    assert set(ROWS) == {"Table 1", "Table 2", "Table 5", "Table 6", "Table 7", "E.7", "Table 9", "Table 11"}
    named = [name for rows in ROWS.values() for name in rows.values()]
    assert set(named) == {path.stem for path in PAPER}
    for table, rows in ROWS.items():
        for name in rows.values():
            first = (ROOT / "notebooks/experiments/paper" / f"{name}.yaml").read_text().splitlines()[0]
            assert table.removeprefix("Table ") in first, (table, name)


def test_what_the_paper_prints_is_listed_for_every_run():
    expected = list_expected()
    assert {run for run, _ in expected.index} == {path.stem for path in PAPER}
    printed = {
        ("imagenet-lfm", "paper-guided", "recall"): 0.42,  # Table 2; 0.45 in Table 6
        ("celebahq-lfm-adm", "paper-unconditional", "FID"): 5.82,
        ("church-lfm-adm", "paper-unconditional", "recall"): 0.39,
        ("celebahq-lfm-adm", "paper-nfe", "evaluations"): 85,
        ("celebahq-db6", "paper-nfe", "evaluations"): 78,
        ("cod-cluster17-10k-kflow", "paper-packing", "PM (center), Å"): 6.12,
    }
    assert {key: expected.loc[key[:2], key[2]] for key in printed} == printed


def test_small_numbers_are_not_shown_as_nothing():
    assert [show_number(x) for x in (0.0, 0.002, 0.0533, 5239.02)] == ["0.0", "below 0.1", "0.1", "5,239.0"]


@pytest.mark.parametrize(("network", "classes"), [("DiT-nano/4", 0), ("DiT-nano/4", 10), ("ADM-micro", 3)])
def test_flops_are_those_that_torch_counts_forth_and_back(network, classes):
    parameters, forward, _ = look_at(network, (4, 16, 16), 2, classes, 8, True)
    with torch.device("meta"):
        model = make_network(network, (4, 16, 16), 2, classes)
        labels = (torch.empty(8, dtype=torch.long),) if classes else ()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(8, 4, 16, 16), torch.empty(8), torch.empty(8, 2), *labels).square().mean().backward()
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (1 + dry_run.BACKWARD) * forward == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_activations_grow_with_the_samples_at_a_time_and_shrink_in_half_precision():
    def kept(batch, half=True):
        return look_at("DiT-nano/2", (4, 32, 32), 2, 0, batch, half)[2]

    assert kept(64) - kept(32) == kept(96) - kept(64) > 0
    # A block keeps at least its input, two normalised copies, queries, keys and values, and the wide layer, but never
    # the attention matrix, which alone is 4 · 256² numbers for each of 4 blocks.
    per_sample = (kept(64, False) - kept(32, False)) / 32
    assert 4 * 4 * 256 * 96 * 10 < per_sample < 4 * 4 * (256 * 96 * 30 + 4 * 256**2)
    assert kept(64) < kept(64, False)


def test_hours_and_memory_follow_from_the_setting():
    base = Experiment(
        data="celebahq-latents", conditional=False, network="DiT-nano/2", batch_size=64, images=640_000, devices=2,
        strategy="ddp",
    )  # fmt: skip
    first, change = estimate(base), partial(replace, base)
    assert first.steps == 10_000 and first.gpus == 2
    assert first.hours["A100"] == pytest.approx(10_000 * first.flops / (2 * UTILISATION * 312e12) / 3600)
    assert first.disk["latents"] == 2 * 27_000 * 4 * 32 * 32 * 2
    nodes = estimate(change(num_nodes=4))
    assert nodes.gpus == 8 and nodes.hours["H100"] == pytest.approx(first.hours["H100"] / 4)
    assert nodes.memory["activations"] < first.memory["activations"]
    single, sharded = estimate(change(devices=1)), estimate(change(strategy="fsdp"))
    assert first.memory["gradients"] == 2 * single.memory["gradients"] == 8 * first.parameters
    assert sharded.memory["weights"] == first.memory["weights"] / 2
    assert estimate(change(micro_batch=8)).memory["activations"] < first.memory["activations"]
    slow = estimate(change(precision="32-true"))
    assert slow.hours["A100"] == pytest.approx(first.hours["A100"] * 312 / 19.5)
    assert any(
        "batch_size is 64, allowed are multiples of the 3 GPUs" in p for p in estimate(change(devices=3)).problems
    )
    large = estimate(change(network="DiT-S/2", batch_size=4096)).problems
    assert any("set micro_batch" in p for p in large)


def test_problems_are_found_before_a_gpu_is_touched(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KFLOW_DATA", str(tmp_path))
    monkeypatch.setenv("KFLOW_VAE", str(tmp_path / "vae"))
    experiment = Experiment(data="imagenet-latents", network="DiT-nano/8", devices=1)
    text = "\n".join(find_problems(experiment, {"latents": 1e18, "checkpoints": 0}))
    for words in (
        "python -m kflow_book.pictures imagenet-latents",
        "none of train.lmdb",
        "KFLOW_VAE: no autoencoder",
        "are needed",
    ):
        assert words in text
    assert "conditional is True, celebahq-latents has no classes" in "\n".join(
        find_problems(Experiment(data="celebahq-latents"), {"latents": 0, "checkpoints": 0})
    )
    clusters = Experiment.load(ROOT / "notebooks/experiments/paper/cod-cluster17-all-kflow.yaml")
    assert "there are no clusters in" in "\n".join(find_problems(clusters, {"latents": 0, "checkpoints": 0}))
    with pytest.raises(SystemExit) as stopped:
        main([str(PAPER[0]), "network=DiT-nano/8"])
    assert stopped.value.code == 1
    assert "problem: there are no latents in" in capsys.readouterr().out
    for arguments, says in (([], "usage"), ([str(PAPER[0]), "network=DiT-Z/2"], "network is 'DiT-Z/2'")):
        with pytest.raises(SystemExit, match=says):
            main(arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_memory_and_throughput_on_a_gpu():
    """A training step of DiT-B/2: its memory is within a fifth of the estimate, its speed what hardware can do."""
    shape, batch = (4, 32, 32), 64
    parameters, forward, kept = look_at("DiT-B/2", shape, 2, 0, batch, True)
    model = make_network("DiT-B/2", shape, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    state, k, weights = torch.randn(batch, *shape).cuda(), torch.rand(batch).cuda(), torch.rand(batch, 2).cuda()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(state, k, weights).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        step()
    end.record()
    torch.cuda.synchronize()
    # Weights and moments are there all the time; gradients come while activations go.
    peak, expected = torch.cuda.max_memory_allocated(), 12 * parameters + kept
    assert expected / 1.2 < peak < 1.2 * (expected + 4 * parameters)
    speed, device = 3 * forward * 10 / (start.elapsed_time(end) / 1e3), torch.cuda.get_device_name()
    peak = next((flops for name, (flops, *_) in GPUS.items() if name in device), max(gpu[0] for gpu in GPUS.values()))
    assert (0.1 * peak if any(name in device for name in GPUS) else 0) < speed < peak
