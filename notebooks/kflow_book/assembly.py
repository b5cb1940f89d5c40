"""What page 10 needs alone: its protocols, its pictures, and a view in 3-D that needs no kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd
import torch
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from torch import Tensor

from kflow.assemble import Assembly, fit_rotation, molecule_volume, rotation_vector
from kflow.data import load_data
from kflow.figures import band_colour, make_axes
from kflow.metrics import packing_matching
from kflow.records import RECORDS, Record
from kflow.sample import sample
from kflow_book.crystals import BOND, Crystal, Crystals, collect
from kflow_book.measure import Trained
from kflow_book.tables import read_seeds, student_interval

DIVERGED = 100.0  # Å; starts have about 8
TOUCH = 1.5  # Å: nearer than this come no two atoms of different molecules in these crystals
SAMPLER = {"solver": "increment", "ask": "start"}


def density(positions: Tensor, numbers: Tensor) -> Tensor:
    """How densely clusters are packed: (..., 17, atoms, 3) and (17, atoms) to (...).

    The van der Waals volume of the molecules over that of the ball with the centres' root mean square distance from
    their mean; only ratios mean anything.
    """
    centres = positions.mean(-2)
    radius = (centres - centres.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    return molecule_volume(numbers).sum() / (4 / 3 * torch.pi * radius**3)


def rescale(crystal: Crystal, wanted: float) -> Tensor:
    """The starts of a crystal with their centres drawn together to a density, molecules as they are."""
    centres = crystal.starts.mean(2, keepdim=True)
    factor = (density(crystal.starts, crystal.numbers) / wanted).pow(1 / 3)[:, None, None, None]
    return crystal.starts + (factor - 1) * (centres - centres.mean(1, keepdim=True))


def assemble(model: Assembly, crystal: Crystal, steps: int, trajectory: bool = False) -> Tensor:
    """Every start of a crystal moved by a model: (S, 17, atoms, 3) in Å, or (T, S, 17, atoms, 3) with the way there."""
    count = len(crystal.starts)
    flow = model.on(collect([crystal] * count, list(range(count))))
    found = sample(flow, flow.network.start, steps=steps, trajectory=trajectory, **SAMPLER)
    if trajectory:
        return torch.stack([flow.network.positions(state) for state in found.trajectory])
    return flow.network.positions(found.data)


def pose_errors(found: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of orientation and place, after the centres of the two clusters are laid on each other as well as can be.

    Args:
        found, real: (..., 17, atoms, 3), Å.

    Returns the mean angle between a molecule's two orientations in degrees, and the root mean square distance of
    centres in Å, each (...). Molecules that look the same after a turn are not treated apart. Of atoms that moved
    freely, the orientation is the best fit.
    """
    centres = [x.mean(-2) - x.mean((-3, -2)).unsqueeze(-2) for x in (found, real)]
    turn = fit_rotation(*centres)
    local = [x - x.mean(-2, keepdim=True) for x in (found, real)]
    angles = rotation_vector(fit_rotation(local[0] @ turn.mT.unsqueeze(-3), local[1])).norm(dim=-1).rad2deg()
    return angles.mean(-1), (centres[0] @ turn.mT - centres[1]).square().sum(-1).mean(-1).sqrt()


def judge(crystals: Sequence[Crystal], found: Sequence[Tensor]) -> dict[str, Any]:
    """Packing matching and pose errors, means over clusters; PM (atom) of each crystal too.

    A cluster that has flown apart (PM (atom) above 100 Å, or not finite) counts as ``diverged`` and is in no mean.

    Args:
        crystals: the packings.
        found: for each (S, 17, atoms, 3), Å, generated from its starts.
    """
    rows, diverged = {}, 0
    for crystal, clusters in zip(crystals, found):
        atom = packing_matching(clusters.flatten(1, 2), crystal.final.expand_as(clusters).flatten(1, 2))
        kept = atom < DIVERGED  # not true of NaN
        diverged += int((~kept).sum())
        if kept.any():
            clusters, real = clusters[kept], crystal.final.expand_as(clusters[kept])
            errors = (packing_matching(clusters.mean(2), real.mean(2)), *pose_errors(clusters, real))
            rows[crystal.code] = torch.stack([atom[kept], *errors]).mean(1)
    means = torch.stack(list(rows.values())).mean(0).tolist()
    values: dict[str, Any] = dict(zip(("pm_atom", "pm_center", "rotation_error", "centre_error"), means))
    values["diverged"] = diverged / sum(map(len, found))
    return values | {"pm_atom_by_crystal": {code: float(row[0]) for code, row in rows.items()}}


def overlap(clusters: Tensor) -> Tensor:
    """Share of the atoms that lie within 1.5 Å of another molecule's: (..., 17, atoms, 3) in Å to (...)."""
    molecule = torch.arange(clusters.shape[-3]).repeat_interleave(clusters.shape[-2])
    flat = clusters.flatten(-3, -2)
    distance = torch.cdist(flat, flat).masked_fill(molecule[:, None] == molecule, torch.inf)
    return (distance.amin(-1) < TOUCH).float().mean(-1)


def measure_overlap(trained: Trained, samples: int, steps: int) -> dict[str, Any]:
    """:func:`overlap` of all starts of the held-out crystals moved by a trained model.

    Beside it that of the rows that learn nothing and of the crystals. Means over crystals; a cluster that has flown
    apart touches nothing.
    """
    data = load_data(trained.experiment.data)
    found = {"overlap": check_samples([assemble(trained.model, crystal, steps) for crystal in data.test], samples)}
    found |= {f"overlap_{name}": untouched(data, name == "rescaled") for name in ("start", "rescaled")}
    found["overlap_crystals"] = [crystal.final[None] for crystal in data.test]
    return {name: float(torch.stack([overlap(x).mean() for x in parts]).mean()) for name, parts in found.items()}


def untouched(data: Crystals, rescaled: bool) -> list[Tensor]:
    """The starts of the held-out crystals, as they are or rescaled to the training crystals' mean density."""
    wanted = torch.stack([density(c.final, c.numbers) for c in data.train]).mean()
    return [rescale(c, float(wanted)) if rescaled else c.starts for c in data.test]


def measure_start(data: str, samples: int, rescaled: bool) -> dict[str, Any]:
    """The two rows that learn nothing: the start itself, and the start at the training set's mean density."""
    crystals = load_data(data)
    return judge(crystals.test, check_samples(untouched(crystals, rescaled), samples))


def measure_packing(trained: Trained, samples: int, steps: int) -> dict[str, Any]:
    """All starts of the held-out crystals moved by a trained model; its PM (atom) also over those of the two rows."""
    data = load_data(trained.experiment.data)
    found = [assemble(trained.model, crystal, steps) for crystal in data.test]
    values = judge(data.test, check_samples(found, samples))
    for name, rescaled in (("start", False), ("rescaled", True)):
        base = judge(data.test, untouched(data, rescaled))["pm_atom"]
        values[f"pm_atom_over_{name}"] = values["pm_atom"] / base
    return values


def check_samples(found: list[Tensor], samples: int) -> list[Tensor]:
    """The same; a ValueError if there are not as many clusters as the settings, and so the record, say."""
    if sum(map(len, found)) != samples:
        raise ValueError(
            f"samples is {samples}, allowed is {sum(map(len, found))}: all starts of the held-out crystals"
        )
    return found


def bonds(crystal: Crystal) -> list[tuple[int, int]]:
    """Bonded pairs of atoms, by their index in the cluster."""
    radii, size = torch.from_numpy(covalent_radii).float()[crystal.numbers], crystal.numbers.shape[1]
    near = torch.cdist(crystal.final, crystal.final) < BOND * (radii[:, None] + radii[:, :, None])
    return [(m * size + i, m * size + j) for m, i, j in near.triu(1).nonzero().tolist()]


def lay_on(clusters: Tensor, crystal: Crystal) -> Tensor:
    """Clusters (T, 17, atoms, 3) turned together so that the last one's centres lie on the packing's."""
    middle = clusters.mean((1, 2), keepdim=True)
    turn = fit_rotation(clusters[-1].mean(1) - middle[-1, 0], crystal.final.mean(1) - crystal.final.mean((0, 1)))
    return (clusters - middle) @ turn.mT


def draw_clusters(crystal: Crystal, panels: dict[str, Tensor]) -> Figure:
    """Clusters (17, atoms, 3) side by side in 3-D under their titles, on one scale; hydrogens are left out."""
    shown, pairs = crystal.numbers.flatten() != 1, bonds(crystal)
    colours = jmol_colors[crystal.numbers.flatten()] * 0.8
    figure = Figure(figsize=(7.2, 2.4))
    limit = 0.85 * max(float(x.abs().max()) for x in panels.values())
    for number, (title, positions) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1, projection="3d")
        flat = positions.flatten(0, 1).numpy().round(2)
        kept = [(i, j) for i, j in pairs if shown[i] and shown[j]]
        halves = [(flat[a], (flat[i] + flat[j]) / 2) for i, j in kept for a in (i, j)]
        kinds = [colours[a] for i, j in kept for a in (i, j)]
        axes.add_collection(Line3DCollection(halves, colors=kinds, linewidths=1.1, rasterized=True))
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), zlim=(-limit, limit))
        axes.set_title(title, fontsize=9, y=1.0)
        axes.set_box_aspect((1, 1, 1), zoom=1.42)
        axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 0.9, 0, 0)
    return figure


VIEW = """
<div class="kflow-assembly" style="max-width:640px">
<canvas width="640" height="440" style="width:100%;touch-action:none;cursor:grab" role="img" tabindex="0"
 aria-label="A cluster of 17 molecules in three dimensions, from its loose start to the generated packing.
 Arrow keys turn it."></canvas>
<label style="display:flex;gap:.6em;align-items:center"><span style="min-width:9em">start</span>
<input type="range" min="0" step="1" value="0" style="flex:1" aria-label="step of the way"></label>
</div>
<script>
(() => {
  const root = document.currentScript.previousElementSibling, data = DATA;
  const canvas = root.querySelector("canvas"), context = canvas.getContext("2d");
  const slider = root.querySelector("input"), name = root.querySelector("span");
  slider.max = data.frames.length - 1;
  let yaw = 0.6, pitch = 0.35, held = null;
  function draw() {
    const frame = data.frames[slider.value], n = frame.length / 3, scale = 0.6 * canvas.height / data.size;
    const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch), points = [];
    for (let i = 0; i < n; i++) {
      const x = frame[3 * i] / 100, y = frame[3 * i + 1] / 100, z = frame[3 * i + 2] / 100;
      const u = cy * x + sy * z, w = cy * z - sy * x;
      points.push([canvas.width / 2 + scale * u, canvas.height / 2 - scale * (cp * y - sp * w), cp * w + sp * y]);
    }
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const order = data.bonds.map((b) => [points[b[0]][2] + points[b[1]][2], b]).sort((a, b) => a[0] - b[0]);
    context.lineCap = "round";
    for (const [depth, [i, j]] of order) {
      const a = points[i], b = points[j], middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
      context.globalAlpha = Math.min(1, Math.max(0.25, 0.65 + depth / (4 * data.size)));
      context.lineWidth = 3;
      for (const [point, atom] of [[a, i], [b, j]]) {
        context.strokeStyle = data.colours[data.kinds[atom]];
        context.beginPath(); context.moveTo(point[0], point[1]); context.lineTo(...middle); context.stroke();
      }
    }
    context.globalAlpha = 1;
    name.textContent = data.names[slider.value];
  }
  canvas.onpointerdown = (e) => { held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); };
  canvas.onpointerup = () => { held = null; };
  canvas.onpointermove = (e) => {
    if (!held) return;
    yaw += (e.clientX - held[0]) / 120; pitch += (e.clientY - held[1]) / 120; held = [e.clientX, e.clientY]; draw();
  };
  const turns = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
  canvas.onkeydown = (e) => {
    if (!turns[e.key]) return;
    e.preventDefault(); yaw += turns[e.key][0]; pitch += turns[e.key][1]; draw();
  };
  slider.oninput = draw;
  draw();
})();
</script>
"""


SIZES = {"quarter": 1 / 4, "half": 1 / 2, "all": 1.0}  # of the training set
METHODS = {"atoms": "atoms moved freely", "rigid": "rigid flow matching", "kflow-two": "K-Flow, two bands"}
METHODS |= {"kflow-three": "K-Flow, three bands"}


def packing_by_size(method: str, size: str) -> dict[int, float]:
    """PM (atom) in Å by training seed, from records."""
    run = f"crystals-{method}" if size == "all" else f"crystals-{size}-{method}"
    return {seed: record.values["pm_atom"] for seed, record in read_seeds(run, "packing").items()}


def compare_with_rigid() -> pd.DataFrame:
    """PM (atom) over that of rigid flow matching, same size and seed: mean ratio, and 95 % interval over seeds."""
    table = {}
    for size in SIZES:
        base = packing_by_size("rigid", size)
        for method in ("atoms", "kflow-two", "kflow-three"):
            found = packing_by_size(method, size)
            mean, half = student_interval([math.log(found[seed] / base[seed]) for seed in base])
            low, ratio, high = (math.exp(mean + sign * half) for sign in (-1, 0, 1))
            table.setdefault(METHODS[method], {})[size] = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    return pd.DataFrame.from_dict(table, orient="index")


def compare_crystals(others: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """PM (atom) of a run over another's or over the rescaled start's, crystal by crystal, means over training seeds.

    Args:
        others: by label, the run and what it is compared with: a run, or ``crystals-rescaled``.

    Returns the geometric mean over the held-out crystals with its 95 % interval over them, and on how many it is worse.
    """

    def by_crystal(run: str) -> dict[str, float]:
        records = [record.values["pm_atom_by_crystal"] for record in read_seeds(run, "packing").values()]
        return {code: sum(found[code] for found in records) / len(records) for code in records[0]}

    table = {}
    for label, (run, base) in others.items():
        found, against = by_crystal(run), by_crystal(base)
        logarithms = [math.log(found[code] / against[code]) for code in found]
        mean, half = student_interval(logarithms)
        low, ratio, high = (math.exp(mean + sign * half) for sign in (-1, 0, 1))
        worse = f"{sum(x > 0 for x in logarithms)} of {len(logarithms)}"
        table[label] = {"ratio of PM (atom)": f"{ratio:.3f} ({low:.3f} to {high:.3f})", "worse on crystals": worse}
    return pd.DataFrame.from_dict(table, orient="index")


def draw_sizes(crystals: int) -> Figure:
    """PM (atom) by the number of training crystals: medians over seeds, each seed a dot; the rescaled start as a line.

    The axis ends just above that line.

    Args:
        crystals: in the whole training set.
    """
    figure, axes = make_axes(4.6, 1, 1)
    for number, (method, label) in enumerate(METHODS.items()):
        x = [round(share * crystals) for share in SIZES.values()]
        found = [packing_by_size(method, size) for size in SIZES]
        colour = band_colour(number, len(METHODS))
        axes[0, 0].plot(x, [median(values.values()) for values in found], color=colour, label=label)
        for place, values in zip(x, found):
            axes[0, 0].scatter([place] * len(values), list(values.values()), 10, colour)
    rescaled = Record.read(RECORDS / "crystals-rescaled-packing.json").values["pm_atom"]
    axes[0, 0].axhline(rescaled, color="0.5", linestyle=":", label="start at the mean density")
    axes[0, 0].set(xlabel="training crystals", ylabel="PM (atom), Å", xlim=(0, 1.05 * crystals))
    axes[0, 0].set_ylim(top=1.05 * rescaled)  # a run that has flown apart lies outside
    axes[0, 0].legend()
    return figure


def compare_by_crystal(base: str, label: str, others: dict[str, str]) -> Figure:
    """PM (atom) of each held-out crystal, training seed 0: other runs (name to label) against one, from records."""
    figure, axes = make_axes(4.2, 1, 1)
    across = read_seeds(base, "packing")[0].values["pm_atom_by_crystal"]
    for number, (run, name) in enumerate(others.items()):
        values = read_seeds(run, "packing")[0].values["pm_atom_by_crystal"]
        axes[0, 0].scatter(list(across.values()), [values[c] for c in across], 14, band_colour(number, 2), label=name)
    ends = [0.9 * min(across.values()), 1.1 * max(across.values())]
    axes[0, 0].plot(ends, ends, color="0.7", linewidth=0.8, zorder=0)
    axes[0, 0].set(xlabel=f"{label}, PM (atom), Å", ylabel="K-Flow, PM (atom), Å", aspect="equal")
    axes[0, 0].legend()
    return figure


def interactive_view(crystal: Crystal, frames: Tensor, names: Sequence[str]) -> str:
    """HTML that turns when dragged, with a slider for the frames (T, 17, atoms, 3): no kernel, library or network.

    Positions are written in hundredths of an ångström, so a cluster of 340 atoms with ten frames takes about 60 kB.
    """
    kinds = sorted(set(crystal.numbers.flatten().tolist()))
    colours = ["#" + "".join(f"{int(200 * c):02x}" for c in jmol_colors[z]) for z in kinds]
    data = {
        "frames": (100 * frames).round().int().flatten(1).tolist(),
        "names": list(names),
        "bonds": bonds(crystal),
        "kinds": [kinds.index(z) for z in crystal.numbers.flatten().tolist()],
        "colours": colours,
        "size": float(frames.abs().max()) * 1.15,
    }
    return VIEW.replace("DATA", json.dumps(data, separators=(",", ":")))
