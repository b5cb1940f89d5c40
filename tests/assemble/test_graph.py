"""The graph's bands against a literal Laplacian, and on clusters of a known symmetry."""

import numpy as np
import pytest
import torch

from kflow.assemble import GraphLaplacian
from kflow.flow import HardBump, Path


def centres(batch: int = 3) -> torch.Tensor:
    return 5 * torch.randn(batch, 17, 3, generator=torch.Generator().manual_seed(0))


def literal_projection(points: np.ndarray, low: int, high: int) -> np.ndarray:
    """Of modes low to high, by loops over the definition W = exp(−d²/mean²), L = D − W."""
    n = len(points)
    d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in points] for a in points])
    mean = d[~np.eye(n, dtype=bool)].mean()
    laplacian = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                laplacian[i, j] = -np.exp(-((d[i, j] / mean) ** 2))
                laplacian[i, i] -= laplacian[i, j]
    values, vectors = np.linalg.eig(laplacian)
    chosen = vectors[:, np.argsort(values)][:, low:high]
    return chosen @ np.linalg.pinv(chosen)


@pytest.mark.parametrize(("bands", "ends"), [(1, (0, 17)), (2, (0, 4, 17)), (3, (0, 4, 9, 17))])
def test_bands_are_the_literal_laplacians_modes_of_each_cluster(bands, ends):
    x = torch.randn(3, 17, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = GraphLaplacian(centres(), 6, bands).split(x)
    for b in range(bands):
        for i, points in enumerate(centres().double().numpy()):
            expected = literal_projection(points, ends[b], ends[b + 1]) @ x[i].numpy()
            np.testing.assert_allclose(parts[b, i].numpy(), expected, atol=1e-8)


def test_it_is_an_orthonormal_decomposition():
    graph, x = GraphLaplacian(centres(), 6, 3), torch.randn(3, 17, 6)
    torch.testing.assert_close(graph.synthesise(graph.analyse(x)), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(graph.split(x).sum(0), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(graph.energy(x).sum(1), x.square().sum((1, 2)))
    assert graph.sizes().tolist() == [24, 30, 48]


def test_a_common_motion_is_all_in_the_low_band():
    x = torch.randn(3, 1, 6).expand(3, 17, 6)
    torch.testing.assert_close(GraphLaplacian(centres(), 6, 2).project(x, 1), torch.zeros(3, 17, 6), atol=1e-5, rtol=0)


def test_spreading_a_cluster_is_mostly_low():
    """What the default cut is for: the slopes, of which scaling is made, lie in the low band for the most part."""
    real = centres()
    energy = GraphLaplacian(real, 3, 2).energy(real - real.mean(1, keepdim=True))
    assert (energy[:, 0] > 0.5 * energy.sum(1)).all()  # of 12 of 51 dimensions


def test_bands_do_not_depend_on_scale_place_or_order():
    graph, x, order = GraphLaplacian(centres(), 6, 2), torch.randn(3, 17, 6), torch.randperm(17)
    moved = GraphLaplacian(3 * centres() + 7, 6, 2)
    torch.testing.assert_close(moved.split(x), graph.split(x), atol=1e-4, rtol=0)
    other = GraphLaplacian(centres()[:, order], 6, 2)
    torch.testing.assert_close(other.split(x[:, order]), graph.split(x)[:, :, order], atol=1e-4, rtol=0)


def test_the_path_moves_the_low_band_first():
    graph, start, final = GraphLaplacian(centres(), 6, 2), torch.randn(3, 17, 6), torch.randn(3, 17, 6)
    half = Path(graph, HardBump(2)).state(final, start, torch.full((3,), 0.5))
    torch.testing.assert_close(
        graph.split(half), torch.stack([graph.split(final)[0], graph.split(start)[1]]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("bands", "cuts"), [(2, [0]), (2, [17]), (3, [9, 4]), (2, [4, 9]), (4, None)])
def test_impossible_cuts_are_named(bands, cuts):
    with pytest.raises(ValueError, match="cuts is .*allowed are"):
        GraphLaplacian(centres(), 6, bands, cuts)
