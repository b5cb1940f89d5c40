"""The crystals of the book, and COD-Cluster17 in a small folder of its format."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from kflow.assemble import molecule_volume, rotation_matrix
from kflow.data import load_data
from kflow.experiment import Experiment
from kflow.train import draw
from kflow_book.assembly import density, judge, overlap, pose_errors, rescale
from kflow_book.crystals import collect, cut_cluster, find_molecules, loosen, pyxtal_crystals, read_cod_cluster17, split


def water_crystal(sizes=(3.0, 3.5, 4.0)) -> Atoms:
    """One water molecule a cell, wrapped into it, so that its bonds cross the faces."""
    water = molecule("H2O")
    atoms = Atoms(water.numbers, water.positions, cell=sizes, pbc=True)
    atoms.wrap()
    return atoms


def test_molecules_are_made_whole_across_the_cells_faces():
    (found,) = find_molecules(water_crystal())
    atoms = water_crystal()
    whole = atoms.positions[found[:, 0]] + found[:, 1:] @ np.asarray(atoms.cell)
    expected = molecule("H2O")
    order = [list(expected.numbers[:]).index(8)] + [i for i, z in enumerate(expected.numbers) if z == 1]
    first = np.linalg.norm(whole[:, None] - whole, axis=2)
    second = np.linalg.norm(expected.positions[order][:, None] - expected.positions[order], axis=2)
    np.testing.assert_allclose(np.sort(first, axis=None), np.sort(second, axis=None), atol=1e-10)


def test_a_cluster_is_the_17_nearest_lattice_points():
    numbers, positions = cut_cluster(water_crystal())
    assert numbers.shape == (17, 3) and positions.shape == (17, 3, 3)
    found = (positions.mean(1) - positions.mean(1)[0]).norm(dim=1).sort().values
    grid = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3), -1).reshape(-1, 3) * (3.0, 3.5, 4.0)
    torch.testing.assert_close(
        found, torch.from_numpy(np.sort(np.linalg.norm(grid, axis=1))[:17]).float(), atol=1e-3, rtol=0
    )


def test_what_is_no_molecular_crystal_is_refused():
    with pytest.raises(ValueError, match="bonds run through the whole crystal"):
        find_molecules(Atoms("C", cell=[1.4, 9, 9], pbc=True))
    two = water_crystal((9, 9, 9)) + Atoms("He", positions=[[4.5, 4.5, 4.5]])
    with pytest.raises(ValueError, match="its molecules differ in composition"):
        cut_cluster(two)


def test_starts_are_loose_rigid_and_depend_on_code_and_number_alone():
    final = cut_cluster(water_crystal())[1]
    starts = loosen(final, "ABCDEF", 4)
    torch.testing.assert_close(loosen(final, "ABCDEF", 2), starts[:2])
    assert not torch.allclose(loosen(final, "ABCDEG", 1), starts[:1])
    inside = [torch.cdist(x, x) for x in (starts, final.expand(4, -1, -1, -1))]
    torch.testing.assert_close(inside[0], inside[1], atol=1e-3, rtol=0)
    spread = starts.mean(2).pow(2).sum((1, 2)).sqrt() / final.mean(1).pow(2).sum().sqrt()
    assert ((spread > 1.2) & (spread < 2.3)).all()


def test_no_family_and_no_molecule_is_in_both_parts():
    data = pyxtal_crystals()
    families, molecules = (
        [{key(c) for c in part} for part in (data.train, data.test)]
        for key in (lambda c: c.code[:6], lambda c: str(sorted(c.numbers[0].tolist())))
    )
    assert not families[0] & families[1] and not molecules[0] & molecules[1]
    assert len(data.train) + len(data.test) + len(data.left_out) == 150
    assert 0.7 < len(data.train) / (len(data.train) + len(data.test)) < 0.9
    first, second = (split(x)[1] for x in ([*data.test, *data.train], [*reversed(data.train), *data.test]))
    assert {c.code for c in first} == {c.code for c in second} == {c.code for c in data.test}  # in any order


def test_smaller_training_sets_are_part_of_larger_ones_and_share_the_test_set():
    parts = [load_data(name) for name in ("crystals-quarter", "crystals-half", "crystals")]
    codes = [[c.code for c in part.train] for part in parts]
    assert codes[0] == codes[2][: len(codes[0])] and codes[1] == codes[2][: len(codes[1])]
    assert len({tuple(c.code for c in part.test) for part in parts}) == 1 and len({part.hash for part in parts}) == 3


def test_a_batch_is_padded_with_zeros():
    data = load_data("crystals")
    batch = collect([data.test[0], data.test[1]], [3, 0])
    for i, (crystal, start) in enumerate(((data.test[0], 3), (data.test[1], 0))):
        size = crystal.numbers.shape[1]
        torch.testing.assert_close(batch.start[i, :, :size], crystal.starts[start])
        assert not batch.numbers[i, :, size:].any() and not batch.final[i, :, size:].any()


@pytest.fixture
def cod(tmp_path):
    """Ten clusters of carbon monoxide; one each is broken, has files that differ, has deuterium, has no start."""
    for part in ("FinalPositions", "InitialPositions"):
        (tmp_path / "raw" / part).mkdir(parents=True)
    for number in range(14):
        for part, name in (("FinalPositions", "_cluster16"), ("InitialPositions", "_cluster16_noised")):
            rows = ["mol_index,atom_type,x,y,z"]
            for m in range(16 if number == 10 else 17):
                second = {11: "S" if part == "InitialPositions" else "O", 12: "D"}.get(number, "O")
                rows += [f"{m},C,{m}.0,{number}.5,-1.0", f"{m},{second},{m}.0,{number}.5,0.1"]
            (tmp_path / "raw" / part / f"20{number:02d}{name}.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "raw" / "InitialPositions" / "2013_cluster16_noised.csv").unlink()
    (tmp_path / "processed_5000").mkdir()
    (tmp_path / "processed_5000" / "valid_idx.txt").write_text("2001\n2000\n2010\n")
    return tmp_path


def test_cod_cluster17_is_read_as_it_is_released(cod):
    data = read_cod_cluster17(cod)
    assert (len(data.train), len(data.test), sorted(data.left_out)) == (8, 1, ["2010", "2011", "2012", "2013"])
    assert "17 of one size" in data.left_out["2010"] and "differ" in data.left_out["2011"]
    assert "it has the elements D," in data.left_out["2012"]
    assert data.left_out["2013"] == "there is no 2013_cluster16_noised.csv"
    crystal = data.train[0]
    assert crystal.numbers.tolist() == [[6, 8]] * 17 and crystal.starts.shape == (1, 17, 2, 3)
    torch.testing.assert_close(crystal.final[5, 1] - crystal.final[3, 0], torch.tensor([2.0, 0.0, 1.1]))
    subset = read_cod_cluster17(cod, 5000)
    assert sorted(c.code for c in (*subset.train, *subset.test)) == ["2000", "2001"] and list(subset.left_out) == [
        "2010"
    ]
    file = cod / "raw" / "FinalPositions" / f"{crystal.code}_cluster16.csv"
    file.write_text(file.read_text().replace("-1.0", "-1.1"))
    assert read_cod_cluster17(cod).hash != data.hash


def test_where_cod_cluster17_is_not_that_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no clusters in"):
        read_cod_cluster17(tmp_path)


def test_ranks_share_out_the_clusters():
    experiment = Experiment.make(data="crystals", decomposition="graph", bands=2, batch_size=6)
    data, model = load_data("crystals"), experiment.make_model()
    whole, _, k, _ = draw(experiment, data, model, 3)
    for rank in range(2):
        part, noise, share, labels = draw(experiment, data, model, 3, rank, 2)
        assert torch.equal(share, k[rank::2]) and noise is None and labels is None
        assert all(torch.equal(mine, everyone[rank::2]) for mine, everyone in zip(part, whole))


def test_a_cluster_that_flies_apart_is_counted_and_in_no_mean():
    crystals = load_data("crystals").test[:2]
    found = [crystal.final.expand_as(crystal.starts).clone() for crystal in crystals]
    found[0][0], found[1][:] = math.nan, 1e6 * found[1]
    values = judge(crystals, found)
    assert values["diverged"] == (1 + len(found[1])) / sum(map(len, found))
    assert values["pm_atom"] == pytest.approx(0, abs=1e-4) and values["rotation_error"] == pytest.approx(0, abs=0.1)
    assert list(values["pm_atom_by_crystal"]) == [crystals[0].code]


def test_errors_of_pose_are_those_that_were_made():
    """Every molecule turned by 20°, and one centre moved by 1 Å; turning and shifting the whole cluster is no error."""
    real = load_data("crystals").test[0].final.double()
    centres = real.mean(1, keepdim=True)
    turn = rotation_matrix(torch.tensor([0.0, math.radians(20), 0.0], dtype=torch.float64))
    whole = rotation_matrix(torch.tensor([0.4, -1.0, 0.3], dtype=torch.float64))
    found = (centres + (real - centres) @ turn.mT) @ whole.mT + 7
    angle, distance = pose_errors(found, real)
    assert float(angle) == pytest.approx(20, abs=1e-3) and float(distance) == pytest.approx(0, abs=1e-4)
    moved = real.clone()
    moved[3] += torch.tensor([1.0, 0.0, 0.0])
    # less than 1/√17: the clusters are laid on each other first, which takes a part of the shift
    assert 0.8 / 17**0.5 < float(pose_errors(moved, real)[1]) < 1 / 17**0.5


def test_a_rescaled_start_has_the_density_asked_for_and_whole_molecules():
    crystal = load_data("crystals").test[0]
    # By hand: the volume of the molecules over that of the ball of the centres' root mean square radius.
    centres = crystal.final.mean(1) - crystal.final.mean((0, 1))
    ball = 4 / 3 * math.pi * float(centres.square().sum(1).mean().sqrt()) ** 3
    assert float(density(2 * crystal.final, crystal.numbers)) == pytest.approx(
        float(density(crystal.final, crystal.numbers)) / 8, rel=1e-4
    )
    assert float(density(crystal.final, crystal.numbers)) * ball == pytest.approx(
        float(molecule_volume(crystal.numbers).sum()), rel=1e-4
    )
    found = rescale(crystal, 0.5)
    torch.testing.assert_close(density(found, crystal.numbers), torch.full((len(found),), 0.5), rtol=1e-4, atol=0)
    inside = [torch.cdist(x, x) for x in (found, crystal.starts)]
    torch.testing.assert_close(inside[0], inside[1], atol=1e-3, rtol=0)


def test_overlap_counts_atoms_near_another_molecule_alone():
    clusters = torch.arange(17.0)[:, None, None] * torch.tensor([10.0, 0, 0]) + torch.tensor([[0.0, 0, 0], [1.0, 0, 0]])
    assert float(overlap(clusters)) == 0, "atoms of one molecule may be near"
    clusters[1] = clusters[0] + torch.tensor([0.0, 1.4, 0.0])
    assert float(overlap(clusters)) == pytest.approx(4 / 34)


def test_the_hash_is_of_the_data_and_not_of_the_processors_rounding():
    data = load_data("crystals")
    first, *others = data.train
    moved = lambda **change: replace(data, train=(replace(first, **change), *others)).hash  # noqa: E731
    assert moved(starts=first.starts + 1e-6) == data.hash
    assert moved(final=first.final + 1e-6) == data.hash
    for changed in ({"source": "another"}, {"code": "ABCDEF"}, {"starts": first.starts[:-1]}):
        assert moved(**changed) != data.hash
