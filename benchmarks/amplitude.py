"""How fast `reweight` is: ratios to other ways of doing the same, all measured in one run.

    python benchmarks/amplitude.py [--json results.json] [--repeats 30]

The repeats of all candidates are interleaved, each timed call after a warm-up call of its own, and a ratio is the
median over the repeats of two times taken shortly after each other. Exit status 1 if a ratio misses what is required.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ptwt
import pywt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, pad

from kflow.amplitude import Fourier, Wavelet

SHAPE = (256, 4, 32, 32)

# Numerator, denominator, how they must compare, and the bound.
REQUIRED = [
    ("ptwt wavedec2 + waverec2", "db6 reweight", ">=", 50.0),
    ("strided convolutions", "db6 reweight", ">=", 4.0),
    ("Fourier reweight", "rfft2 + irfft2", "<=", 1.15),
]


def strided_convolutions(x: Tensor, weights: Tensor) -> Tensor:
    """What `Wavelet("db6").reweight` computes, by circular convolutions of stride 2 and their transposes.

    One axis after the other, which is faster than filters in two dimensions. Of the 12 taps 5 reach over a border.
    """
    bank = pywt.Wavelet("db6")
    columns = torch.tensor([bank.dec_lo, bank.dec_hi]).flip(1)[:, None, None]
    rows = columns.transpose(2, 3).repeat(2, 1, 1, 1)
    batch, channel, height, width = x.shape
    c = conv2d(pad(x.reshape(-1, 1, height, width), (5, 5, 0, 0), "circular"), columns, stride=(1, 2))
    c = conv2d(pad(c, (0, 0, 5, 5), "circular"), rows, stride=(2, 1), groups=2)
    c = c.view(batch, channel, 4, height // 2, width // 2) * weights[:, [0, 1, 1, 1]].view(batch, 1, 4, 1, 1)
    c = pad(c.view(-1, 4, height // 2, width // 2), (0, 0, 3, 3), "circular")
    c = conv_transpose2d(c, rows, stride=(2, 1), padding=(11, 0), groups=2)
    return conv_transpose2d(pad(c, (3, 3, 0, 0), "circular"), columns, stride=(1, 2), padding=(0, 11)).view_as(x)


def measure(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of every candidate."""
    times = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--repeats", type=int, default=30, help="interleaved repeats (default 30)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    x, weights = torch.randn(SHAPE), torch.rand(SHAPE[0], 2)
    wavelet, fourier = Wavelet(SHAPE[1:], "db6"), Fourier(SHAPE[1:])
    torch.testing.assert_close(strided_convolutions(x, weights), wavelet.reweight(x, weights), rtol=1e-5, atol=1e-5)
    times = measure(
        {
            "ptwt wavedec2 + waverec2": lambda: ptwt.waverec2(ptwt.wavedec2(x, "db6", mode="periodic", level=1), "db6"),
            "strided convolutions": lambda: strided_convolutions(x, weights),
            "db6 reweight": lambda: wavelet.reweight(x, weights),
            "rfft2 + irfft2": lambda: torch.fft.irfft2(torch.fft.rfft2(x), s=SHAPE[2:]),
            "Fourier reweight": lambda: fourier.reweight(x, weights),
        },
        arguments.repeats,
    )
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    print(f"x {SHAPE} float32 on the CPU, {torch.get_num_threads()} threads, median of {arguments.repeats}\n")
    for name, value in milliseconds.items():
        print(f"{name:<44}{value:>9.3f} ms")
    print(f"\n{'ratio':<44}{'measured':>12}{'required':>12}")
    ratios = []
    for above, below, sign, bound in REQUIRED:
        ratio = statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))
        met = ratio >= bound if sign == ">=" else ratio <= bound
        ratios.append({"ratio": f"{above} / {below}", "measured": ratio, "required": f"{sign} {bound}", "met": met})
        print(f"{f'{above} / {below}':<44}{ratio:>12.2f}{f'{sign} {bound}':>12}{'' if met else '  MISSED'}")
    if arguments.json:
        results = {"shape": SHAPE, "threads": torch.get_num_threads(), "milliseconds": milliseconds, "ratios": ratios}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(ratio["met"] for ratio in ratios) else 1


if __name__ == "__main__":
    sys.exit(main())
