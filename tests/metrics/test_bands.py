import pytest
import torch

from kflow.amplitude import Wavelet
from kflow.flow import HardBump, Path
from kflow.metrics import content_kept, leakage, way_of_bands


def test_on_the_exact_path_a_waiting_band_stays_and_a_finished_one_is_there():
    path = Path(Wavelet((1, 8, 8), "haar"), HardBump(2))
    data, noise = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    gone, left = way_of_bands(torch.stack([path.state(data, noise, at.expand(3)) for at in k]), path.decomposition)
    # w = 1/2 in the middle of a band's interval
    expected = torch.tensor([[0, 0.5, 1, 1, 1], [0, 0, 0, 0.5, 1]]).T.double()
    torch.testing.assert_close(gone, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(left, 1 - expected, atol=1e-9, rtol=0)


def test_a_detour_counts_both_ways():
    low, high = torch.ones(2, 2).double(), torch.tensor([[1.0, 0.0], [0.0, -1.0]]).double()
    trajectory = torch.stack([0 * low, 3 * high, 2 * low + high]).view(3, 1, 1, 2, 2)
    gone, left = way_of_bands(trajectory, Wavelet((1, 2, 2), "haar"))
    torch.testing.assert_close(gone, torch.tensor([[0, 0], [0, 3], [1, 1]]).double())
    torch.testing.assert_close(left, torch.tensor([[1, 1], [1, 2], [0, 0]]).double())


def test_an_exact_trajectory_leaks_nothing_and_a_straight_one_its_waiting_bands():
    path = Path(Wavelet((1, 8, 8), "haar"), HardBump(2))
    data, noise = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    exact = torch.stack([path.state(data, noise, at.expand(3)) for at in k])
    torch.testing.assert_close(leakage(exact, k, path), torch.zeros(4).double(), atol=1e-12, rtol=0)
    still = torch.cat([exact[:1], exact])  # a null step, as plain Euler's first of a band, leaks nothing
    assert leakage(still, torch.cat([k[:1], k]), path)[0] == 0
    straight = torch.stack([noise + at * (data - noise) for at in k])
    energy = path.decomposition.energy(data - noise).mean(0)
    expected = torch.stack([energy[1], energy[1], energy[0], energy[0]]) / energy.sum()
    torch.testing.assert_close(leakage(straight, k, path), expected)


def test_content_kept_counts_what_two_samples_share():
    decomposition = Wavelet((1, 8, 8), "haar")
    first, second, third = torch.randn(3, 2000, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    same_low = second + decomposition.split(first - second)[0]
    kept = content_kept(first, same_low, third, decomposition)
    assert kept[0] == pytest.approx(1, abs=1e-9)
    assert kept[1] == pytest.approx(0, abs=0.05)
    torch.testing.assert_close(content_kept(first, first, third, decomposition), torch.ones(2).double())
