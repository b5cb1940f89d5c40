"""What single pages draw: decompositions, spectra, schedules (01, 02), variants side by side (11)."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator
from torch import Tensor

from kflow.amplitude import KAmplitude
from kflow.data import to_float
from kflow.figures import BAND_COLOURS, GREY, add_band_legend, band_colour, image_grid, make_axes, mark_joins
from kflow.flow import Path, Schedule


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


def amplitude_picture(decomposition: KAmplitude, image: Tensor) -> Tensor:
    """Log amplitudes of an image (C, H, W), from 0.01 (white) to 100 (full), in their bands' colours: (3, H, W)."""
    coefficients = decomposition.analyse(image[None])[0]
    palette = torch.tensor([mpl.colors.to_rgb(colour) for colour in BAND_COLOURS]).T
    amount = ((coefficients.abs().mean(0) + 1e-9).log10() / 4 + 0.5).clamp(0, 1)
    picture = 1 - 2 * amount * (1 - palette[:, decomposition.band_index[0]])
    return torch.fft.fftshift(picture, (1, 2)) if coefficients.is_complex() else picture


def draw_arrow(axes: Axes, start: tuple, end: tuple, back: bool = False, colour: str = "0.2") -> None:
    """An arrow, or with ``back`` one that points to its start."""
    style = {"arrowstyle": "<|-" if back else "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def draw_box(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """A grey ground for what is drawn on it."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, fc="0.92", ec="none", zorder=0))


def dot_chart(frame: pd.DataFrame, x: str, marks: Mapping[str, float] | None = None) -> Figure:
    """One row a model (columns ``model``, ``y``): a dot for each seed, a line at the mean; marks are dotted lines."""
    names = list(frame["model"].unique())
    figure, axes = make_axes(0.8 + 0.22 * len(names), 1, 1)
    axis = axes[0, 0]
    axis.set_xscale("log")
    sns.stripplot(frame, x="y", y="model", color=BAND_COLOURS[0], jitter=False, size=5, alpha=0.8, ax=axis)
    for row, name in enumerate(names):
        mean = frame.loc[frame["model"] == name, "y"].mean()
        axis.plot([mean, mean], [row - 0.3, row + 0.3], color="black", lw=1.5)
    for label, at in (marks or {}).items():
        axis.plot([at, at], [-0.7, len(names) - 0.5], color=GREY, lw=1, ls=":", zorder=0)
        axis.text(at, -0.8, label, ha="center", va="bottom", size=8, color=GREY)
    axis.set(xlabel=x, ylabel="", ylim=(len(names) - 0.5, -1.6))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    return figure
