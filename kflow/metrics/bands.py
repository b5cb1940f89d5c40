"""How energy lies in bands, and how bands behave along a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from kflow.amplitude import KAmplitude
from kflow.flow import Path


def way_of_bands(trajectory: Tensor, decomposition: KAmplitude) -> tuple[Tensor, Tensor]:
    r"""How far each band has gone from its start, and has left to its end, as shares of the distance between the two.

    ‖P_b(Ψ_k − Ψ_0)‖ and ‖P_b(Ψ_1 − Ψ_k)‖ over ‖P_b(Ψ_1 − Ψ_0)‖, means over the batch. On the exact path
    a waiting band has gone 0, and a finished band has 0 left.

    Args:
        trajectory: (T, batch, \*shape), noise first.
        decomposition: gives the bands.

    Returns gone and left, each (T, B).
    """
    parts = torch.stack([decomposition.split(state) for state in trajectory]).flatten(3)
    whole = (parts[-1] - parts[0]).norm(dim=2).clamp(min=1e-12)
    gone, left = ((parts - parts[end]).norm(dim=3) / whole for end in (0, -1))
    return gone.mean(2), left.mean(2)


def leakage(trajectory: Tensor, k: Tensor, path: Path) -> Tensor:
    r"""Share of ‖v‖² that lies outside the bands that are to move, in each step of an Euler trajectory.

    The exact velocity of a hard bump has none. A band is to move in a step if its weight changes there.

    Args:
        trajectory, k, path: (T, batch, \*shape), noise first; (T,); gives bands and schedule.

    Returns (T − 1,), ratios of means over the batch.
    """
    change = torch.stack([path.decomposition.split(step).flatten(2) for step in trajectory.diff(dim=0)])
    energy = change.square().sum(3).mean(2)  # (T − 1, B)
    weights = path.schedule(k.to(trajectory.dtype))[0]
    waiting = weights.diff(dim=0).abs() < 1e-6
    return (energy * waiting).sum(1) / energy.sum(1).clamp(min=1e-30)  # a null step leaks nothing


def content_kept(first: Tensor, second: Tensor, independent: Tensor, decomposition: KAmplitude) -> Tensor:
    r"""Share of each band's content that two samples have in common: 1 − E‖P_b(a − b)‖² / E‖P_b(a − c)‖².

    1: the band is the same in both. 0: they differ as independent samples do.

    Args:
        first, second, independent: (batch, \*shape), the samples a, b and c.
        decomposition: gives the bands.

    Returns (B,).
    """
    same, other = (decomposition.split(first - x).flatten(2).square().sum(2).mean(1) for x in (second, independent))
    return 1 - same / other
