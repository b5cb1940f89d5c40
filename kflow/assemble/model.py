"""K-Flow on a cluster of rigid molecules: their motion as a signal on a graph (E.10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kflow.amplitude import Identity
from kflow.assemble.geometry import fit_rotation, rotation_matrix, rotation_vector
from kflow.assemble.graph import GraphLaplacian
from kflow.assemble.network import ClusterNetwork, molecule_volume
from kflow.flow import Path, Schedule
from kflow.velocity import KFlow


class Clusters(NamedTuple):
    """A batch of starts and their packings, padded to one number of atoms.

    Args:
        numbers: (batch, 17, atoms) int64, atomic numbers, 0 where there is no atom.
        environments: (batch, 17, atoms, 54), see :func:`~kflow.assemble.network.atom_environments`.
        start, final: (batch, 17, atoms, 3), Å.
    """

    numbers: Tensor
    environments: Tensor
    start: Tensor
    final: Tensor


class Motion(nn.Module):
    r"""A network bound to a batch of clusters: what :class:`~kflow.velocity.KFlow` calls, and the two ends of its path.

    *Rigid*: a molecule's state is its centre and a rotation vector, (17, 6): zero at the start,
    :math:`\log(R_0^\top R_1)` at the end, with its start as the frame in which :math:`R_0 = I`. Vectors are times the
    molecule's radius of gyration, so that an error in either half moves atoms about as far. *Free*: the state is the
    atoms' positions, (17, atoms, 3). The unit of length is the cube root of a molecule's van der Waals volume.

    Attributes:
        start, final: (batch, *state).
    """

    def __init__(self, network: ClusterNetwork, clusters: Clusters, rigid: bool):
        super().__init__()
        self.network, self.clusters, self.rigid = network, clusters, rigid
        self.unit = molecule_volume(clusters.numbers).mean(1).pow(1 / 3)[:, None, None, None]
        there = (clusters.numbers > 0)[..., None]
        ends = [x / self.unit * there for x in (clusters.start, clusters.final)]
        count = there.sum(2)
        self.centres, centres = (x.sum(2) / count for x in ends)
        self.local, packed = ((x - c[:, :, None]) * there for x, c in zip(ends, (self.centres, centres)))
        self.gyration = (self.local.square().sum((2, 3))[..., None] / count).sqrt().clamp(min=0.05)  # or one atom has 0
        self.start, self.final = ends
        if rigid:
            vectors = rotation_vector(fit_rotation(self.local, packed)) * self.gyration
            self.start = torch.cat([self.centres, torch.zeros_like(centres)], -1)
            self.final = torch.cat([centres, vectors], -1)

    def positions(self, state: Tensor) -> Tensor:
        """Atom positions in Å, (batch, 17, atoms, 3), of a state; where there is no atom they mean nothing."""
        if self.rigid:
            turn = rotation_matrix(state[..., 3:] / self.gyration)
            state = state[..., None, :3] + self.local @ turn.mT
        return state * self.unit

    def forward(self, state: Tensor, k: Tensor, weights: Tensor, labels: None = None) -> Tensor:
        """The estimated displacement from start to packing, (batch, *state). There are no labels."""
        positions = self.positions(state) / self.unit
        moved = self.network(positions, self.clusters.numbers, self.clusters.environments, k, weights)
        return torch.cat([moved[..., :3], moved[..., 3:] * self.gyration], -1) if self.rigid else moved


class Assembly(nn.Module):
    """The model of an assembly experiment: a network and a schedule, bound to clusters by :meth:`on`.

    One band with the linear schedule is rigid flow matching: centres on lines (LERP), orientations on arcs (SLERP).

    Args:
        network, schedule: gives the displacement; says which band moves when.
        cuts: of the bands, see :class:`~kflow.assemble.graph.GraphLaplacian`.

    Raises ValueError: impossible cuts, or atoms that move freely in more than one band.
    """

    def __init__(self, network: ClusterNetwork, schedule: Schedule, cuts: Sequence[float] | None = None):
        super().__init__()
        self.network, self.cuts, self.rigid = network, cuts, network.atom_result is None
        if not self.rigid and schedule.bands != 1:
            raise ValueError(f"bands is {schedule.bands}, allowed for atoms that move freely is 1")
        example = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0))
        self.path = Path(GraphLaplacian(example, 6, schedule.bands, cuts), schedule)  # each batch has its own graph

    def on(self, clusters: Clusters) -> KFlow:
        """The flow of a batch, on the graph of its starts; its ``network`` is the :class:`Motion`."""
        motion, schedule = Motion(self.network, clusters, self.rigid), self.path.schedule
        graph = GraphLaplacian(motion.centres, 6, schedule.bands, self.cuts)
        return KFlow(motion, Path(graph if self.rigid else Identity(motion.start.shape[1:]), schedule), "displacement")

    def loss(self, clusters: Clusters, noise: None, k: Tensor, labels: None = None) -> Tensor:
        """Algorithm 1's objective on the displacement, (batch,), at k (batch,); the start is in the place of noise."""
        flow = self.on(clusters)
        return flow.loss(flow.network.final, flow.network.start, k)
