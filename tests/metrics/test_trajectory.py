"""The projection error of trajectories whose dimension is known."""

import numpy as np
import torch

from kflow.metrics import projection_error


def test_a_trajectory_in_a_plane_errs_nothing_centred_but_does_uncentred():
    t = torch.linspace(0, 1, 21).double()
    directions = torch.eye(5).double()
    plane = 3 * directions[0] + t[:, None] * directions[1] + (t**2)[:, None] * directions[2]
    trajectory = torch.stack([plane, 2 * plane], 1)  # (T, batch, D)
    assert projection_error(trajectory).max() < 1e-12
    assert projection_error(trajectory, centred=False).max() > 1e-3, "through the origin it takes three"
    assert projection_error(trajectory, components=3, centred=False).max() < 1e-12


def test_against_numpy_one_trajectory_at_a_time():
    trajectory = torch.randn(9, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    found = projection_error(trajectory)
    for i in range(3):
        points = trajectory[:, i].flatten(1).numpy()
        centre = points.mean(0)
        values, vectors = np.linalg.eigh(np.cov(points - centre, rowvar=False))
        basis = vectors[:, np.argsort(values)[-2:]]
        rest = points - centre - (points - centre) @ basis @ basis.T
        expected = np.linalg.norm(rest, axis=1) / np.linalg.norm(points, axis=1)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-9)
