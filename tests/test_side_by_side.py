"""Notebooks of a build run side by side, each once; one that fails stops it with its traceback."""

import sys
from pathlib import Path

import nbformat
import pytest
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
# Each page waits until the other one has started: alone it would wait in vain.
MEETING = """import os, time
from pathlib import Path
print(os.environ["OMP_NUM_THREADS"], "threads")
Path("{name}.here").touch()
end = time.monotonic() + 60
while len(list(Path(".").glob("*.here"))) < 2 and time.monotonic() < end: time.sleep(0.05)
print("both" if len(list(Path(".").glob("*.here"))) == 2 else "alone")
with open("runs.txt", "a") as file: print("{name}", file=file)"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that builds pages, one code cell each, and returns their HTML and Sphinx's warnings."""
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_extensions"))
    import companion

    monkeypatch.setattr(companion, "check_records", lambda app: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    source = tmp_path / "book"
    source.mkdir()

    def run(**cells: str) -> tuple[dict[str, str], str]:
        for name, cell in cells.items():
            parts = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(cell)]
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(nbformat.v4.new_notebook(cells=parts, metadata=kernel), source / f"{name}.ipynb")
        config = {
            "extensions": ["myst_nb", "sphinx.ext.autodoc", "companion"],
            "root_doc": next(iter(cells)),
            "nb_execution_mode": "cache",
            "nb_execution_timeout": -1,
            "nb_execution_show_tb": True,
            "html_theme": "sphinx_book_theme",
        }
        with open(tmp_path / "warnings.txt", "w") as warnings:
            app = Sphinx(source, None, tmp_path / "html", tmp_path / "trees", "html", config, None, warnings)
            app.build(force_all=True)
        return {n: (tmp_path / "html" / f"{n}.html").read_text() for n in cells}, Path(warnings.name).read_text()

    yield run, source
    sys.modules.pop("companion", None)


@pytest.mark.slow
def test_two_at_a_time_and_each_once(build):
    run, source = build
    for _ in range(2):  # the second build takes both from the cache
        pages, _ = run(**{name: MEETING.format(name=name) for name in ("first", "second")})
        assert all("both" in page and " threads" in page for page in pages.values())
        assert sorted((source / "runs.txt").read_text().split()) == ["first", "second"]


@pytest.mark.slow
def test_what_fails_is_shown_with_its_traceback(build):
    run, _ = build
    pages, warnings = run(good="print(6 * 7)", bad="1 / 0")
    assert "42" in pages["good"] and "ZeroDivisionError" in warnings
