"""How bands behave along a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from kflow.amplitude import KAmplitude


def way_of_bands(trajectory: Tensor, decomposition: KAmplitude) -> tuple[Tensor, Tensor]:
    r"""How far each band has gone from its start, and has left to its end, as shares of the distance between the two.

    ‖P_b(Ψ_k − Ψ_0)‖ and ‖P_b(Ψ_1 − Ψ_k)‖ over ‖P_b(Ψ_1 − Ψ_0)‖, means over the batch. On the exact path
    a waiting band has gone 0, and a finished band has 0 left.

    Args:
        trajectory: (T, batch, \*shape), noise first.
        decomposition: gives the bands.

    Returns:
        gone and left, each (T, B).
    """
    parts = torch.stack([decomposition.split(state) for state in trajectory]).flatten(3)
    whole = (parts[-1] - parts[0]).norm(dim=2).clamp(min=1e-12)
    gone, left = ((parts - parts[end]).norm(dim=3) / whole for end in (0, -1))
    return gone.mean(2), left.mean(2)
