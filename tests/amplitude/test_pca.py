"""PCA against scikit-learn, in pieces and whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import decomposition

from kflow.amplitude import PCA

torch.set_num_threads(1)

SHAPE = (2, 3, 4)


def samples(count, seed=0, shape=SHAPE):
    """Correlated and far from centred."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, size)
    noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return (noise @ mixing.T + 5 * torch.arange(size)).view(count, *shape)


@pytest.mark.parametrize("count", [24, 25, 500])
@pytest.mark.parametrize(("bands", "cuts"), [(1, None), (2, None), (3, None), (5, None), (3, [0.1, 0.8])])
def test_agrees_with_scikit_learn(count, bands, cuts):
    data = samples(count)
    pca, reference = PCA.fit(data, bands, cuts), decomposition.PCA().fit(data.flatten(1))
    rank = min(count - 1, 24)
    torch.testing.assert_close(pca.mean.flatten(), torch.from_numpy(reference.mean_))
    torch.testing.assert_close(pca.eigenvalues[:rank], torch.from_numpy(reference.explained_variance_[:rank]))
    components = torch.from_numpy(reference.components_)[:rank]
    aligned = (pca.components[:rank] * components).sum(1)
    torch.testing.assert_close(aligned.abs(), torch.ones(rank, dtype=torch.float64), rtol=0, atol=1e-8)

    x = samples(4, seed=1)
    edges = [0, *(int(24 * b / bands) for b in range(1, bands)), 24] if cuts is None else [0, 2, 19, 24]
    assert pca.sizes().tolist() == [end - start for start, end in zip(edges, edges[1:], strict=False)]
    for band, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        basis = components[start:end]
        if end <= rank:
            projected = (x.flatten(1) @ basis.T @ basis).view_as(x)
            torch.testing.assert_close(pca.project(x, band), projected, rtol=1e-7, atol=1e-7)
    # In the coordinates, centred data have the covariance diag(eigenvalues).
    scale = pca.eigenvalues[0].item()
    torch.testing.assert_close(pca.analyse(data).T.cov(), pca.eigenvalues.diag(), rtol=0, atol=1e-8 * scale)
    assert (pca.eigenvalues.diff() <= 0).all()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.integers(2, 60), st.lists(st.integers(1, 20), max_size=5))
def test_batches_give_the_whole_fit(count, sizes):
    data = samples(count, seed=count)
    ends = [0, *(end for end in torch.tensor([0, *sizes]).cumsum(0).tolist()[1:] if end < count), count]
    batches = (data[start:end] for start, end in zip(ends, ends[1:], strict=False))
    whole, pieces = PCA.fit(data), PCA.fit(batches)
    torch.testing.assert_close(pieces.mean, whole.mean)
    scale = whole.eigenvalues[0].item()
    torch.testing.assert_close(pieces.eigenvalues, whole.eigenvalues, rtol=0, atol=1e-10 * scale)
    for pca in (whole, pieces):
        rebuilt = pca.components.T @ pca.eigenvalues.diag() @ pca.components
        torch.testing.assert_close(rebuilt, data.flatten(1).T.cov(), rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("count", [2, 5, 23])
def test_fewer_samples_than_dimensions(count):
    data = samples(count)
    pca = PCA.fit(data)
    assert (pca.eigenvalues >= 0).all()
    assert (pca.eigenvalues[count - 1 :] < 1e-9 * pca.eigenvalues[0]).all()
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(24, dtype=torch.float64))
    x = samples(3, seed=9)
    torch.testing.assert_close(pca.synthesise(pca.analyse(x)), x)
    # Few samples: all that varies lies in the low band.
    if count - 1 <= 12:
        centred = data - data.mean(0)
        torch.testing.assert_close(pca.project(centred, 0), centred, rtol=0, atol=1e-9 * centred.abs().max().item())


def test_float32_data_are_gathered_in_float64():
    data = (samples(400) + 1e3).float()
    exact, pca = PCA.fit(data.double()), PCA.fit(data.split(50))
    assert pca.components.dtype == torch.float64
    torch.testing.assert_close(pca.eigenvalues, exact.eigenvalues, rtol=1e-8, atol=1e-8)


def test_fit_refuses_too_few():
    with pytest.raises(ValueError, match="PCA got 1 samples, allowed is 2 or more"):
        PCA.fit(samples(1))
    with pytest.raises(ValueError, match="PCA got 0 samples, allowed is 2 or more"):
        PCA.fit([])


@pytest.mark.parametrize(
    ("bands", "cuts", "message"),
    [
        (0, None, "bands is 0, allowed is 1 or more"),
        (25, None, r"band 0 of 25 is empty, \(2, 3, 4\) allows fewer"),
        (2, [0.001], r"band 0 of 2 is empty"),
        (3, [0.5], r"cuts is \[0.5\], allowed are 2 rising"),
        (2, [1.5], r"cuts is \[1.5\], allowed are 1 rising"),
    ],
)
def test_impossible_bands(bands, cuts, message):
    with pytest.raises(ValueError, match=message):
        PCA.fit(samples(30), bands, cuts)


def test_impossible_components():
    pca = PCA.fit(samples(30))
    with pytest.raises(ValueError, match=r"shapes \(\(23, 24\), \(24,\)\), the mean allows \(\(24, 24\), \(24,\)\)"):
        PCA(pca.components[1:], pca.eigenvalues, pca.mean)
    with pytest.raises(ValueError, match="PCA at size 24 is off orthonormal by .* allowed is 1e-5"):
        PCA(pca.components * 1.001, pca.eigenvalues, pca.mean)
    with pytest.raises(ValueError, match="off orthonormal by nan"):
        PCA(pca.components * float("nan"), pca.eigenvalues, pca.mean)
