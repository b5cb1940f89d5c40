"""Trains the runs whose records are missing, and measures each of them as soon as it is trained.

python -m kflow_book.campaign PATTERN ...    shell patterns; what comes first is done first

Several processes share the runs out; ``make campaign`` starts one a core. What was cut goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase

from kflow.checkpoint import promote
from kflow.records import RECORDS
from kflow.storage import RUNS
from kflow.train import train
from kflow_book.measure import find_fault, measure, named_experiment, run_folder, wanted


def choose_runs(patterns: Sequence[str]) -> list[str]:
    """The runs that the records want, seeds included, by the first pattern that their name or their seed 0's fits.

    Raises ValueError: a pattern fits none.
    """
    runs = list(dict.fromkeys(run for _, run in wanted() if run))
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [run for run in runs if fnmatchcase(run, pattern) or fnmatchcase(run.partition("-seed")[0], pattern)]
        if not found:
            raise ValueError(f"no run's name fits {pattern}, allowed are patterns for {', '.join(runs)}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def find_missing(run: str) -> list[str]:
    """The measurements of a run whose records are missing or stale."""
    return [name for name, other in wanted() if other == run and find_fault(name, run, RECORDS)]


def work(run: str) -> bool:
    """Train and measure a run, as far as that is not done; False if another process is at it.

    The weights of seed 0 are promoted to ``checkpoints/``, and measured as they stand there.
    """
    RUNS.mkdir(exist_ok=True)
    with open(RUNS / f".{run}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if find_missing(run):
            try:
                folder = run_folder(run)
            except FileNotFoundError:
                folder = train(named_experiment(run), RUNS / run).folder / "model"
            if "-seed" not in run and folder == RUNS / run / "model":  # trained now, or before and not yet promoted
                promote(RUNS / run)
            for name in find_missing(run):
                print(f"{run}: {name}", flush=True)
                measure(name, run).write(RECORDS)
    return True


def main(patterns: list[str]) -> None:
    """The command line."""
    try:
        for run in choose_runs(patterns or ["*"]):
            work(run)
    except (OSError, ValueError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
