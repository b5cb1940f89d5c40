"""The exact velocity for known data: what a perfect network would say (§3.1, B.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kflow.flow.path import Path


class Oracle(ABC):
    """E[δ | Ψ_k], δ = data − noise, in closed form; it stands where :class:`kflow.flow.KFlow` stands in sampling.

    Args:
        path: the path whose velocity is asked for.
    """

    output = "displacement"

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def displacement(self, state: Tensor, k: Tensor) -> Tensor:
        """E[δ | Ψ_k = state], (batch, *shape), for state of that shape and k (batch,)."""

    @abstractmethod
    def log_density(self, state: Tensor, k: Tensor) -> Tensor:
        """log p_k(state), (batch,), up to a constant that depends on k alone. Differentiable: its gradient is the score."""

    def predict(self, state: Tensor, k: Tensor, labels: None = None, guidance_scale: float = 1.0) -> Tensor:
        """:meth:`displacement`, under the name and with the arguments that a solver uses; labels are ignored."""
        return self.displacement(state, k)

    def velocity(self, state: Tensor, k: Tensor, labels: None = None, guidance_scale: float = 1.0) -> Tensor:
        """E[dΨ_k/dk | Ψ_k = state] = Σ_b w_b' P_b E[δ | Ψ_k]: what training tends to (Eq. 10)."""
        return self.path.decomposition.reweight(self.displacement(state, k), self.path.schedule(k)[1])

    def increment(self, state, start, end, ask, labels=None, guidance_scale: float = 1.0) -> Tensor:
        """The exact band step, as :meth:`kflow.flow.KFlow.increment`."""
        moved = self.path.schedule(end)[0] - self.path.schedule(start)[0]
        return self.path.decomposition.reweight(self.displacement(state, ask), moved)

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
        self.mean, self.covariance = mean.flatten(), covariance

    def _moments(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W (D, D), the mean W m (D,) and S (D, D), all at one k."""
        size = self.mean.numel()
        basis = torch.eye(size, dtype=self.mean.dtype, device=self.mean.device)
        weights = self.path.schedule(k.to(basis).reshape(1))[0]
        w = self.path.decomposition.reweight(
            basis.view(size, *self.path.decomposition.shape), weights.expand(size, -1)
        ).flatten(1)
        w = (w + w.T) / 2
        return w, w @ self.mean, w @ self.covariance @ w + (basis - w) @ (basis - w)

    def _each_k(self, state: Tensor, k: Tensor):
        for value in k.unique():
            chosen = k == value
            w, mean, s = self._moments(value)
            yield chosen, w, s, state[chosen].flatten(1) - mean

    def displacement(self, state: Tensor, k: Tensor) -> Tensor:
        result = torch.empty_like(state)
        for chosen, w, s, deviation in self._each_k(state, k):
            gain = (self.covariance @ w - torch.eye(len(w)).to(w) + w) @ torch.linalg.pinv(s, hermitian=True)
            result[chosen] = (self.mean + deviation @ gain.T).view(-1, *state.shape[1:])
        return result

    def log_density(self, state: Tensor, k: Tensor) -> Tensor:
        result = state.new_zeros(len(state))
        for chosen, _, s, deviation in self._each_k(state, k):
            values = -0.5 * (deviation @ torch.linalg.pinv(s, hermitian=True) * deviation).sum(1)
            result = result.masked_scatter(chosen, values)
        return result


class PointsOracle(Oracle):
    r"""Data drawn from given points x_i, each blurred by Gaussian noise of standard deviation σ.

    With s_b = σ²w_b² + (1 − w_b)² and p_i ∝ exp(−½ Σ_b ‖P_b(Ψ − w_b x_i)‖²/s_b):
    E[δ | Ψ] = Σ_i p_i Σ_b P_b[x_i + (σ²w_b − (1 − w_b))/s_b · (Ψ − w_b x_i)].

    σ = 0 is a limit: a band that is finished keeps only the points that are nearest there.

    Args:
        points: (N, *shape).
        path: the path.
        blur: σ ≥ 0.

    Raises:
        ValueError: a negative blur.
    """

    def __init__(self, points: Tensor, path: Path, blur: float = 0.0):
        super().__init__(path)
        if blur < 0:
            raise ValueError(f"blur is {blur}, allowed is 0 or more")
        self.points, self.blur = points, blur
        self._split = path.decomposition.split(points)

    def _variances(self, k: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.path.schedule(k.to(like.dtype))[0]
        return weights, self.blur**2 * weights**2 + (1 - weights) ** 2

    def _log_likelihood(self, state: Tensor, k: Tensor) -> Tensor:
        """−½ Σ_b ‖P_b(Ψ − w_b x_i)‖²/s_b, (batch, N)."""
        weights, variances = self._variances(k, state)
        # In a finished band without blur the variance is 0; so small a value makes the nearest points win by far.
        floor = torch.finfo(state.dtype).eps ** 2
        total = state.new_zeros(len(state), len(self.points))
        for band, (part, points) in enumerate(
            zip(self.path.decomposition.split(state), self._split.to(state), strict=True)
        ):
            weight = weights[:, band, None]
            part, points = part.flatten(1), points.flatten(1)
            distance = part.square().sum(1, keepdim=True) - 2 * weight * (part @ points.T)
            distance = distance + weight**2 * points.square().sum(1)
            total = total - 0.5 * distance.clamp(min=0) / variances[:, band, None].clamp(min=floor)
        return total

    def displacement(self, state: Tensor, k: Tensor) -> Tensor:
        weights, variances = self._variances(k, state)
        mean = torch.tensordot(self._log_likelihood(state, k).softmax(1), self.points.to(state), 1)
        # Σ_i p_i P_b x_i + gain_b (P_b Ψ − w_b Σ_i p_i P_b x_i); a finished band without blur has no use for the gain.
        tiny = torch.finfo(state.dtype).tiny
        gain = torch.where(
            variances > tiny, (self.blur**2 * weights - (1 - weights)) / variances.clamp(min=tiny), 0 * weights
        )
        reweight = self.path.decomposition.reweight
        return reweight(mean, 1 - gain * weights) + reweight(state, gain)

    def log_density(self, state: Tensor, k: Tensor) -> Tensor:
        return self._log_likelihood(state, k).logsumexp(1)
