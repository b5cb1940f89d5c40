"""The classifier network: shapes, features and gradients."""

import pytest
import torch

from kflow.networks import Classifier


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 8, 8), (1, 28, 20)])
def test_logits_and_features(shape):
    network = Classifier(shape, classes=7, width=8).eval()
    images = torch.randn(5, *shape)
    assert network(images).shape == (5, 7)
    features = network.features(images)
    assert features.shape == (5, 8 + 16 + 32)
    torch.testing.assert_close(network(images), network.head(features[:, -32:]))
    network.feature_scale.fill_(2.0)
    network.feature_mean.fill_(1.0)
    torch.testing.assert_close(network.features(images), (features - 1) / 2)


def test_judging_is_deterministic_and_by_the_image_alone():
    network = Classifier((1, 16, 16), classes=3, width=8)
    images = torch.randn(6, 1, 16, 16)
    network(images)  # training: dropout, and the statistics of the batch
    assert not torch.equal(network(images), network(images))
    network.eval()
    torch.testing.assert_close(network(images)[:1], network(images[:1]))
    assert torch.equal(network(images), network(images))


def test_gradients_reach_every_weight():
    network = Classifier((1, 16, 16), classes=3, width=8)
    network(torch.randn(6, 1, 16, 16)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
