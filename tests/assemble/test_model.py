"""The whole sampler: equivariance, the path of rigid bodies, and training."""

import pytest
import torch

from kflow.assemble import Assembly, ClusterNetwork, Clusters, atom_environments, rotation_matrix
from kflow.experiment import AssemblyExperiment, Experiment
from kflow.flow import HardBump, Linear
from kflow.sample import sample


def clusters(batch: int = 2, atoms: int = 7, pad: int = 2) -> Clusters:
    """Seventeen copies of a random molecule, packed and loose; the last atoms of the second cluster are padding."""
    source = torch.Generator().manual_seed(0)
    shape, numbers = torch.randn(batch, 1, atoms, 3, generator=source), torch.tensor([6, 1, 8, 7, 1, 6, 16])[:atoms]
    numbers = numbers.expand(batch, 17, -1).clone()
    numbers[1:, :, atoms - pad :] = 0
    there = (numbers > 0)[..., None]
    shape = (shape - (shape * there).sum(2, keepdim=True) / there.sum(2, keepdim=True)) * there

    def scatter(spread: float) -> torch.Tensor:
        turn = rotation_matrix(torch.randn(batch, 17, 3, generator=source))
        centre = spread * torch.randn(batch, 17, 1, 3, generator=source)
        return (centre + shape @ turn.mT) * there

    final = scatter(5.0)
    environments = torch.stack([atom_environments(z, x) for z, x in zip(numbers, final)])
    return Clusters(numbers, environments * there, scatter(9.0), final)


def model(bands: int, free: bool = False) -> Assembly:
    """With random results: an untrained network's are zero."""
    torch.manual_seed(0)
    network = ClusterNetwork(bands, width=16, layers=2, channels=3, free=free)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Assembly(network, Linear() if bands == 1 else HardBump(bands)).eval().double()


def generate(assembly: Assembly, batch: Clusters) -> torch.Tensor:
    batch = Clusters(batch.numbers, *(x.double() for x in batch[1:]))
    flow = assembly.on(batch)
    state = sample(flow, flow.network.start, steps=6, solver="increment", ask="start").data
    return flow.network.positions(state) * (batch.numbers > 0)[..., None]


@pytest.mark.parametrize(("bands", "free"), [(1, False), (2, False), (3, False), (1, True)])
def test_the_whole_sampler_is_equivariant(bands, free):
    assembly, batch = model(bands, free), clusters()
    there = (batch.numbers > 0)[..., None]
    plain = generate(assembly, batch)
    assert (plain - batch.start).abs().max() > 0.5  # it does move
    turn = rotation_matrix(torch.tensor([1.0, -0.4, 2.0], dtype=torch.float64)).float()
    for matrix in (turn, turn @ torch.diag(torch.tensor([1.0, 1.0, -1.0]))):
        shift = torch.tensor([3.0, -5.0, 2.0])
        moved = batch._replace(start=(batch.start @ matrix.mT + shift) * there, final=batch.final @ matrix.mT)
        expected = (plain @ matrix.double().mT + shift) * there
        torch.testing.assert_close(generate(assembly, moved), expected, atol=1e-4, rtol=0)
    order = torch.randperm(17)
    permuted = generate(assembly, Clusters(*(x[:, order] for x in batch)))
    torch.testing.assert_close(permuted, plain[:, order], atol=1e-4, rtol=0)


def test_it_is_equivariant_in_the_precision_of_the_page_too():
    assembly, batch = model(2).float(), clusters()
    there, turn = (batch.numbers > 0)[..., None], rotation_matrix(torch.tensor([1.0, -0.4, 2.0]))

    def generate(batch: Clusters) -> torch.Tensor:
        flow = assembly.on(batch)
        state = sample(flow, flow.network.start, steps=6, solver="increment", ask="start").data
        return flow.network.positions(state) * there

    moved = batch._replace(start=batch.start @ turn.mT * there, final=batch.final @ turn.mT)
    torch.testing.assert_close(generate(moved), generate(batch) @ turn.mT, atol=1e-4, rtol=0)


def test_padding_changes_nothing():
    batch = clusters(pad=2)
    alone = Clusters(*(x[1:, :, :5] for x in batch))
    torch.testing.assert_close(generate(model(2), alone)[0], generate(model(2), batch)[1, :, :5], atol=1e-6, rtol=0)


def test_the_ends_of_the_path_are_the_start_and_the_packing():
    batch = clusters()
    motion = model(2).float().on(batch).network
    there = (batch.numbers > 0)[..., None]
    for state, expected in ((motion.start, batch.start), (motion.final, batch.final)):
        torch.testing.assert_close(motion.positions(state) * there, expected, atol=1e-4, rtol=0)


def test_one_band_moves_centres_on_lines_and_orientations_on_arcs():
    """Against LERP and scipy's SLERP."""
    from scipy.spatial.transform import Rotation, Slerp

    batch = clusters(batch=1)
    flow = model(1).float().on(batch)
    motion, k = flow.network, 0.3
    found = motion.positions(flow.path.state(motion.final, motion.start, torch.tensor([k])))[0]
    for i in range(17):
        start, final = batch.start[0, i], batch.final[0, i]
        turn = Rotation.align_vectors(final - final.mean(0), start - start.mean(0))[0]
        turn = Slerp([0, 1], Rotation.concatenate([Rotation.identity(), turn]))(k).as_matrix()
        centre = (1 - k) * start.mean(0) + k * final.mean(0)
        expected = centre + (start - start.mean(0)) @ torch.from_numpy(turn).float().T
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)


def test_molecules_stay_rigid_and_free_atoms_do_not():
    batch = clusters(batch=1)

    def change(free: bool) -> float:
        inside = [torch.cdist(x, x) for x in (generate(model(1, free), batch)[0], batch.start[0].double())]
        return float((inside[0] - inside[1]).abs().max())

    assert change(False) < 1e-5 and change(True) > 1e-2


def test_atoms_that_move_freely_have_one_band():
    with pytest.raises(ValueError, match="bands is 2, allowed for atoms that move freely is 1"):
        Assembly(ClusterNetwork(2, free=True), HardBump(2))


def test_an_experiment_on_a_graph_is_an_assembly():
    found = Experiment.make(data="crystals", decomposition="graph", bands=3, cuts=[3, 8])
    assert isinstance(found, AssemblyExperiment) and isinstance(found.make_model(), Assembly)
    assert Experiment.make(**found.to_dict()) == found
    with pytest.raises(ValueError, match="decomposition is 'graph', allowed are identity"):
        Experiment(decomposition="graph")
    with pytest.raises(ValueError, match="output is 'velocity', allowed are displacement"):
        Experiment.make(decomposition="graph", output="velocity")


def test_the_loss_is_the_mean_squared_error_of_the_displacement():
    """At k = 0 every band counts; an untrained network displaces nothing."""
    batch = clusters()
    assembly = Assembly(ClusterNetwork(2), HardBump(2))
    motion = assembly.on(batch).network
    expected = (motion.final - motion.start).square().flatten(1).mean(1)
    torch.testing.assert_close(assembly.loss(batch, None, torch.zeros(2)), expected, rtol=1e-5, atol=0)
