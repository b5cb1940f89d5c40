"""The DiT is the published one: sizes, names, forward pass and position embedding; only the embedding of k is ours."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from published_dit import published_forward, published_names

from kflow.networks import DiT, make_dit
from kflow.networks.dit import PATCHES, SIZES, Attention, FinalLayer, gelu
from kflow.networks.embedding import KAmplitudeEmbedding, sincos_positions
from kflow_book.published import load_published

SHAPE = (3, 8, 12)


def small(bands: int = 2, classes: int = 5, **changes) -> DiT:
    return DiT(
        **{"shape": SHAPE, "patch_size": 2, "width": 32, "depth": 2, "heads": 4} | changes, bands=bands, classes=classes
    )


def randomise(network: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Every weight that is trained random and not zero, as if trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "pos_embed":
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(batch: int = 4, bands: int = 2, classes: int = 5, shape=SHAPE):
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(batch, *shape, generator=generator)
    k, weights = torch.rand(batch, generator=generator), torch.rand(batch, bands, generator=generator)
    return state, k, weights, torch.randint(classes + 1, (batch,), generator=generator)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_published_sizes(size, millions):
    with torch.device("meta"):
        network = make_dit(f"DiT-{size}/2", (4, 32, 32), classes=1000)
    width = SIZES[size][0]
    # Ours has one band's embedding more, and predicts no sigma: half of the last layer.
    count = sum(p.numel() for p in network.parameters()) - width + 2 * 2 * 4 * (width + 1)
    assert abs(count / 1e6 - millions) < 0.6  # B/2 has 130.51


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", PATCHES)
def test_every_size_and_patch_has_a_name(size, patch):
    with torch.device("meta"):
        network = make_dit(f"DiT-{size}/{patch}", (1, 32, 32), bands=3, classes=10)
        output = network(torch.empty(2, 1, 32, 32), torch.empty(2), torch.empty(2, 3), torch.empty(2, dtype=torch.long))
    width, depth, _ = SIZES[size]
    assert output.shape == (2, 1, 32, 32)
    assert len(network.blocks) == depth and network.pos_embed.shape == (1, (32 // patch) ** 2, width)


@pytest.mark.parametrize("name", ["DiT-S", "S/2", "DiT-S/3", "DiT-H/2", "dit-S/2", "DiT-S/2/2", "", "DiT-/2"])
def test_unknown_names_are_errors(name):
    with pytest.raises(ValueError, match=r"network is .*allowed are DiT-SIZE/PATCH.* S, B, L, XL .*2, 4, 8"):
        make_dit(name, (1, 32, 32))


def test_sizes_that_do_not_divide_are_errors():
    with pytest.raises(ValueError, match="patch_size is 8, allowed are divisors of height 8 and width 12"):
        small(patch_size=8)
    with pytest.raises(ValueError, match="width is 30, allowed are multiples of 4 and of heads = 4"):
        small(width=30)


def test_the_forward_pass_is_the_published_one():
    network = randomise(small()).eval()
    state, k, weights, labels = inputs()
    more = weights @ network.k_embedder.bands.weight.T
    expected = published_forward(published_names(network.state_dict()), state, 1000 * k, labels, 2, 4, more)
    with torch.no_grad():
        output = network(state, k, weights, labels)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_published_weights_load_by_name():
    published = randomise(small(), 0.2)
    weights = published_names(published.state_dict())
    assert {"x_embedder.proj.weight", "t_embedder.mlp.0.weight", "t_embedder.mlp.2.bias", "pos_embed"} <= weights.keys()
    network = small()
    load_published(network, weights)
    state, k, _, labels = inputs()
    nothing = torch.zeros(len(k), 2)
    torch.testing.assert_close(network(state, k, nothing, labels), published(state, k, nothing, labels), atol=0, rtol=0)
    assert not network.k_embedder.bands.weight.any()


def test_of_a_doubled_output_the_first_half_of_the_channels_is_kept():
    published = small()
    published.final_layer = FinalLayer(32, 2, 6)
    weights = published_names(randomise(published).state_dict())
    kept = {name: value.clone() for name, value in weights.items()}
    network = small()
    load_published(network, weights)
    state, k, _, labels = inputs()
    expected = published_forward(weights, state, 1000 * k, labels, 2, 4, torch.zeros(len(k), 32))
    assert expected.shape[1] == 6
    output = network(state, k, torch.zeros(len(k), 2), labels)
    torch.testing.assert_close(output, expected[:, :3], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(weights[name], kept[name]) for name in kept), "the weights given are left as they are"


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded():
    weights = published_names(randomise(small()).state_dict())
    del weights["blocks.1.mlp.fc2.bias"]
    weights["blocks.7.attn.qkv.bias"] = torch.zeros(1)
    weights["y_embedder.embedding_table.weight"] = torch.zeros(1001, 32)
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_published(network, weights)
    for name in ("blocks.1.mlp.fc2.bias", "blocks.7.attn.qkv.bias", "y_embedder.embedding_table.weight"):
        assert name in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="missing"):
        load_published(network, {})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 16).map(lambda n: 4 * n), st.integers(1, 9), st.integers(1, 9))
def test_positions_are_the_published_sines_and_cosines(width, rows, columns):
    grid = np.stack(np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)))

    def one_dimension(positions: np.ndarray) -> np.ndarray:
        omega = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
        angles = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    expected = np.concatenate([one_dimension(grid[0]), one_dimension(grid[1])], axis=1)
    np.testing.assert_allclose(sincos_positions(width, rows, columns)[0].numpy(), expected, atol=1e-7)


def test_positions_are_fixed():
    network = small()
    assert not network.pos_embed.requires_grad
    torch.testing.assert_close(network.pos_embed, sincos_positions(32, 4, 6))


def test_at_first_the_output_is_zero_and_the_blocks_are_the_identity():
    network = small()
    assert not network(*inputs()).any()
    x, condition = torch.randn(2, 6, 32), torch.randn(2, 32)
    assert torch.equal(network.blocks[0](x, condition), x)


def test_band_weights_matter_once_trained_and_only_then():
    state, k, weights, labels = inputs()
    other = weights.flip(0)
    network = randomise(small())
    assert (network(state, k, weights, labels) - network(state, k, other, labels)).abs().max() > 1e-3
    torch.nn.init.zeros_(network.k_embedder.bands.weight)
    assert torch.equal(network(state, k, weights, labels), network(state, k, other, labels))
    assert not KAmplitudeEmbedding(32, 2).bands.weight.any()


def test_each_sample_sees_only_its_own_k_label_and_state():
    network = randomise(small()).eval()
    state, k, weights, labels = inputs()
    together = network(state, k, weights, labels)
    for i in range(len(k)):
        alone = network(*(x[i : i + 1] for x in (state, k, weights, labels)))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    assert (network(state, (k + 0.1) % 1, weights, labels) - together).abs().amax((1, 2, 3)).min() > 1e-4


def test_no_label_is_the_null_label():
    network = randomise(small())
    state, k, weights, labels = inputs()
    assert network.null_label == 5
    free = network(state, k, weights)
    assert torch.equal(free, network(state, k, weights, torch.full((4,), 5)))
    assert not torch.equal(free, network(state, k, weights, torch.zeros(4, dtype=torch.long)))


def test_an_unconditional_network_has_no_labels():
    network = randomise(small(classes=0))
    state, k, weights, _ = inputs()
    assert network(state, k, weights).shape == state.shape
    assert not any("y_embedder" in name for name in network.state_dict())


@pytest.mark.parametrize("tokens", [1, 6, 64])
def test_attention_on_the_cpu_equals_the_fused_one(tokens):
    attention = randomise(Attention(32, 4).double(), 0.5)
    x = torch.randn(3, tokens, 32, dtype=torch.float64, requires_grad=True)
    q, k, v = attention.qkv(x).view(3, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4)
    fused = attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, tokens, 32))
    output = attention(x)
    torch.testing.assert_close(output, fused, atol=1e-10, rtol=1e-10)
    gradients = (torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (output, fused))
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-10)


def test_gradients_reach_every_weight():
    network = randomise(small())
    state, k, weights, labels = inputs(batch=12)
    labels = torch.arange(12) % 6  # every class, and the null class
    network(state.requires_grad_(), k, weights, labels).square().sum().backward()
    for name, parameter in network.named_parameters():
        if name != "pos_embed":
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    assert network.y_embedder.embedding_table.weight.grad.abs().sum(1).min() > 0
    assert state.grad.abs().amax((1, 2, 3)).min() > 0


def test_k_is_embedded_as_the_time_step_is():
    embedding = KAmplitudeEmbedding(8, 1, frequencies=4)
    embedding.mlp = torch.nn.Sequential(torch.nn.Identity())
    embedding.mlp[0].weight = torch.zeros(1)  # only its dtype is asked
    embedding.bands = torch.nn.Linear(1, 4, bias=False)
    torch.nn.init.zeros_(embedding.bands.weight)
    k = torch.tensor([0.0, 0.25, 1.0])
    waves = embedding(k, torch.ones(3, 1))
    expected = [[math.cos(1000 * x), math.cos(10 * x), math.sin(1000 * x), math.sin(10 * x)] for x in (0, 0.25, 1)]
    torch.testing.assert_close(waves, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_half_precision_networks_take_float32_states():
    network = randomise(small()).to(torch.bfloat16)
    output = network(*inputs())
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


def test_gelu_is_the_tanh_form_with_and_without_gradients():
    x = torch.linspace(-8, 8, 401, requires_grad=True)
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(gelu(x), expected, atol=1e-6, rtol=1e-5)
    slopes = (torch.autograd.grad(y.sum(), x)[0] for y in (gelu(x), expected))
    torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
