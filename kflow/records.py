"""A result and where it came from: no number without its origin."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kflow.storage import ROOT

RECORDS = ROOT / "figures" / "records"
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "PyWavelets",
    "ptwt",
    "torch-fidelity",
    "torchdiffeq",
    "lightning-fabric",
    "safetensors",
)


@dataclass(frozen=True)
class Record:
    """Values with their origin, one JSON file.

    Attributes:
        name: of the result, and of the file.
        values: the numbers, by name.
        units: what each number is a share, distance or time of, by name.
        samples: how many samples the numbers stand on.
        seeds: the seeds drawn with.
        data, data_hash: data set, and sha256 of its images.
        experiment, experiment_hash: the training run's name and the sha256 of its parameters.
        checkpoint_hash: sha256 of the weights.
        seconds: wall time of the measurement.
        settings: everything else that it depends on (steps, guidance, judge, …).
    """

    name: str
    values: dict[str, Any]
    units: dict[str, str]
    samples: int
    seeds: list[int]
    data: str
    data_hash: str
    experiment: str | None = None
    experiment_hash: str | None = None
    checkpoint_hash: str | None = None
    seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())

    def __post_init__(self) -> None:
        if self.values.keys() != self.units.keys():
            raise ValueError(
                f"units are given for {sorted(self.units)}, allowed is one for each of {sorted(self.values)}"
            )

    def write(self, folder: str | Path) -> Path:
        """Write ``NAME.json`` into a folder, atomically."""
        path = Path(folder) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n")
        os.replace(part, path)
        return path

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """Read a record.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is no record.
        """
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no record: {error}") from None


def describe_machine() -> dict[str, Any]:
    """Processor, cores, instruction set and accelerator, without anything that names the machine."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "python": platform.python_version(),
    }
