"""What Jupyter Book's settings cannot say about this book: six short hooks for Sphinx.

1. Executed notebooks are kept in a cache, and the cache knows only a notebook's own cells. A notebook here calls the
   library and loads checkpoints, so the cache lives in a folder named after a digest of those files too: change one of
   them and every page is executed again; change none and a build executes nothing.
2. `book/notebooks` is a link to `notebooks`. A link to a page's source has to name the real folder, since a hosted
   repository does not follow links inside an address.
3. Launch buttons and source links need the repository's public address. _config.yml has one or none:
   it turns all of them on or off.
4. A record that is missing or stale stops the build, which says why: no page shows a number whose inputs have changed.
5. Notebooks run two at a time, each on half of the cores: one page trains for minutes, and the others need not wait.
   What fails is run again by MyST-NB, which shows the traceback.
6. Docstrings write shapes and sizes plainly, (batch, *shape) and |k|; reStructuredText would read both as markup.
"""

import hashlib
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
# What a page's output depends on besides its own source. The rest of `figures/` is not among them: pages write it.
INPUTS = (
    "constraints.txt",
    "kflow/**/*.py",
    "notebooks/kflow_book/*.py",
    "notebooks/**/*.yaml",
    "checkpoints/**/*",
    "figures/records/**/*.json",
)
TOGETHER = 2  # notebooks
LONGEST = "03_train"  # so it starts first


def digest() -> str:
    """Hexadecimal digest of the Python version and of every file in INPUTS, names and contents."""
    total = hashlib.sha256(sys.version.encode())
    for path in sorted({path for pattern in INPUTS for path in ROOT.glob(pattern) if path.is_file()}):
        total.update(f"\0{path.relative_to(ROOT).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def choose_cache(app, config):
    """Point MyST-NB at this digest's cache and drop the caches of other digests."""
    caches = Path(app.outdir).parent / ".jupyter_cache"
    cache = caches / digest()
    if caches.is_dir():
        for old in caches.iterdir():
            if old != cache:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    # The setting is one of those that make Sphinx read every page again when they change.
    config.nb_execution_cache_path = str(cache)


def show_buttons(app, config):
    """With the repository's address all buttons that lead there, without it none."""
    options = config.html_theme_options
    options["use_repository_button"] = bool(options.get("repository_url"))
    if not options["use_repository_button"]:
        options["launch_buttons"] = {}


def check_records(app):
    """Stop if a record that the book shows is missing or stale."""
    from kflow_book.measure import find_faults

    faults = [f"{title}: {fault}" for title, (_, _, fault) in find_faults().items()]
    if faults:
        raise ExtensionError("\n".join(["records to be computed (make measure):", *faults]))


def run_notebooks(app, env, docnames):
    """Execute what the cache lacks and put it there, where MyST-NB finds it."""
    from jupyter_cache import get_cache
    from jupyter_cache.executors.utils import create_cache_bundle, single_nb_execution

    if app.config.nb_execution_mode != "cache":
        return
    cache, missing, log = get_cache(app.config.nb_execution_cache_path), [], logging.getLogger(__name__)
    for path in sorted(Path(env.doc2path(name)) for name in docnames):
        if path.suffix == ".ipynb":
            page = cache.get_project_notebook(cache.add_nb_to_project(str(path)).pk)
            try:
                cache.match_cache_notebook(page.nb)
            except KeyError:
                missing.append(page)
    missing.sort(key=lambda page: Path(page.uri).stem != LONGEST)

    def run(page):
        log.info(f"{Path(page.uri).name}: runs")
        return page, single_nb_execution(page.nb, str(Path(page.uri).parent), None, False)

    threads = os.environ.get("OMP_NUM_THREADS")  # for the kernels, which inherit it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // TOGETHER)))
    with ThreadPoolExecutor(TOGETHER) as pool:
        for number, future in enumerate(as_completed([pool.submit(run, page) for page in missing]), 1):
            page, result = future.result()
            how = "failed" if result.err else "done"
            log.info(f"{Path(page.uri).name}: {how} after {result.time:.0f} s, {number} of {len(missing)}")
            if not result.err:
                bundle = create_cache_bundle(page, result.cwd, None, result.time, None)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]


def link_to_real_folder(app, pagename, templatename, context, doctree):
    """In every header button's address, write notebooks/ for book/notebooks/."""

    def rewrite(buttons):
        for button in buttons:
            if "url" in button:
                button["url"] = button["url"].replace("/book/notebooks/", "/notebooks/")
            rewrite(button.get("buttons", ()))

    rewrite(context.get("header_buttons", ()))


def escape_shapes(app, what, name, obj, options, lines):
    """Escape the star of (batch, *shape) and the bars of |k|, outside of code and formulas."""
    math = None  # indentation of the .. math:: directive that the line is under
    for number, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if math is not None and line.strip() and indentation <= math:
            math = None
        if line.lstrip().startswith(".. math::"):
            math = indentation
        if math is None:
            parts = re.split(r"(`+[^`]*`+)", line)
            parts[::2] = [re.sub(r"(?<=[(\s])\*(?=\w+[,)])|(?<!\\)\|", r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def setup(app):
    """Register the hooks: links after the theme has made its buttons, docstrings after napoleon has read them."""
    app.connect("config-inited", choose_cache)
    app.connect("config-inited", show_buttons)
    app.connect("builder-inited", check_records)
    app.connect("env-before-read-docs", run_notebooks)
    app.connect("html-page-context", link_to_real_folder, priority=900)
    app.connect("autodoc-process-docstring", escape_shapes, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
