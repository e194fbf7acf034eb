"""How loud audio (channels, T) is, and how far it peaks (ITU-R BS.1770-4, channels that count alike).

Written here, since pyloudnorm 0.2 has no true peak. scipy.signal, slow to import, is so where it is used: the
desk has sound before it has numbers.
"""

import math

import numpy as np
from torch import Tensor

BLOCK_S = 0.4  # BS.1770-4, annex 1, for this and the next four
STEP_S = 0.1
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
OFFSET_LUFS = -0.691
OVERSAMPLING = 4  # annex 2


def rms_dbfs(audio: Tensor) -> float:
    """Root mean square over channels and time in dB re full scale; -inf for silence."""
    return decibels(float(np.sqrt(np.mean(np.square(_float64(audio))))))


def true_peak_dbtp(audio: Tensor) -> float:
    """Highest level of the waveform between its samples too (BS.1770-4, annex 2), in dB re full scale."""
    from scipy.signal import resample_poly

    return decibels(float(np.abs(resample_poly(_float64(audio), OVERSAMPLING, 1, axis=-1)).max()))


def loudness_lufs(audio: Tensor, sample_rate: int) -> float:
    """Gated, K-weighted loudness (BS.1770-4, annex 1) in LUFS; -inf for what lies below its absolute gate.

    Signals shorter than a block of 0.4 s are one block.
    """
    from scipy.signal import lfilter

    weighted = _float64(audio)
    for numerator, denominator in k_filters(sample_rate):
        weighted = lfilter(numerator, denominator, weighted, axis=-1)
    size = min(round(BLOCK_S * sample_rate), weighted.shape[1])
    starts = range(0, weighted.shape[1] - size + 1, round(STEP_S * sample_rate))
    power = np.array([np.square(weighted[:, start : start + size]).mean(1).sum() for start in starts])
    loud = power[power > _power(ABSOLUTE_GATE_LUFS)]
    if not len(loud):
        return -math.inf
    gate_lufs = OFFSET_LUFS + 10 * math.log10(loud.mean()) + RELATIVE_GATE_LU
    return OFFSET_LUFS + 10 * math.log10(loud[loud > _power(gate_lufs)].mean())


def k_filters(sample_rate: int) -> list[tuple[list[float], list[float]]]:
    """Numerators and denominators of the head and the high-pass filter at any sample rate: the analogue ones
    whose bilinear transform at 48 kHz is the standard's table (the derivation of libebur128)."""
    q = 0.7071752369554196
    k = math.tan(math.pi * 1681.974450955533 / sample_rate)
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    head = [high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k]
    head_poles = [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]

    q = 0.5003270373238773
    k = math.tan(math.pi * 38.13547087602444 / sample_rate)
    b0 = 1 + k / q + k * k
    high_pass_poles = [1.0, 2 * (k * k - 1) / b0, (1 - k / q + k * k) / b0]
    return [([value / a0 for value in head], head_poles), ([1.0, -2.0, 1.0], high_pass_poles)]


def decibels(amplitude: float) -> float:
    """20 log10 of an amplitude; -inf for 0."""
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def amplitude(level_db: float) -> float:
    """The factor that a level in dB stands for; 0 for -inf."""
    return 10 ** (level_db / 20)


def _power(level_lufs: float) -> float:
    return 10 ** ((level_lufs - OFFSET_LUFS) / 10)


def _float64(audio: Tensor) -> np.ndarray:
    return np.atleast_2d(np.asarray(audio.detach().cpu(), dtype=np.float64))
