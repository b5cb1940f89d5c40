"""What the pages load from other hosts, kept beside them: MathJax, require.js and the widgets of Jupyter.

Each package comes from the npm registry while the book is built, in the version that is named here, so that the
finished book works with the network off. Without npm the pages load the same versions from a public CDN.
"""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "book" / "_build" / ".vendor"
CDN = "https://cdn.jsdelivr.net/npm/"
# By package: version, and which files. MathJax brings its fonts, rarer TeX commands and what reads formulas aloud.
PACKAGES = {
    "mathjax": ("3.2.2", ("es5/tex-mml-chtml.js", "es5/output/chtml/", "es5/input/tex/", "es5/a11y/", "es5/sre/")),
    "requirejs": ("2.3.7", ("require.js",)),
    "@jupyter-widgets/html-manager": ("1.0.6", ("dist/embed-amd.js",)),
}
MATHJAX, REQUIRE, WIDGETS = PACKAGES


def unpack(package, version, parts, folder):
    """Files of an npm package into a folder: each part, or all below one with a final slash. Whether npm gave them."""
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
                if member.isfile() and any(name == part or part[-1] == "/" and name.startswith(part) for part in parts):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(archive.extractfile(member).read())
    return True


def choose_addresses(app, config):
    """Where the pages find each file: beside them if npm gave it, else at the CDN."""
    addresses = {}
    for package, (version, parts) in PACKAGES.items():
        folder = f"{package.removeprefix('@')}-{version}"
        if (CACHE / folder / parts[0]).exists() or unpack(package, version, parts, CACHE / folder):
            addresses[package] = f"vendor/{folder}/{parts[0]}"
        else:
            addresses[package] = f"{CDN}{package}@{version}/{parts[0]}"
    config.mathjax_path = addresses[MATHJAX]
    # The widget manager looks elsewhere only for widgets that are not Jupyter's own; these pages have none.
    config.nb_ipywidgets_js = {addresses[REQUIRE]: {}, addresses[WIDGETS]: {"data-jupyter-widgets-cdn": CDN}}


def copy_files(app):
    """Put what npm gave into _static/vendor of an HTML build."""
    if app.builder.format == "html" and CACHE.exists():
        shutil.copytree(CACHE, Path(app.outdir) / "_static" / "vendor", dirs_exist_ok=True)


def setup(app):
    """Register the hooks; addresses are chosen before MyST-NB and MathJax read their settings."""
    app.connect("config-inited", choose_addresses, priority=100)
    app.connect("builder-inited", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
