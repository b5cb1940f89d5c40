"""The pictures: every notebook draws through here, in one house style."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path as FilePath

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from kflow.amplitude import KAmplitude
from kflow.data import to_uint8
from kflow.flow import Schedule

WIDTH = 7.2  # inches: a page of the book
#: Okabe and Ito's colours, which colour-blind readers tell apart: one for each band, low scaling first.
BAND_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.45"
#: The models that several charts show have one colour in all of them; others take what is left, in turn.
MODEL_COLOURS = dict(zip(("LFM", "Fourier", "db6", "PCA", "db6, reversed"), ("black", *BAND_COLOURS)))
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 130,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "svg.hashsalt": "kflow",
}


def use_style() -> None:
    """Set the house style: 10 pt at book width, one colour for each band, white ground; SVG inside notebooks."""
    sns.set_theme("paper", "ticks", BAND_COLOURS, "DejaVu Sans", rc=STYLE)
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


def save(figure: Figure, name: str, folder: str | FilePath) -> None:
    """Write NAME.png into a folder, and NAME.svg if it has no pixels; the same bytes each time. No folder: nothing."""
    if folder:
        FilePath(folder).mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            if not any(axes.images for axes in figure.axes):
                figure.savefig(FilePath(folder) / f"{name}.svg", metadata={"Date": None, "Creator": None})
            figure.savefig(FilePath(folder) / f"{name}.png", dpi=200, metadata={"Software": None})


def show(figure: Figure, name: str = "", folder: str | FilePath = "") -> None:
    """Show a figure in a notebook, and :func:`save` it if there is a folder."""
    from IPython.display import display

    save(figure, name, folder)
    display(figure)


def band_colour(band: int, bands: int) -> str:
    """The colour of a band; grey where there is only one."""
    return BAND_COLOURS[band % len(BAND_COLOURS)] if bands > 1 else GREY


def band_name(band: int, bands: int) -> str:
    """A band in words."""
    where = {0: " (low scaling)", bands - 1: " (high scaling)"}.get(band, "")
    return f"band {band}{where}" if bands > 1 else "one band: everything at once"


def image_grid(
    images: Tensor | Sequence[Tensor | None],
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Figure:
    """Images in rows; every pixel is a square.

    Args:
        images: (N, C, H, W), grey or colour, uint8 or floating point in [−1, 1] (clipped); or a list, None for a gap.
        columns: images in a row; by default all, up to ten.
        titles, row_labels, column_labels: one for each image, row, column.
        scale: width of an image in inches; less where the page is too narrow.

    Raises ValueError: an image has neither 1 nor 3 channels.
    """
    columns, gap, above = columns or min(len(images), 10), 0.05, 0.19 if titles else 0.0
    left = 0.1 + 0.072 * max(len(line) for label in row_labels for line in label.split("\n")) if row_labels else 0.0
    tile = min(scale, (WIDTH - left) / columns - gap)
    _, height, width = next(image.shape for image in images if image is not None)
    step, rows = tile * height / width + above + gap, -(-len(images) // columns)
    head = 0.19 * (1 + max(label.count("\n") for label in column_labels)) if column_labels else 0.0
    figure, axes = make_canvas(left + columns * (tile + gap), head + rows * step)
    for i, image in enumerate(images):
        x, y = left + i % columns * (tile + gap), head + i // columns * step + above
        if image is not None:
            draw_image(axes, image, x, y, tile)
        if titles:
            write(axes, x + tile / 2, y - 0.09, titles[i], size=8)
    for row, label in enumerate(row_labels or ()):
        write(axes, left - 0.08, head + row * step + above + (step - above) / 2, label, ha="right")
    for column, label in enumerate(column_labels or ()):
        write(axes, left + column * (tile + gap) + tile / 2, head - 0.05, label, va="bottom")
    return figure


def strip(
    trajectory: Tensor,
    k: Tensor,
    schedule: Schedule | None = None,
    samples: int = 4,
    columns: int = 11,
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """Figure 1's form: samples (rows) on their way from noise to data, from low to high scaling (columns).

    Args:
        trajectory: (T, batch, C, H, W). k: (T,), rising.
        schedule: adds a bar, coloured by the band that moves at k (by its share of Σ_b dw_b/dk where several do).
        samples: rows, the first of the batch.
        columns: how many of the T states are shown, those nearest to equal steps of k.
        row_labels: one for each row.
    """
    steps = torch.linspace(float(k[0]), float(k[-1]), columns)
    chosen = (k.float()[:, None] - steps).abs().argmin(0).unique()
    labels = ["k = 0" if at == 0 else f"{float(at):.2g}" for at in k[chosen]]
    rows = trajectory[chosen, :samples].transpose(0, 1).flatten(0, 1)
    figure = image_grid(rows, len(chosen), None, row_labels, labels)
    if schedule:
        centres = [sum(image.get_extent()[:2]) / 2 for image in figure.axes[0].images[: len(chosen)]]
        height = figure.get_figheight() + 0.27
        figure.set_figheight(height)
        figure.axes[0].set_ylim(height - 0.27, -0.27)
        draw_band_bar(figure.axes[0], schedule, k[chosen], centres, -0.25)
    return figure


def class_grid(images: Tensor, labels: Tensor, classes: Sequence[str], columns: int = 10, scale: float = 0.6) -> Figure:
    """The first images (N, C, H, W) of each class, one row a class; labels (N,) index ``classes``."""
    rows = [list(images[labels == label][:columns]) for label in range(len(classes))]
    return image_grid(
        [x for row in rows for x in row + [None] * (columns - len(row))], columns, None, classes, None, scale
    )


def band_motion(trajectory: Tensor, k: Tensor, decomposition: KAmplitude, schedule: Schedule | None = None) -> Figure:
    """Which band moves when: the speed of each band, and the share of its way that is left to where it ends.

    Lines are means over the batch, shades its standard deviation; joins of the schedule are dotted.

    Args:
        trajectory: (T, batch, *shape). k: (T,), rising.
    """
    parts = torch.stack([decomposition.split(state) for state in trajectory]).flatten(3)  # (T, B, batch, D)
    speed, middle = parts.diff(dim=0).norm(dim=3) / k.diff()[:, None, None], (k[1:] + k[:-1]) / 2
    left = (parts - parts[-1]).norm(dim=3)
    figure, axes = make_axes(2.5, 1, 2)
    for axis, values, at in zip(axes[0], (speed, left / left[0].clamp(min=1e-12)), (middle, k)):
        for band in range(decomposition.bands):
            table = pd.DataFrame(values[:, band].T.numpy(), columns=at.numpy()).melt()
            colour = band_colour(band, decomposition.bands)
            sns.lineplot(table, x="variable", y="value", errorbar="sd", color=colour, ax=axis)
        mark_joins(axis, schedule)
        axis.set(xlabel="k", xlim=(0, 1), ylim=(0, None))
    axes[0, 0].set(title="speed of each band", ylabel=r"$\|P_b\, d\Psi_k/dk\|$")
    axes[0, 1].set(title="way left to where the band ends", ylabel="share")
    add_band_legend(figure, decomposition.bands)
    return figure


def loss_curves(log: pd.DataFrame, smooth: float = 0.05) -> Figure:
    """Training loss over images seen, in all and by the band that moves at k; raw values faint, moving mean bold.

    Args:
        log: columns ``images``, ``loss``, ``loss_band_0``, … (NaN where a band was not drawn).
        smooth: window of the moving mean, as a share of the run.
    """
    figure, axes = make_axes(2.8, 1, 1)
    bands = sum(name.startswith("loss_band_") for name in log.columns)
    curves = {f"loss_band_{b}": (band_name(b, bands), band_colour(b, bands)) for b in range(bands) if bands > 1}
    for name, (label, colour) in {"loss": ("all", "black"), **curves}.items():
        part = log.dropna(subset=name)
        mean = part[name].rolling(max(1, int(smooth * len(part))), center=True, min_periods=1).mean()
        axes[0, 0].plot(part["images"], part[name], color=colour, lw=0.8, alpha=0.25)
        axes[0, 0].plot(part["images"], mean, color=colour, label=label)
    axes[0, 0].set(xlabel="training images seen", ylabel="loss (mean square)", yscale="log")
    axes[0, 0].xaxis.set_major_formatter("{x:,.0f}")
    axes[0, 0].legend()
    return figure


def line_chart(
    frame: pd.DataFrame,
    x: str,
    y: str,
    panels: str | None = None,
    log: str = "",
    dots: bool = True,
    mark: float | None = None,
    join: float | None = None,
    sharey: bool = True,
) -> Figure:
    """Curves of models: a line each, its mean over seeds, shaded from the smallest to the largest.

    Args:
        frame: columns ``model``, ``x``, ``y``, and one that names the panel.
        x, y: names of the axes.
        panels: that column; None: a single panel.
        log: axes that are logarithmic: "", "x", "y" or "xy".
        dots: mark the points.
        mark, join: height of a dotted line, and where one is upright.
        sharey: one scale for all panels.
    """
    parts = dict(tuple(frame.groupby(panels, sort=False))) if panels else {"": frame}
    models = list(frame["model"].unique())
    colours = model_colours(models)
    figure, axes = make_axes(2.9, 1, len(parts), sharey=sharey)
    marks = {"marker": "o", "ms": 4} if dots else {}
    for axis, (title, part) in zip(axes[0], parts.items()):
        sns.lineplot(
            part, x="x", y="y", hue="model", palette=colours, errorbar=("pi", 100), legend=False, ax=axis, **marks
        )
        axis.set(xlabel=x, ylabel=y, title=title.replace(", ", ",\n"), **{f"{name}scale": "log" for name in log})
        if "x" in log:
            axis.set_xticks(sorted(part["x"].unique()), [f"{at:g}" for at in sorted(part["x"].unique())])
            axis.minorticks_off()
        for draw, at in ((axis.axhline, mark), (axis.axvline, join)):
            if at is not None:
                draw(at, color=GREY, lw=1, ls=":", zorder=0)
    if len(models) > 1:
        patches = [Patch(color=colour, label=label) for label, colour in colours.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=5, handlelength=1, handleheight=1)
    return figure


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """The colour of each model of a chart."""
    if len(models) == 1:
        return {models[0]: BAND_COLOURS[0]}
    fixed = {name: MODEL_COLOURS[name] for name in models if name in MODEL_COLOURS}
    left = iter([colour for colour in ("black", *BAND_COLOURS) if colour not in fixed.values()])
    return {name: fixed.get(name) or next(left) for name in models}


def save_table(frame: pd.DataFrame, name: str, folder: str | FilePath = "") -> None:
    """Write NAME.csv into a folder. No folder (""): do nothing."""
    if folder:
        frame.to_csv(FilePath(folder) / f"{name}.csv", float_format="%.6g")


# Parts of pictures. On a canvas, coordinates are inches from the top left corner.


def make_axes(height: float, *shape: int, **options) -> tuple[Figure, np.ndarray]:
    """A figure of book width, with a grid of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False, **options)


def make_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure to draw on by the inch."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.autoscale(False)
    return figure, axes


def draw_image(
    axes: Axes, image: Tensor, x: float, y: float, width: float, frame: str = "none", line: float = 1.5
) -> None:
    """An image (C, H, W) with its top left corner at (x, y), in a frame; a ValueError if C is neither 1 nor 3."""
    if image.shape[0] not in (1, 3):
        raise ValueError(f"an image has {image.shape[0]} channels, allowed are 1 and 3")
    pixels = (image if image.dtype == torch.uint8 else to_uint8(image)).expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    height = width * pixels.shape[0] / pixels.shape[1]
    factor = -(-256 // min(pixels.shape[:2]))  # enlarged first, or pixels would differ in size by one of the screen's
    axes.imshow(pixels.repeat(factor, 0).repeat(factor, 1), extent=(x, x + width, y + height, y))
    axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=frame, lw=line))


def write(axes: Axes, x: float, y: float, text: str, **options) -> None:
    """Text, centred at (x, y)."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 9, **options})


def draw_band_bar(axes: Axes, schedule: Schedule, k: Tensor, centres: Sequence[float], y: float) -> None:
    """A bar for pictures at these k and horizontal centres, coloured by each band's share of the motion."""
    height, bands = 0.2, schedule.bands
    fine = torch.linspace(float(k[0]), float(k[-1]), 1001, dtype=torch.float64)
    fine = (fine[1:] + fine[:-1]) / 2
    rates = schedule(fine)[1]
    share = rates / rates.sum(1, keepdim=True).clamp(min=1e-12)
    x, edges = np.interp(fine, k, centres), y + height * (1 - F.pad(share.cumsum(1), (1, 0)))
    for band in range(bands):
        axes.fill_between(x, edges[:, band], edges[:, band + 1], color=band_colour(band, bands), lw=0)
        middle = float((share[:, band] * torch.from_numpy(x)).sum() / share[:, band].sum())
        name = band_name(band, bands) if bands < 4 else f"band {band}"
        write(axes, middle, y + height / 2, name, color="white", size=8)


def mark_joins(axis: Axes, schedule: Schedule | None) -> None:
    """Dotted lines at the joins of a schedule."""
    for join in schedule.joins if schedule else ():
        axis.axvline(join, color=GREY, lw=1, ls=":", zorder=0)


def add_band_legend(figure: Figure, *bands: int) -> None:
    """A legend below, of the bands of decompositions that have so many."""
    most = max(bands)
    entries = {band_name(band, most): band_colour(band, most) for band in range(most)}
    if 1 in bands:
        entries[band_name(0, 1)] = band_colour(0, 1)
    patches = [Patch(color=colour, label=label) for label, colour in entries.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, handlelength=1, handleheight=1)
