"""From noise to data: ODE solvers aligned with the bands, guidance, class dropping (Algorithm 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchdiffeq
from torch import Tensor
from tqdm.auto import tqdm

from kflow.velocity import KFlow
from kflow.velocity.oracle import Oracle

FIXED = ("euler", "increment", "midpoint", "heun", "rk4")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        data: (batch, *shape), the state at the end.
        nfe: number of function evaluations: calls of the network for each sample, a guided (batched) call counted once.
        k: (T,) the scaling parameters of the trajectory.
        trajectory: (T, batch, *shape), the states there, the start first; None unless asked for.
    """

    data: Tensor
    nfe: int
    k: Tensor
    trajectory: Tensor | None = None


def grid(joins: Sequence[float], steps: int | Sequence[int], start: float = 0.0, end: float = 1.0) -> list[float]:
    """A grid of k from start to end that has every join between them among its points.

    Args:
        joins: where the velocity has kinks.
        steps: number of steps in all, shared out by length; or one number for each interval between joins (§3.2:
            more steps where there is more energy).
        start, end: ends of the grid.

    Raises ValueError: too few steps for the joins, or as many numbers as there are not intervals.
    """
    edges = [start, *(j for j in joins if start < j < end), end]
    lengths = [high - low for low, high in zip(edges, edges[1:], strict=False)]
    if isinstance(steps, int):
        if steps < len(lengths):
            raise ValueError(
                f"steps is {steps}, allowed is {len(lengths)} or more: one for each interval between joins"
            )
        ideal = [steps * length / sum(lengths) for length in lengths]
        counts = [max(1, int(x)) for x in ideal]
        while sum(counts) != steps:  # the rest goes where the most is missing
            gap = [x - n if sum(counts) < steps or n > 1 else float("inf") for x, n in zip(ideal, counts, strict=True)]
            index = gap.index(max(gap)) if sum(counts) < steps else gap.index(min(gap))
            counts[index] += 1 if sum(counts) < steps else -1
    else:
        counts = list(steps)
        if len(counts) != len(lengths) or min(counts) < 1:
            raise ValueError(f"steps is {counts}, allowed are {len(lengths)} positive numbers, one for each interval")
    points = [low + (high - low) * i / n for low, high, n in zip(edges, edges[1:], counts) for i in range(n)]
    return [*points, end]


@torch.no_grad()
def sample(
    model: KFlow | Oracle,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int | Sequence[int] = 30,
    solver: str = "euler",
    ask: str = "start",
    guidance_scale: float = 1.0,
    drop_class_at: float | str | None = None,
    labels_after: Tensor | None = None,
    start: float = 0.0,
    end: float = 1.0,
    tolerance: float = 1e-5,
    trajectory: bool = False,
    progress: bool = False,
) -> Samples:
    """Integrate dΨ/dk = v(Ψ, k) from noise at k = 0 to data at k = 1; the solver stops at every band join.

    Args:
        model: a trained model, or an oracle.
        noise: (batch, *shape).
        labels: (batch,) classes, or None.
        steps: for solvers on a fixed grid, in all or per interval: see :func:`grid`. The paper takes 30 of ``euler``.
        solver: ``euler``, ``midpoint``, ``heun``, ``rk4``; ``increment``, the exact band step of a displacement;
            or adaptive, from torchdiffeq: ``dopri5``, ``dopri8``, ``bosh3``, ``adaptive_heun``.
        ask: where in a step ``euler`` and ``increment`` ask the network, with the state at the step's start:
            at its ``start``, as in the paper, or at the ``middle`` of its k-interval.
        guidance_scale: ω of Algorithm 3.
        drop_class_at: τ of Algorithm 3, a k or ``join`` (the first), where the class is dropped. It joins the grid.
        labels_after: (batch,) classes from τ on, instead of none.
        start, end: k from which to which: a part of the way, or with the end before the start a part of the way back
            over the same grid; ``noise`` is the state at the start.
        tolerance: relative and absolute tolerance of adaptive solvers.
        trajectory: keep the state at every grid point (adaptive solvers: at every join).
        progress: show a progress bar.

    Raises ValueError: an unknown solver or ask, a label or τ out of range, labels_after without τ, too few steps.
    """
    if solver not in FIXED + ADAPTIVE:
        raise ValueError(f"solver is {solver!r}, allowed are {', '.join(FIXED + ADAPTIVE)}")
    if ask not in ("start", "middle"):
        raise ValueError(f"ask is {ask!r}, allowed are start, middle")
    drop_class_at = min(model.path.schedule.joins, default="join") if drop_class_at == "join" else drop_class_at
    if isinstance(drop_class_at, str) or not 0 <= (drop_class_at or 0) <= 1:
        raise ValueError(f"drop_class_at is {drop_class_at}, allowed are values of k from 0 to 1, and join if bands do")
    if noise.shape[1:] != model.path.decomposition.shape:
        allowed = ", ".join(map(str, ("batch", *model.path.decomposition.shape)))
        raise ValueError(f"noise has shape {tuple(noise.shape)}, allowed is ({allowed})")
    if labels_after is not None and drop_class_at is None:
        raise ValueError("labels_after were given with drop_class_at None, allowed is a k from which they count")
    low, high = sorted((start, end))
    if not 0 <= low < high <= 1:
        raise ValueError(f"start is {start} and end {end}, allowed are two different values from 0 to 1")
    check_labels(model, labels, len(noise))
    check_labels(model, labels_after, len(noise))
    joins = sorted({*model.path.schedule.joins, *([] if drop_class_at is None else [drop_class_at])})
    points = grid(joins, steps, low, high) if solver in FIXED else [low, *(j for j in joins if low < j < high), high]
    points = points if start < end else points[::-1]
    state, nfe, kept = noise, 0, [noise]

    for here, there in tqdm(list(zip(points, points[1:], strict=False)), disable=not progress, desc="sampling"):
        dropped = drop_class_at is not None and (here + there) / 2 > drop_class_at
        condition = {"labels": labels_after if dropped else labels, "guidance_scale": guidance_scale}

        def at(k: float | Tensor) -> Tensor:
            return torch.as_tensor(k, dtype=noise.dtype, device=noise.device).expand(len(noise))

        # What is asked at a join belongs to the interval after it, so an interval's upper end is asked a hair before.
        last = torch.nextafter(at(max(here, there)), at(min(here, there)))

        def velocity(k: float | Tensor, state: Tensor) -> Tensor:
            nonlocal nfe
            nfe += 1
            return model.velocity(state, torch.minimum(at(k), last), **condition)  # noqa: B023

        if solver in ADAPTIVE:
            span = torch.tensor([here, there], dtype=torch.float64, device=noise.device)
            options = {"step_t": span[1:]}  # land on the join, do not step over it and interpolate back
            state = torchdiffeq.odeint(
                velocity, state, span, rtol=tolerance, atol=tolerance, method=solver, options=options
            )[-1]
        elif solver == "increment":
            nfe += 1
            asked = torch.minimum(at(here if ask == "start" else (here + there) / 2), last)
            state = state + model.increment(state, at(here), at(there), asked, **condition)
        else:
            state = state + (there - here) * mean_velocity(velocity, state, here, there, solver, ask)
        if trajectory:
            kept.append(state)

    return Samples(state, nfe, torch.tensor(points), torch.stack(kept) if trajectory else None)


def mean_velocity(velocity, state: Tensor, here: float, there: float, solver: str, ask: str) -> Tensor:
    """The mean velocity over one step from here to there, as a fixed-step solver estimates it."""
    step, middle = there - here, (here + there) / 2
    first = velocity(middle if solver == "euler" and ask == "middle" else here, state)
    if solver == "euler":
        return first
    if solver == "heun":
        return (first + velocity(there, state + step * first)) / 2
    second = velocity(middle, state + step / 2 * first)
    if solver == "midpoint":
        return second
    third = velocity(middle, state + step / 2 * second)
    return (first + 2 * second + 2 * third + velocity(there, state + step * third)) / 6


def check_labels(model: KFlow | Oracle, labels: Tensor | None, count: int) -> None:
    """Raise a ValueError if there is not one label for each sample, or a label is no class of the network."""
    if labels is None:
        return
    classes = getattr(getattr(model, "network", None), "classes", 0)
    if not classes:
        raise ValueError("labels were given, but this model is unconditional: allowed is None")
    if labels.shape != (count,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, allowed is ({count},), one for each sample")
    wrong = labels[(labels < 0) | (labels > classes)]
    if len(wrong):
        raise ValueError(f"a label is {int(wrong[0])}, allowed are 0 to {classes - 1}, and {classes} for no class")
