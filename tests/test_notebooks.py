"""Every notebook runs in profile smoke, takes its parameters as documented, and is committed without outputs."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest

from kflow.storage import RUNS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = ("smoke", "companion", "paper")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_profile_smoke(path, tmp_path):
    parameters = {"profile": "smoke"}
    if path.stem == "03_train":
        parameters["name"] = f"test-{tmp_path.name}"
    try:
        papermill.execute_notebook(path, tmp_path / "out.ipynb", parameters, cwd=tmp_path, progress_bar=False)
    finally:
        shutil.rmtree(RUNS / f"test-{tmp_path.name}-smoke", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("00_features", {}),
        ("00_autoencoder", {}),
        ("14_faces", {"names": ["faces-db6"], "samples": 4, "steps": 4}),
        ("15_cifar10", {"names": ["cifar10-db6"], "per_class": 1, "steps": 4}),
    ],
)
def test_without_the_photographs_a_page_shows_its_records_and_says_so(name, parameters, tmp_path, monkeypatch):
    monkeypatch.setenv("KFLOW_DATA", "/nowhere")
    path, out = ROOT / f"notebooks/{name}.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(path, out, parameters, cwd=tmp_path, progress_bar=False)
    outputs = [output for cell in nbformat.read(out, as_version=4).cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert "are not here" in printed or name == "00_features"  # which shows no photograph, only numbers
    assert tables


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs_and_documents_its_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    lines = parameters.source.splitlines()
    assert any(line.startswith("profile = ") for line in lines)
    assert all(profile in parameters.source for profile in PROFILES)
    assert lines[0].startswith("#")


def shows_figure(code: ast.AST, functions: set[str]) -> bool:
    """Whether code calls ``figures.show``, ``display`` of something called figure, or one of these functions."""
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    displayed = [ast.unparse(x) for call in calls if ast.unparse(call.func) == "display" for x in call.args]
    called = {ast.unparse(call.func) for call in calls}
    return bool(called & {"figures.show", *functions}) or any(x.startswith("fig") for x in displayed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_alternative_text(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    parsed = [ast.parse(cell.source) for cell in cells]
    functions = [node for code in parsed for node in ast.walk(code) if isinstance(node, ast.FunctionDef)]
    showing = {function.name for function in functions if shows_figure(function, set())}
    for cell, code in zip(cells, parsed):
        if shows_figure(code, showing):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert alt.strip(), f"a figure without alternative text in the cell\n{cell.source}"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"wavlet": "db6"}, "there is no parameter 'wavlet'"), ({"wavelet": "bior2.2"}, "orthonormal")],
)
def test_training_notebook_refuses_a_wrong_parameter(parameters, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(
            ROOT / "notebooks/03_train.ipynb",
            tmp_path / "out.ipynb",
            {"profile": "smoke", "name": f"test-{tmp_path.name}", **parameters},
            progress_bar=False,
        )


def test_training_notebook_stops_after_the_dry_run(tmp_path):
    values = {"profile": "paper", "dry_run": True, "network": "DiT-nano/8", "name": f"test-{tmp_path.name}"}
    papermill.execute_notebook(
        ROOT / "notebooks/03_train.ipynb", tmp_path / "out.ipynb", values, cwd=tmp_path, progress_bar=False
    )
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    printed = "".join(out.get("text", "") for cell in cells if cell.cell_type == "code" for out in cell.outputs)
    assert "hours on" in printed and "images drawn" not in printed and not (RUNS / values["name"]).exists()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/experiments").rglob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_name_only_parameters_of_the_training_notebook(path):
    import yaml

    cells = nbformat.read(ROOT / "notebooks/03_train.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    known = {line.split(" = ")[0] for line in cell.source.splitlines() if " = " in line and not line.startswith("#")}
    assert set(yaml.safe_load(path.read_text())) <= known
    assert yaml.safe_load(path.read_text())["name"] == path.stem


def test_the_training_notebooks_defaults_are_those_of_the_library():
    from kflow.experiment import Experiment

    cells = nbformat.read(ROOT / "notebooks/03_train.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, values)
    given = {
        key: values[key] for key in values if not key.startswith("__") and key not in ("profile", "dry_run", "save")
    }
    assert Experiment.make(**given) == Experiment()
