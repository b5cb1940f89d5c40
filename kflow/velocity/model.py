"""A network on a path: what its output means, in training and in sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kflow.flow.path import Path
from kflow.flow.schedule import check_k

OUTPUTS = ("velocity", "displacement")


class KFlow(nn.Module):
    r"""A velocity field v_θ(Ψ, k), the model that Algorithm 1 trains.

    What the network's output means is a choice. ``velocity`` is the paper's: the output is v. With ``displacement`` the
    output is δ̂, an estimate of data − noise in every band that is not finished; then
    :math:`v = \sum_b w_b' P_b \hat\delta` lies exactly in the active bands, and
    :math:`\Psi + \sum_b (1 - w_b) P_b \hat\delta` is the posterior mean of the finished sample at every k.

    Args:
        network: called as ``network(state, k, weights, labels)`` with state (batch, *shape), k (batch,), the band
            weights (batch, B) at k, and labels (batch,) or None; returns (batch, *shape). A network that is to be
            guided has an attribute ``null_label``, the label of "no class".
        path: the path that it flows along.
        output: ``velocity`` or ``displacement``.
        loss_bands: ``all``, or ``active``: the loss counts only the bands that move at k (C.4).

    Raises ValueError: another output or loss_bands, or ``active`` with ``displacement``.
    """

    def __init__(self, network: nn.Module, path: Path, output: str = "velocity", loss_bands: str = "all"):
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}, allowed are {', '.join(OUTPUTS)}")
        if loss_bands not in ("all", "active"):
            raise ValueError(f"loss_bands is {loss_bands!r}, allowed are all, active")
        if output == "displacement" and loss_bands == "active":
            raise ValueError("loss_bands is 'active', with output 'displacement' allowed is all: waiting bands need it")
        self.network, self.path, self.output, self.loss_bands = network, path, output, loss_bands

    def loss(self, data: Tensor, noise: Tensor, k: Tensor, labels: Tensor | None = None) -> Tensor:
        """The objective of Algorithm 1 (Eq. 10) for each sample: (batch,), a mean over the sample's dimensions.

        ``displacement`` weighs the bands that are not finished, waiting ones included: weighing by (dw/dk)² would
        leave those untrained.

        Args:
            data, noise: (batch, *shape).
            k: (batch,) in [0, 1].
            labels: (batch,), the null label where the class is dropped, or None.
        """
        state, velocity = self.path.sample(data, noise, k)
        weights, rates = self.path.schedule(k)
        output = self.predict(state, k, labels)
        if self.output == "velocity":
            error, counted = output - velocity, rates > 0
        else:
            error, counted = output - (data - noise), weights < 1
        if self.output == "displacement" or self.loss_bands == "active":
            error = self.path.decomposition.reweight(error, counted.to(data.dtype))
        return error.square().flatten(1).mean(1)

    def predict(self, state: Tensor, k: Tensor, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Tensor:
        """The network's output with classifier-free guidance ω as in Algorithm 3: (1 − ω)·v(∅) + ω·v(c).

        One batched call serves both. Guidance is linear, so it means the same for both outputs.

        Args:
            state: (batch, *shape).
            k: (batch,).
            labels: (batch,) or None for the unconditional output.
            guidance_scale: ω; 1 is plain conditional sampling, 0 unconditional.

        Raises ValueError: k outside [0, 1], or not one k for each sample.
        """
        if k.shape != state.shape[:1]:
            raise ValueError(f"k has shape {tuple(k.shape)}, allowed is {tuple(state.shape[:1])}, one for each sample")
        weights = self.path.schedule(check_k(k))[0]
        if labels is None or guidance_scale == 1.0:
            return self.network(state, k, weights, labels).to(state.dtype)
        both = torch.cat([torch.full_like(labels, self.network.null_label), labels])
        output = self.network(state.repeat(2, *[1] * (state.dim() - 1)), k.repeat(2), weights.repeat(2, 1), both)
        free, guided = output.to(state.dtype).chunk(2)
        return (1 - guidance_scale) * free + guidance_scale * guided

    def velocity(self, state: Tensor, k: Tensor, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Tensor:
        """v_θ(Ψ, k) = dΨ/dk, (batch, *shape); arguments and errors as for :meth:`predict`."""
        output = self.predict(state, k, labels, guidance_scale)
        rates = self.path.schedule(k)[1]
        if self.output == "displacement":
            return self.path.decomposition.reweight(output, rates)
        # What the loss never saw is not used: other bands stay where they are (C.4, "static conditions").
        return output if self.loss_bands == "all" else self.path.decomposition.reweight(output, (rates > 0).to(output))

    def increment(
        self,
        state: Tensor,
        start: Tensor,
        end: Tensor,
        ask: Tensor,
        labels: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """The exact step of a constant displacement, Σ_b (w_b(end) − w_b(start)) P_b δ̂, with δ̂ asked at k = ask.

        Raises ValueError: the output is not ``displacement``, or a k outside [0, 1].
        """
        if self.output != "displacement":
            raise ValueError(f"the band increment needs output 'displacement', this model's is {self.output!r}")
        moved = self.path.schedule(check_k(end))[0] - self.path.schedule(check_k(start))[0]
        return self.path.decomposition.reweight(self.predict(state, ask, labels, guidance_scale), moved)

    def preview(self, state: Tensor, k: Tensor, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Tensor:
        """The posterior mean of the finished sample, Ψ + Σ_b (1 − w_b) P_b δ̂; arguments as for :meth:`predict`.

        Raises ValueError: the output is not ``displacement``: a velocity says nothing about waiting bands.
        """
        if self.output != "displacement":
            raise ValueError(f"a preview needs output 'displacement', this model's is {self.output!r}")
        remaining = 1 - self.path.schedule(check_k(k))[0]
        return state + self.path.decomposition.reweight(self.predict(state, k, labels, guidance_scale), remaining)
