"""What Jupyter Book's settings cannot say about this book: five short hooks for Sphinx.

1. Executed notebooks are kept in a cache, and the cache knows only a notebook's own cells. A notebook here calls the
   library and loads checkpoints, so the cache lives in a folder named after a digest of those files too: change one of
   them and every page is executed again; change none and a build executes nothing.
2. `book/notebooks` is a link to `notebooks`. A link to a page's source has to name the real folder, since a hosted
   repository does not follow links inside an address.
3. Launch buttons and source links need the repository's public address. _config.yml has one or none:
   it turns all of them on or off.
4. A record that is missing or stale stops the build, which says why: no page shows a number whose inputs have changed.
5. Docstrings write shapes and sizes plainly, (batch, *shape) and |k|; reStructuredText would read both as markup.
"""

import hashlib
import re
import shutil
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

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
    app.connect("html-page-context", link_to_real_folder, priority=900)
    app.connect("autodoc-process-docstring", escape_shapes, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
