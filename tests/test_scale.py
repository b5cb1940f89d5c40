"""How time and memory grow: the fit, the count of bytes, and a quick run of the whole benchmark."""

import pytest
import torch

from benchmarks.scale import growth, make_model, measure_scale, peak_memory


def test_the_growth_of_a_power_law_is_its_exponent():
    assert growth({size: 3.0 * size**2 for size in (16, 32, 64)}) == pytest.approx(1)
    assert growth({size: 0.1 * size**4 for size in (16, 128)}) == pytest.approx(2)


def test_peak_memory_counts_what_lives_at_the_same_time():
    kept = torch.zeros(1000)  # 4,000 bytes

    def call():
        first = kept + 1
        second = first * 2  # both live here
        del first
        third = second + 1
        third.add_(1).view(10, 100)[0] += kept[:100]  # nothing new but for what the sum is
        return kept.view(-1)

    assert peak_memory(call) == 8000


def test_one_band_is_ordinary_flow_matching():
    one, three = make_model("DiT-nano/8", 16, 1), make_model("DiT-nano/8", 16, 3)
    assert (one.path.bands, three.path.bands, one.path.schedule.joins) == (1, 3, ())
    assert three.path.decomposition.shape == (4, 16, 16)


@pytest.mark.slow
def test_the_benchmark_runs_in_small():
    found = measure_scale("DiT-nano/8", sizes=[16, 32], bands=[1, 2], batch=1, steps=2, rounds=6)
    assert set(found["seconds"]) == set(found["peak_memory"]) and len(found["seconds"]) == 3 * 2 * 2
    assert all(value > 0 for values in (found["seconds"], found["peak_memory"]) for value in values.values())
    # The transform holds tensors of the batch's size alone: its memory is exactly linear.
    assert found["growth_memory"]["transform_1"] == pytest.approx(1, abs=0.02)
    assert found["growth_memory"]["step_1"] == found["growth_memory_of_largest"]["step_1"]
    assert set(found["over_one_band"]) == {"step_2_16", "step_2_32", "sampler_2_16", "sampler_2_32"}
    for name, (low, high) in found["over_one_band_interval"].items():
        assert low <= found["over_one_band"][name] <= high
