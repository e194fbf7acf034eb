"""The synthesizer: deterministic, independent of the sample rate, varied, and free of clicks and offsets."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import resample_poly

from lincae.data.synth import STEMS, Note, instrument, render_song

RATE = 16_000
SEEDS = range(10)
DRUMS, BASS, OTHER, VOCALS = range(4)


@functools.cache
def song(seed, seconds=20.0, sample_rate=RATE):
    return render_song(seed, seconds, sample_rate)


def sounding(stem):
    """The renderings of one stem, without the songs in which it is absent."""
    return [song(seed)[stem] for seed in SEEDS if song(seed)[stem].any()]


def frame_rms(audio, frame):
    return np.sqrt(np.square(audio[: len(audio) // frame * frame].reshape(-1, frame)).mean(axis=1))


def test_a_song_is_a_function_of_its_seed():
    assert np.array_equal(render_song(3, 4.0, RATE), render_song(3, 4.0, RATE))
    assert abs(np.corrcoef(song(0).sum(axis=0), song(1).sum(axis=0))[0, 1]) < 0.1


@pytest.mark.parametrize(("seconds", "sample_rate"), [(1.2345, 22_050), (0.01, 11_025)])
def test_shape_and_dtype(seconds, sample_rate):
    audio = song(0, seconds, sample_rate)
    assert audio.shape == (len(STEMS), round(seconds * sample_rate))
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()


@pytest.mark.parametrize("seed", [0, 4])
def test_music_does_not_depend_on_the_sample_rate(seed):
    fast = resample_poly(song(seed, 10.0, 44_100).astype(float), 160, 441, axis=1)
    for name, slow, reference in zip(STEMS, song(seed, 10.0), fast, strict=True):
        assert slow.any() == reference.any(), name
        if slow.any():
            envelopes = frame_rms(slow, 160), frame_rms(reference[: len(slow)], 160)
            assert np.corrcoef(*envelopes)[0, 1] > 0.99, name
            assert abs(20 * np.log10(slow.std() / reference.std())) < 2, name


def test_tones_do_not_alias():
    """Of a tone with all harmonics equally strong, next to nothing lies between the harmonics."""
    plain = instrument(np.random.default_rng(0), "sub")
    buzz = replace(
        plain,
        spectrum=lambda k, hz, t_s: np.ones_like(hz),
        bend_cents=np.zeros(2048),
        detune_cents=(0.0,),
        noise=(0.0, 0.01, 0.0),
    )
    tone = buzz.tone(Note(0.0, 1.5, 81.2, 81.2, 1.0), RATE)[2000:18_000]
    power = np.abs(np.fft.rfft(tone * np.blackman(len(tone)))) ** 2  # bins of one hertz
    f0_hz = 440 * 2 ** ((81.2 - 69) / 12)
    distance_hz = np.abs((np.arange(len(power)) + f0_hz / 2) % f0_hz - f0_hz / 2)
    assert power[distance_hz > 10].sum() < 1e-3 * power.sum()
    assert power[int(0.35 * RATE) :].sum() > 0.1 * power.sum()


def test_levels_are_bounded_and_vary_and_have_no_offset():
    peaks = np.array([np.abs(song(seed).sum(axis=0)).max() for seed in SEEDS])
    assert peaks.min() > 0.299
    assert peaks.max() < 0.951
    assert np.ptp(peaks) > 0.2
    for seed in SEEDS:
        for audio in song(seed):
            assert abs(audio.mean()) <= 1e-3 * max(audio.std(), 1e-9)


def test_every_song_sounds_and_stems_rest():
    silent = np.array([[np.mean(frame_rms(audio, 1600) < 1e-4) for audio in song(seed)] for seed in SEEDS])
    assert (silent.min(axis=1) < 0.5).all(), "each song has a stem that sounds most of the time"
    assert ((silent > 0.1) & (silent < 0.9)).any(axis=0).all(), "each stem somewhere rests for a section"
    assert (silent == 1).any(), "some stems are absent from a whole song"
    assert (silent.mean(axis=0) < 0.6).all(), "no stem is mostly silence"


FAMILIES = ("plucked", "modulated", "struck", "organ", "bowed", "analogue", "sub")


@pytest.mark.parametrize("family", FAMILIES)
def test_tones_start_and_end_without_a_click(family):
    rng = np.random.default_rng(0)
    for _ in range(5):
        silent_onset = replace(instrument(rng, family), noise=(0.0, 0.01, 0.0))
        tone = silent_onset.tone(Note(0.0, 0.2, 52.0, 55.0, 1.0), RATE)
        edges = np.abs(np.concatenate([tone[:8], tone[-8:]]))
        assert 0 < np.abs(tone).max() < 8
        assert edges.max() < 0.15 * np.abs(tone).max()
        assert max(edges[0], edges[-1]) < 1e-4


def test_tones_do_not_click_in_the_stem():
    """A click is a jump far above the jumps of its 25 ms neighbourhood; a cut note reaches 10 to 14 here."""
    for stem in (BASS, VOCALS):
        for audio in sounding(stem):
            jumps = np.abs(np.diff(audio, 2))
            around = np.sqrt(np.convolve(jumps**2, np.ones(401) / 401, mode="same"))
            audible = jumps > 0.02 * np.abs(audio).max()
            assert (jumps / np.maximum(around, 1e-9))[audible].max(initial=0) < 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"sample_rate": 4000}, "sample_rate is 4000"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_song(0, **arguments)
