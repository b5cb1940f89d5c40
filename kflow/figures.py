"""The pictures: every notebook draws through here, in one house style."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from torch import Tensor

from kflow.amplitude import KAmplitude
from kflow.data import to_float, to_uint8
from kflow.flow import Path, Schedule

WIDTH = 7.2  # inches: a page of the book
#: Okabe and Ito's colours, which colour-blind readers tell apart: one for each band, low scaling first.
BAND_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.45"
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
    """Write NAME.svg and NAME.png into a folder; the same figure gives the same bytes. No folder (""): do nothing."""
    if folder:
        FilePath(folder).mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            figure.savefig(FilePath(folder) / f"{name}.svg", metadata={"Date": None, "Creator": None})
            figure.savefig(FilePath(folder) / f"{name}.png", dpi=200, metadata={"Software": None})


def show(figure: Figure, name: str = "", folder: str | FilePath = "") -> None:
    """Show a figure in a notebook, and :func:`save` it if there is a folder."""
    from IPython.display import display

    save(figure, name, folder)
    display(figure)


def photograph(name: str = "chelsea", size: int = 128, crop: int | None = None) -> Tensor:
    """A photograph that scikit-image ships, (1, channel, size, size) in [−1, 1].

    Args:
        name: of a function of ``skimage.data``, such as ``chelsea``, ``astronaut``, ``coffee``, ``camera``.
        size: pixels along each side, to which the central square is scaled down.
        crop: side of that square; by default the largest.
    """
    import skimage.data

    picture = torch.from_numpy(np.atleast_3d(getattr(skimage.data, name)())[..., :3].copy()).permute(2, 0, 1)
    side = crop or min(picture.shape[1:])
    top, left = ((n - side) // 2 for n in picture.shape[1:])
    square = picture[None, :, top : top + side, left : left + side].float()
    return to_float(F.interpolate(square, (size, size), mode="bilinear", antialias=True))


def states(path: Path, data: Tensor, noise: Tensor, k: Tensor) -> Tensor:
    """Ψ_k between given data and noise, (batch, *shape) each, at every k of (T,): (T, batch, *shape)."""
    return torch.stack([path.state(data, noise, at.expand(len(data)).to(data)) for at in k])


def band_colour(band: int, bands: int) -> str:
    """The colour of a band; grey where there is only one."""
    return BAND_COLOURS[band % len(BAND_COLOURS)] if bands > 1 else GREY


def band_name(band: int, bands: int) -> str:
    """A band in words."""
    if bands == 1:
        return "one band: everything at once"
    return f"band {band}" + {0: " (low scaling)", bands - 1: " (high scaling)"}.get(band, "")


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


def band_pictures(decompositions: Mapping[str, KAmplitude], image: Tensor) -> Figure:
    """An image (1, C, H, W) taken apart: for each decomposition a row with image, bands P_b x and their sum (Eq. 1).

    Zero is mid-grey. Each band has its own symmetric scale ±v, written above it, with v the 99.5 % quantile of |P_b x|.
    Above the sum: its largest difference from the image.
    """
    most = max(decomposition.bands for decomposition in decompositions.values())
    pictures, titles, colours = [], [], []
    for parts in (decomposition.split(image)[:, 0] for decomposition in decompositions.values()):
        scales, gap = parts.abs().flatten(1).quantile(0.995, dim=1), [None] * (most - len(parts))
        pictures += [image[0], *(parts / scales[:, None, None, None]), *gap, parts.sum(0)]
        titles += ["±1", *(f"±{v:.2g}" for v in scales), *("" for _ in gap)]
        error = float((parts.sum(0) - image[0]).abs().max())
        titles += [f"off by {error:.0e}" if error else "exact"]
        colours += ["none", *(band_colour(band, len(parts)) for band in range(len(parts))), "none"]
    heads = ["image", *(f"band {band}" for band in range(most)), "sum of bands"]
    figure = image_grid(pictures, most + 2, titles, list(decompositions), heads)
    for drawn, colour in zip(list(figure.axes[0].images), colours):
        left, right, bottom, top = drawn.get_extent()
        figure.axes[0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.5))
    return figure


def schedule_curves(schedules: Mapping[str, Schedule]) -> Figure:
    """w_b(k) and dw_b/dk of each schedule, one column each, coloured by band; joins dotted."""
    figure, axes = make_axes(3.4, 2, len(schedules), sharex=True, sharey="row")
    for column, (name, schedule) in zip(axes.T, schedules.items()):
        near = torch.tensor([join + side for join in schedule.joins for side in (-1e-9, 0, 1e-9)], dtype=torch.float64)
        k = torch.cat([torch.linspace(0, 1, 401, dtype=torch.float64), near]).sort().values
        for axis, values in zip(column, schedule(k)):
            for band in range(schedule.bands):
                axis.plot(k, values[:, band], color=band_colour(band, schedule.bands))
            mark_joins(axis, schedule)
        column[0].set_title(name)
        column[1].set(xlabel="k", xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
    axes[0, 0].set_ylabel("weight $w_b$")
    axes[1, 0].set_ylabel("rate $dw_b/dk$")
    add_band_legend(figure, *{schedule.bands for schedule in schedules.values()})
    return figure


def band_energy(energies: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> Figure:
    """Figure 6's form: the norm of each band relative to the image's, in total and per dimension.

    Boxes hold the middle half of the images, whiskers reach from the 5th to the 95th percentile.

    Args:
        energies: squared norms ‖P_b x‖² of N images, (N, B), by decomposition.
        sizes: number of dimensions of each band, (B,), by decomposition.
    """
    kinds = {"norm of each band": r"$\|P_b x\| \,/\, \|x\|$", "the same per dimension": "relative to white noise"}
    table, bands = [], max(energy.shape[1] for energy in energies.values())
    for name, energy in energies.items():
        share = energy.double() / energy.double().sum(1, keepdim=True)
        for kind, values in zip(kinds, (share.sqrt(), (share * sizes[name].sum() / sizes[name]).sqrt())):
            part = pd.DataFrame(values.numpy()).melt(var_name="band", value_name="norm")
            table.append(part.assign(name=name, kind=kind))
    table = pd.concat(table, ignore_index=True)
    figure, axes = make_axes(0.8 + 0.14 * bands * len(energies), 1, 2, sharey=True)
    for axis, (kind, label) in zip(axes[0], kinds.items()):
        colours = {"hue": "band", "palette": list(BAND_COLOURS[:bands]), "fill": False, "legend": False}
        part = table[table["kind"] == kind]
        sns.boxplot(part, x="norm", y="name", **colours, orient="h", gap=0.3, whis=(5, 95), fliersize=0, ax=axis)
        axis.set(title=kind, xlabel=label, ylabel="")
    axes[0, 0].set_xlim(0, 1.02)
    axes[0, 1].set_xscale("log")
    axes[0, 1].xaxis.set_major_formatter("{x:g}")
    axes[0, 1].axvline(1, color=GREY, lw=1, ls=":", zorder=0)
    add_band_legend(figure, bands)
    return figure


def radial_power(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power of images (N, C, H, H) on the rings |k| = 1, …, H/2: frequencies (R,) in cycles per pixel, (N, R).

    Of the mean over channels, without its mean, under a Hann window, so that borders don't look like detail.
    """
    size, grey = images.shape[-1], images.double().mean(1)
    window = torch.hann_window(size, dtype=torch.float64)
    power = torch.fft.fft2((grey - grey.mean((1, 2), keepdim=True)) * window * window[:, None], norm="ortho").abs() ** 2
    axis = torch.fft.fftfreq(size, 1 / size)
    ring = (axis[:, None] ** 2 + axis**2).sqrt().round().long().flatten()
    total = torch.zeros(len(images), int(ring.max()) + 1, dtype=torch.float64).index_add_(1, ring, power.flatten(1))
    return torch.arange(1, size // 2 + 1) / size, (total / ring.bincount())[:, 1 : size // 2 + 1]


def spectrum(images: Mapping[str, Tensor], fit: tuple[float, float] = (2.0, 0.25)) -> Figure:
    """Radial power spectra (:func:`radial_power`), logarithmic: mean over images, shaded by the standard deviation.

    Args:
        images: (N, C, H, H), by name.
        fit: range of the dashed line, from this many cycles per image to this many per pixel. It is fitted to each
            image, every octave weighing the same; the legend gives the slope's mean and standard deviation over images.
    """
    figure, axes = make_axes(3.3, 1, 1)
    for (name, x), colour in zip(images.items(), ("black", *BAND_COLOURS)):
        frequency, power = (values.log10() for values in radial_power(x))
        inside = (frequency >= np.log10(fit[0] / x.shape[-1]) - 1e-6) & (frequency <= np.log10(fit[1]) + 1e-6)
        slopes, offsets = np.polyfit(frequency[inside], power[:, inside].T, 1, w=10 ** (-frequency[inside] / 2))
        label = f"{name} (N = {len(x)}): slope {slopes.mean():.1f} ± {slopes.std():.1f}"
        table = pd.DataFrame(power.numpy(), columns=10 ** frequency.numpy()).melt()
        sns.lineplot(table, x="variable", y="value", errorbar="sd", color=colour, ax=axes[0, 0], label=label)
        line = slopes.mean() * frequency[inside] + offsets.mean()
        axes[0, 0].plot(10 ** frequency[inside], line, color=colour, ls="--")
    axes[0, 0].set(xscale="log", xlabel="spatial frequency (cycles per pixel)", ylabel="$\\log_{10}$ power")
    return figure


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
) -> Figure:
    """Curves of models: a line each, its mean over seeds, shaded from the smallest to the largest.

    Args:
        frame: columns ``model``, ``x``, ``y``, and one that names the panel.
        x, y: names of the axes.
        panels: that column; None: a single panel.
        log: axes that are logarithmic: "", "x", "y" or "xy".
        dots: mark the points.
        mark: height of a dotted line.
    """
    parts = dict(tuple(frame.groupby(panels, sort=False))) if panels else {"": frame}
    models = list(frame["model"].unique())
    colours = dict(zip(models, ("black", *BAND_COLOURS))) if len(models) > 1 else {models[0]: BAND_COLOURS[0]}
    figure, axes = make_axes(2.9, 1, len(parts), sharey=True)
    marks = {"marker": "o", "ms": 4} if dots else {}
    for axis, (title, part) in zip(axes[0], parts.items()):
        sns.lineplot(
            part, x="x", y="y", hue="model", palette=colours, errorbar=("pi", 100), legend=False, ax=axis, **marks
        )
        axis.set(xlabel=x, ylabel=y, title=title.replace(", ", ",\n"), **{f"{name}scale": "log" for name in log})
        if "x" in log:
            axis.set_xticks(sorted(part["x"].unique()), [f"{at:g}" for at in sorted(part["x"].unique())])
            axis.minorticks_off()
        if mark is not None:
            axis.axhline(mark, color=GREY, lw=1, ls=":", zorder=0)
    if len(models) > 1:
        patches = [Patch(color=colour, label=label) for label, colour in colours.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, handlelength=1, handleheight=1)
    return figure


def dot_chart(frame: pd.DataFrame, x: str, mark: float | None = None, note: str = "") -> Figure:
    """One row a model (columns ``model``, ``y``): a dot for each seed, a line at the mean, a dotted one at ``mark``."""
    names = list(frame["model"].unique())
    figure, axes = make_axes(0.7 + 0.22 * len(names), 1, 1)
    sns.stripplot(frame, x="y", y="model", color=BAND_COLOURS[0], jitter=False, size=5, alpha=0.8, ax=axes[0, 0])
    for row, name in enumerate(names):
        mean = frame.loc[frame["model"] == name, "y"].mean()
        axes[0, 0].plot([mean, mean], [row - 0.3, row + 0.3], color="black", lw=1.5)
    if mark is not None:
        axes[0, 0].axvline(mark, color=GREY, lw=1, ls=":")
        axes[0, 0].text(mark, -0.7, note, ha="center", va="bottom", size=8, color=GREY)
    axes[0, 0].set(xlabel=x, ylabel="")
    return figure


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


def amplitude_picture(decomposition: KAmplitude, image: Tensor) -> Tensor:
    """Log amplitudes of an image (C, H, W), from 0.01 (white) to 100 (full), in their bands' colours: (3, H, W)."""
    coefficients = decomposition.analyse(image[None])[0]
    palette = torch.tensor([mpl.colors.to_rgb(colour) for colour in BAND_COLOURS]).T
    amount = ((coefficients.abs().mean(0) + 1e-9).log10() / 4 + 0.5).clamp(0, 1)
    picture = 1 - 2 * amount * (1 - palette[:, decomposition.band_index[0]])
    return torch.fft.fftshift(picture, (1, 2)) if coefficients.is_complex() else picture


def write(axes: Axes, x: float, y: float, text: str, **options) -> None:
    """Text, centred at (x, y)."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 9, **options})


def draw_arrow(axes: Axes, start: tuple, end: tuple, back: bool = False, colour: str = "0.2") -> None:
    """An arrow, or with ``back`` one that points to its start."""
    style = {"arrowstyle": "<|-" if back else "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def draw_box(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """A grey ground for what is drawn on it."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, fc="0.92", ec="none", zorder=0))


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
