"""How long 5,000 generated digits take to be evaluated: features, Fréchet distance, precision, recall, kernel distance.

    python benchmarks/metrics.py [--json results.json] [--limit 60]

Real digits stand in for generated ones; the time does not depend on what they show. Exit status 1 above the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from kflow.data import load_data
from kflow.metrics import extract_features, fidelity_of_draws
from kflow.storage import CHECKPOINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the times here")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    data = load_data("digits")
    generated = data.train.repeat(2, 1, 1, 1)[:5000]
    marks = [time.perf_counter()]
    features = [extract_features(x, CHECKPOINTS / "digits-features") for x in (generated, data.test)]
    marks.append(time.perf_counter())
    fidelity_of_draws(*features)
    marks.append(time.perf_counter())
    seconds = {"features": marks[1] - marks[0], "distances": marks[2] - marks[1], "all": marks[2] - marks[0]}
    print(f"\n5,000 digits against {len(data.test)}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"{name:>10} {value:7.2f} s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(seconds, indent=2) + "\n")
    if seconds["all"] > arguments.limit:
        sys.exit(f"above the limit of {arguments.limit} s")


if __name__ == "__main__":
    main()
