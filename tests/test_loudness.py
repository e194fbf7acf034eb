import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from lincae.listening.loudness import loudness_lufs, rms_dbfs, true_peak_dbtp
from lincae.machine import generator

RATES = (16000, 44100, 48000)


def sine(hz: float, sample_rate: int, seconds: float = 2.0, channels: int = 1) -> torch.Tensor:
    t = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    return torch.sin(2 * math.pi * hz * t).float().expand(channels, -1)


@pytest.mark.parametrize("sample_rate", RATES)
def test_full_scale_sine(sample_rate):
    """BS.1770-4: a sine of 0 dBFS at 997 Hz in one channel reads -3.01 LKFS; in two, 3 dB more."""
    assert loudness_lufs(sine(997, sample_rate), sample_rate) == pytest.approx(-3.01, abs=0.1)
    assert loudness_lufs(sine(997, sample_rate, channels=2), sample_rate) == pytest.approx(0.0, abs=0.1)
    assert loudness_lufs(0.1 * sine(997, sample_rate), sample_rate) == pytest.approx(-23.01, abs=0.1)


def test_silent_parts_do_not_count():
    tone = 0.1 * sine(997, 16000, 4.0)
    padded = torch.cat([tone, torch.zeros(1, 10 * 16000)], 1)
    assert loudness_lufs(padded, 16000) == pytest.approx(loudness_lufs(tone, 16000), abs=0.2)


def test_against_ffmpeg(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is missing")
    noise = 0.1 * torch.randn(2, 5 * 48000, generator=generator(1))
    noise[:, 48000:96000] *= 0.02  # gated
    soundfile.write(tmp_path / "noise.wav", noise.T.numpy(), 48000, subtype="FLOAT")
    command = ["ffmpeg", "-nostats", "-i", tmp_path / "noise.wav", "-af", "loudnorm=print_format=json"]
    report = subprocess.run([*command, "-f", "null", "-"], capture_output=True, text=True, check=True).stderr
    theirs = json.loads(re.search(r"\{.*\}", report, re.DOTALL).group())
    assert loudness_lufs(noise, 48000) == pytest.approx(float(theirs["input_i"]), abs=0.1)
    assert true_peak_dbtp(noise) == pytest.approx(float(theirs["input_tp"]), abs=0.2)


def test_true_peak_lies_between_samples():
    """A quarter of the sample rate, 45 degrees off: every sample is 3 dB below the peak of the sine."""
    t = torch.arange(4000, dtype=torch.float64)
    audio = torch.sin(math.pi / 2 * t + math.pi / 4)[None] * torch.hann_window(4000, dtype=torch.float64)
    assert 20 * math.log10(audio.abs().max()) == pytest.approx(-3.01, abs=0.02)
    assert true_peak_dbtp(audio) == pytest.approx(0.0, abs=0.05)


def test_levels_of_silence_and_short_signals():
    silence = torch.zeros(1, 16000)
    assert rms_dbfs(silence) == true_peak_dbtp(silence) == loudness_lufs(silence, 16000) == -math.inf
    assert rms_dbfs(torch.full((1, 10), 0.1)) == pytest.approx(-20, abs=1e-4)
    assert np.isfinite(loudness_lufs(0.1 * sine(440, 16000, 0.05), 16000))
