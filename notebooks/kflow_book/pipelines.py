"""Drawings of how K-Flow works and how it is steered (Figures 2, 3, 8 and 14), made with real images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from kflow.amplitude import Fourier, Wavelet
from kflow.data import load_data, to_float
from kflow.figures import BAND_COLOURS, GREY, WIDTH, draw_band_bar, draw_image, make_canvas, write
from kflow.flow import HardBump, Path
from kflow.sample import Samples, sample
from kflow.velocity import PointsOracle
from kflow_book.drawings import amplitude_picture, draw_arrow, draw_box, photograph, states

KINDS = ("class", "low-to-high", "high-to-low")


def pipeline_overview() -> Figure:
    """Figure 2: noise and data go to K-amplitude space; there the bands move along k, one after the other, and back.

    A real photograph, two Fourier bands, the hard bump. K-amplitude space shows log |F Ψ_k|, coloured by band.
    """
    data, noise = photograph(size=64), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = Path(Fourier(data.shape[1:], 2), HardBump(2))
    k, xs = torch.linspace(0, 1, 5), 1.58 + 1.24 * np.arange(5)
    figure, axes = make_canvas(WIDTH, 3.55)
    draw_box(axes, 1.08, 1.95, 6.0, 1.2)
    for i, (x, at, state) in enumerate(zip(xs, k, states(path, data, noise, k)[:, 0])):
        name = {0: r"noise $\varepsilon = \Psi_0$", 4: r"data $\varphi = \Psi_1$"}.get(i, rf"$\Psi_{{{at:g}}}$")
        given = i in (0, 4)
        write(axes, x, 0.49, name)
        draw_image(axes, state, x - 0.43, 0.6, 0.86)
        draw_arrow(axes, (x, 1.51), (x, 1.98), back=not given)
        write(axes, x + 0.2, 1.74, r"$\mathcal{F}$" if given else r"$\mathcal{F}^{-1}$", size=11)
        draw_image(axes, amplitude_picture(path.decomposition, state), x - 0.43, 2.0, 0.86)
        low, high = path.schedule(at[None])[0][0]
        write(axes, x, 3.01, f"$w_0$ = {low:g}, $w_1$ = {high:g}", size=8)
        if i < 4:
            draw_arrow(axes, (x + 0.46, 2.43), (x + 0.78, 2.43), colour=BAND_COLOURS[i // 2])
    draw_band_bar(axes, path.schedule, k, xs, 3.3)
    draw_arrow(axes, (xs[0], 0.28), (xs[4], 0.28))
    write(axes, xs[2], 0.14, r"sampling follows the learned velocity, $d\Psi_k/dk = v_\theta(\Psi_k, k)$")
    for y, label in ((1.03, "pixels"), (2.43, "K-amplitude\nspace"), (3.4, "band that\nmoves")):
        write(axes, 1.0, y, label, ha="right")
    return figure


def pipeline_comparison() -> Figure:
    """Figure 8: a pyramid of resolutions in pixel space, against bands of one K-amplitude space (db6, three bands)."""
    data, noise = photograph(size=64), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = Path(Wavelet(data.shape[1:], "db6", levels=2), HardBump(3))
    figure, axes = make_canvas(WIDTH, 4.85)

    write(
        axes, 0, 0.1, "pixel space: one flow for each resolution, each in a space of its own", ha="left", weight="bold"
    )
    lefts, widths, numbers = (0.0, 2.0, 4.55), (0.5, 0.8, 1.1), ("$d$/16", "$d$/4", "$d$")
    for level, (x, width, count) in enumerate(zip(lefts, widths, numbers)):
        size, end = 16 << level, x + 2 * width + 0.36
        draw_image(axes, noise[0, :, :size, :size], x, 0.9 - width / 2, width)
        draw_arrow(axes, (x + width + 0.04, 0.9), (x + width + 0.32, 0.9))
        draw_image(axes, F.interpolate(data, (size, size), mode="area")[0], end - width, 0.9 - width / 2, width)
        write(axes, max((x + end) / 2, 0.75), 1.62, f"{size} × {size}: {count} numbers")
        if level < 2:
            draw_arrow(axes, (end + 0.06, 0.9), (lefts[level + 1] - 0.06, 0.9), colour=GREY)
            write(axes, (end + lefts[level + 1]) / 2, 0.76, "enlarge", size=7.5)

    write(axes, 0, 2.05, "K-amplitude space: one flow along k, one space of $d$ numbers", ha="left", weight="bold")
    k, xs = torch.linspace(0, 1, 4), 0.5 + 2.05 * np.arange(4)
    captions = ("noise", "+ $d$/16 numbers", "+ 3$d$/16 numbers", "+ 12$d$/16: data")
    for i, (x, state) in enumerate(zip(xs, states(path, data, noise, k)[:, 0])):
        draw_image(axes, state, x - 0.5, 2.2, 1.0)
        draw_image(axes, amplitude_picture(path.decomposition, state), x - 0.5, 3.27, 1.0)
        write(axes, x, 4.4, captions[i])
        if i < 3:
            draw_arrow(axes, (x + 0.54, 3.24), (x + 1.51, 3.24), colour=BAND_COLOURS[i])
            write(axes, x + 1.02, 3.11, f"band {i} moves", size=8, color=BAND_COLOURS[i])
    draw_band_bar(axes, path.schedule, k, xs, 4.6)
    return figure


def pipeline_steering(kind: str, drop_class_at: float = 0.3) -> Figure:
    """How K-Flow is steered, drawn with the exact flow of 300 real digits (db6, two bands).

    Args:
        kind: ``class``: the class is given up to k = τ, then dropped (Figure 3a, Algorithm 3); ``low-to-high``: one
            high-scaling noise, several low-scaling ones (Figure 3b, Algorithm 2); ``high-to-low``: reversed order, one
            low-scaling noise, several high-scaling ones (Figure 14).
        drop_class_at: τ, for ``class``.

    Raises ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, allowed are {', '.join(KINDS)}")
    digits = load_data("digits")
    points, classes = to_float(digits.train[::15]), digits.train_labels[::15]
    order = "high-to-low" if kind == "high-to-low" else "low-to-high"
    path = Path(Wavelet(digits.shape, "db6"), HardBump(2, order=order))
    noise = torch.randn(4, *digits.shape, generator=torch.Generator().manual_seed(6))
    if kind == "class":
        labels = torch.tensor([3, 7])
        experts = {int(label): PointsOracle(points[classes == label], path) for label in labels}
        model = _class_oracle(PointsOracle(points, path), experts)
        flow = sample(model, noise[:2], labels, steps=20, solver="heun", drop_class_at=drop_class_at, trajectory=True)
        return _draw_class_dropping(path, flow, drop_class_at)
    parts, kept = path.decomposition.split(noise), 1 if kind == "low-to-high" else 0
    parts[kept] = parts[kept, 3:]
    flow = sample(PointsOracle(points, path), parts.sum(0)[:3], steps=20, solver="heun", trajectory=True)

    figure, axes = make_canvas(WIDTH, 3.2)
    k, xs = torch.linspace(0, 1, 5), 2.45 + 1.05 * np.arange(5)
    for band, (x, name) in enumerate(zip((0.4, 1.4), ("low", "high"))):
        for row in range(3):
            width = 3.5 if band == kept else 1.0
            draw_image(axes, parts[band, row], x - 0.38, 0.73 + 0.84 * row, 0.76, BAND_COLOURS[band], width)
            write(axes, x + 0.5, 1.11 + 0.84 * row, "+="[band], size=14)
        which, weight = ("one, kept", "bold") if band == kept else ("one each", "normal")
        write(axes, x, 0.32, f"{name}-scaling\nnoise:\n{which}", color=BAND_COLOURS[band], weight=weight)
    _draw_flow(axes, flow, k, xs, 0.73, [rf"$\Psi_{{{at:g}}}$" for at in k])
    draw_band_bar(axes, path.schedule, k, xs, 0.2)
    return figure


def _class_oracle(free: PointsOracle, experts: dict[int, PointsOracle]) -> SimpleNamespace:
    """The exact velocity of a labelled set of points: of the class's points, or of all where no class is given."""

    def velocity(state: Tensor, k: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
        if labels is None:
            return free.velocity(state, k)
        return torch.cat([experts[int(c)].velocity(x[None], at[None]) for c, x, at in zip(labels, state, k)])

    return SimpleNamespace(path=free.path, network=SimpleNamespace(classes=10), velocity=velocity)


def _draw_class_dropping(path: Path, flow: Samples, tau: float) -> Figure:
    figure, axes = make_canvas(WIDTH, 2.95)
    k, xs = torch.tensor([0, tau / 2, tau, (1 + tau * 2) / 3, (2 + tau) / 3, 1]), 0.45 + 1.24 * np.arange(6)
    border = xs[2] + 0.62
    given, dropped = r"class $c$ given: $(1-\omega)\,v(\varnothing) + \omega\,v(c)$", r"class dropped: $v(\varnothing)$"
    for left, right, text in ((0.07, border - 0.06, given), (border + 0.06, xs[5] + 0.38, dropped)):
        draw_box(axes, left, 0.06, right - left, 0.32)
        write(axes, (left + right) / 2, 0.22, text)
    _draw_flow(axes, flow, k, xs, 0.67, [f"$k$ = {at:.2g}" for at in k])
    axes.plot([border] * 2, [0, 2.33], color="black", ls="--", lw=1)
    draw_band_bar(axes, path.schedule, k, xs, 2.43)
    draw_arrow(axes, (xs[2], 2.82), (xs[2], 2.64))
    write(axes, xs[2] + 0.07, 2.8, rf"$\tau$ = {tau:g}", ha="left")
    return figure


def _draw_flow(axes, flow: Samples, k: Tensor, xs: np.ndarray, top: float, labels: list[str]) -> None:
    """The states of a trajectory nearest to the given k, a row for each sample, with arrows in between."""
    for i, (x, at) in enumerate(zip(xs, k)):
        write(axes, x, top - 0.13, labels[i])
        for row, state in enumerate(flow.trajectory[int((flow.k - at).abs().argmin())]):
            y = top + 0.84 * row
            draw_image(axes, state, x - 0.38, y, 0.76)
            if i + 1 < len(xs):
                draw_arrow(axes, (x + 0.41, y + 0.38), (xs[i + 1] - 0.41, y + 0.38))
