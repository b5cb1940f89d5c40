"""Steering on the page 06_steering: grids, the numbers beside them, and sliders that answer while the model runs."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Condition, Thread
from urllib.parse import urlencode

import ipywidgets as widgets
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from kflow import figures
from kflow.amplitude import Identity, KAmplitude, Wavelet
from kflow.checkpoint import load_model
from kflow.data import describe_data, to_pixels, to_uint8
from kflow.records import RECORDS
from kflow.sample import grid, sample
from kflow.steer import Steered, compose_noise, draw_noise
from kflow.storage import CHECKPOINTS
from kflow.velocity import KFlow
from kflow_book.tables import give_or_take, read_seeds

BANDS = ("low", "high")
# Models of the page without a kernel.
ON_PAGE = ("digits-db6", "digits-db6-reversed", "digits-fourier", "digits-lfm")
ON_PAGE += ("faces32-db6", "faces32-lfm", "faces-db6", "faces-lfm", "showcase-faces", "showcase-cifar10")


def ruler_of(model: KFlow) -> KAmplitude:
    """The model's own bands; db6's for ordinary flow matching, which has one band."""
    own = model.path.decomposition
    return Wavelet(own.shape, "db6") if isinstance(own, Identity) else own


def steering_grid(
    model: KFlow,
    shared: str,
    rows: int = 4,
    columns: int = 8,
    seed: int = 0,
    steps: int = 30,
    data: str = "digits",
    **options,
) -> Figure:
    """Figures 4 and 15: every row has one noise in the ``shared`` band, every column one in the other band.

    Args:
        model: with two bands, or one (then the noise is composed in db6's).
        data: what it was trained on; latents are decoded.
        shared: ``low`` or ``high``, the band that is the same along a row.
        seed: of the first noise; rows and columns take those that follow.
        options: of :func:`~kflow.sample.sample`.
    """
    ruler, other = ruler_of(model), BANDS[1 - BANDS.index(shared)]
    fixed = draw_noise(seed + 1, ruler.shape, rows).repeat_interleave(columns, 0)
    varied = draw_noise(seed + 1001, ruler.shape, columns).repeat(rows, 1, 1, 1)
    noise = compose_noise(ruler, [fixed, varied] if shared == "low" else [varied, fixed])
    names = ([f"{word} {i + 1}" for i in range(n)] for word, n in ((shared, rows), (other, columns)))
    images = to_pixels(sample(model, noise, steps=steps, **options).data, data)
    return figures.image_grid(images, columns, None, *names, scale=0.72)


def kept_beside(
    run: str, label: str, shared: str, folder: str | Path = RECORDS, baseline: str | None = "digits-lfm"
) -> pd.DataFrame:
    """The numbers beside a grid: share of each band's content that two images of a row have in common.

    One row for the run, one for ordinary flow matching (``baseline``; None: without) with the same noises in db6's two
    bands, one for pairs that share nothing, which have 0 by definition.
    """
    rows, shown_runs = {}, {label: run, "ordinary flow matching, noise cut by db6": baseline}
    for name, row in shown_runs.items():
        if row is None:
            continue
        records = read_seeds(row, "steering", folder).values()
        found = pd.DataFrame([{band: r.values[f"{band}_kept_by_{shared}_noise"] for band in BANDS} for r in records])
        spread = found.std() if len(found) > 1 else None
        shown = [round(found[b].mean(), 2) + 0.0 for b in BANDS]  # and no -0.00
        shown = [f"{x:.2f}" if spread is None else give_or_take(x, spread[b]) for x, b in zip(shown, BANDS)]
        rows[name] = [*shown, len(found)]
    rows["independent pairs"] = ["0", "0", ""]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low band kept", "high band kept", "seeds"])


def redrawn_figure(model: KFlow, columns: int = 5, seed: int = 0, steps: int = 30) -> Figure:
    """One image, and what becomes of it where the high band's noise is drawn again: at k = 0, or at the join.

    On the left the images, on the right where their low bands differ from the first one's: white is 0.5 or more.
    """
    ruler, (join,) = ruler_of(model), model.path.schedule.joins
    first, fresh = draw_noise(seed + 1, ruler.shape), draw_noise(seed + 1001, ruler.shape, columns)
    rows, labels = [], []
    for localised in (False, True):
        steered = Steered(model, localised)
        half = sample(steered, first, steps=steps // 2, end=join).data
        end = sample(steered, half, steps=steps - steps // 2, start=join).data
        for where, state, start in (("k = 0", first, 0.0), ("the join", half, join)):
            noise = compose_noise(ruler, [state.expand(columns, -1, -1, -1), fresh])
            redrawn = sample(steered, noise, steps=steps if not start else steps - steps // 2, start=start).data
            off = ruler.project(redrawn - end, 0).abs() * 4 - 1
            rows += [*end, *redrawn, None, *off]
            labels.append(f"{'localised' if localised else 'plain'},\nat {where}")
    heads = ["first", *[""] * columns, "", *[""] * columns]
    heads[1 + columns // 2], heads[2 + columns + columns // 2] = "high noise redrawn", "low band off by"
    return figures.image_grid(rows, 2 * columns + 2, None, labels, heads)


@dataclass(frozen=True)
class Choice:
    """What the sliders say: ``label`` None is no class, as in a model without classes; ``drop_class_at`` 1 is never."""

    run: str
    seeds: tuple[int, ...]
    label: int | None
    guidance_scale: float
    drop_class_at: float
    steps: int
    localised: bool


@cache
def committed(run: str) -> tuple[KFlow, str]:
    """A committed model, and the name of its data."""
    model, experiment, _ = load_model(CHECKPOINTS / run)
    return model, experiment.data


def trained(run: str) -> KFlow:
    """A committed model."""
    return committed(run)[0]


def generate(choice: Choice) -> Iterator[tuple[float, Tensor]]:
    """k and the state there, (1, *shape), after every Euler step; the first is noise at k = 0."""
    model = Steered(trained(choice.run), choice.localised)
    ruler = ruler_of(model)
    state = compose_noise(ruler, [draw_noise(seed, ruler.shape) for seed in choice.seeds])
    labels = None if choice.label is None else torch.tensor([choice.label])
    drop = choice.drop_class_at if choice.drop_class_at < 1 else None
    points = grid(sorted({*model.path.schedule.joins, *([] if drop is None else [drop])}), choice.steps)
    yield 0.0, state
    for low, high in zip(points, points[1:]):
        options = {"guidance_scale": choice.guidance_scale, "drop_class_at": drop, "start": low, "end": high}
        state = sample(model, state, labels, steps=1, **options).data
        yield high, state


class Latest:
    """Works on the newest request, in a thread of its own; an older one is left at its next step.

    Args:
        work: called with a request; yields after every step, where it may be left for good.
        failed: called with what ``work`` raises; the next request is served all the same.
    """

    def __init__(self, work: Callable[[object], Iterator], failed: Callable[[Exception], None]):
        self.work, self.failed, self.waiting, self.changed = work, failed, [], Condition()
        Thread(target=self._serve, daemon=True).start()

    def submit(self, request: object) -> None:
        """Ask for this, and for nothing that was asked for before."""
        with self.changed:
            self.waiting = [request]
            self.changed.notify()

    def _serve(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                request = self.waiting.pop()
            try:
                for _ in self.work(request):
                    if self.waiting:
                        break
            except Exception as error:
                self.failed(error)


class Sliders(widgets.VBox):
    """Every control of the sampler, and the picture, which sharpens while the flow runs.

    Moving a slider starts the newest picture and leaves the older one; the slider never waits for either.

    Args:
        runs: committed two-band (or one-band) models, by what they are called.
        steps: Euler steps at first.
    """

    def __init__(self, runs: Mapping[str, str], steps: int = 30):
        wide = {"style": {"description_width": "8.5rem"}, "layout": {"width": "28rem"}}
        never = [("never", 1.0)]
        drops = [(f"{i / 20:g}" + " (the join)" * (i == 10), i / 20) for i in range(20)] + never
        self.run = widgets.Dropdown(description="decomposition", options=list(runs.items()), **wide)
        self.seeds = [
            widgets.BoundedIntText(seed, 0, 2**32 - 1, description=f"seed, {band} band", **wide)
            for seed, band in enumerate(BANDS, start=1)
        ]
        self.label = widgets.Dropdown(description="class", **wide)
        self.guidance = widgets.FloatSlider(1.5, min=0, max=4, step=0.1, description="guidance", **wide)
        self.drop = widgets.SelectionSlider(options=drops, value=1.0, description="class dropped at k", **wide)
        self.steps = widgets.IntSlider(steps, 4, 60, description="Euler steps", **wide)
        self.localised = widgets.Checkbox(description="localised: a band moves only in its turn", **wide)
        self.k = widgets.FloatSlider(1.0, min=0, max=1, step=0.01, description="look at k", **wide)
        self.progress = widgets.IntProgress(layout={"width": "256px"})
        self.status = widgets.HTML()
        self.state, self.preview = (widgets.Image(format="png", layout={"width": "256px"}) for _ in range(2))
        self.shown: tuple[Choice, list[tuple[float, Tensor]]] = (self.choice, [])
        dice = [widgets.Button(icon="random", tooltip="another seed", layout={"width": "3rem"}) for _ in self.seeds]
        for button, seed in zip(dice, self.seeds):
            button.on_click(lambda _, seed=seed: setattr(seed, "value", random.randrange(2**32)))
        self.latest = Latest(self.work, lambda error: self.say(f"That does not work: {error}"))
        self.run.observe(lambda _: self.fit(), "value")
        asked = (self.run, *self.seeds, self.label, self.guidance, self.drop, self.steps, self.localised)
        for control in asked:
            control.observe(lambda _: self.latest.submit(self.choice), "value")
        self.k.observe(lambda _: self.look(), "value")
        seeds = [widgets.HBox(pair) for pair in zip(self.seeds, dice)]
        controls = [self.run, *seeds, *asked[3:], self.k]
        pictures = [widgets.VBox([widgets.HTML("Ψ<sub>k</sub>"), self.state, self.progress])]
        pictures += [widgets.VBox([widgets.HTML("preview: what it expects to end as"), self.preview])]
        super().__init__([widgets.HBox([widgets.VBox(controls), *pictures]), self.status])
        self.fit()
        self.latest.submit(self.choice)

    def fit(self) -> None:
        """Show what speaks of classes only where the model has them, and the classes that it has."""
        model, data = committed(self.run.value)
        for control in (self.label, self.guidance, self.drop):
            control.layout.display = "" if model.network.classes else "none"
        classes = [("none", None), *((name, i) for i, name in enumerate(describe_data(data).classes))]
        if model.network.classes and list(self.label.options) != classes:
            self.label.options, self.label.value = classes, 3

    @property
    def choice(self) -> Choice:
        """What the controls say."""
        return Choice(
            self.run.value,
            tuple(seed.value for seed in self.seeds),
            self.label.value if trained(self.run.value).network.classes else None,
            self.guidance.value,
            self.drop.value,
            self.steps.value,
            self.localised.value,
        )

    def work(self, choice: Choice) -> Iterator[None]:
        """Generate one picture, and show it after each step."""
        started, frames = time.perf_counter(), []
        self.say("running")
        for k, state in generate(choice):
            frames.append((k, state))
            self.shown, self.progress.max, self.progress.value = (choice, frames), choice.steps, len(frames) - 1
            self.look()
            yield
        seconds = time.perf_counter() - started
        self.say(f"{choice.steps} steps in {seconds:.2f} s. {page_address(choice)}")

    def look(self) -> None:
        """Show the frame that is nearest to the k that is looked at, of those that are there."""
        choice, frames = self.shown
        if not frames:
            return
        k, state = min(frames, key=lambda frame: abs(frame[0] - self.k.value))
        model, data = committed(choice.run)
        self.state.value = to_png(to_pixels(state, data))
        has_preview = model.output == "displacement"
        if has_preview:
            dropped = choice.label is None or k >= choice.drop_class_at
            labels = None if dropped else torch.tensor([choice.label])
            with torch.no_grad():
                preview = model.preview(state, torch.tensor([k]), labels, choice.guidance_scale)
                self.preview.value = to_png(to_pixels(preview, data))
        self.children[0].children[2].layout.display = "" if has_preview else "none"

    def say(self, text: str) -> None:
        self.status.value = text


def page_address(choice: Choice) -> str:
    """Where the page without a kernel shows the same; nothing if it lacks the model, or cannot leave out the class."""
    if choice.run not in ON_PAGE or (choice.label is None and trained(choice.run).network.classes):
        return ""
    state = {"model": choice.run, "seeds": ",".join(map(str, choice.seeds)), "label": choice.label or 0}
    state |= {"guidance": choice.guidance_scale, "tau": choice.drop_class_at, "steps": choice.steps}
    address = urlencode(state | {"localised": int(choice.localised)})
    return f"The same picture without a kernel: <code>steer.html#{address}</code>"


def to_png(image: Tensor, size: int = 256) -> bytes:
    """One image (1, 1 or 3, H, W), enlarged without smoothing, as the bytes of a PNG file."""
    file, pixels = io.BytesIO(), to_uint8(image)[0].permute(1, 2, 0).squeeze(2).numpy()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()
