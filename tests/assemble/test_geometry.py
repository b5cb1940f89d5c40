"""SO(3): exponential, logarithm and fitting, against scipy and against each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from kflow.assemble import fit_rotation, rotation_matrix, rotation_vector

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi - 1e-9, math.pi]


def axes(count: int = 7) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, 3, generator=source, dtype=torch.float64)
    return torch.nn.functional.normalize(torch.cat([drawn, torch.eye(3).double(), -torch.eye(3).double()]), dim=1)


@pytest.mark.parametrize("angle", ANGLES)
def test_the_exponential_is_the_matrix_exponential_of_the_cross_product(angle):
    for axis in axes():
        x, y, z = (angle * axis).tolist()
        literal = expm([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        torch.testing.assert_close(rotation_matrix(angle * axis), torch.from_numpy(literal), atol=1e-14, rtol=0)


@pytest.mark.parametrize("angle", ANGLES)
def test_the_logarithm_undoes_the_exponential(angle):
    vectors = angle * axes()
    found = rotation_vector(rotation_matrix(vectors))
    if angle == math.pi:  # the vector and its opposite are the same rotation
        found = found * torch.where((found * vectors).sum(1, keepdim=True) < 0, -1.0, 1.0)
    torch.testing.assert_close(found, vectors, atol=1e-12, rtol=0)
    assert (found.norm(dim=1) <= math.pi + 1e-12).all()


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.5, math.pi - 1e-3, math.pi])
def test_in_single_precision_the_rotation_survives_the_round_trip(angle):
    matrices = rotation_matrix((angle * axes()).float())
    torch.testing.assert_close(rotation_matrix(rotation_vector(matrices)), matrices, atol=2e-6, rtol=0)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_logarithm_is_scipys(seed):
    matrices = torch.from_numpy(Rotation.random(5, rng=seed).as_matrix())
    expected = torch.from_numpy(Rotation.from_matrix(matrices.numpy()).as_rotvec())
    torch.testing.assert_close(rotation_vector(matrices), expected, atol=1e-9, rtol=0)


def test_gradients_at_angle_zero_are_finite_and_right():
    vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    rotation_matrix(vector)[2, 1].backward()
    torch.testing.assert_close(vector.grad, torch.tensor([1.0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("flat", [False, True])
def test_fitting_finds_the_rotation_also_of_flat_molecules_and_is_never_a_reflection(flat):
    source = torch.Generator().manual_seed(1)
    start = torch.randn(6, 9, 3, generator=source) * torch.tensor([1.0, 1.0, 0.0 if flat else 1.0])
    start = start - start.mean(1, keepdim=True)
    turn = rotation_matrix(torch.randn(6, 3, generator=source))
    torch.testing.assert_close(fit_rotation(start, start @ turn.mT), turn, atol=1e-5, rtol=0)
    mirrored = fit_rotation(start, start * torch.tensor([1.0, 1.0, -1.0]))
    torch.testing.assert_close(torch.linalg.det(mirrored), torch.ones(6), atol=1e-5, rtol=0)
