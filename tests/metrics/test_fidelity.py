"""Distances and shares against answers that are known: closed forms, literal computations, counting by hand."""

import math
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from kflow.data import load_data, to_float
from kflow.metrics import (
    class_distances,
    class_dropping_ratio,
    distance_name,
    extract_features,
    fidelity,
    fidelity_of_draws,
    frechet_distance,
    load_classifier,
)
from kflow.storage import CHECKPOINTS

FEATURES = CHECKPOINTS / "digits-features"


def exact_gaussian(mean, covariance, count=400, seed=0):
    """Points whose sample mean and covariance are exactly the given ones."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return torch.from_numpy(x @ np.linalg.cholesky(np.atleast_2d(covariance)).T + mean)


def test_frechet_distance_of_gaussians_on_common_axes():
    first = exact_gaussian([0, 0, 0], np.diag([1.0, 4.0, 9.0]))
    second = exact_gaussian([1, -2, 0], np.diag([4.0, 4.0, 1.0]), seed=1)
    expected = (1 + 4) + ((1 - 2) ** 2 + 0 + (3 - 1) ** 2)  # |m|² + Σ (s₁ − s₂)²
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_gaussians_whose_axes_differ():
    rng = np.random.default_rng(3)
    a, b = (m @ m.T + np.eye(5) for m in rng.standard_normal((2, 5, 5)))
    mean = rng.standard_normal(5)
    expected = mean @ mean + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)  # Eq. 25, literally
    found = frechet_distance(exact_gaussian(np.zeros(5), a), exact_gaussian(mean, b, seed=2))
    assert found == pytest.approx(expected, rel=1e-9)


def test_precision_and_recall_that_can_be_counted():
    on_a_line = lambda *x: torch.tensor([[at, 0.0] for at in x])  # noqa: E731
    # With one neighbour: a point's ball reaches to its nearest neighbour in its own set.
    real = on_a_line(0.0, 1.0, 10.0, 12.0)  # balls [-1, 1] [0, 2] [8, 12] [10, 14]
    generated = on_a_line(0.5, 1.8, 5.0, 13.0)  # balls [-0.8, 1.8] [0.5, 3.1] [1.8, 8.2] [5, 21]
    found = fidelity(generated, real, neighbours=1)
    assert found["precision"] == pytest.approx(3 / 4), "5 lies in no ball of a real point"
    assert found["recall"] == pytest.approx(4 / 4)
    collapsed = on_a_line(0.5, 0.6, 0.7, 0.8)  # the balls reach 0.1 further
    found = fidelity(collapsed, real, neighbours=1)
    assert found["precision"] == 1.0
    assert found["recall"] == 0.0


def test_kernel_distance_literally():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 7, 3))
    y = y + 1
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within = [sum(kernel(z[i], z[j]) for i in range(7) for j in range(7) if i != j) / 42 for z in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y) / 49
    found = fidelity(torch.from_numpy(x), torch.from_numpy(y))["kid"]
    assert found == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_draws_are_disjoint_and_of_equal_count():
    features = torch.randn(35, 4, generator=torch.Generator().manual_seed(0)).double()
    real = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)).double()
    draws = fidelity_of_draws(features, real)
    assert {len(values) for values in draws.values()} == {3}, "the last five are left over"
    assert draws["fd"][1] == frechet_distance(features[10:20], real)
    with pytest.raises(ValueError, match="there are 9 generated features, allowed are 10 or more"):
        fidelity_of_draws(features[:9], real)
    with pytest.raises(ValueError, match="35 generated and 10 real features, allowed are equal counts"):
        fidelity(features, real)


def test_class_distances_and_both_dropping_ratios():
    labels = torch.arange(400) % 2
    real = torch.zeros(400, 2).double()
    real[labels == 0] = exact_gaussian([0, 0], np.eye(2), 200)
    real[labels == 1] = exact_gaussian([5, 5], np.eye(2), 200)
    shift = lambda a, b: real + torch.tensor([[a, 0.0], [b, 0.0]]).double()[labels]  # noqa: E731
    before, after = (class_distances(x, labels, real, labels, [0, 1], 200) for x in (shift(1, 2), shift(2, 2)))
    torch.testing.assert_close(before, torch.tensor([1.0, 4.0]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(after, torch.tensor([4.0, 4.0]).double(), atol=1e-6, rtol=0)
    ratios = class_dropping_ratio(before, after)
    assert ratios["cdr"] == pytest.approx((4 / 1 + 4 / 4) / 2)
    assert ratios["cdr_printed"] == pytest.approx((1 / 4 + 4 / 4) / 2)
    with pytest.raises(ValueError, match="count is 201, allowed are 2 to 200 for class 0"):
        class_distances(real, labels, real, labels, [0], 201)


def test_only_inceptions_distance_is_called_fid():
    assert distance_name("inception-v3-compat") == "FID"
    assert distance_name(FEATURES) == "FD (digits features)"
    assert distance_name("vgg16") == "FD (vgg16 features)"


def test_our_features_are_the_classifiers_standardised():
    data = load_data("digits")
    some = data.train[::5]  # they are sorted by class
    features = extract_features(some, FEATURES, progress=False)
    classifier, card = load_classifier(FEATURES)
    expected = torch.cat([classifier.features(to_float(part)) for part in some.split(100)])
    torch.testing.assert_close(features.float(), expected, atol=1e-4, rtol=1e-4)
    assert features.shape == (900, 7 * card["width"])
    assert 0.8 < features.std(0).median() < 1.2 and features.mean(0).abs().median() < 0.1
    assert card["test_accuracy"] >= 0.98


def test_the_features_are_not_the_judges():
    features, judge = (load_classifier(CHECKPOINTS / name)[1] for name in ("digits-features", "digits-judge"))
    assert features["files"] != judge["files"] and features["seed"] != judge["seed"]


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_torch_fidelitys_own_interface_gives_the_same_numbers():
    data = load_data("digits")
    generated, real = data.train[:200], data.test[:200]
    whole = torch_fidelity.calculate_metrics(
        input1=Images(generated), input2=Images(real), fid=True, prc=True, feature_extractor="kflow-classifier",
        feature_extractor_weights_path=str(FEATURES), cuda=False, save_cpu_ram=True, verbose=False, cache=False,
    )  # fmt: skip
    found = fidelity(*(extract_features(x, FEATURES, progress=False) for x in (generated, real)))
    assert whole["frechet_inception_distance"] == pytest.approx(found["fd"], rel=1e-3)
    assert whole["precision"] == pytest.approx(found["precision"], abs=0.011)
    assert whole["recall"] == pytest.approx(found["recall"], abs=0.011)


@pytest.mark.slow
def test_inception_weights_by_path(tmp_path):
    """With Inception's weights it is FID as everyone means it: random weights here, in the format of the real file."""
    extractor = FEATURE_EXTRACTORS_REGISTRY["inception-v3-compat"]
    with mock.patch("torch.load", return_value={}), mock.patch.object(extractor, "load_state_dict"):
        network = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path))
    torch.manual_seed(0)
    weights = {k: v + 0.02 * torch.randn(v.shape) if v.dim() > 1 else v for k, v in network.state_dict().items()}
    torch.save(weights, tmp_path / "inception.pth")
    images = load_data("digits").test[:6]
    features = extract_features(images, "inception-v3-compat", tmp_path / "inception.pth", 3, progress=False)
    assert features.shape == (6, 2048) and features.dtype == torch.float64 and features.isfinite().all()
    network.load_state_dict(weights)
    expected = network.eval()(images[:3].expand(-1, 3, -1, -1))[0]
    torch.testing.assert_close(features[:3].float(), expected.detach(), atol=1e-4, rtol=1e-3)
    assert expected.std() > 0


def test_wrong_input_is_named():
    images = load_data("digits").test[:4]
    with pytest.raises(ValueError, match="images are torch.float32, allowed is torch.uint8"):
        extract_features(to_float(images), FEATURES)
    with pytest.raises(ValueError, match="feature network is 'inception', allowed are a folder of 00_features, and .*"):
        extract_features(images, "inception")
    with pytest.raises(ValueError, match="feature network is 'kflow-classifier'"):
        extract_features(images, "kflow-classifier")
    with pytest.raises(FileNotFoundError, match="there are no weights of inception-v3-compat in nowhere.pth"):
        extract_features(images, "inception-v3-compat", "nowhere.pth")


def test_more_samples_less_bias():
    features = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0)).double()
    distances = [frechet_distance(features[:n], features[2000 : 2000 + n]) for n in (50, 200, 1000)]
    assert distances[0] > distances[1] > distances[2] and math.isfinite(distances[0])
