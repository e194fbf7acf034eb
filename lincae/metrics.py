"""Metrics: per-item tensors in, per-item values out. Nothing is averaged over items here.

Argument order is prediction, reference. A value is NaN where the reference is silent, since the ratio says
nothing there: callers count these items and leave them out. No mean is removed and no gain is matched, unless
the metric's name says so.

Axis legend: `B` batch, `T` samples, `F` frequency bins, `N` spectrogram frames.
"""

import functools
import math
import warnings

import torch
from torch import Tensor

SILENCE_DBFS = -80.0
"""RMS below which audio is silent: music at -20 dBFS and a gain of 1/1000 is not yet."""
WINDOWS_MS = (10, 25, 50)
N_MELS = 80
EPS = 1e-8


def is_silent(audio: Tensor) -> Tensor:
    """Whether the RMS of each item of (B, ...) is below SILENCE_DBFS, as (B,) bool."""
    return _flat(audio).square().mean(1).sqrt() < 10 ** (SILENCE_DBFS / 20)


def snr_db(prediction: Tensor, reference: Tensor) -> Tensor:
    """Signal-to-noise ratio of (B, ...) as (B,) float64, in dB.

    `10 log10(|r|^2 / (|p - r|^2 + 1e-8) + 1e-8)`: finite for p = r. NaN where r is silent.
    """
    p, r = _pair(prediction, reference)
    return _masked(_ratio_db(_energy(r), _energy(p - r)), is_silent(reference))


def si_sdr_db(prediction: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., 2019) of (B, ...) as (B,) float64, in dB.

    The SNR against the projection of p on r, so any gain of p is forgiven. NaN where r is silent.
    """
    p, r = _pair(prediction, reference)
    target = ((p * r).sum(1, keepdim=True) / (_energy(r)[:, None] + EPS)) * r
    return _masked(_ratio_db(_energy(target), _energy(p - target)), is_silent(reference))


def relative_l2(prediction: Tensor, reference: Tensor) -> Tensor:
    """`|p - r| / (|r| + 1e-8)` of (B, ...), audio or latents, as (B,) float64. NaN where r is all zero."""
    p, r = _pair(prediction, reference)
    norm = r.norm(dim=1)
    return _masked((p - r).norm(dim=1) / (norm + EPS), norm == 0)


def mss(prediction: Tensor, reference: Tensor, sample_rate: int, spectral_convergence: bool = True) -> Tensor:
    """Multi-scale spectral distance of (B, T) audio as (B,): mean of windows of 10, 25 and 50 ms.

    Of mel magnitudes P and R: `|R - P|_F / |R|_F + mean |ln P - ln R|`; the second term alone without
    `spectral_convergence`. Equals auraloss 0.4.0 item by item; its batches share one Frobenius ratio.
    NaN where the reference is silent. Raises ValueError for audio shorter than half the longest FFT.
    """
    _check(prediction, reference)
    if reference.ndim != 2:
        raise ValueError(f"mss takes audio (B, T), got {tuple(reference.shape)}")
    n_needed = max(_resolution(sample_rate, window_ms)[1] for window_ms in WINDOWS_MS) // 2 + 1
    if reference.shape[1] < n_needed:
        raise ValueError(
            f"mss at {sample_rate} Hz needs {n_needed} samples or more, got {reference.shape[1]}"
        )
    dtype = torch.promote_types(reference.dtype, torch.float32)
    prediction, reference, total = prediction.to(dtype), reference.to(dtype), 0.0
    for window_ms in WINDOWS_MS:
        p, r = (_mel_magnitudes(audio, sample_rate, window_ms) for audio in (prediction, reference))
        total = total + (p.log() - r.log()).abs().mean((1, 2))
        if spectral_convergence:
            total = total + (r - p).norm(dim=(1, 2)) / r.norm(dim=(1, 2))
    return _masked(total / len(WINDOWS_MS), is_silent(reference))


def _mel_magnitudes(audio: Tensor, sample_rate: int, window_ms: int) -> Tensor:
    """Audio (B, T) to mel magnitudes (B, N_MELS, N), each STFT bin at least 1e-4."""
    window_samples, n_fft = _resolution(sample_rate, window_ms)
    window = torch.hann_window(window_samples, device=audio.device, dtype=audio.dtype)
    spectrum = torch.stft(audio, n_fft, window_samples // 2, window_samples, window, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return _mel_filters(sample_rate, n_fft).to(audio) @ power.clamp(min=EPS).sqrt()


@functools.cache
def _resolution(sample_rate: int, window_ms: int) -> tuple[int, int]:
    """Window in samples and FFT size: the next power of two, or the one at which no mel filter is empty.

    At 16, 44.1 and 48 kHz that is the next power of two; 8 and 22.05 kHz need the double for 10 ms.
    """
    window_samples = sample_rate * window_ms // 1000
    n_fft = 2 ** math.ceil(math.log2(max(window_samples, 2)))
    while not _mel_filters(sample_rate, n_fft).any(1).all():
        n_fft *= 2
    return window_samples, n_fft


@functools.cache
def _mel_filters(sample_rate: int, n_fft: int) -> Tensor:
    """Slaney's mel filters (N_MELS, F), 0 Hz to Nyquist."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty filters, which `_resolution` avoids
        bank = melscale_fbanks(n_fft // 2 + 1, 0, sample_rate / 2, N_MELS, sample_rate, "slaney", "slaney")
    return bank.T.contiguous()


def _check(prediction: Tensor, reference: Tensor) -> None:
    if prediction.shape != reference.shape or reference.ndim < 2 or reference.numel() == 0:
        shapes = f"{tuple(prediction.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"prediction and reference must be (B, ...) of equal shape, not empty, got {shapes}")


def _pair(prediction: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    _check(prediction, reference)
    return _flat(prediction), _flat(reference)


def _flat(x: Tensor) -> Tensor:
    """(B, ...) to (B, values) in float64: in float32 the epsilon and the sums would bias quiet items."""
    return x.double().flatten(1)


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _ratio_db(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * torch.log10(signal / (noise + EPS) + EPS)


def _masked(values: Tensor, undefined: Tensor) -> Tensor:
    return values.masked_fill(undefined, math.nan)
