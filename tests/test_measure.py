"""Records are whole, fresh, and come out again: of every table one, drawn at random, is computed anew."""

import math
import random
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from kflow.checkpoint import load_model
from kflow.data import is_here, load_data
from kflow.experiment import choose_precision
from kflow.metrics import load_classifier
from kflow.records import RECORDS, Record
from kflow.restore import Blurring, degrade
from kflow.sample import sample
from kflow.storage import CHECKPOINTS, ROOT
from kflow_book import measure as measuring
from kflow_book import restoration
from kflow_book.measure import (
    Trained,
    find_fault,
    find_faults,
    load_measurements,
    measure,
    named_experiment,
    run_folder,
    wanted,
)
from kflow_book.protocols import generate_both
from kflow_book.tables import TABLES, get_value, read_cost, read_seeds, read_table, show_table

MEASUREMENTS = load_measurements()


def drawn(name: str) -> str:
    """A run of a measurement, drawn with its name as seed."""
    return random.Random(name).choice(MEASUREMENTS[name]["runs"])


def again(name: str, **changes) -> tuple[Record, Record]:
    """A record computed anew with some settings changed, and the one that is committed."""
    run = drawn(name)
    if not is_here(named_experiment(run).data):
        pytest.skip(f"the data of {run} are not here")
    return measure(name, run, **changes), Record.read(RECORDS / f"{run}-{name}.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unconditional", "conditional", "guided"])
def test_the_first_draw_of_a_fidelity_record(name):
    """Of ten draws the first: the noise of 500 samples is the beginning of that of 5,000."""
    changes = {"samples": 500} | ({"class_count": 50} if name == "guided" else {})
    now, record = again(name, **changes)
    values = now.values
    for part, committed in ((values, record.values), (values.get("dropped"), record.values.get("dropped"))):
        if part:
            assert part["fd"] == pytest.approx(committed["draws"]["fd"][0], rel=0.02)
            assert part["precision"] == pytest.approx(committed["draws"]["precision"][0], abs=0.02)
            assert part["recall"] == pytest.approx(committed["draws"]["recall"][0], abs=0.02)
    if name == "guided":
        assert values["cdr"] == pytest.approx(record.values["cdr_by_count"]["50"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "relative", "absolute"),
    [
        ("agreement", 0.01, 0.0),
        ("bands", 0.02, 0.002),
        ("trajectory", 0.02, 0.002),
        ("steering", 0.02, 0.01),
        ("nfe", 0.02, 0.5),
        ("localised", 0.05, 0.05),
    ],
)
def test_a_whole_record(name, relative, absolute):
    now, record = again(name)
    assert now.values.keys() == record.values.keys()
    if name == "bands" and now.machine["precision"] != record.machine["precision"]:  # bf16 there, not here
        absolute = 0.01
    for key, value in now.values.items():
        assert value == pytest.approx(record.values[key], rel=relative, abs=absolute), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [("dropping", {"points": [[1.5, 0.3]]}), ("restoration", {"tasks": ["denoising"]}), ("packing", {})],
)
def test_a_part_of_a_record(name, changes):
    """Some of what a record holds, computed anew; settings that were chosen must be the same."""
    now, record = again(name, **changes)
    values = now.values
    for key in values.keys() - {"distance_ratio"}:
        value, committed = values[key], record.values[key]
        if isinstance(value, dict):
            value, committed = list(value.values()), [committed[part] for part in value]
        if key == "chosen":
            assert value == committed
        else:
            assert value == pytest.approx(committed, rel=0.02, abs=0.01), key


def restored_again(name: str, task: str, **options) -> float:
    """PSNR on the validation images of a record's run, with its chosen settings or those given, and no search."""
    run = drawn(name)
    if not is_here(named_experiment(run).data):
        pytest.skip(f"the data of {run} are not here")
    model, data = load_model(run_folder(run))[0], load_data(named_experiment(run).data)
    _, make, noise_level = restoration.TASKS[task]
    operator, held = make(data.shape), restoration.validation_images(data, 20)
    peer, y = MEASUREMENTS[name].get("peer"), degrade(operator, held, noise_level, seed=1)
    method = restoration.plug_and_play_method(model, task)
    if peer:
        method = restoration.peer_method(model, peer, noise_level, [])
    chosen = options or Record.read(RECORDS / f"{run}-{name}.json").values["chosen"][task]
    return restoration.quality(method(y, operator, **chosen), held)["psnr"].mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["restoration-searched", "restoration-searched-others", "restoration-ot-ode"])
def test_the_chosen_settings_of_a_restoration_record(name):
    """What the search says of them, for one task, drawn."""
    psnr = Record.read(RECORDS / f"{drawn(name)}-{name}.json").values["validation_psnr"]
    task = random.Random(name).choice(sorted(psnr))
    assert restored_again(name, task) == pytest.approx(psnr[task], abs=0.02)


@pytest.mark.slow
def test_a_line_of_the_ablation_of_restoration():
    name, task = "restoration-ablation", "super_resolution"
    committed = Record.read(RECORDS / f"{drawn(name)}-{name}.json").values[f"{task}_psnr_by_change"]["denoiser"]
    base = {"start": 0.3, "steps": 20, "exponent": 0.0}
    for label, printed in (("ours", False), ("as cited in E.9", True)):
        assert restored_again(name, task, printed=printed, **base) == pytest.approx(committed[label], abs=0.02)


@pytest.mark.slow
def test_the_record_of_classical_restoration():
    values, committed = (
        found.values
        for found in (
            measure("digits-restoration-classical"),
            Record.read(RECORDS / "digits-restoration-classical.json"),
        )
    )
    assert values.keys() == committed.keys() and values["chosen"] == committed["chosen"]
    for name in values.keys() - {"chosen"}:
        for key, value in values[name].items():
            assert value == pytest.approx(committed[name][key], rel=1e-3), (name, key)


@pytest.mark.parametrize("width", [0.8, 1.0])
def test_richardson_lucy_knows_that_the_blur_is_periodic(width):
    """It commutes with rolling a picture round, and sharpens one whose content crosses the edge."""
    blur, noise = Blurring((1, 32, 32), width), torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    truth = (2 * blur(noise)).clamp(-1, 1)
    sharp, rolled = (restoration.richardson_lucy(blur(truth.roll(n, -1)), blur, 8) for n in (0, 9))
    torch.testing.assert_close(sharp.roll(9, -1), rolled, atol=1e-4, rtol=0)
    assert (sharp - truth).norm() < 0.8 * (blur(truth) - truth).norm()


@pytest.mark.slow
def test_the_beginning_of_a_curve():
    now, record = again("steps", evaluations=[2])
    for key, curve in now.values.items():
        assert curve["2"] == pytest.approx(record.values[key]["2"], rel=0.02), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-energy", "digits-calibration", "faces-energy"])
def test_a_record_of_real_data(name):
    data = load_measurements()[name]["data"]
    if not is_here(data):
        pytest.skip(f"the images of {data} are not here (python -m kflow.data prepare {data})")
    values, committed = measure(name).values, Record.read(RECORDS / f"{name}.json").values
    assert values.keys() == committed.keys()
    for key, value in values.items():
        if key == "norms":
            for name, norms in value.items():
                assert norms == pytest.approx(committed[key][name], rel=1e-4)
        else:
            assert value == pytest.approx(committed[key], rel=0.01), key


@pytest.mark.slow
def test_what_a_new_noise_at_the_join_changes():
    """The must-show of localised sampling, and one value written out with the sampler itself."""
    changes = {"samples": 20, "fidelity_samples": 500, "steps": 4}
    values = measure("localised", "digits-db6", **changes).values
    assert values.keys() == Record.read(RECORDS / "digits-db6-localised.json").values.keys()
    off = "low_off_high_redrawn_at"
    assert values[f"localised_{off}_join"] < 1e-4 < values[f"plain_{off}_join"] < values[f"plain_{off}_start"]
    assert values["leakage_localised"] < 1e-9 < values["leakage_plain"]
    assert values["plain_high_off_low_redrawn_at_join"] == 0, "the low band's noise is spent at the join"
    trained = Trained(*load_model(CHECKPOINTS / "digits-db6")[:2])
    bands = trained.model.path.decomposition
    first, second, third = trained.noise(60).split(20)
    half = sample(trained.model, first, steps=2, end=0.5).data
    new = half + bands.project(second - first, 1)
    ends = [sample(trained.model, state, steps=2, start=0.5).data for state in (half, new)]
    other = sample(trained.model, third, steps=4).data
    same, apart = (bands.project(ends[0] - x, 1).square().sum() for x in (ends[1], other))
    assert values["plain_high_kept_high_redrawn_at_join"] == pytest.approx(float(1 - same / apart), abs=0.03)


@pytest.mark.slow
def test_what_dropping_the_class_changes():
    changes = {"samples": 100, "class_count": 10, "steps": 4, "points": [[3.0, 0.5]]}
    values = measure("dropping", "digits-lfm", **changes).values
    trained, judge = (
        Trained(*load_model(CHECKPOINTS / "digits-lfm")[:2]),
        load_classifier(CHECKPOINTS / "digits-judge")[0],
    )
    noise, labels = trained.noise(100), torch.arange(100) % 10
    options = {"steps": 4, "guidance_scale": 3.0}
    kept, dropped = (sample(trained.model, noise, labels, drop_class_at=at, **options).data for at in (None, 0.5))
    distance = ((kept - dropped) ** 2).sum() / ((kept - kept[(torch.arange(100) - 10) % 100]) ** 2).sum()
    assert values["distance_3_0.5"] == pytest.approx(float(distance.sqrt()), rel=0.03)
    assert values["agreement_3_0.5"] == pytest.approx(float((judge(kept).argmax(1) == labels).float().mean()), abs=0.03)
    assert values["distance_ratio"] == 1, "there is one point, first and last"


def test_samples_with_the_class_kept_and_dropped_share_their_beginning():
    model, experiment, _ = load_model(CHECKPOINTS / "digits-db6")
    trained, options = Trained(model, experiment), {"steps": 10, "guidance_scale": 1.5}
    noise, labels = trained.noise(4), trained.labels(4)
    kept, dropped = generate_both(trained, labels, 0.3, **options)
    assert torch.equal(kept, trained.generate(noise, labels, **options))
    assert torch.equal(dropped, trained.generate(noise, labels, drop_class_at=0.3, **options))
    assert not torch.allclose(kept, dropped, atol=0.1)


def test_no_record_is_missing_or_stale():
    assert find_faults() == {}


def test_every_record_is_asked_for():
    asked = {f"{run}-{name}" if run else name for name, run in wanted()}
    assert {path.stem for path in RECORDS.glob("*.json")} <= asked


@pytest.fixture
def copied(tmp_path):
    """A folder with one good record."""
    record = Record.read(RECORDS / "digits-db6-bands.json")
    record.write(tmp_path)
    return tmp_path, record


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"data_hash": "other"}, "stale: its data_hash changed"),
        ({"experiment_hash": "other"}, "stale: its experiment_hash changed"),
        ({"checkpoint_hash": "other"}, "stale: its checkpoint_hash changed"),
        ({"settings": {"samples": 3}}, "stale: its settings changed"),
    ],
)
def test_what_makes_a_record_stale(copied, change, fault):
    folder, record = copied
    Record(**{**vars(record), **change}).write(folder)
    assert find_fault("bands", "digits-db6", folder) == fault


def test_a_missing_record_is_a_fault(tmp_path):
    assert find_fault("bands", "digits-db6", tmp_path) == "missing"
    assert len(find_faults(tmp_path)) == len(list(wanted()))


def test_runs_with_other_seeds_are_the_same_experiment_with_another_seed():
    first, second = named_experiment("digits-haar"), named_experiment("digits-haar-seed2")
    assert (second.seed, second.name) == (2, "digits-haar-seed2")
    differing = {key for key, value in first.to_dict().items() if value != second.to_dict()[key]}
    assert differing == {"seed", "name"}


def test_a_run_that_is_not_there_is_named_with_the_command_that_trains_it():
    assert run_folder("digits-lfm") == CHECKPOINTS / "digits-lfm"
    command = "python -m kflow.train notebooks/experiments/digits-lfm.yaml seed=99 name=digits-lfm-seed99"
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        run_folder("digits-lfm-seed99")


@pytest.mark.parametrize("arguments", [("condtional", "digits-lfm"), ("conditional",), ("digits-energy", "digits-lfm")])
def test_a_wrong_measurement_is_named(arguments):
    with pytest.raises(
        ValueError, match=f"measurement is {arguments[0]} .*allowed are unconditional RUN, .*digits-energy"
    ):
        measure(*arguments)


def test_a_record_says_how_its_samples_were_computed():
    machine = measure("nfe", "digits-db6", samples=2, tolerance=0.1).machine
    assert machine["precision"] == "32-true" and not machine["compiled"], "in float32, by the protocol"
    machine = measure("bands", "digits-db6", samples=2, steps=4).machine
    assert machine["precision"] == choose_precision(named_experiment("digits-db6")) and not machine["compiled"]


def test_weights_of_another_experiment_are_not_measured(monkeypatch):
    other = replace(named_experiment("digits-db6"), learning_rate=1e-3)
    monkeypatch.setattr(measuring, "named_experiment", lambda name: other)
    with pytest.raises(ValueError, match="holds a run with learning_rate = 0.006, asked is 0.001"):
        measure("bands", "digits-db6", samples=2, steps=4)


def test_a_run_of_ones_own_replaces_no_record_of_the_book(tmp_path):
    mine = tmp_path / "digits-lfm"
    shutil.copytree(CHECKPOINTS / "digits-lfm", mine)
    with pytest.raises(ValueError, match="is called digits-lfm, and so is a run of the book: give yours another name"):
        measuring.check_name("conditional", mine)
    measuring.check_name("conditional", "digits-lfm")


def test_a_table_is_means_over_seeds_beside_the_papers_numbers():
    table = read_table("table_1")
    records = read_seeds("digits-db6", "unconditional")
    mean = sum(record.values["fd"] for record in records.values()) / len(records)
    assert table.loc["K-Flow db6", "here (digits): FD (digits features)"] == pytest.approx(mean)
    assert table.loc["K-Flow db6", ["paper (CelebA-HQ 256): FID", "paper (CelebA-HQ 256): recall"]].tolist() == [
        4.99,
        0.46,
    ]
    assert math.isnan(table.loc["LDM", "here (digits): recall"]), "nothing measured: NaN"
    shown = show_table(table)
    assert shown.loc["LDM", ("here (digits)", "recall")] == "" and shown.loc["LDM", ("", "seeds")] == ""
    assert re.fullmatch(
        r"\d+\.\d\d( ±\s\d+\.\d\d)?", shown.loc["K-Flow db6", ("here (digits)", "FD (digits features)")]
    )


@pytest.mark.parametrize("name", yaml.safe_load(TABLES.read_text()))
def test_every_table_speaks_of_what_is_measured(name):
    table = yaml.safe_load(TABLES.read_text())[name]
    for row in table["rows"]:
        if "run" in row:
            measurement = row.get("measurement", table["measurement"])
            # A row that no trained model makes is a measurement of its own, RUN-MEASUREMENT.
            runs = MEASUREMENTS[measurement]["runs"]
            assert row["run"].partition("-seed")[0] in runs or f"{row['run']}-{measurement}" in MEASUREMENTS
    assert (ROOT / "notebooks" / "measurements.yaml").exists() and len(read_table(name)) == len(table["rows"])


def test_a_table_of_costs_is_the_records_ratios():
    table, cost = read_cost("digits-cost"), Record.read(RECORDS / "digits-cost.json")
    assert table.loc["db6", "sampling / LFM"] == f"{cost.values['sampling_digits-db6']:.3f}"
    low, high = cost.values["training_digits-db6_interval"]
    assert table.loc["db6", "training, interval"] == f"{low:.3f} to {high:.3f}"
    assert not table.loc["LFM", "sampling / LFM"], "the first model is compared with nothing"
    assert len(table) == len(cost.settings["models"]) and "" not in table["s, 50 samples"].tolist()


def test_values_inside_values():
    record = Record("n", {"a": {"b": 2.0}}, {"a": "share"}, 1, [0], "digits", "hash")
    assert get_value(record, "a/b") == 2.0
    assert get_value(record, "c") != get_value(record, "c")
