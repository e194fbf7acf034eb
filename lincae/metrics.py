"""Metrics: per-item tensors in, per-item values out. Nothing is averaged over items here.

Argument order is prediction, reference. A value is NaN where the reference is silent, since the ratio says
nothing there: callers count these items and leave them out. No mean is removed and no gain is matched, unless
the metric's name says so.

The exception is KAD, which compares two sets of embeddings and is one number.

Axis legend: `B` batch, `T` samples, `F` frequency bins, `N` spectrogram frames; for KAD `N` and `M` items of
a set, `D` embedding dimensions.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lincae.interface import check_finite

SILENCE_DBFS = -80.0
"""Audio with a lower RMS is silent: music at -20 dBFS and a gain of 1/1000 is not yet."""
WINDOWS_MS = (10, 25, 50)
"""Windows of the multi-scale spectral distance."""
N_MELS = 80
EPS = 1e-8
BANDWIDTHS = ("reference", "evaluated")
"""Sets whose distances may set the scale of KAD."""


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
    gain = (p * r).sum(1, keepdim=True) / (_energy(r)[:, None] + EPS)
    target = gain * r
    return _masked(_ratio_db(_energy(target), _energy(p - target)), is_silent(reference))


def relative_l2(prediction: Tensor, reference: Tensor) -> Tensor:
    """`|p - r| / (|r| + 1e-8)` of (B, ...), audio or latents, as (B,) float64. NaN where r is all zero."""
    p, r = _pair(prediction, reference)
    norm = r.norm(dim=1)
    return _masked((p - r).norm(dim=1) / (norm + EPS), norm == 0)


def band_snr_db(prediction: Tensor, reference: Tensor, sample_rate: int, edges_hz: Sequence[float]) -> Tensor:
    """SNR of (B, T) audio within each band between neighbouring `edges_hz`, as (B, bands) float64, in dB.

    Energies are sums over the bins of one Fourier transform of the whole, so those of adjoining bands add up
    to those of `snr_db` (Parseval). NaN where the reference is silent in a band.
    """
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
        values.append(_masked(_ratio_db(signal, noise), silent))
    return torch.stack(values, 1)


def mss(prediction: Tensor, reference: Tensor, sample_rate: int, spectral_convergence: bool = True) -> Tensor:
    """Multi-scale spectral distance (MSS) of (B, T) audio as (B,).

    It is the sum of both `mss_terms`, or without `spectral_convergence` the second alone, and equals that of
    auraloss 0.4.0 item by item. Raises as `mss_terms`.
    """
    convergence, log_mel = mss_terms(prediction, reference, sample_rate)
    return convergence + log_mel if spectral_convergence else log_mel


def mss_terms(prediction: Tensor, reference: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Both readings of the multi-scale spectral distance of (B, T) audio in one pass, each (B,).

    For mel magnitudes P and R these are the spectral convergence `|R - P|_F / |R|_F` and the log-mel distance
    `mean |ln P - ln R|`, each as the mean over windows of 10, 25 and 50 ms. The Frobenius norms are those of
    one item (auraloss takes them over its whole batch). NaN where the reference is silent. Raises ValueError
    for audio shorter than half the longest FFT.
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
    convergence = 0.0
    log_mel = 0.0
    for window_ms in WINDOWS_MS:
        p = _mel_magnitudes(prediction.to(dtype), sample_rate, window_ms)
        r = _mel_magnitudes(reference.to(dtype), sample_rate, window_ms)
        convergence = convergence + (r - p).norm(dim=(1, 2)) / r.norm(dim=(1, 2))
        log_mel = log_mel + (p.log() - r.log()).abs().mean((1, 2))
    silent = is_silent(reference)
    return _masked(convergence / len(WINDOWS_MS), silent), _masked(log_mel / len(WINDOWS_MS), silent)


def kad(reference: Tensor, evaluated: Tensor, bandwidth: str = "reference") -> float:
    """Kernel Audio Distance (Chung et al., 2025) of embeddings (N, D) and (M, D), such as those of CLAP.

    This is 100 times the unbiased squared maximum mean discrepancy with the kernel
    `exp(-d^2 / (2 b^2 + 1e-8))` of the Euclidean distance d, in float64. For two draws of one distribution it
    is 0 on average and often negative. b is the median distance of pairs within the set that `bandwidth`
    names (the lower of two middle ones): "reference" compares all models on one scale, "evaluated" is what
    kadtk 1.1.0 computes. Memory: about 25 bytes times the square of the larger set.

    Raises ValueError for sets of fewer than two items, other shapes, non-finite values and other bandwidths.
    """
    if bandwidth not in BANDWIDTHS:
        raise ValueError(f"bandwidth must be one of {BANDWIDTHS}, got {bandwidth!r}")
    x = _embeddings(reference, "reference")
    y = _embeddings(evaluated, "evaluated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings must be of one kind, got {x.shape[1]} and {y.shape[1]} dimensions")
    scale_set = x if bandwidth == "reference" else y
    distances = torch.cdist(scale_set, scale_set)
    is_pair = torch.ones_like(distances, dtype=torch.bool).triu(1)
    scale = 2 * distances[is_pair].median().square() + EPS

    def within(items: Tensor) -> Tensor:
        kernel = (-torch.cdist(items, items).square() / scale).exp().fill_diagonal_(0)
        return kernel.sum() / (len(items) * (len(items) - 1))

    between = (-torch.cdist(x, y).square() / scale).exp().mean()
    return 100 * (within(x) + within(y) - 2 * between).item()


def _embeddings(items: Tensor, name: str) -> Tensor:
    if items.ndim != 2 or items.shape[1] == 0:
        raise ValueError(f"{name} embeddings must be (items, dimensions), got {tuple(items.shape)}")
    if len(items) < 2:
        raise ValueError(f"KAD needs two or more {name} embeddings, got {len(items)}")
    return check_finite(items, f"the {name} embeddings", ("item", "dimension")).double()


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
    """Slaney's mel filters (N_MELS, F) from 0 Hz to Nyquist."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they speak of empty filters, which `_resolution` avoids
        bank = melscale_fbanks(n_fft // 2 + 1, 0, sample_rate / 2, N_MELS, sample_rate, "slaney", "slaney")
    return bank.T.contiguous()


def _check(prediction: Tensor, reference: Tensor) -> None:
    for name, value in (("prediction", prediction), ("reference", reference)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}: use torch.as_tensor")
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


def _ratio_db(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * torch.log10(signal / (noise + EPS) + EPS)


def _masked(values: Tensor, undefined: Tensor) -> Tensor:
    return values.masked_fill(undefined, math.nan)
