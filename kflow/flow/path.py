"""Ψ_k and dΨ_k/dk: the one formula of K-Flow (Eq. 7–9, 15, 16, 20)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kflow.amplitude import KAmplitude
from kflow.flow.schedule import Schedule, check_k


class Path(nn.Module):
    r"""The conditional path from noise ε (k = 0) to data φ (k = 1), band after band.

    .. math::
        \Psi_k = \varepsilon + \sum_b w_b(k)\,P_b\,(\varphi - \varepsilon), \qquad
        \frac{d\Psi_k}{dk} = \sum_b w_b'(k)\,P_b\,(\varphi - \varepsilon)

    One band with the linear schedule is ordinary flow matching.

    Args:
        decomposition: gives the projections P_b.
        schedule: gives the weights w_b(k).

    Raises ValueError: the two have different numbers of bands.
    """

    def __init__(self, decomposition: KAmplitude, schedule: Schedule):
        super().__init__()
        if decomposition.bands != schedule.bands:
            raise ValueError(
                f"the decomposition has {decomposition.bands} bands, the schedule {schedule.bands}: allowed are equal"
            )
        self.decomposition, self.schedule = decomposition, schedule

    @property
    def bands(self) -> int:
        return self.schedule.bands

    def sample(self, data: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Ψ_k and dΨ_k/dk, from one analysis of data − noise.

        Args:
            data, noise: (batch, *shape).
            k: (batch,) in [0, 1].

        Returns state and velocity, each (batch, *shape). The state is exactly the noise at k = 0 and the data at k = 1.
        Raises ValueError: shapes that do not fit each other, or k outside [0, 1].
        """
        if data.shape != noise.shape or k.shape != data.shape[:1]:
            raise ValueError(
                f"data {tuple(data.shape)}, noise {tuple(noise.shape)} and k {tuple(k.shape)} do not fit: "
                "allowed are two equal shapes (batch, …) and (batch,)"
            )
        weights, rates = self.schedule(check_k(k))
        # lerp is exact at both ends; what the bands add to it vanishes there.
        last = weights[:, -1:]
        straight = torch.lerp(noise, data, last.reshape(-1, *[1] * (data.dim() - 1)).to(data.dtype))
        banded, velocity = self.decomposition.reweight(data - noise, torch.stack([weights - last, rates]))
        return straight + banded, velocity

    def state(self, data: Tensor, noise: Tensor, k: Tensor) -> Tensor:
        """Ψ_k alone (Eq. 8, 15, 16, 20); arguments and errors as for :meth:`sample`."""
        return self.sample(data, noise, k)[0]

    def velocity(self, data: Tensor, noise: Tensor, k: Tensor) -> Tensor:
        """dΨ_k/dk alone (Eq. 9); arguments and errors as for :meth:`sample`."""
        return self.sample(data, noise, k)[1]
