"""Launch buttons: none without the repository's address, and with it (one setting) links that name the real files."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_book.config import yaml_to_sphinx
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
ADDRESS = "https://github.com/someone/kflow"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that builds a book of one notebook with the real settings and an address, and returns the page."""
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_extensions"))
    import companion

    monkeypatch.setattr(companion, "check_records", lambda app: None)

    def run(address: str) -> str:
        settings = yaml.safe_load((ROOT / "_config.yml").read_text())
        settings["repository"]["url"] = address
        source = tmp_path / "book"
        (source / "notebooks").mkdir(parents=True)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page")])
        nbformat.write(notebook, source / "notebooks" / "page.ipynb")
        config = yaml_to_sphinx(settings)[0] | {
            "extensions": ["myst_nb", "sphinx.ext.autodoc", "companion"],
            "root_doc": "notebooks/page",
            "nb_execution_mode": "off",
            "html_theme": "sphinx_book_theme",
        }
        Sphinx(source, None, tmp_path / "html", tmp_path / "trees", "html", config, status=None, warning=None).build()
        return (tmp_path / "html" / "notebooks" / "page.html").read_text()

    yield run
    sys.modules.pop("companion", None)


def launch_links(page: str) -> list[str]:
    return [link for link in re.findall(r'href="(https://[^"]+)"', page) if "page.ipynb" in link]


def test_without_an_address_there_is_no_button(build):
    page = build("")
    assert "A page" in page and not launch_links(page)
    assert not re.search("mybinder|colab", page)


def test_the_address_alone_turns_on_binder_and_colab(build):
    links = launch_links(build(ADDRESS))
    assert "https://mybinder.org/v2/gh/someone/kflow/main?urlpath=lab/tree/notebooks/page.ipynb" in links
    assert "https://colab.research.google.com/github/someone/kflow/blob/main/notebooks/page.ipynb" in links


def test_the_committed_address_is_empty_or_on_github():
    """Binder and Colab open what is on GitHub; the address is written once."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert re.fullmatch(r"|https://github\.com/[\w.-]+/[\w.-]+", address)


def test_binder_finds_the_environment_where_it_looks():
    """repo2docker takes a folder binder/ or .binder/ instead of the root, if there is one."""
    assert (ROOT / "environment.yml").is_file()
    assert not any((ROOT / name).exists() for name in ("binder", ".binder", "runtime.txt", "Dockerfile"))
