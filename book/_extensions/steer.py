"""The page without a kernel: exports the models to ONNX, and puts them beside the page with the browser's runtime.

Models come from `checkpoints/`. The runtime is onnxruntime-web, taken from the npm registry while the book is built, so
that the finished pages need no network; without npm they load the same version from its public CDN.
"""

import hashlib
import json
import shutil
from pathlib import Path

from vendor import CDN, unpack

ROOT = Path(__file__).resolve().parents[2]
SOURCES, CACHE = ROOT / "book" / "steer", ROOT / "book" / "_build" / ".steer"
RUNTIME = "1.30.0"
# For the processor alone, and for the graphics card too: the files, first the one that is imported, and their bytes.
PARTS = {
    "wasm": (("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"), 14_300_000),
    "webgpu": (
        ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
        26_900_000,
    ),
}
MODELS = {
    "digits-db6": "digits, db6: low band first",
    "digits-db6-reversed": "digits, db6 reversed: high band first",
    "digits-fourier": "digits, Fourier: low band first",
    "digits-lfm": "digits, ordinary flow matching: all at once",
    "faces32-db6": "faces at 32×32, db6: low band first",
    "faces32-lfm": "faces at 32×32, ordinary flow matching: all at once",
    "faces-db6": "faces in latents, db6: low band first",
    "faces-lfm": "faces in latents, ordinary flow matching: all at once",
    "showcase-faces": "faces in latents, showcase: low band first",
    "showcase-cifar10": "CIFAR-10 in latents, showcase: low band first",
}


def reweight(decomposition, x, weights):
    """Σ_b w_b P_b x as ONNX can compute it: Fourier's transform with real matrices, for two bands."""
    import torch

    from kflow.amplitude import Fourier

    if not isinstance(decomposition, Fourier):
        return decomposition.reweight(x, weights)
    size, low = x.shape[-1], (decomposition.band_index[0] == 0).float()
    at = torch.arange(size)
    angle = 2 * torch.pi * at[:, None] * at / size
    c, s = angle.cos() / size**0.5, angle.sin() / size**0.5
    real, imaginary = low * (c @ x @ c - s @ x @ s), -low * (s @ x @ c + c @ x @ s)
    below = c @ real @ c - s @ real @ s - (s @ imaginary @ c + c @ imaginary @ s)
    first, second = (weights[:, band, None, None, None] for band in (0, 1))
    return second * x + (first - second) * below


def make_step(model):
    """One evaluation, projected on the moving bands if ``localised`` is 1; with guidance if the model has classes."""
    import torch

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.path = model.network, model.path

        def forward(self, state, k, localised, labels=None, guidance=None):
            weights, rates = self.path.schedule(k)
            if labels is None:
                velocity = self.network(state, k, weights)
            else:
                both = torch.cat([torch.full_like(labels, self.network.null_label), labels])
                free, guided = self.network(state.repeat(2, 1, 1, 1), k.repeat(2), weights.repeat(2, 1), both).chunk(2)
                velocity = free + guidance * (guided - free)
            if self.path.bands == 1:
                return velocity + 0 * localised
            inside = reweight(self.path.decomposition, velocity, (rates > 0).float())
            return velocity + localised * (inside - velocity)

    return Step().eval()


def make_compose(ruler):
    """Noise whose band b is that of the b-th: (B, *shape) to (1, *shape)."""
    import torch

    class Compose(torch.nn.Module):
        def forward(self, noises):
            return reweight(ruler, noises, torch.eye(ruler.bands)).sum(0, keepdim=True)

    return Compose().eval()


def make_decode(autoencoder):
    """Latents (1, *shape) to the image (1, channel, height, width)."""
    import torch

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.autoencoder = autoencoder

        def forward(self, latents):
            return self.autoencoder.decode(latents)

    return Decode().eval()


def export(name, folder):
    """Write NAME-step.onnx, NAME-compose.onnx, for latents NAME-decode.onnx, and NAME.json; returns their bytes.

    Each is checked against PyTorch.
    """
    import numpy as np
    import onnxruntime
    import torch

    from kflow.amplitude import Identity, Wavelet
    from kflow.checkpoint import load_model
    from kflow.data import describe_data
    from kflow.flow.schedule import band_intervals
    from kflow.storage import CHECKPOINTS

    model, experiment, card = load_model(CHECKPOINTS / name)
    data = describe_data(experiment.data)
    decomposition = model.path.decomposition
    ruler = Wavelet(decomposition.shape, "db6") if isinstance(decomposition, Identity) else decomposition
    source = torch.Generator().manual_seed(0)
    assert ruler.bands == 2 or experiment.decomposition != "fourier", "reweight knows two Fourier bands"
    check = torch.randn(3, *ruler.shape, generator=source)
    weights = torch.rand(3, ruler.bands, generator=source)
    torch.testing.assert_close(reweight(ruler, check, weights), ruler.reweight(check, weights), atol=1e-5, rtol=1e-4)
    noise = torch.randn(ruler.bands, *ruler.shape, generator=source)
    one = torch.randn(1, *ruler.shape, generator=source)
    inputs = {"state": one, "k": torch.tensor([0.3]), "localised": torch.tensor([1.0])}
    if experiment.conditional:
        inputs |= {"labels": torch.tensor([3]), "guidance": torch.tensor([1.5])}
    parts = [
        ("step", make_step(model), inputs, "velocity"),
        ("compose", make_compose(ruler), {"noises": noise}, "noise"),
    ]
    if data.autoencoder:
        parts.append(("decode", make_decode(data.autoencoder()), {"latents": one}, "image"))
    for part, module, given, output in parts:
        path = folder / f"{name}-{part}.onnx"
        with torch.no_grad():
            expected = module(*given.values()).numpy()
            torch.onnx.export(
                module, tuple(given.values()), str(path), input_names=list(given), output_names=[output], dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {key: value.numpy() for key, value in given.items()})[0]
        if np.abs(found - expected).max() > 1e-2:
            raise ValueError(f"{path.name} is off by {np.abs(found - expected).max():.3g}, allowed is 0.01")
    names = ["low", "high"] if ruler.bands == 2 else [f"{band}." for band in range(ruler.bands)]
    starts, _ = band_intervals(experiment.bands, experiment.intervals, experiment.order)
    meta = {
        "shape": ruler.shape, "latents": bool(data.autoencoder),
        "picture": describe_data(data.images or experiment.data).shape,
        "bands": ruler.bands, "names": names, "joins": model.path.schedule.joins,
        "order": sorted(range(experiment.bands), key=starts.__getitem__),
        "classes": data.classes if experiment.conditional else (),
        "checkpoint": card["files"],
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(meta))
    return sum(path.stat().st_size for path in folder.glob(f"{name}[-.]*"))


def fetch_runtime(folder):
    """onnxruntime-web from npm, or modules that point to its CDN; returns the bytes of each of PARTS."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for parts, _ in PARTS.values() for name in parts]
    if unpack("onnxruntime-web", RUNTIME, tuple(f"dist/{name}" for name in names), folder):
        for name in names:
            (folder / "dist" / name).rename(folder / name)
        (folder / "dist").rmdir()
        (folder / "where.mjs").write_text('export const where = new URL("./", import.meta.url).href;\n')
        return {kind: sum((folder / name).stat().st_size for name in parts) for kind, (parts, _) in PARTS.items()}
    address = f"{CDN}onnxruntime-web@{RUNTIME}/dist/"
    for parts, _ in PARTS.values():
        (folder / parts[0]).write_text(f'export * from "{address}{parts[0]}";\n')
    (folder / "where.mjs").write_text(f'export const where = "{address}";\n')
    return {kind: size for kind, (_, size) in PARTS.items()}


def draw_fallback(path):
    """The grid for browsers that cannot run the model: rows share the low band's noise, columns the high band's."""
    import torch

    from kflow import figures
    from kflow.checkpoint import load_model
    from kflow.sample import sample
    from kflow.steer import compose_noise, draw_noise
    from kflow.storage import CHECKPOINTS

    model = load_model(CHECKPOINTS / "digits-db6")[0]
    low, high = (draw_noise(first, (1, 32, 32), 5) for first in (1, 101))
    noise = compose_noise(model.path.decomposition, [low.repeat_interleave(5, 0), high.repeat(5, 1, 1, 1)])
    data = sample(model, noise, torch.full((25,), 3), guidance_scale=1.5).data
    rows, columns = ([f"{word} {i}" for i in range(1, 6)] for word in ("low", "high"))
    figure = figures.image_grid(data, columns=5, row_labels=rows, column_labels=columns)
    figure.savefig(path, dpi=110)


def digest(models):
    """Of everything that the exported files depend on."""
    total = hashlib.sha256(RUNTIME.encode())
    inputs = [Path(__file__), ROOT / "constraints.txt", *(ROOT / "kflow").rglob("*.py")]
    folders = [*(ROOT / "checkpoints" / name for name in models), *(ROOT / "checkpoints").glob("*-autoencoder")]
    for path in sorted([*inputs, *(path for folder in folders for path in folder.iterdir())]):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def prepare(app, models=MODELS):
    """Fill _static/steer of an HTML build; what was exported before and has not changed is used again."""
    if app.builder.format != "html":
        return
    kind = "book" if models is MODELS else "test"
    made = CACHE / f"{kind}-{digest(models)}"
    if not (made / "models.json").exists():
        for old in CACHE.glob(f"{kind}-*"):
            shutil.rmtree(old)
        made.mkdir(parents=True)
        runtime = fetch_runtime(made / "ort")
        sizes = {name: {"title": title, "bytes": export(name, made)} for name, title in models.items()}
        draw_fallback(made / "fallback.png")
        (made / "models.json").write_text(json.dumps({"runtime": runtime, "models": sizes}))
    target = Path(app.outdir) / "_static" / "steer"
    shutil.copytree(made, target, dirs_exist_ok=True)
    shutil.copytree(SOURCES, target, dirs_exist_ok=True)


def setup(app):
    app.connect("builder-inited", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
