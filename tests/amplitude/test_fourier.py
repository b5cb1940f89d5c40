"""Fourier bands against numpy's FFT and an explicit loop over integer frequencies."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kflow.amplitude import Fourier

torch.set_num_threads(1)


def integer_frequencies(n):
    """The signed frequencies of an n-point DFT in numpy's order; for even n its Nyquist frequency counts as −n/2."""
    return [k if 2 * k < n else k - n for k in range(n)]


def bands_by_loop(height, width, cuts):
    """The band of each frequency, one at a time: |k| in cycles per pixel as a share of the lattice's corner."""
    k_max = Fraction(height // 2, height) ** 2 + Fraction(width // 2, width) ** 2
    index = np.empty((height, width), dtype=int)
    for i, ky in enumerate(integer_frequencies(height)):
        for j, kx in enumerate(integer_frequencies(width)):
            radius = Fraction(ky, height) ** 2 + Fraction(kx, width) ** 2
            index[i, j] = sum(radius >= cut**2 * k_max for cut in cuts)
    return index


@pytest.mark.parametrize("n", [2, 4, 8, 12, 16, 30, 32])
def test_two_bands_are_cut_at_half_of_the_corner(n):
    index = Fourier((1, n, n)).band_index[0]
    for i, ky in enumerate(integer_frequencies(n)):
        for j, kx in enumerate(integer_frequencies(n)):
            assert (index[i, j] == 0) == (8 * (kx**2 + ky**2) < n**2)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.integers(8, 24),
    st.integers(8, 24),
    st.one_of(st.integers(1, 4), st.lists(st.sampled_from([0.15, 0.3, 0.5, 0.75, 0.9]), unique=True)),
)
def test_bands_equal_the_loop(height, width, spec):
    if isinstance(spec, int):
        F, cuts = Fourier((1, height, width), spec), [Fraction(b, spec) for b in range(1, spec)]
    else:
        F, cuts = Fourier((1, height, width), len(spec) + 1, sorted(spec)), [Fraction(str(c)) for c in sorted(spec)]
    index = bands_by_loop(height, width, cuts)
    assert np.array_equal(F.band_index[0], index)
    assert F.band_index.max() == F.bands - 1 and index[height // 2, width // 2] == F.bands - 1  # the corner is in
    mirrored = np.roll(index[::-1, ::-1], (1, 1), (0, 1))
    assert np.array_equal(index, mirrored)  # ±k share a band

    x = np.random.default_rng(0).standard_normal((2, 1, height, width))
    spectrum = np.fft.fft2(x, norm="ortho")
    np.testing.assert_allclose(F.analyse(torch.from_numpy(x)), spectrum, atol=1e-12)
    for band, part in enumerate(F.split(torch.from_numpy(x))):
        expected = np.fft.ifft2(spectrum * (index == band), norm="ortho")
        assert np.abs(expected.imag).max() < 1e-12
        np.testing.assert_allclose(part, expected.real, atol=1e-12)


def test_cut_on_a_frequency_belongs_above():
    # At n = 8 the corner is √32 and half of it √8 = |(2, 2)| exactly: a rounded comparison may go either way.
    index = Fourier((1, 8, 8)).band_index[0]
    assert index[2, 2] == index[-2, 2] == index[-2, -2] == 1 and index[2, 1] == 0
    # 4/5 of the corner (5, 5) of a 10-lattice is |(4, 4)| = 0.8 √50, and 0.8 has no finite binary form.
    index = Fourier((1, 10, 10), 2, [0.8]).band_index[0]
    assert index[4, 4] == index[-4, 4] == 1 and index[4, 3] == 0
    # |(1, 0)| is 0.7071 of the corner (1, 1).
    assert Fourier((1, 3, 3), 2, [0.71]).band_index[0, 0, 1] == 0
    assert Fourier((1, 3, 3), 2, [0.7]).band_index[0, 0, 1] == 1


def test_large_lattice_does_not_overflow():
    index = Fourier((1, 2048, 3), 2, [0.3333]).band_index[0, :, 0].long()
    corner = Fraction(1, 4) + Fraction(1, 9)
    expected = [Fraction(k, 2048) ** 2 >= Fraction("0.3333") ** 2 * corner for k in integer_frequencies(2048)]
    assert index.tolist() == [int(above) for above in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 8, 8), 0), "bands is 0, allowed is 1 or more"),
        (((1, 8, 8), -1), "bands is -1, allowed is 1 or more"),
        (((1, 2, 2), 8), r"of 8 is empty, \(1, 2, 2\) allows fewer"),
        (((1, 8, 8), 3, [0.5]), r"cuts is \[0.5\], allowed are 2 rising numbers strictly between 0 and 1"),
        (((1, 8, 8), 1, [0.5]), r"cuts is \[0.5\], allowed are 0 rising"),
        (((1, 8, 8), 3, [0.5, 0.5]), r"cuts is \[0.5, 0.5\], allowed are 2 rising"),
        (((1, 8, 8), 3, [0.6, 0.5]), r"cuts is \[0.6, 0.5\], allowed are 2 rising"),
        (((1, 8, 8), 2, [0.0]), r"cuts is \[0.0\], allowed are 1 rising"),
        (((1, 8, 8), 2, [1.0]), r"cuts is \[1.0\], allowed are 1 rising"),
        (((1, 8, 8), 2, [-0.5]), r"cuts is \[-0.5\], allowed are 1 rising"),
        (((1, 8, 8), 2, [float("nan")]), r"cuts is \[nan\], allowed are 1 rising"),
        (((1, 8, 8), 2, [float("inf")]), r"cuts is \[inf\], allowed are 1 rising"),
        (((1, 8, 8), 2, [1e-9]), r"band 0 of 2 is empty, \(1, 8, 8\) allows fewer"),
        (((1, 8, 8), 3, [0.51, 0.52]), r"band 1 of 3 is empty"),
        (((8, 8),), r"shape is \(8, 8\), allowed is \(channel, height, width\)"),
        (((1, 0, 8),), r"shape is \(1, 0, 8\), allowed is \(channel, height, width\), each 1 or more"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Fourier(*arguments)
