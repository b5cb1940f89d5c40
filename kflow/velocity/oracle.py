"""The exact velocity for known data: what a perfect network would say (§3.1, B.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kflow.flow.path import Path
from kflow.flow.schedule import check_k
from kflow.velocity.model import KFlow


class Oracle(KFlow, ABC):
    """E[δ | Ψ_k], δ = data − noise, in closed form: a :class:`kflow.velocity.KFlow` without error.

    Its velocity, Σ_b w_b' P_b E[δ | Ψ_k] = E[dΨ_k/dk | Ψ_k], is what training tends to (Eq. 10); its loss is the
    part that no network removes. Computed in float64.

    Args:
        path: the path whose velocity is asked for.
    """

    def __init__(self, path: Path):
        super().__init__(None, path, output="displacement")

    @abstractmethod
    def displacement(self, state: Tensor, k: Tensor) -> Tensor:
        """E[δ | Ψ_k = state], (batch, *shape), for state of that shape and k (batch,)."""

    @abstractmethod
    def log_density(self, state: Tensor, k: Tensor) -> Tensor:
        """log p_k(state), (batch,), up to a constant that depends on k alone; its gradient is the score."""

    def predict(self, state: Tensor, k: Tensor, labels: None = None, guidance_scale: float = 1.0) -> Tensor:
        """:meth:`displacement`, under the name and with the arguments that a solver uses; labels are ignored.

        Raises ValueError: k outside [0, 1].
        """
        return self.displacement(state, check_k(k))

    def score(self, state: Tensor, k: Tensor) -> Tensor:
        """∇ log p_k(state), (batch, *shape), by automatic differentiation."""
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            return torch.autograd.grad(self.log_density(state, k).sum(), state)[0]


class GaussianOracle(Oracle):
    r"""Data from N(m, C), noise from N(0, I).

    With W = Σ_b w_b P_b: Ψ ~ N(W m, S), S = W C W + (I − W)², and
    E[δ | Ψ] = m + (C W − (I − W)) S⁺ (Ψ − W m), with a Hermitian pseudo-inverse.

    Args:
        mean: (*shape).
        covariance: (D, D), symmetric, positive semidefinite; D = product of shape.
        path: the path.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, path: Path):
        super().__init__(path)
        self.register_buffer("mean", mean.flatten().double())
        self.register_buffer("covariance", covariance.double())

    def _moments(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W (D, D), the mean W m (D,) and S (D, D), all at one k."""
        size = self.mean.numel()
        basis = torch.eye(size).to(self.mean)
        weights = self.path.schedule(k.reshape(1))[0]
        w = self.path.decomposition.reweight(
            basis.view(size, *self.path.decomposition.shape), weights.expand(size, -1)
        ).flatten(1)
        w = (w + w.T) / 2
        return w, w @ self.mean, w @ self.covariance @ w + (basis - w) @ (basis - w)

    def _each_k(self, state: Tensor, k: Tensor):
        for value in k.unique():
            chosen = k == value
            w, mean, s = self._moments(value)
            yield chosen, w, torch.linalg.pinv(s, hermitian=True), state[chosen].flatten(1) - mean

    def displacement(self, state: Tensor, k: Tensor) -> Tensor:
        result = torch.empty_like(state)
        for chosen, w, inverse, deviation in self._each_k(state, k):
            gain = (self.covariance @ w - torch.eye(len(w)).to(w) + w) @ inverse
            result[chosen] = (self.mean + deviation @ gain.T).view(-1, *state.shape[1:]).to(state)
        return result

    def log_density(self, state: Tensor, k: Tensor) -> Tensor:
        result = state.new_zeros(len(state))
        for chosen, _, inverse, deviation in self._each_k(state, k):
            result = result.masked_scatter(chosen, -0.5 * (deviation @ inverse * deviation).sum(1).to(state))
        return result


class PointsOracle(Oracle):
    r"""Data drawn from given points x_i, each blurred by Gaussian noise of standard deviation σ.

    With s_b = σ²w_b² + (1 − w_b)² and p_i ∝ exp(−½ Σ_b ‖P_b(Ψ − w_b x_i)‖²/s_b):
    E[δ | Ψ] = Σ_i p_i Σ_b P_b[x_i + (σ²w_b − (1 − w_b))/s_b · (Ψ − w_b x_i)].

    σ = 0 is a limit: a band that is finished keeps only the points that are nearest there. It is taken as σ = 10⁻⁶, so
    that rounding doesn't separate points that are equally near.

    Args:
        points: (N, *shape).
        path: the path.
        blur: σ ≥ 0.

    Raises ValueError: a negative blur.
    """

    def __init__(self, points: Tensor, path: Path, blur: float = 0.0):
        super().__init__(path)
        if not blur >= 0:
            raise ValueError(f"blur is {blur}, allowed is 0 or more")
        self.blur = max(blur, 1e-6)
        self.register_buffer("points", points.double())
        self.register_buffer("parts", path.decomposition.split(self.points).flatten(2))

    def _variances(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """w_b and s_b, (batch, B) each."""
        weights = self.path.schedule(k)[0].double()
        return weights, self.blur**2 * weights**2 + (1 - weights) ** 2

    def _log_likelihood(self, state: Tensor, k: Tensor) -> Tensor:
        """−½ Σ_b ‖P_b(Ψ − w_b x_i)‖²/s_b, (batch, N)."""
        weights, variances = (v.T[..., None] for v in self._variances(k))
        parts = self.path.decomposition.split(state.double()).flatten(2)
        distance = parts.square().sum(2, keepdim=True) - 2 * weights * (parts @ self.parts.mT)
        distance = distance + weights**2 * self.parts.square().sum(2)[:, None]
        return -0.5 * (distance / variances).sum(0)

    def displacement(self, state: Tensor, k: Tensor) -> Tensor:
        weights, variances = self._variances(k)
        gain = (self.blur**2 * weights - (1 - weights)) / variances
        reweight = self.path.decomposition.reweight
        mean = torch.tensordot(self._log_likelihood(state, k).softmax(1), self.points, 1)
        return (mean + reweight(state - reweight(mean, weights), gain)).to(state)

    def log_density(self, state: Tensor, k: Tensor) -> Tensor:
        return self._log_likelihood(state, k).logsumexp(1).to(state)
