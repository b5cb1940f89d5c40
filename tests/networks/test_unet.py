"""The ADM U-Net: the LFM baseline's size, and what the flow asks of any network."""

import pytest
import torch

from kflow.networks import UNet, make_network

SHAPE = (4, 16, 16)


@pytest.mark.parametrize(("name", "parameters"), [("ADM", 153_099_524), ("ADM-church", 356_065_028)])
def test_adm_has_the_size_of_the_lfm_baseline(name, parameters):
    # Counted on the baseline's own networks for CelebA-HQ and LSUN Church; ours adds the embedding of one band weight.
    with torch.device("meta"):
        network = make_network(name, (4, 32, 32))
        state, k = torch.empty(2, 4, 32, 32), torch.empty(2)
        output = network(state, k, torch.empty(2, 1))
    assert sum(p.numel() for p in network.unet.parameters()) == parameters
    assert sum(p.numel() for p in network.parameters()) == parameters + 4 * 256
    assert output.shape == state.shape


@pytest.mark.parametrize("name", ["ADM-micro", "ADM-nano"])
def test_the_output_depends_on_everything_that_the_network_is_told(name):
    torch.manual_seed(0)
    network = make_network(name, SHAPE, bands=2, classes=3)
    assert sum(p.numel() for p in network.parameters()) <= 4_000_000
    state, k, weights = torch.randn(2, *SHAPE), torch.tensor([0.2, 0.7]), torch.rand(2, 2)
    assert not network(state, k, weights).any(), "every block starts as the identity, the output as zero"
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    first = network(state, k, weights, torch.tensor([0, 1]))
    assert first.shape == state.shape
    for changed in (
        network(state, k.flip(0), weights, torch.tensor([0, 1])),
        network(state, k, weights.flip(0), torch.tensor([0, 1])),
        network(state, k, weights, torch.tensor([1, 1])),
        network(state, k, weights),
    ):
        assert (changed - first).abs().max() > 1e-4
    assert torch.equal(network(state, k, weights), network(state, k, weights, torch.tensor([3, 3])))


def test_a_shape_that_cannot_be_halved_is_named():
    with pytest.raises(ValueError, match="divisible by 8"):
        UNet((4, 12, 12), 32, (1, 1, 1, 1), (), 1)


def test_attention_written_for_bf16_is_the_same_attention(monkeypatch):
    torch.manual_seed(0)
    network = make_network("ADM-nano", SHAPE)
    for parameter in network.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    told = torch.randn(2, *SHAPE), torch.tensor([0.2, 0.7]), torch.rand(2, 1)
    seen = []
    monkeypatch.setattr(torch, "baddbmm", lambda *args, first=torch.baddbmm, **kw: seen.append(1) or first(*args, **kw))
    exact = network(*told)
    assert not seen, "float32 keeps the fused attention"
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*told)
    assert seen
    torch.testing.assert_close(rounded.float(), exact, atol=0.05 * float(exact.detach().std()), rtol=0)
