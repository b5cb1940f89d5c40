"""One YAML file, one training run: its parameters, checked, and what they build."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, get_type_hints

import torch
import yaml

from kflow.amplitude import PCA, Fourier, Identity, KAmplitude, Meyer, Wavelet
from kflow.assemble import Assembly, ClusterNetwork
from kflow.data import Images, describe_data, load_data
from kflow.flow import HardBump, Linear, Path, Schedule, SoftBump
from kflow.networks import make_network
from kflow.velocity import KFlow

CHOICES = {
    "decomposition": ("identity", "fourier", "wavelet", "meyer", "pca"),
    "schedule": ("linear", "hard", "soft"),
    "draw_k": ("k", "w"),
    "output": ("velocity", "displacement"),
    "loss_bands": ("all", "active"),
    "learning_rate_decay": ("none", "cosine"),
    "precision": ("auto", "32-true", "bf16-mixed"),
    "compile": (True, False, "auto"),
}
POSITIVE = ("bands", "soft_width", "soft_degree", "images", "batch_size", "learning_rate", "clip_norm")
POSITIVE += ("checkpoint_images", "num_nodes")
NOT_NEGATIVE = ("warmup_images", "micro_batch", "weight_decay", "seed")
# Which choices read a key; with others it keeps its default, or a card would say what was never read.
READ_BY = dict.fromkeys(("wavelet", "boundary"), ("decomposition", "wavelet"))
READ_BY |= {"cuts": ("decomposition", "fourier", "pca", "graph"), "connection": ("schedule", "hard")}
READ_BY |= dict.fromkeys(("intervals", "order"), ("schedule", "hard", "soft"))
READ_BY |= dict.fromkeys(("soft_width", "soft_degree"), ("schedule", "soft"))
# What may differ between a run and its continuation: the machine, and how it computes (precision rounds differently).
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "compile")
HARDWARE += ("checkpoint_images", "micro_batch")


@dataclass(frozen=True)
class Experiment:
    """The parameters of a training run; also the papermill parameters of ``03_train``. Lengths count images.

    The defaults are the run that ``03_train`` makes: class-conditional K-Flow, db6 in two bands, on digits.
    """

    choices = CHOICES  # of its keys

    name: str = "digits-db6"
    data: str = "digits"
    conditional: bool = True
    label_dropout: float = 0.1
    network: str = "DiT-nano/4"
    # the path
    decomposition: str = "wavelet"
    bands: int = 2
    wavelet: str = "db6"
    boundary: str = "periodization"
    cuts: tuple[float, ...] | None = None
    schedule: str = "hard"
    connection: str = "cubic"
    intervals: tuple[float, ...] | None = None
    order: str = "low-to-high"
    soft_width: float = 0.5
    soft_degree: int = 2
    # the objective
    draw_k: str = "k"
    output: str = "velocity"
    loss_bands: str = "all"
    # the optimizer
    images: int = 240_000
    batch_size: int = 32
    learning_rate: float = 6e-3
    learning_rate_decay: str = "cosine"
    warmup_images: int = 10_000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    # the machine
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    compile: bool | str = "auto"
    micro_batch: int = 0  # samples at a time in a step, the fastest that stays in cache; 0: the whole batch
    checkpoint_images: int = 50_000

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, key, _as_type(key, getattr(self, key), kind))
        for key, allowed in self.choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} is {getattr(self, key)!r}, allowed are {', '.join(map(str, allowed))}")
        for key in POSITIVE:
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} is {getattr(self, key)}, allowed are positive numbers")
        for key in NOT_NEGATIVE:
            if getattr(self, key) < 0:
                raise ValueError(f"{key} is {getattr(self, key)}, allowed is 0 or more")
        for key in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}, allowed is 0 up to, not including, 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}, allowed are two numbers from 0 up to, not including, 1")
        if self.decomposition == "identity" and self.bands != 1:
            raise ValueError(f"bands is {self.bands}, allowed for decomposition identity is 1")
        if self.decomposition in ("wavelet", "meyer") and self.bands < 2:
            raise ValueError(f"bands is {self.bands}, allowed for decomposition {self.decomposition} is 2 or more")
        for key, (choice, *readers) in READ_BY.items():
            value, default, chosen = getattr(self, key), getattr(Experiment, key), getattr(self, choice)
            if value != default and chosen not in readers:
                raise ValueError(f"{key} is {value!r}, allowed for {choice} {chosen} is {default!r}: it reads no {key}")
        self.make_schedule()

    @classmethod
    def load(cls, path: str | FilePath, /, **changes: Any) -> Experiment:
        """From a YAML file of parameters, with some of them changed.

        Raises ValueError: naming the key, its value and what is allowed.
        """
        try:
            values = yaml.safe_load(FilePath(path).read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, Mapping):
            raise ValueError(f"{path} holds {type(values).__name__}, allowed is a mapping of parameters")
        return cls.make(**{str(key): value for key, value in values.items()} | changes)

    @classmethod
    def make(cls, /, **values: Any) -> Experiment:
        """Like the constructor, but an unknown key is an error that says which keys there are."""
        if cls is Experiment and values.get("decomposition") == "graph":
            return AssemblyExperiment.make(**values)
        allowed = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in allowed:
                raise ValueError(
                    f"there is no parameter {key!r} (value {values[key]!r}), allowed are {', '.join(allowed)}"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @property
    def hash(self) -> str:
        """sha256 of all parameters but HARDWARE (precision is there, ``name`` is not): records know a run by it."""
        computed = {key: value for key, value in self.to_dict().items() if key not in HARDWARE}
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()

    def make_schedule(self) -> Schedule:
        """The schedule w_b(k)."""
        if self.schedule == "linear":
            return Linear(self.bands)
        if self.schedule == "hard":
            return HardBump(self.bands, self.intervals, self.order, self.connection)
        return SoftBump(self.bands, self.soft_width, self.soft_degree, self.intervals, self.order)

    def make_decomposition(self, shape: tuple[int, ...], data: Images | None = None) -> KAmplitude:
        """The decomposition for samples of this shape; PCA is fitted on the training images of ``data``."""
        if self.decomposition == "identity":
            return Identity(shape)
        if self.decomposition == "fourier":
            return Fourier(shape, self.bands, self.cuts)
        if self.decomposition == "pca":
            data = data or load_data(self.data)
            return PCA.fit((data.to_float(part) for part in data.train.split(4096)), self.bands, self.cuts)
        levels = self.bands - 1
        return (
            Meyer(shape, levels)
            if self.decomposition == "meyer"
            else Wavelet(shape, self.wavelet, levels, self.boundary)
        )

    def make_model(self, data: Images | None = None, decomposition: KAmplitude | None = None) -> KFlow:
        """The untrained model, from the global random state. ``decomposition`` replaces the experiment's own.

        Raises ValueError: the network or the data are unknown or do not fit, conditional on data without classes.
        """
        known = data or describe_data(self.data)
        if self.conditional and not known.classes:
            raise ValueError(f"conditional is True, allowed for data {self.data} is False: it has no classes")
        decomposition = decomposition or self.make_decomposition(known.shape, data)
        classes = len(known.classes) if self.conditional else 0
        network = make_network(self.network, known.shape, self.bands, classes)
        return KFlow(network, Path(decomposition, self.make_schedule()), self.output, self.loss_bands)


@dataclass(frozen=True)
class AssemblyExperiment(Experiment):
    """A run on clusters of molecules (E.10); Experiment's lengths count clusters, and its keys for images do nothing.

    :meth:`Experiment.make` gives one where the decomposition is ``graph``. One band with the linear schedule is rigid
    flow matching; the network ``atoms`` moves atoms, not molecules.
    """

    choices = CHOICES | {"network": ("molecules", "atoms"), "decomposition": ("graph",), "output": ("displacement",)}

    data: str = "crystals"
    conditional: bool = False
    network: str = "molecules"
    decomposition: str = "graph"
    output: str = "displacement"
    precision: str = "32-true"
    compile: bool | str = False

    def make_decomposition(self, shape: tuple[int, ...], data: Any = None) -> KAmplitude:
        """Raises ValueError: each batch of clusters has its own."""
        raise ValueError("decomposition is 'graph': kflow.assemble.Assembly.on makes it for a batch of clusters")

    def make_model(self, data: Any = None, decomposition: KAmplitude | None = None) -> Assembly:
        """The untrained model, from the global random state; both arguments are for images."""
        network = ClusterNetwork(self.bands, free=self.network == "atoms")
        return Assembly(network, self.make_schedule(), self.cuts)


def _as_type(key: str, value: Any, kind: Any) -> Any:
    """The value in the field's type; whole numbers pass as floats, lists as tuples, nothing else is converted."""
    allowed = str(kind).replace("<class '", "").replace("'>", "")
    options = getattr(kind, "__args__", (kind,)) if "|" in str(kind) else (kind,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if getattr(option, "__origin__", None) is tuple and isinstance(value, list | tuple):
            return tuple(_as_type(key, x, float) for x in value)
        if option is float and not isinstance(value, bool):
            try:  # YAML 1.1 takes 1e-3, without a point, for a word
                if math.isfinite(float(value)):
                    return float(value)
            except (TypeError, ValueError):
                pass
        elif option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        elif option in (str, bool) and isinstance(value, option):
            return value
    raise ValueError(f"{key} is {value!r}, allowed is {allowed}")


def check_same(found: Experiment, wanted: Experiment, folder: FilePath) -> None:
    """Raise a ValueError if the folder's experiment computes something else, naming the first key that differs."""
    for key, value in found.to_dict().items():
        if key not in HARDWARE and value != wanted.to_dict()[key]:
            raise ValueError(
                f"{folder} holds a run with {key} = {value!r}, asked is {wanted.to_dict()[key]!r}: "
                "give another name or folder, or remove the run; nothing is overwritten"
            )


def choose_precision(experiment: Experiment) -> str:
    """``auto`` is bf16 where the processor has it natively, else float32."""
    if experiment.precision != "auto":
        return experiment.precision
    return "bf16-mixed" if bf16_is_native(experiment.accelerator) else "32-true"


def choose_compile(experiment: Experiment) -> bool:
    """``auto`` compiles runs long enough to repay it. Without a C++ compiler nothing is compiled, and it says so."""
    wanted = experiment.images >= 100_000 if experiment.compile == "auto" else bool(experiment.compile)
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if wanted and not shutil.which(compiler):
        print(f"There is no C++ compiler {compiler}: nothing is compiled, training is slower.", file=sys.stderr)
        return False
    return wanted


def bf16_is_native(accelerator: str = "auto") -> bool:
    """Whether the processor or accelerator multiplies bfloat16 itself (and is not told to pretend otherwise)."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    limited = not any(word in limit for word in ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10"))
    return not limited and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
