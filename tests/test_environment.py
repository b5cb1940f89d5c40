"""The environment is written down three times, for three tools; the three must say the same."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def canonical(requirement: str) -> str:
    """Package name of a requirement, in the normal form in which names are compared (PEP 503)."""
    name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.strip())[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for() -> dict[str, list[str]]:
    """The requirements in pyproject.toml: the library's own, and those of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"library": project["dependencies"], **project["optional-dependencies"]}


def pins() -> dict[str, str]:
    """Name and exact version of each line of constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonical(line): line.split("==")[1] for line in lines if line}


def conda_environment() -> tuple[list[str], list[str]]:
    """What environment.yml asks of conda, and what of pip."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (item["pip"] for item in dependencies if isinstance(item, dict))
    return [item for item in dependencies if isinstance(item, str)], pip


def test_every_constraint_is_one_exact_version():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    lines = [line for line in lines if line]
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*", line)]
    assert not odd, f"not of the form name==version: {odd}"
    assert len({canonical(line) for line in lines}) == len(lines), "a package is pinned twice"


def test_every_direct_dependency_is_pinned():
    missing = {canonical(item) for group in asked_for().values() for item in group} - pins().keys()
    assert not missing, f"in pyproject.toml but not in constraints.txt: {sorted(missing)}"


def test_conda_installs_what_pyproject_asks_for():
    groups = asked_for()
    wanted = {canonical(item) for extra in ("library", "book", "test") for item in groups[extra]}
    _, pip = conda_environment()
    listed = [canonical(item) for item in pip if not item.startswith("-")]
    assert len(listed) == len(set(listed)), "a package is listed twice in environment.yml"
    assert set(listed) == wanted
    assert pip[-1] == "-e .", "the library itself comes last"
    assert "-c constraints.txt" in pip, "what the listed packages pull in is pinned too"


def test_conda_installs_the_pinned_versions():
    _, pip = conda_environment()
    pinned = pins()
    for item in pip:
        if not item.startswith("-"):
            assert item == f"{item.split('==')[0]}=={pinned[canonical(item)]}"


def test_conda_brings_a_python_that_pyproject_admits():
    conda, _ = conda_environment()
    (python,) = (item for item in conda if item.startswith("python="))
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    version = python.split("=")[1]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, lowest.split(".")))


def test_the_pins_satisfy_the_ranges():
    pinned = pins()
    for group in asked_for().values():
        for item in group:
            version = pinned[canonical(item)]
            assert Requirement(item).specifier.contains(version), f"{item} is asked for, {version} is pinned"


def test_the_library_is_thin():
    """At most 4,500 lines, of which decompositions, flow, training and sampling at most 1,200."""
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "kflow").rglob("*.py")}
    core = ("kflow/amplitude", "kflow/flow", "kflow/train.py", "kflow/sample.py")
    assert sum(lines.values()) < 4500
    assert sum(n for path, n in lines.items() if path.relative_to(ROOT).as_posix().startswith(core)) <= 1200


def test_the_published_book_is_tested_as_here():
    """The workflow runs the targets of .ci/run, and publishes what `make book` builds."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    steps = workflow["jobs"]["test-and-build"]["steps"]
    commands = [re.findall(r"make (\w+)", step["run"]) for step in steps if "run" in step]
    assert [target for found in commands for target in found] == ["env", "lint", "test", "book", "test"]
    here = re.findall(r"^(?:KFLOW_BROWSER=book )?make (\w+)", (ROOT / ".ci/run").read_text(), re.M)
    assert here == ["env", "test", "book", "test"]
    (artifact,) = [step["with"]["path"] for step in steps if "upload-pages" in step.get("uses", "")]
    assert artifact == "book/_build/html"
    assert workflow["jobs"]["publish"]["needs"] == "test-and-build"
