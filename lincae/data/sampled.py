"""Sampled songs: the composer of `lincae.data.synth`, played by the instruments of a soundfont.

Real timbres as true stems. The renderer is tinysoundfont, the soundfont the General MIDI one that pretty_midi
carries (TimGM6mb, GPL: it is read where it is installed, and not shipped). Pitches are rounded to semitones,
slides are left out, which a keyboard does not play either.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lincae.data.synth import Array, Instrument, Note, render_song
from lincae.machine.files import sha256_of

INSTALL = (
    'pip install "lincae[sampled]", or, where PortAudio is missing, which is not needed here, '
    "pip install --no-deps tinysoundfont pretty_midi"
)
PROGRAMS = {
    "plucked": (24, 25, 26, 27, 28, 45, 46, 104, 107),
    "modulated": (4, 5, 6, 7, 11, 62, 63),
    "struck": (0, 1, 2, 8, 9, 12, 13, 14),
    "organ": (16, 17, 18, 19, 21, 22),
    "bowed": (40, 41, 42, 48, 49, 56, 60, 65, 68, 71),
    "analogue": (50, 51, 80, 81, 87, 89, 90),
    "bass": (32, 33, 34, 35, 36, 38, 39, 43),
    "voice": (52, 53, 54, 66, 73, 75, 22, 40),
}
"""General MIDI programs, from 0, for each of the composer's families."""
DRUM_KEYS = {
    "kick": 36,
    "snare": 38,
    "clap": 39,
    "rim": 37,
    "hat": 42,
    "open": 46,
    "ride": 51,
    "crash": 49,
    "tom": 45,
}
ONE_PLAYER = ("bass", "voice")
"""Families that are one player in a song, whatever the composer's instruments."""
DRUM_CHANNEL = 9
CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


@functools.cache
def soundfont() -> Path:
    """The soundfont's file. Raises ImportError, saying what to install, for a package that is missing."""
    for package in ("tinysoundfont", "pretty_midi"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"sampled songs need {package}: {INSTALL}")
    folder = Path(importlib.util.find_spec("pretty_midi").origin).parent
    found = sorted(folder.glob("*.sf2"))
    if not found:
        raise ImportError(f"{folder} holds no soundfont (*.sf2): use pretty_midi 0.2.10 or later; {INSTALL}")
    return found[0]


@functools.cache
def soundfont_hash() -> str:
    """What sampled songs depend on besides their seed."""
    return sha256_of(soundfont())


def render_sampled_song(seed: int, seconds: float = 20.0, sample_rate: int = 44_100) -> Array:
    """As `render_song`: the stems (S, T) of song `seed`, played by the soundfont. Raises as `soundfont`."""
    soundfont()
    return render_song(seed, seconds, sample_rate, perform)


def perform(score: Sequence[tuple[Instrument, Note]], length: int, sample_rate: int) -> Array:
    """All notes of a score (T,), each player on a channel of its own."""
    from tinysoundfont import Synth

    synth = Synth(samplerate=sample_rate)
    font = synth.sfload(str(soundfont()))
    synth.program_select(DRUM_CHANNEL, font, 0, 0, True)
    channels: dict[str | int, int] = {}
    events = []
    for instrument, note in score:
        velocity = max(1, round(127 * note.velocity))
        if instrument.family in DRUM_KEYS:
            channel, key = DRUM_CHANNEL, DRUM_KEYS[instrument.family]
        else:
            key = int(np.clip(round(note.midi), 0, 127))
            player = instrument.family if instrument.family in ONE_PLAYER else instrument.seed
            if player not in channels:
                channels[player] = CHANNELS[len(channels) % len(CHANNELS)]
                programs = PROGRAMS[instrument.family]
                program = programs[instrument.seed % len(programs)]
                synth.program_select(channels[player], font, 0, program)
            channel = channels[player]
        start = round(note.start_s * sample_rate)
        stop = start + max(1, round(note.length_s * sample_rate))
        events += [(start, 1, channel, key, velocity), (stop, 0, channel, key, 0)]

    played, now = [np.zeros(0, np.float32)], 0
    for at, is_on, channel, key, velocity in sorted(events):
        if at >= length:
            break
        played.append(_generated(synth, at - now))
        now = at
        if is_on:
            synth.noteon(channel, key, velocity)
        else:
            synth.noteoff(channel, key)
    played.append(_generated(synth, length - now))
    return np.concatenate(played)


def _generated(synth: Any, n_samples: int) -> Array:
    """The next samples, mean of both channels."""
    if n_samples == 0:
        return np.zeros(0, np.float32)
    stereo = np.frombuffer(synth.generate_simple(n_samples), np.float32)
    return stereo.reshape(-1, 2).mean(1)
