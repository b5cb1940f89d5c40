"""Wavelets against PyWavelets and ptwt, and Meyer against Eq. 21–23."""

import math
import subprocess
import sys

import numpy as np
import ptwt
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kflow.amplitude import Meyer, Wavelet
from kflow.amplitude.wavelet import meyer_matrix, periodized_matrix

torch.set_num_threads(1)


def is_orthonormal(name):
    """By the filters alone: their even autocorrelation is a unit impulse, and both pairs of filters are the same."""
    bank = pywt.Wavelet(name)
    low, high = np.array(bank.dec_lo), np.array(bank.dec_hi)
    middle, impulse = len(low) - 1, np.eye(1, 2 * len(low) - 1, len(low) - 1)[0]
    every_second = slice(middle % 2, None, 2)
    return all(
        np.abs((np.correlate(a, b, "full") - (impulse if a is b else 0))[every_second]).max() < 1e-5
        for a in (low, high)
        for b in (low, high)
    )


ORTHONORMAL = [name for name in pywt.wavelist(kind="discrete") if is_orthonormal(name)]
OTHERS = [name for name in pywt.wavelist(kind="discrete") if not is_orthonormal(name)]


def pyramid(coefficients):
    """PyWavelets' list of coefficients in one array: its horizontal details stand at the bottom left."""
    array = np.asarray(coefficients[0])
    for horizontal, vertical, diagonal in coefficients[1:]:
        top = np.concatenate([array, vertical], -1)
        array = np.concatenate([top, np.concatenate([horizontal, diagonal], -1)], -2)
    return array


def test_which_names_are_orthonormal():
    assert {"haar", "db6", "db38", "sym20", "coif17", "bior1.1"} <= set(ORTHONORMAL)
    assert {"dmey", "bior2.2", "rbio3.1"} <= set(OTHERS)


# PyWavelets warns where a filter is as long as the image; the transform is orthonormal there too.
@pytest.mark.filterwarnings("ignore:Level value:UserWarning")
@pytest.mark.parametrize("name", ORTHONORMAL)
def test_every_orthonormal_name_agrees_with_pywavelets(name):
    x = np.random.default_rng(0).standard_normal((2, 2, 16, 24))
    for levels in (1, 2, 3):
        F = Wavelet((2, 16, 24), name, levels)
        reference = pywt.wavedec2(x, name, mode="periodization", level=levels)
        coefficients = F.analyse(torch.from_numpy(x))
        np.testing.assert_allclose(coefficients, pyramid(reference), atol=1e-10)
        np.testing.assert_allclose(F.synthesise(coefficients), x, atol=1e-10)

        sizes = [reference[0][0, 0].size, *(3 * level[0][0, 0].size for level in reference[1:])]
        assert F.sizes().tolist() == [2 * size for size in sizes]
        for band, part in enumerate(F.split(torch.from_numpy(x))):
            kept = [np.zeros_like(reference[0]), *(tuple(map(np.zeros_like, level)) for level in reference[1:])]
            kept[band] = reference[band]
            np.testing.assert_allclose(part, pywt.waverec2(kept, name, mode="periodization"), atol=1e-10)


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"wavelet '{name}' at size .* allowed is 1e-5"):
        Wavelet((1, 32, 32), name)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([n for n in ORTHONORMAL if pywt.Wavelet(n).dec_len <= 12]),
    st.integers(1, 2),
    st.integers(0, 4),
    st.integers(0, 4),
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # ptwt's own, here in the reference
def test_orthogonalized_agrees_with_ptwt(name, levels, more_rows, more_columns):
    least = (pywt.Wavelet(name).dec_len + 1) // 2
    height, width = (2**levels * (least + more) for more in (more_rows, more_columns))
    x = torch.randn(2, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, *details = ptwt.MatrixWavedec2(name, level=levels, separable=True)(x)
    # With separable=True ptwt 1.0 gives vertical details the name horizontal and the other way round.
    reference = [low, *((horizontal, vertical, diagonal) for vertical, horizontal, diagonal in details)]
    F = Wavelet((2, height, width), name, levels, "orthogonalized")
    torch.testing.assert_close(F.analyse(x), torch.from_numpy(pyramid(reference)), rtol=0, atol=1e-10)
    if pywt.Wavelet(name).dec_len > 2:
        periodic = Wavelet((2, height, width), name, levels).analyse(x)
        assert (F.analyse(x) - periodic).abs().max() > 1e-3  # the border is really treated in another way


@pytest.mark.parametrize("name", ["db12", "coif8", "db31", "sym20"])
def test_long_filters_are_made_exactly_orthonormal(name):
    """ptwt's orthogonalization of long filters, and some printed filters, are off by up to 1e-5."""
    n = 2 * ((pywt.Wavelet(name).dec_len + 1) // 2)
    F = Wavelet((1, n, n), name, 1, "orthogonalized")
    x = torch.randn(2, 1, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(F.synthesise(F.analyse(x)), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(F.project(F.project(x, 0), 0), F.project(x, 0), rtol=0, atol=1e-10)


def test_ptwt_is_not_heard():
    code = "from kflow.amplitude import Wavelet; Wavelet((1, 16, 16), 'db6', 1, 'orthogonalized')"
    run = subprocess.run(
        [sys.executable, "-W", "error:Sparse:UserWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 32, 32), "db99"), "wavelet is 'db99', allowed are PyWavelets' orthonormal"),
        (((1, 32, 32), "morl"), "wavelet is 'morl', allowed"),
        (((1, 32, 32), "db6", 0), "levels is 0, allowed is 1 or more"),
        (((1, 32, 32), "db6", -1), "levels is -1, allowed is 1 or more"),
        (((1, 32, 31), "db6", 1), "size is 32×31, allowed are multiples of 2 for 1"),
        (((1, 20, 32), "db6", 3), "size is 20×32, allowed are multiples of 8 for 3"),
        (((1, 4, 4), "haar", 3), "size is 4×4, allowed are multiples of 8 for 3"),
        (((1, 32, 32), "db6", 1, "zero"), "boundary is 'zero', allowed are periodization, orthogonalized"),
        (((1, 16, 8), "db6", 1, "orthogonalized"), "size 8 is too short for 'db6', allowed is 12 or more"),
        (((1, 16, 16), "db6", 2, "orthogonalized"), "size 8 is too short for 'db6', allowed is 12 or more"),
        (((32, 32), "db6"), r"shape is \(32, 32\), allowed is \(channel, height, width\)"),
        (((1, 0, 0), "db6"), r"shape is \(1, 0, 0\), allowed"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Wavelet(*arguments)


def test_impossible_meyer():
    with pytest.raises(ValueError, match="size is 12×8, allowed are multiples of 8 for 3"):
        Meyer((1, 12, 8), 3)
    with pytest.raises(ValueError, match="levels is 0, allowed is 1 or more"):
        Meyer((1, 8, 8), 0)


def phi_hat(omega):
    """Eq. 21, with Meyer's connection function for the paper's ν(t) = t."""
    omega = abs(omega)
    if omega <= 2 * math.pi / 3:
        return 1.0
    if omega > 4 * math.pi / 3:
        return 0.0
    t = 3 * omega / (2 * math.pi) - 1
    return math.cos(math.pi / 2 * (35 * t**4 - 84 * t**5 + 70 * t**6 - 20 * t**7))


def psi_hat(omega):
    """Eq. 23 with the octave 4π/3 < |ω| ≤ 8π/3 that it leaves out, without phase."""
    omega = abs(omega)
    if 2 * math.pi / 3 < omega <= 4 * math.pi / 3:
        return math.sqrt(max(0.0, 1 - phi_hat(omega) ** 2))
    return phi_hat(omega / 2) if omega > 4 * math.pi / 3 else 0.0


@pytest.mark.parametrize("n", [2, 4, 6, 16, 32, 50])
def test_meyer_matrix(n):
    matrix = meyer_matrix(n)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    spectrum = torch.fft.fft(matrix)
    for j in range(n):
        omega = 2 * math.pi * (j if 2 * j < n else j - n) / n
        # φ̂(2ω) = m0(ω) φ̂(ω) and ψ̂(2ω) = m1(ω) φ̂(ω): on |ω| ≤ π the filters are these up to √2, where φ̂(ω) is 1.
        low, high = spectrum[0, j].abs().item() / math.sqrt(2), spectrum[n // 2, j].abs().item() / math.sqrt(2)
        assert low == pytest.approx(phi_hat(2 * omega), abs=1e-9)
        assert high * phi_hat(omega) == pytest.approx(psi_hat(2 * omega), abs=1e-7)
        assert low**2 + high**2 == pytest.approx(1)
    constant = matrix @ torch.ones(n, dtype=torch.float64)
    torch.testing.assert_close(constant[: n // 2], torch.full((n // 2,), math.sqrt(2), dtype=torch.float64))
    assert constant[n // 2 :].abs().max() < 1e-12


def test_meyer_is_a_translate_of_itself():
    matrix = meyer_matrix(16)
    torch.testing.assert_close(matrix[1:8], matrix[:7].roll(2, 1))
    torch.testing.assert_close(matrix[9:], matrix[8:15].roll(2, 1))


def test_periodized_matrix_is_the_filter():
    """db6 takes 12 taps around each even position."""
    bank, matrix = pywt.Wavelet("db6"), periodized_matrix("db6", 32)
    for shift in range(16):
        for row, taps in ((matrix[shift], bank.dec_lo), (matrix[16 + shift], bank.dec_hi)):
            expected = torch.zeros(32, dtype=torch.float64)
            expected[[(2 * shift + 6 - j) % 32 for j in range(12)]] = torch.tensor(taps, dtype=torch.float64)
            torch.testing.assert_close(row, expected)
