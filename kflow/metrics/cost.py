"""Times side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from scipy.stats import binom
from tqdm.auto import tqdm


def time_in_turn(calls: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of each call in every round, all calls in turn, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for count in tqdm(range(rounds + 1), desc="timing"):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if count:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(values: list[float], base: list[float]) -> tuple[float, list[float]]:
    """Median of paired ratios, and its distribution-free interval of at least 95 % (of order statistics).

    Raises:
        ValueError: fewer than six pairs, which carry no such interval.
    """
    ratios = sorted(a / b for a, b in zip(values, base, strict=True))
    if len(ratios) < 6:
        raise ValueError(f"there are {len(ratios)} pairs, allowed are 6 or more: fewer carry no 95 % interval")
    out = max(int(binom.ppf(0.025, len(ratios), 0.5)) - 1, 0)  # so many may lie beyond each end
    return statistics.median(ratios), [ratios[out], ratios[-1 - out]]
