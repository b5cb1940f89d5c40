"""The crystals of this book, cut from entries of the package pyxtal; and COD-Cluster17 as it is released."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ase.data import atomic_numbers
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Generator, Tensor
from tqdm.auto import tqdm

from kflow.assemble import Clusters, atom_environments, rotation_matrix
from kflow.data.files import data_folder

MOLECULES = 17  # of a cluster
BOND = 1.15  # atoms are bonded within this multiple of the sum of their covalent radii
NO_HYDROGENS = ("DBZCOR", "OXALAC02")  # entries that lack the hydrogens of their compound
TRAIN_STARTS, TEST_STARTS = 32, 8  # loose starts of a crystal


@dataclass(frozen=True)
class Crystal:
    """A molecule and its 16 nearest: numbers (17, atoms), final (17, atoms, 3) in Å, starts (S, 17, atoms, 3).

    ``source`` is the sha256 of the stored entry or files that it was made from.
    """

    code: str
    numbers: Tensor
    final: Tensor
    starts: Tensor
    source: str = ""

    @cached_property
    def environments(self) -> Tensor:
        """Of its atoms, as :func:`~kflow.assemble.network.atom_environments` has them; a start is enough for that."""
        return atom_environments(self.numbers, self.starts[0])


@dataclass(frozen=True)
class Crystals:
    """A data set of clusters; ``left_out``: codes that are not in it, and why."""

    name: str
    train: tuple[Crystal, ...]
    test: tuple[Crystal, ...]
    left_out: dict[str, str]

    @cached_property
    def hash(self) -> str:
        """sha256 of codes, numbers of starts, and what the packings were made from: what records refer to.

        Not of positions: each processor rounds them differently, and some coordinate always lies between two decimals.
        """
        total = hashlib.sha256()
        for c in (*self.train, *self.test):
            total.update(f"{c.code} {len(c.starts)} {c.source}\n".encode())
        return total.hexdigest()

    def draw(self, chosen: Tensor, source: Generator, label_dropout: None = None) -> tuple[Clusters, None, None]:
        """Training clusters by their indices (batch,), each with one of its starts; neither noise nor labels."""
        crystals = [self.train[index] for index in chosen]
        starts = [int(torch.randint(len(c.starts), (1,), generator=source)) for c in crystals]
        return collect(crystals, starts), None, None


def collect(crystals: list[Crystal], starts: list[int]) -> Clusters:
    """A batch: of each crystal the start with the given number. All is 0 where there is no atom."""
    size = max(crystal.numbers.shape[1] for crystal in crystals)
    rows = [(c.numbers, c.environments, c.starts[n], c.final) for c, n in zip(crystals, starts)]
    padded = [[torch.cat([x, x.new_zeros(len(x), size - x.shape[1], *x.shape[2:])], 1) for x in row] for row in rows]
    return Clusters(*(torch.stack(part) for part in zip(*padded)))


def find_molecules(atoms) -> list[np.ndarray]:
    """The molecules of an ``ase.Atoms`` with a cell, each whole: an array (atoms, 4) of atom index and cell shift.

    Raises ValueError: a chain of bonds leaves the cell and meets itself, so there is no molecule.
    """
    from ase.neighborlist import natural_cutoffs, neighbor_list

    bonds = defaultdict(list)
    for i, j, shift in zip(*neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=BOND))):
        bonds[i].append((j, shift))
    shifts: dict[int, np.ndarray] = {}
    molecules = []
    for first in range(len(atoms)):
        if first in shifts:
            continue
        shifts[first], members = np.zeros(3, int), [first]
        for i in members:
            for j, shift in bonds[i]:
                if j not in shifts:
                    shifts[j] = shifts[i] + shift
                    members.append(j)
                elif (shifts[j] != shifts[i] + shift).any():
                    raise ValueError("bonds run through the whole crystal")
        molecules.append(np.array([(i, *shifts[i]) for i in members]))
    return molecules


def cut_cluster(atoms) -> tuple[Tensor, Tensor]:
    """The first molecule of an ``ase.Atoms`` and its 16 nearest, by the means of their atoms' positions.

    Returns numbers (17, atoms), and positions (17, atoms, 3) about their mean.
    Raises ValueError: no molecules, or of several compositions.
    """
    molecules, cell = find_molecules(atoms), np.asarray(atoms.cell)
    numbers = [atoms.numbers[molecule[:, 0]] for molecule in molecules]
    if len({tuple(sorted(part)) for part in numbers}) > 1:
        raise ValueError("by its bonds its molecules differ in composition")
    whole = [atoms.positions[molecule[:, 0]] + molecule[:, 1:] @ cell for molecule in molecules]
    centres = np.stack([part.mean(0) for part in whole])
    # Images within four mean spacings of molecules; 17 spheres of one spacing fill a radius of 1.6.
    heights = atoms.get_volume() / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    reach = np.ceil(4 * (atoms.get_volume() / len(molecules)) ** (1 / 3) / heights).astype(int) + 1
    images = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3) @ cell
    distances = np.linalg.norm(images[:, None] + centres - centres[0], axis=2).round(4)
    nearest = np.argsort(distances, axis=None, kind="stable")[:MOLECULES]
    chosen = [np.unravel_index(at, distances.shape) for at in nearest]
    positions = np.stack([images[image] + whole[molecule] for image, molecule in chosen])
    numbers = np.stack([numbers[molecule] for _, molecule in chosen])
    return torch.from_numpy(numbers).long(), torch.from_numpy(positions - positions.mean((0, 1))).float()


def loosen(final: Tensor, code: str, count: int) -> Tensor:
    """Loose starts (count, 17, atoms, 3) of a packing (17, atoms, 3); start n is a function of the code and n.

    Centres are moved by noise of standard deviation d/4 along each axis, d the median distance of nearest centres, and
    then spread by a factor from U(1.3, 1.9); molecules are turned by rotation vectors from N(0, 0.7²) along each axis.
    """
    centres, starts = final.mean(1), []
    spacing = (torch.cdist(centres, centres) + 1e6 * torch.eye(MOLECULES)).amin(1).median()
    for number in range(count):
        seed = int(hashlib.sha256(f"{code} {number}".encode()).hexdigest()[:15], 16)
        source = Generator().manual_seed(seed)
        spread = 1.3 + 0.6 * torch.rand(1, generator=source)
        moved = spread * (centres + spacing / 4 * torch.randn(MOLECULES, 3, generator=source))
        turn = rotation_matrix(0.7 * torch.randn(MOLECULES, 3, generator=source))
        starts.append(moved[:, None] + (final - centres[:, None]) @ turn.mT)
    return torch.stack([start - start.mean((0, 1)) for start in starts])


def compound(crystal: Crystal) -> tuple[str, str]:
    """The six letters that CSD gives to all structures of a compound, and the atoms of one molecule."""
    return crystal.code[:6], str(sorted(crystal.numbers[0].tolist()))


def split(crystals: list[Crystal], share: float = 0.8) -> tuple[list[Crystal], list[Crystal]]:
    """Train and test, about four fifths to one; what shares a family or a molecule is on one side.

    Such groups are ordered by the sha1 of their first code, and cut where the share is nearest.
    """
    groups: list[list[Crystal]] = []
    for crystal in crystals:
        same = [g for g in groups if any(set(compound(c)) & set(compound(crystal)) for c in g)]
        groups = [g for g in groups if g not in same] + [sum(same, []) + [crystal]]
    groups.sort(key=lambda group: hashlib.sha1(min(c.code for c in group).encode()).hexdigest())
    ends = np.cumsum([len(group) for group in groups])
    ordered, cut = sum(groups, []), ends[np.abs(ends - share * len(crystals)).argmin()]
    return ordered[:cut], ordered[cut:]


@cache
def read_pyxtal() -> tuple[list[Crystal], dict[str, str]]:
    """Packings (each its own start), and what was left out, by code, and why.

    The molecular crystals that the package pyxtal ships, 150 entries with CSD codes.
    Left out are entries without separate molecules, with several kinds of molecules (a cluster of COD-Cluster17 has one
    kind), without their hydrogens, and those that are there twice.
    """
    from ase.db import connect

    folder = Path(importlib.util.find_spec("pyxtal").origin).parent / "database"  # found, not imported: that is slow
    found: dict[str, Crystal] = {}
    left_out = {}
    for file in ("test.db", "mech.db"):
        for row in connect(folder / file).select():
            if row.csd_code in found:
                left_out[f"{row.csd_code} ({file})"] = "the same entry twice"
            elif row.csd_code in NO_HYDROGENS:
                left_out[row.csd_code] = "its hydrogens are missing"
            else:
                try:
                    numbers, final = cut_cluster(row.toatoms())
                    entry = (row.numbers.astype("<i4"), row.positions.astype("<f8"), row.cell.astype("<f8"))
                    source = hashlib.sha256(b"".join(part.tobytes() for part in entry)).hexdigest()
                    found[row.csd_code] = Crystal(row.csd_code, numbers, final, final[None], source)
                except ValueError as error:
                    left_out[row.csd_code] = str(error)
    return list(found.values()), left_out


@cache
def pyxtal_crystals(share: float = 1.0) -> Crystals:
    """The crystals of :func:`read_pyxtal` with their loose starts; of the training crystals the first ``share``.

    What is tested on does not depend on the share, and a smaller training set is part of a larger.
    """
    found, left_out = read_pyxtal()
    train, test = split(found)
    parts = [
        tuple(replace(c, starts=loosen(c.final, c.code, count)) for c in part)
        for part, count in ((train[: round(share * len(train))], TRAIN_STARTS), (test, TEST_STARTS))
    ]
    return Crystals("crystals", *parts, left_out)


def _read_cluster(path: Path) -> tuple[Tensor, Tensor]:
    table = pd.read_csv(path, header=0, names=["molecule", "element", "x", "y", "z"], skipinitialspace=True)
    sizes = table.groupby("molecule").size()
    if len(sizes) != MOLECULES or sizes.nunique() != 1:
        raise ValueError(f"it has molecules of {sorted(sizes)} atoms, allowed are 17 of one size")
    table = table.sort_values("molecule", kind="stable")
    unknown = sorted(set(table.element) - atomic_numbers.keys())  # deuterium, say
    if unknown:
        raise ValueError(f"it has the elements {', '.join(map(str, unknown))}, allowed are those of the periodic table")
    numbers = torch.tensor([atomic_numbers[element] for element in table.element])
    positions = torch.from_numpy(table[["x", "y", "z"]].to_numpy("float64"))
    return numbers.view(MOLECULES, -1), (positions - positions.mean(0)).float().view(MOLECULES, -1, 3)


def read_cod_cluster17(folder: str | Path, subset: int | None = None) -> Crystals:
    """COD-Cluster17 as its release lays it out: CSV files of molecule, element, x, y, z under one header line.

    ``raw/FinalPositions/ID_cluster16.csv`` is the packing and ``raw/InitialPositions/ID_cluster16_noised.csv`` the one
    loose start; ``processed_5000/valid_idx.txt`` lists the codes of a subset. Split by the release's rule: shuffled
    with seed 42, the first 80 % train, the last 10 % test (the 10 % between are for validation); it shuffles what its
    own further checks have left, so the parts are not the same. Left out are clusters that are not 17 molecules of as
    many atoms each, have unknown elements, lack one of their files, or whose files differ in their atoms.

    Raises FileNotFoundError: the folder or the list of the subset is not there.
    """
    folder, crystals, left_out = Path(folder), [], {}
    codes = sorted(path.name.removesuffix("_cluster16.csv") for path in (folder / "raw/FinalPositions").glob("*.csv"))
    if subset:
        codes = (folder / f"processed_{subset}" / "valid_idx.txt").read_text().split()
    if not codes:
        raise FileNotFoundError(f"there are no clusters in {folder / 'raw' / 'FinalPositions'}")
    for code in tqdm(codes, desc="COD-Cluster17: reading", disable=rank_zero_only.rank > 0):
        try:
            final_file = folder / f"raw/FinalPositions/{code}_cluster16.csv"
            start_file = folder / f"raw/InitialPositions/{code}_cluster16_noised.csv"
            (numbers, final), (others, start) = _read_cluster(final_file), _read_cluster(start_file)
            if not torch.equal(numbers, others):
                raise ValueError("the atoms of its start and of its packing differ")
            source = hashlib.sha256(final_file.read_bytes() + start_file.read_bytes()).hexdigest()
            crystals.append(Crystal(code, numbers, final, start[None], source))
        except FileNotFoundError as error:
            left_out[code] = f"there is no {Path(error.filename).name}"
        except ValueError as error:
            left_out[code] = str(error)
    random.Random(42).shuffle(crystals)
    first, last = int(0.8 * len(crystals)), int(0.8 * len(crystals)) + int(0.1 * len(crystals))
    return Crystals("cod-cluster17", tuple(crystals[:first]), tuple(crystals[last:]), left_out)


def cod_cluster17(subset: int | None = None) -> Crystals:
    """:func:`read_cod_cluster17` of the folder ``COD-Cluster17`` in ``KFLOW_DATA`` (default ``data/``)."""
    return read_cod_cluster17(data_folder() / "COD-Cluster17", subset)


LOADERS = {
    "crystals": pyxtal_crystals,
    "crystals-half": lambda: pyxtal_crystals(0.5),
    "crystals-quarter": lambda: pyxtal_crystals(0.25),
    "cod-cluster17-5k": lambda: cod_cluster17(5000),
    "cod-cluster17-10k": lambda: cod_cluster17(10000),
    "cod-cluster17-all": cod_cluster17,
}


def load(name: str) -> Crystals:
    """One of LOADERS by name: what :func:`kflow.data.load_data` calls."""
    return LOADERS[name]()
