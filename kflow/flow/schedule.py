"""w_b(k) and dw_b/dk: which band moves when (Eq. 8, 15–20)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ORDERS = ("low-to-high", "high-to-low")


class Schedule(ABC):
    """The weight w_b(k) of the data in band b at scaling k ∈ [0, 1]: w_b(0) = 0, w_b(1) = 1.

    Attributes:
        bands: number of bands B.
        joins: the k inside (0, 1) at which some dw_b/dk has a kink; solvers stop there.
    """

    bands: int
    joins: tuple[float, ...] = ()

    @abstractmethod
    def __call__(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and their rates dw/dk for k of shape (batch,): two tensors (batch, B), of k's dtype.

        Exactly 0 at k = 0 and exactly 1 at k = 1. The values of k are not checked here, see :func:`check_k`.
        """

    def draw(self, count: int, generator: torch.Generator | None = None, uniform: str = "k") -> Tensor:
        """Scaling parameters for training, (count,) float32.

        Args:
            count: how many.
            generator: source of randomness.
            uniform: ``k`` draws k ~ U(0, 1) (Algorithm 1); ``w`` draws k so that the mean of w_b over the bands is
                uniform, that is with density ∝ Σ_b dw_b/dk: less time where nothing moves.

        Raises ValueError: another value of ``uniform``.
        """
        if uniform not in ("k", "w"):
            raise ValueError(f"uniform is {uniform!r}, allowed are 'k' and 'w'")
        u = torch.rand(count, generator=generator)
        return u if uniform == "k" else self.invert(u)

    def invert(self, mean_weight: Tensor) -> Tensor:
        """The k at which the mean of w_b(k) over the bands equals the given values in [0, 1]; by bisection."""
        low, high = torch.zeros_like(mean_weight).double(), torch.ones_like(mean_weight).double()
        for _ in range(50):
            middle = (low + high) / 2
            below = self(middle)[0].mean(-1) < mean_weight
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.to(mean_weight.dtype)


class Linear(Schedule):
    """w_b(k) = k in every band: with one band ordinary (latent) flow matching, the paper's baseline LFM."""

    def __init__(self, bands: int = 1):
        self.bands = bands

    def __call__(self, k: Tensor) -> tuple[Tensor, Tensor]:
        weights = k[:, None].expand(-1, self.bands)
        return weights, torch.ones_like(weights)


def cubic(t: Tensor) -> tuple[Tensor, Tensor]:
    """1 − μ(t) of Eq. 18, w = 3t² − 2t³, and its derivative."""
    return t * t * (3 - 2 * t), 6 * t * (1 - t)


def meyer(t: Tensor) -> tuple[Tensor, Tensor]:
    """Meyer's connection function t⁴(35 − 84t + 70t² − 20t³) and its derivative 140 t³(1 − t)³ (after Eq. 18)."""
    s = 1 - t  # in powers of s the polynomial has no cancellation: 35 − 84t + 70t² − 20t³ = 1 + 4s + 10s² + 20s³
    return t**4 * (1 + s * (4 + s * (10 + s * 20))), 140 * (t * s) ** 3


def ramp(t: Tensor) -> tuple[Tensor, Tensor]:
    """w = t: constant speed inside a band, and a jump of the velocity at every join."""
    return t, torch.ones_like(t)


CONNECTIONS = {"cubic": cubic, "meyer": meyer, "linear": ramp}


class HardBump(Schedule):
    """One band after the other: band b moves alone, in its interval (Eq. 8, 15, 16, 18).

    Inside [k_b, k_{b+1}), t = (k − k_b)/(k_{b+1} − k_b) and w_b is the connection function of t; 0 before, 1 after.
    The rate carries the factor 1/(k_{b+1} − k_b); the last interval is closed, so that the rate at k = 1 is its limit.

    Args:
        bands: number of bands.
        intervals: length of each band's interval, by band (low scaling first), positive; scaled to sum to 1.
            Equal if not given.
        order: ``low-to-high``, or ``high-to-low`` (Table 6, Figure 4b).
        connection: ``cubic`` (Eq. 18), ``meyer``, or ``linear``.

    Raises ValueError: an unknown order or connection, or intervals that do not fit.
    """

    def __init__(
        self,
        bands: int,
        intervals: Sequence[float] | None = None,
        order: str = "low-to-high",
        connection: str = "cubic",
    ):
        if connection not in CONNECTIONS:
            raise ValueError(f"connection is {connection!r}, allowed are {', '.join(CONNECTIONS)}")
        self.bands, self.order, self.connection = bands, order, connection
        self.starts, self.ends = band_intervals(bands, intervals, order)
        self.joins = tuple(sorted(self.starts)[1:])

    def __call__(self, k: Tensor) -> tuple[Tensor, Tensor]:
        # A band ends where the next one starts, to the bit in every dtype: two bands never move at once.
        starts, ends = k.new_tensor(self.starts), k.new_tensor(self.ends)
        k = k[:, None]
        t = ((k - starts) / (ends - starts)).clamp(0, 1)
        weights, rates = CONNECTIONS[self.connection](t)
        active = (k >= starts) & ((k < ends) | (ends == 1))
        return weights.clamp(max=1), torch.where(active, rates / (ends - starts), 0.0)


class SoftBump(Schedule):
    r"""All bands may move at once, each mostly near its own centre (Eq. 19–20).

    dw_b/dk ∝ (1 − ((k − a_b)/β)²)^n on |k − a_b| < β, with a_b the middle of the band's interval. The support is cut
    at the ends of [0, 1] and the rest normalised, so that w_b(0) = 0 and w_b(1) = 1 hold (see the errata page).
    Integrated in closed form, in float64.

    Args:
        bands: number of bands.
        width: β, positive; the paper's b.
        degree: n, a whole number from 1 to 1000; the larger, the sharper.
        intervals, order: as for :class:`HardBump`.

    Raises ValueError: a width or degree outside its range, or a wrong order or intervals.
    """

    def __init__(
        self,
        bands: int,
        width: float,
        degree: int = 2,
        intervals: Sequence[float] | None = None,
        order: str = "low-to-high",
    ):
        if not 0 < width < math.inf:
            raise ValueError(f"width is {width}, allowed are positive numbers")
        if not 1 <= degree <= 1000 or degree != int(degree):
            raise ValueError(f"degree is {degree}, allowed are whole numbers from 1 to 1000")
        self.bands, self.width, self.degree, self.order = bands, width, int(degree), order
        self.centres = [(start + end) / 2 for start, end in zip(*band_intervals(bands, intervals, order), strict=True)]
        ends = {round(centre + side, 12) for centre in self.centres for side in (-width, width)}
        self.joins = tuple(sorted(end for end in ends if 0 < end < 1))

    def __call__(self, k: Tensor) -> tuple[Tensor, Tensor]:
        # float64, on the CPU where a device has none.
        exact = k.to("cpu" if k.device.type == "mps" else k.device, torch.float64)
        centres = exact.new_tensor(self.centres)
        start, end = self._integral((0 - centres) / self.width), self._integral((1 - centres) / self.width)
        x = (exact[:, None] - centres) / self.width
        weights = ((self._integral(x) - start) / (end - start)).clamp(0, 1)
        rates = (1 - x.clamp(-1, 1) ** 2) ** self.degree / ((end - start) * self.width)
        return weights.to(k), rates.to(k)

    def _integral(self, x: Tensor) -> Tensor:
        """I_n(x) = ∫₀ˣ (1 − s²)ⁿ ds, constant outside [−1, 1]: (2n + 1) I_n = x (1 − x²)ⁿ + 2n I_{n−1}, I_0 = x.

        All terms have one sign and no power is taken, so it is accurate at any n, and the same at k = 0 in every batch.
        """
        x = x.clamp(-1, 1)
        integral, power = x, x
        for n in range(1, self.degree + 1):
            power = power * (1 - x * x)
            integral = (power + 2 * n * integral) / (2 * n + 1)
        return integral


def band_intervals(bands: int, intervals: Sequence[float] | None, order: str) -> tuple[list[float], list[float]]:
    """Start and end of each band's interval of k, by band."""
    if bands < 1:
        raise ValueError(f"bands is {bands}, allowed is 1 or more")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, allowed are {', '.join(ORDERS)}")
    lengths = [1.0] * bands if intervals is None else [float(x) for x in intervals]
    if len(lengths) != bands or not all(x >= 1e-6 * sum(lengths) > 0 and math.isfinite(x) for x in lengths):
        raise ValueError(
            f"intervals is {intervals}, allowed are {bands} positive numbers, one for each band, "
            "none below a millionth of their sum"
        )
    step = 1 if order == "low-to-high" else -1
    edges = list(accumulate(lengths[::step], initial=0.0))
    edges = [edge / edges[-1] for edge in edges]
    return edges[:-1][::step], edges[1:][::step]


def check_k(k: Tensor) -> Tensor:
    """k itself, if all of it lies in [0, 1].

    Raises ValueError: naming the first value that does not. On a GPU nobody waits for the answer: the error is CUDA's.
    """
    outside = ~((k >= 0) & (k <= 1))
    if k.is_cuda:
        torch._assert_async(~outside.any(), "k is outside 0 (noise) to 1 (data)")
    elif outside.any():
        raise ValueError(f"k is {float(k[outside][0])}, allowed are values from 0 (noise) to 1 (data)")
    return k
