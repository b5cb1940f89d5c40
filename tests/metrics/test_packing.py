"""Packing matching against a literal computation."""

import math

import torch

from kflow.metrics import packing_matching


def literal(found: list, real: list) -> float:
    """Root of the mean over all N² pairs of (d − d′)², by loops."""
    total, n = 0.0, len(real)
    for i in range(n):
        for j in range(n):
            total += (math.dist(found[i], found[j]) - math.dist(real[i], real[j])) ** 2
    return math.sqrt(total / n**2)


def test_it_is_the_literal_computation():
    found, real = torch.randn(2, 3, 11, 3, generator=torch.Generator().manual_seed(0)) * 5
    expected = torch.tensor([literal(a.tolist(), b.tolist()) for a, b in zip(found, real)])
    torch.testing.assert_close(packing_matching(found, real), expected)


def test_it_does_not_see_where_a_cluster_is_nor_its_mirror_image():
    real = torch.randn(11, 3)
    moved = real @ torch.linalg.qr(torch.randn(3, 3))[0].mT + 4
    assert packing_matching(moved, real) < 1e-5


def test_two_points_one_unit_too_far_apart():
    """Of four entries two are off by one: √½, not 1. The zero diagonal counts, as in the release's evaluation."""
    found, real = torch.tensor([[0.0, 0, 0], [3, 0, 0]]), torch.tensor([[0.0, 0, 0], [2, 0, 0]])
    torch.testing.assert_close(packing_matching(found, real), torch.tensor(math.sqrt(0.5)))
