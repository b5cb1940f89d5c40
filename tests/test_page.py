"""The book in a real browser, without network: every page loads, and the one without a kernel draws as PyTorch does."""

import importlib.util
import json
import os
import shutil
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kflow.checkpoint import load_model, save_model
from kflow.data import to_uint8
from kflow.experiment import Experiment
from kflow.networks import Autoencoder
from kflow.sample import sample
from kflow.steer import Steered, compose_noise, draw_noise
from kflow.storage import CHECKPOINTS

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Set where a skipped test would hide a fault: KFLOW_BROWSER by .ci/run, to "book" once the book is built.
MUST, MUST_BOOK = bool(os.environ.get("KFLOW_BROWSER")), os.environ.get("KFLOW_BROWSER") == "book"
BOOK = ROOT / "book" / "_build" / "html"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM and not MUST, reason="there is no Chromium here (Debian: apt install chromium)"),
    pytest.mark.skipif(not shutil.which("npm") and not MUST, reason="there is no npm here to get onnxruntime-web with"),
]
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<link rel="stylesheet" href="_static/steer/steer.css"><div id="kflow-steer"></div>
<script type="module" src="_static/steer/steer.js"></script>"""
NAME = "digits-db6"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@contextmanager
def opened(browser, site: Path, **options):
    """A page that reaches this folder and no other host; what goes wrong is kept in ``page.errors``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, errors = f"http://127.0.0.1:{server.server_port}", []

    def refuse(route):
        errors.append(f"asked for {route.request.url}")
        route.abort()

    page = browser.new_page(**options)
    page.route(lambda url: not url.startswith((address, "data:", "blob:")), refuse)
    page.on("console", lambda m: errors.append(f"{m.text} ({m.location['url']})") if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.address, page.errors = address, errors
    yield page
    page.close()
    server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page without a kernel, as the book has it."""
    site = tmp_path_factory.mktemp("site")
    sys.path.insert(0, str(ROOT / "book" / "_extensions"))
    spec = importlib.util.spec_from_file_location("steer_extension", ROOT / "book/_extensions/steer.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=site)
    extension.prepare(
        app,
        {
            NAME: "db6",
            "digits-lfm": "ordinary flow matching, with a title too long for a phone",
            "faces32-db6": "faces",
        },
    )
    (site / "steer.html").write_text(PAGE)
    return site


@pytest.fixture(scope="module")
def latents(site):
    """A model in the latents of an autoencoder, both untrained, added to the page's: its name, it, the autoencoder."""
    from steer import export

    from kflow import storage
    from kflow.data import registry

    torch.manual_seed(0)
    name, data, autoencoder = "colours", "cifar10-latents", Autoencoder((3, 32, 32), factor=2, width=16, depth=1)
    autoencoder.eval().requires_grad_(False)
    experiment = Experiment(name=name, data=data, network="DiT-nano/4")
    model = experiment.make_model().eval()
    torch.nn.init.normal_(model.network.final_layer.linear.weight, std=0.05)  # or it would predict that nothing moves
    page = site / "_static" / "steer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "CHECKPOINTS", site / "checkpoints")
        known = replace(registry.DATA[data], autoencoder=lambda: autoencoder)
        patch.setitem(registry.DATA, data, known)
        save_model(model, experiment, storage.CHECKPOINTS / name)
        size = export(name, page)
    models = json.loads((page / "models.json").read_text())
    models["models"][name] = {"title": "latents", "bytes": size}
    (page / "models.json").write_text(json.dumps(models))
    return name, load_model(site / "checkpoints" / name)[0], autoencoder


@pytest.fixture(scope="module")
def page(browser, site):
    """It, with the model loaded."""
    with opened(browser, site, viewport={"width": 400, "height": 900}) as page:
        page.goto(f"{page.address}/steer.html#seeds=7,8&label=3")
        page.wait_for_selector(".kflow-load")
        assert not page.get_by_label("run it on the graphics card").is_visible(), "there is none here"
        page.click(".kflow-load")
        finished(page)
        yield page


def finished(page):
    page.wait_for_selector("#kflow-steer[data-state=finished]", timeout=60_000)


def picture(page) -> np.ndarray:
    return np.array(page.evaluate("Array.from(window.kflow.frames().at(-1).state)")).reshape(1, 1, 32, 32)


def set_seed(page, band: int, seed: int):
    page.locator("input[type=number]").nth(band).fill(str(seed))
    finished(page)


def reference(model, low: int, high: int, **options) -> torch.Tensor:
    noises = [draw_noise(seed, (1, 32, 32)) for seed in (low, high)]
    noise = compose_noise(model.path.decomposition, noises)
    return sample(model, noise, torch.tensor([3]), **{"steps": 30, "guidance_scale": 1.5, **options}).data


def test_the_browser_draws_what_pytorch_draws(page):
    model = load_model(CHECKPOINTS / NAME)[0]
    set_seed(page, 0, 7)
    set_seed(page, 1, 8)
    assert np.abs(picture(page) - reference(model, 7, 8).numpy()).max() < 1e-2
    assert not page.errors


def test_a_seed_changes_the_picture_and_comes_back_with_it(page):
    set_seed(page, 1, 8)
    first = picture(page)
    set_seed(page, 1, 99)
    assert np.abs(picture(page) - first).max() > 0.1
    assert "seeds=7%2C99" in page.url
    set_seed(page, 1, 8)
    assert np.array_equal(picture(page), first)


def test_a_band_that_is_kept_keeps_its_noise(page):
    """New noise in every band that is not kept: the low band starts as it was, and what is drawn is another picture."""
    ruler = load_model(CHECKPOINTS / NAME)[0].path.decomposition
    look = "Array.from(window.kflow.frames()[0].state)"
    before, first = (torch.tensor(page.evaluate(look)).view(1, 1, 32, 32), picture(page))
    page.get_by_label("keep the low noise").check()
    page.get_by_role("button", name="new noise in every band that is not kept").click()
    finished(page)
    after = torch.tensor(page.evaluate(look)).view(1, 1, 32, 32)
    change = ruler.split(after - before).flatten(1).abs().amax(1)
    assert change[0] < 1e-5 and change[1] > 0.1 and np.abs(picture(page) - first).max() > 0.1
    page.get_by_label("keep the low noise").uncheck()
    set_seed(page, 1, 8)
    assert np.array_equal(picture(page), first)


def test_the_band_that_moves_is_marked(page):
    moving = page.locator(".kflow-bar .kflow-moving")
    for frame, name in ((3, ["low band moves"]), (15, ["high band moves"]), (30, [])):
        page.get_by_label("look at").fill(str(frame))
        assert moving.all_inner_texts() == name


def test_localised_sampling_is_the_librarys(page):
    box = page.get_by_label("localised")
    box.check()
    finished(page)
    model = Steered(load_model(CHECKPOINTS / NAME)[0], localised=True)
    assert np.abs(picture(page) - reference(model, 7, 8).numpy()).max() < 1e-2
    box.uncheck()
    finished(page)


def test_the_class_dropped_on_the_way(page):
    slider = page.get_by_label("class dropped at k")
    slider.focus()
    for _ in range(14):  # 1 → 0.3 by the keyboard
        slider.press("ArrowLeft")
    finished(page)
    model = load_model(CHECKPOINTS / NAME)[0]
    assert np.abs(picture(page) - reference(model, 7, 8, drop_class_at=0.3).numpy()).max() < 1e-2
    for _ in range(14):
        slider.press("ArrowRight")
    finished(page)


def test_the_scrubber_looks_at_any_k(page):
    canvas = page.locator("canvas")
    last = canvas.evaluate("c => c.toDataURL()")
    page.get_by_label("look at").fill("0")
    assert canvas.evaluate("c => c.toDataURL()") != last
    assert "at k = 0.00" in canvas.get_attribute("aria-label")
    page.get_by_label("look at").fill("30")
    assert canvas.evaluate("c => c.toDataURL()") == last


def test_another_model_and_what_of_it_moves(page):
    bar, choice = page.locator(".kflow-bar"), page.locator("#kflow-steer select").first
    assert bar.inner_text().split("\n") == ["low band moves", "high band moves"]
    choice.select_option("digits-lfm")
    finished(page)
    assert bar.inner_text() == "everything moves at once"
    model, ruler = load_model(CHECKPOINTS / "digits-lfm")[0], load_model(CHECKPOINTS / NAME)[0].path.decomposition
    noise = compose_noise(ruler, [draw_noise(seed, (1, 32, 32)) for seed in (7, 8)])
    expected = sample(model, noise, torch.tensor([3]), steps=30, guidance_scale=1.5).data.numpy()
    assert np.abs(picture(page) - expected).max() < 1e-2
    choice.select_option(NAME)
    finished(page)


def test_a_model_without_classes(page):
    """Faces: no control speaks of classes, and the picture is PyTorch's."""
    choice = page.locator("#kflow-steer select").first
    choice.select_option("faces32-db6")
    finished(page)
    text = page.locator("#kflow-steer").inner_text()
    assert "guidance" not in text and "class" not in text and "low noise" in text
    model = load_model(CHECKPOINTS / "faces32-db6")[0]
    noise = compose_noise(model.path.decomposition, [draw_noise(seed, (1, 32, 32)) for seed in (7, 8)])
    assert np.abs(picture(page) - sample(model, noise, steps=30).data.numpy()).max() < 1e-2
    choice.select_option(NAME)
    finished(page)
    assert not page.errors


def test_latents_are_decoded(browser, site, latents):
    name, model, autoencoder = latents
    with opened(browser, site) as page:
        page.goto(f"{page.address}/steer.html#model={name}&seeds=7,8&label=3&steps=6")
        page.click(".kflow-load")
        finished(page)
        last = "Array.from(window.kflow.frames().at(-1).{})"
        state, drawn = (np.array(page.evaluate(last.format(key)), np.float32) for key in ("state", "picture"))
        noise = compose_noise(model.path.decomposition, [draw_noise(seed, (4, 16, 16)) for seed in (7, 8)])
        expected = sample(model, noise, torch.tensor([3]), steps=6, guidance_scale=1.5).data
        assert np.abs(state.reshape(1, 4, 16, 16) - expected.numpy()).max() < 1e-2
        image = autoencoder.decode(expected)
        assert np.abs(drawn.reshape(1, 3, 32, 32) - image.numpy()).max() < 1e-2
        assert (image.amax(1) - image.amin(1)).max() > 0.05, "a picture with colours"
        pixels = "c => Array.from(c.getContext('2d').getImageData(0, 0, 32, 32).data)"
        painted = np.array(page.locator("canvas").evaluate(pixels)).reshape(32, 32, 4)[..., :3]
        assert np.abs(painted - to_uint8(image)[0].permute(1, 2, 0).numpy()).max() <= 2
        assert not page.errors


def test_on_the_graphics_card_it_draws_the_same(playwright, site):
    """WebGPU, computed by SwiftShader where there is no card, slowly: hence four steps."""
    flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
    with opened(browser, site) as page:
        page.goto(f"{page.address}/steer.html#seeds=7,8&label=3&steps=4")
        page.get_by_label("run it on the graphics card").check()
        assert "(30 MB)" in page.locator(".kflow-load").inner_text()
        page.click(".kflow-load")
        finished(page)
        assert page.locator("#kflow-steer [role=status]").inner_text().endswith("on the graphics card")
        model = load_model(CHECKPOINTS / NAME)[0]
        assert np.abs(picture(page) - reference(model, 7, 8, steps=4).numpy()).max() < 1e-2
        assert not page.errors
    browser.close()


def test_it_fits_a_phone(page):
    inside = (
        "Array.from(document.querySelectorAll('#kflow-steer *')).every(e => e.getBoundingClientRect().right <= 400)"
    )
    assert page.evaluate(inside)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    ("missing", "reason", "clicks"),
    [
        ("WebAssembly", "it has no WebAssembly", False),
        ("models.json", "", False),
        (f"{NAME}-step.onnx", "", True),
        ("ort.wasm.min.mjs", "ort.wasm.min.mjs", True),
        ("ort-wasm-simd-threaded.wasm", "", True),
    ],
)
def test_where_the_model_cannot_run_the_page_says_so_and_shows_a_grid(browser, site, missing, reason, clicks):
    with opened(browser, site) as page:
        if missing == "WebAssembly":
            page.add_init_script("delete globalThis.WebAssembly")
        page.route(f"**/{missing}", lambda route: route.abort())
        page.goto(f"{page.address}/steer.html")
        if clicks:
            page.click(".kflow-load")
        page.wait_for_selector("#kflow-steer[data-state=failed]", timeout=60_000)
        text = page.locator("#kflow-steer [role=status]").inner_text()
        assert text.startswith("The model does not run in this browser: ") and reason in text
        grid = page.locator("#kflow-steer img")
        grid.evaluate("image => image.decode()")
        assert grid.evaluate("image => image.naturalWidth") > 300 and "each row" in grid.get_attribute("alt")
        assert page.locator("#kflow-steer input").count() == 0, "no control that answers nothing"


def test_the_cluster_turns_and_moves_without_a_kernel(browser, tmp_path):
    """Page 10's view: the slider moves the molecules, arrow keys turn them, and both are seen."""
    from kflow_book.assembly import interactive_view
    from kflow_book.crystals import pyxtal_crystals

    crystal = pyxtal_crystals().test[0]
    view = interactive_view(crystal, torch.stack([crystal.starts[0], crystal.final]), ["k = 0", "crystal"])
    (tmp_path / "view.html").write_text(f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">{view}')
    with opened(browser, tmp_path) as page:
        page.goto(f"{page.address}/view.html")
        canvas, look = page.locator("canvas"), "c => c.toDataURL()"
        start = canvas.evaluate(look)
        page.get_by_label("step of the way").fill("1")
        moved = canvas.evaluate(look)
        assert page.locator(".kflow-assembly span").inner_text() == "crystal"
        canvas.press("ArrowLeft")
        turned = canvas.evaluate(look)
        canvas.press("ArrowRight")
        assert len({start, moved, turned}) == 3 and canvas.evaluate(look) == moved
        page.get_by_label("step of the way").fill("0")
        assert canvas.evaluate(look) == start and not page.errors


@pytest.mark.skipif(not BOOK.exists() and not MUST_BOOK, reason="the book is not built here: make book")
def test_every_page_of_the_book_loads_without_network(browser):
    """No error on the console, no request to another host, every formula set, every widget drawn."""
    paths = sorted(path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html") if "_static" not in path.parts)
    assert {"intro.html", "steer.html", "notebooks/06_steering.html", "api.html"} <= set(paths)
    faults, formulas = [], 0
    with opened(browser, BOOK) as page:
        for path in paths:
            page.goto(f"{page.address}/{path}", wait_until="networkidle")
            expected = page.locator(".math").count()
            if expected:
                page.wait_for_function("window.MathJax?.startup?.promise?.then(() => true)")
            formulas += expected
            found = page.evaluate("document.querySelectorAll('mjx-container').length")
            page.errors += [f"{expected - found} formulas are not set"] * (found < expected)
            page.errors += page.evaluate("Array.from(document.querySelectorAll('mjx-merror'), e => e.textContent)")
            views = page.locator("script[type='application/vnd.jupyter.widget-view+json']").count()
            if views:
                page.wait_for_selector(".jupyter-widgets", timeout=10_000)
            faults += [f"{path}: {error}" for error in page.errors]
            page.errors.clear()
    assert not faults, "\n".join(faults)
    assert formulas > 100
