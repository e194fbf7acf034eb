"""Metrics: per-item tensors in, per-item values out. Nothing is averaged over items here.

Argument order is prediction, reference. A value is NaN where the reference is silent: callers count these
items and leave them out. No mean is removed and no gain is matched, unless the metric's name says so. Axis
legend: see `lincae.interface`.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lincae.interface import check_floating

SILENCE_DBFS = -80.0
"""Audio with a lower RMS is silent: music at -20 dBFS and a gain of 1/1000 is not yet."""
WINDOWS_MS = (10, 25, 50)
N_MELS = 80
EPS = 1e-8


def is_silent(audio: Tensor) -> Tensor:
    """Whether the RMS of each item of (B, ...) is below SILENCE_DBFS, as (B,) bool."""
    return _flat(audio).square().mean(1).sqrt() < 10 ** (SILENCE_DBFS / 20)


def snr_db(prediction: Tensor, reference: Tensor) -> Tensor:
    """Signal-to-noise ratio of (B, ...) as (B,) float64, `10 log10(|r|^2 / (|p - r|^2 + 1e-8) + 1e-8)` dB."""
    p, r = _pair(prediction, reference)
    return _ratio_db(_energy(r), _energy(p - r), is_silent(reference))


def si_sdr_db(prediction: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., 2019) of (B, ...) as (B,) float64, in dB:
    the SNR against the projection of p on r, so that any gain of p is forgiven."""
    p, r = _pair(prediction, reference)
    gain = (p * r).sum(1, keepdim=True) / (_energy(r)[:, None] + EPS)
    target = gain * r
    return _ratio_db(_energy(target), _energy(p - target), is_silent(reference))


def relative_l2(prediction: Tensor, reference: Tensor) -> Tensor:
    """`|p - r| / (|r| + 1e-8)` of (B, ...), audio or latents, as (B,) float64. NaN where r is all zero."""
    p, r = _pair(prediction, reference)
    norm = r.norm(dim=1)
    return ((p - r).norm(dim=1) / (norm + EPS)).masked_fill(norm == 0, math.nan)


def band_snr_db(prediction: Tensor, reference: Tensor, sample_rate: int, edges_hz: Sequence[float]) -> Tensor:
    """SNR of (B, T) audio within each band between neighbouring `edges_hz`, as (B, bands) float64, in dB, by
    the bins of one Fourier transform. NaN where the reference is silent in a band."""
    p, r = _pair(prediction, reference)
    frequencies_hz = torch.fft.rfftfreq(p.shape[1], 1 / sample_rate, device=p.device)
    signal_power = 2 * torch.fft.rfft(r, norm="ortho").abs().square()
    noise_power = 2 * torch.fft.rfft(p - r, norm="ortho").abs().square()
    values = []
    for low, high in itertools.pairwise(edges_hz):
        inside = (frequencies_hz >= low) & (frequencies_hz < high)
        signal = signal_power[:, inside].sum(1)
        noise = noise_power[:, inside].sum(1)
        silent = (signal / p.shape[1]).sqrt() < 10 ** (SILENCE_DBFS / 20)
        values.append(_ratio_db(signal, noise, silent))
    return torch.stack(values, 1)


def mss(prediction: Tensor, reference: Tensor, sample_rate: int) -> Tensor:
    """Multi-scale spectral distance (MSS) of (B, T) audio as (B,), that of auraloss 0.4.0 item by item: the
    sum of both `mss_terms`, which say what is raised."""
    convergence, log_mel = mss_terms(prediction, reference, sample_rate)
    return convergence + log_mel


def mss_terms(prediction: Tensor, reference: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Both terms of the multi-scale spectral distance of (B, T) audio, each (B,): for mel magnitudes P and R
    the spectral convergence `|R - P|_F / |R|_F` and the log-mel distance `mean |ln P - ln R|`, as means over
    windows of 10, 25 and 50 ms. Raises ValueError for audio shorter than half the longest FFT."""
    _check(prediction, reference)
    n_needed = max(_resolution(sample_rate, window_ms)[1] for window_ms in WINDOWS_MS) // 2 + 1
    if reference.ndim != 2 or reference.shape[1] < n_needed:
        wanted = f"audio (B, T) of {n_needed} samples or more at {sample_rate} Hz"
        raise ValueError(f"mss takes {wanted}, got {tuple(reference.shape)}")
    dtype = torch.promote_types(reference.dtype, torch.float32)
    convergence = 0.0
    log_mel = 0.0
    for window_ms in WINDOWS_MS:
        p = _mel_magnitudes(prediction.to(dtype), sample_rate, window_ms)
        r = _mel_magnitudes(reference.to(dtype), sample_rate, window_ms)
        convergence = convergence + (r - p).norm(dim=(1, 2)) / r.norm(dim=(1, 2))
        log_mel = log_mel + (p.log() - r.log()).abs().mean((1, 2))
    silent = is_silent(reference)
    terms = [(total / len(WINDOWS_MS)).masked_fill(silent, math.nan) for total in (convergence, log_mel)]
    return tuple(terms)


def _mel_magnitudes(audio: Tensor, sample_rate: int, window_ms: int) -> Tensor:
    """Audio (B, T) to mel magnitudes (B, N_MELS, N), each STFT bin at least 1e-4."""
    window_samples, n_fft = _resolution(sample_rate, window_ms)
    window = torch.hann_window(window_samples, device=audio.device, dtype=audio.dtype)
    spectrum = torch.stft(audio, n_fft, window_samples // 2, window_samples, window, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return _mel_filters(sample_rate, n_fft).to(audio) @ power.clamp(min=EPS).sqrt()


@functools.cache
def _resolution(sample_rate: int, window_ms: int) -> tuple[int, int]:
    """Window in samples and FFT size: the first power of two at which no mel filter is empty: the next
    one, but for 10 ms at 8 and 22.05 kHz."""
    window_samples = sample_rate * window_ms // 1000
    n_fft = 2 ** math.ceil(math.log2(max(window_samples, 2)))
    while not _mel_filters(sample_rate, n_fft).any(1).all():
        n_fft *= 2
    return window_samples, n_fft


@functools.cache
def _mel_filters(sample_rate: int, n_fft: int) -> Tensor:
    """Slaney's mel filters (N_MELS, F) from 0 Hz to Nyquist."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they speak of empty filters, which `_resolution` avoids
        bank = melscale_fbanks(n_fft // 2 + 1, 0, sample_rate / 2, N_MELS, sample_rate, "slaney", "slaney")
    return bank.T.contiguous()


def _check(prediction: Tensor, reference: Tensor) -> None:
    check_floating(prediction, "prediction")
    check_floating(reference, "reference")
    if prediction.shape != reference.shape or reference.ndim < 2 or reference.numel() == 0:
        shapes = f"{tuple(prediction.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"prediction and reference must be (B, ...) of equal shape, not empty, got {shapes}")


def _pair(prediction: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    _check(prediction, reference)
    return _flat(prediction), _flat(reference)


def _flat(x: Tensor) -> Tensor:
    """(B, ...) to (B, values) in float64: in float32 the epsilon and the sums would bias quiet items."""
    if x.device.type == "mps":  # which has no float64
        x = x.cpu()
    return x.double().flatten(1)


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _ratio_db(signal: Tensor, noise: Tensor, silent: Tensor) -> Tensor:
    return (10 * torch.log10(signal / (noise + EPS) + EPS)).masked_fill(silent, math.nan)
