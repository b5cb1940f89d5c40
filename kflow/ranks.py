"""Several processes on one model: what each rank holds of a batch, and of the weights (FSDP)."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(fabric: Fabric, share: Tensor) -> Tensor:
    """The tensors of all ranks, of one shape, on every rank: (ranks, *shape)."""
    share = fabric.to_device(share)
    shares = [torch.empty_like(share) for _ in range(fabric.world_size)] if fabric.world_size > 1 else [share]
    if fabric.world_size > 1:
        torch.distributed.all_gather(shares, share)
    return torch.stack(shares)


def shard(network: nn.Module) -> nn.Module:
    """Spread a network's weights over all ranks, in place: each block of its lists by itself, then the rest."""
    blocks = [block for part in network.modules() if isinstance(part, nn.ModuleList) for block in part]
    for block in reversed(blocks):  # inner ones first
        fully_shard(block)
    return fully_shard(network)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in full; every rank must ask, for each gives its part."""
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}


def spread(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of :func:`whole`: of each tensor this rank's part, where ``like`` has parts under its name."""
    own = {name: x for name, x in like.items() if name in tensors and isinstance(x, DTensor)}
    parts = {n: distribute_tensor(tensors[n].to(x.device), x.device_mesh, x.placements) for n, x in own.items()}
    return tensors | parts
