"""The velocity network on molecules: equivariant to E(3) and to their order, small enough for a CPU."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import vdw_radii
from torch import Tensor, nn

ELEMENTS = (1, 6, 7, 8, 9, 16, 17, 35)  # that the encoder tells apart; all others are one kind
RADII = torch.tensor(np.nan_to_num(vdw_radii, nan=2.0), dtype=torch.float32)  # van der Waals, Å
SHELLS = (1.0, 2.0, 3.0, 4.0, 5.0)  # Å
ENVIRONMENT = (len(ELEMENTS) + 1) * (len(SHELLS) + 1)


def molecule_volume(numbers: Tensor) -> Tensor:
    """Sum of the van der Waals spheres of a molecule's atoms in Å³: numbers (..., atoms), 0 where none, to (...)."""
    return 4 / 3 * torch.pi * ((numbers > 0) * RADII.to(numbers.device)[numbers].pow(3)).sum(-1)


def atom_environments(numbers: Tensor, positions: Tensor) -> Tensor:
    """Invariants of each atom in its rigid molecule: its kind, and how many of each kind are about 1, 2, … 5 Å away.

    Args:
        numbers, positions: (molecules, atoms) and (molecules, atoms, 3), Å; no padding.

    Returns (molecules, atoms, 54).
    """
    kinds = torch.stack([numbers == z for z in ELEMENTS], -1)
    kinds = torch.cat([kinds, ~kinds.any(-1, keepdim=True)], -1).float()
    near = torch.exp(-((torch.cdist(positions, positions)[..., None] - torch.tensor(SHELLS)) ** 2))
    near.diagonal(dim1=1, dim2=2).zero_()
    return torch.cat([kinds, torch.einsum("mabs,mbk->mask", near, kinds).flatten(2) / 4], -1)


def bumps(x: Tensor, high: float, count: int) -> Tensor:
    """Gaussians of x (...) centred on an even grid from 0 to high, as wide as its step: (..., count)."""
    step = high / (count - 1)
    return torch.exp(-((x[..., None] / step - torch.arange(count, device=x.device)) ** 2))


def perceptron(*widths: int, quiet: bool = False) -> nn.Sequential:
    """Linear layers with SiLU between them; ``quiet``: the last starts at zero."""
    layers = [part for pair in zip(widths, widths[1:]) for part in (nn.Linear(*pair), nn.SiLU())][:-1]
    if quiet:
        nn.init.zeros_(layers[-1].weight), nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


class ClusterNetwork(nn.Module):
    r"""Messages between molecules, each known by learned dipoles V and quadrupoles Q of its atoms.

    An encoder of its environment gives every atom weights, with which atoms sum to vectors V and symmetric matrices Q
    about their molecule's centre (several channels). The scalars that messages see are inner products of V, Q and the
    directions r between centres. Translations are sums of V, Qr, r with scalar coefficients, and rotation vectors,
    which are axial, sums of their cross products: so the result turns and reflects with the cluster.

    Args:
        bands: number of bands, whose weights it is told.
        width, layers, channels: of its states, its message rounds, and of V and Q.
        free: give each atom a displacement of its own on top of its molecule's motion.
    """

    def __init__(self, bands: int, width: int = 64, layers: int = 3, channels: int = 6, free: bool = False):
        super().__init__()
        self.split = C = channels
        self.atoms = perceptron(ENVIRONMENT, width, width + 2 * C)
        self.scaling = perceptron(16 + bands, width, width)
        self.molecules = perceptron(width + C + 4, width, width)
        self.pairs = nn.Linear(24 + 7 * C, width)
        self.messages = nn.ModuleList(perceptron(3 * width, width, width) for _ in range(layers))
        self.updates = nn.ModuleList(perceptron(2 * width, width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.pair_result = perceptron(3 * width, width, 1 + 8 * C, quiet=True)
        self.own_result = perceptron(width, width, 1 + 2 * C, quiet=True)
        self.atom_result = perceptron(2 * width, width, 1 + C, quiet=True) if free else None

    def forward(self, positions: Tensor, numbers: Tensor, environments: Tensor, k: Tensor, weights: Tensor) -> Tensor:
        """The displacement of a cluster's molecules, or of its atoms, from start to packing.

        Args:
            positions: (batch, molecules, atoms, 3); the unit of length is free, that of the result too.
            numbers, environments: (batch, molecules, atoms), 0 where there is no atom, and (…, 54).
            k, weights: (batch,) and (batch, B).

        Returns (batch, molecules, 6), translations and rotation vectors; if ``free``, (batch, molecules, atoms, 3).
        """
        C, there = self.split, (numbers > 0)[..., None]
        count = there.sum(2)
        centres = (positions * there).sum(2) / count
        local = (positions - centres[:, :, None]) * there
        centres = centres - centres.mean(1, keepdim=True)
        encoded, *poles = (self.atoms(environments) * there).tensor_split([-2 * C, -C], -1)
        V = torch.einsum("bmac,bmax->bmcx", poles[0], local) / count[..., None]
        Q = 4 * torch.einsum("bmac,bmax,bmay->bmcxy", poles[1], local, local) / count[..., None, None]

        own = torch.eye(centres.shape[1], dtype=torch.bool, device=centres.device)
        way = centres[:, None] - centres[:, :, None]  # [b, i, j]: from molecule i to j, which sends to i
        distance = (way.square().sum(-1) + own.float()).sqrt()[..., None]
        r = (way / distance)[..., None, :].expand(-1, -1, -1, C, -1)
        Qi, Qj = torch.einsum("bicxy,bijcy->bijcx", Q, r), torch.einsum("bjcxy,bijcy->bijcx", Q, r)
        Vi, Vj = V[:, :, None].expand_as(r), V[:, None].expand_as(r)
        QQ = torch.einsum("bicxy,bjcyz->bijcxz", Q, Q)
        torque = torch.stack([QQ[..., a, b] - QQ[..., b, a] for a, b in ((2, 1), (0, 2), (1, 0))], -1)
        products = [(a * b).sum(-1) for a, b in ((Qi, r), (Qj, r), (Qi, Qj), (Vi, r), (Vj, r), (Vi, Vj))]
        traces = QQ.diagonal(dim1=-2, dim2=-1).sum(-1)
        pair = self.pairs(torch.cat([bumps(distance[..., 0], 4.0, 24), traces, *products], -1))
        near = torch.exp(-((distance / 2.5) ** 2)) * ~own[..., None]

        Qc = torch.einsum("bicxy,biy->bicx", Q, centres)
        size = centres.square().sum(-1, keepdim=True)
        extent = [size.sqrt(), size.mean(1, keepdim=True).sqrt().expand_as(size), count / 40]
        volume = molecule_volume(numbers)[..., None].log() - 5
        h = [encoded.sum(2) / count, *extent, volume, (Qc * centres[:, :, None]).sum(-1)]
        h, scaling = (
            self.molecules(torch.cat(h, -1)),
            self.scaling(torch.cat([bumps(k, 1.0, 16), weights], -1))[:, None],
        )

        def between(x: Tensor) -> Tensor:
            return torch.cat([x[:, :, None].expand_as(pair), x[:, None].expand_as(pair), pair], -1)

        for message, update, norm in zip(self.messages, self.updates, self.norms):
            x = norm(h + scaling)
            h = h + update(torch.cat([x, (message(between(x)) * near).sum(2)], -1))
        x = h + scaling
        pairwise = (self.pair_result(between(x)) * near)[..., None].split([1] + [C] * 8, -2)
        single = self.own_result(x)[..., None].split([1, C, C], -2)
        moved = sum((c * v).sum((2, 3)) for c, v in zip(pairwise, (r[..., :1, :], Qi, Qj, Vj)))
        moved = moved + sum((c * v).sum(2) for c, v in zip(single, (centres[:, :, None], V, Qc)))
        moved = moved - moved.mean(1, keepdim=True)
        crossed = [torch.linalg.cross(a, b) for a, b in ((r, Qi), (Qj, Qi), (r, Vi), (Vi, Vj))]
        turned = sum((c * v).sum((2, 3)) for c, v in zip(pairwise[4:], (torque, *crossed)))
        if self.atom_result is None:
            return torch.cat([moved, turned], -1)
        known = torch.cat([encoded, x[:, :, None].expand_as(encoded)], -1)
        stretch, bend = self.atom_result(known).split([1, C], -1)
        bent = stretch * local + torch.einsum("bmac,bmcxy,bmay->bmax", bend, Q, local)
        return (moved[:, :, None] + torch.linalg.cross(turned[:, :, None].expand_as(local), local) + bent) * there
