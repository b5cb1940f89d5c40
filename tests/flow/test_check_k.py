"""k outside [0, 1] is an error, on a GPU too, where nobody waits for the answer."""

import subprocess
import sys

import pytest
import torch

from kflow.flow.schedule import check_k

ON_A_GPU = """
import torch
from kflow.flow.schedule import check_k
check_k(torch.tensor([0.0, 1.0], device="cuda"))
torch.cuda.synchronize()
print("good", flush=True)
check_k(torch.tensor([0.5, {}], device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("k", [-1e-6, 1.0001, torch.nan, torch.inf])
def test_k_outside_is_named(k):
    with pytest.raises(ValueError, match="k is .*allowed are values from 0"):
        check_k(torch.tensor([0.5, k]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("k", [1.5, "float('nan')"])
def test_on_a_gpu_it_stops_the_program(k):
    """In a process of its own: after a failed assertion on the device nothing more can be asked of it."""
    found = subprocess.run([sys.executable, "-c", ON_A_GPU.format(k)], capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == "good" and found.returncode
