"""F and F⁻¹: how a signal splits into scaling bands (§2.1–2.2, §3.2, C.2.1, C.3)."""

from kflow.amplitude.decomposition import Identity, KAmplitude
from kflow.amplitude.fourier import Fourier
from kflow.amplitude.pca import PCA
from kflow.amplitude.wavelet import Meyer, Wavelet
