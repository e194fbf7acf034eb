"""Procedural music: `render_song(seed)` gives the drums, bass, other and vocals of a song that nobody played.

It is material for audio autoencoders, so it seeks variety of spectra, levels and silences rather than beauty:
a Song (key, tempo, chords, sections) -> per stem a score of (Instrument, Note) -> tones -> room and level.

Two rules make the music independent of the sample rate. Timbres are stated in Hz and seconds, and tones are
wavetables built from the harmonics below Nyquist, so nothing aliases. No random draw depends on the number of
samples: noise is drawn in frequency, low to high, so a lower rate hears the same noise without its top.

Legend: S stems, T samples, K control frames (CONTROL_HZ of them per second), H harmonics.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d, map_coordinates

STEMS = ("drums", "bass", "other", "vocals")
# The chance of a stem to be silent for the whole song.
ABSENT = {"drums": 0.12, "bass": 0.12, "other": 0.1, "vocals": 0.2}
CONTROL_HZ = 100.0  # pitch and spectrum move at this rate, amplitudes at the sample rate
TAIL_S = 3.0  # silence appended before filtering, so that the reverberation does not wrap around
TOP_HZ = 20_000  # no tone sounds above this
HARMONICS = 512  # the most harmonics that a tone has
Rng = np.random.Generator
Array = np.ndarray

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 3, 5, 7, 8, 11))
PROGRESSIONS = ((0, 4, -2, 3), (0, -2, 3, 4), (-2, 3, 0, 4), (1, 4, 0, 0), (0, -1, -2, -3), (0, 3), (0,))
# Patterns hold one character per sixteenth of a 4/4 bar (3/4 takes the first twelve): "." rests, "-" holds,
# a digit is a scale step counted from the chord's root, "x" a whole chord or an accent, "o" a soft stroke.
# Kick, snare and hat of each groove.
GROOVES = (
    ("x...x...x...x...", "....x.......x...", "..x...x...x...x."),
    ("x.......x.x.....", "....x.......x...", "x.o.x.o.x.o.x.o."),
    ("x..x......x..x..", "....x..o.o..x...", "xoxoxoxoxoxoxoxo"),
    ("x.........x.....", "....x..o....x..o", "x.oox.oox.oox.oo"),
    ("x..o..x...x..o..", "..o.x.o..o..x..o", "o.x.o.x.o.x.o.x."),
    ("x...............", "........o.......", "x...o...x...o..."),
)
BASSES = ("1-1-1-1-1-1-1-1-", "1-----..1---5---", "1--1--8-..1-5-8-", "1---3---5---7---", "1.1.11.1.5.1.811")
CHORDS = ("x---------------", "x-------x-------", "x---x---x---x---", "..x-..x-..x-..x-", "x--x--x-..x-x---")
ARPEGGIOS = ("1358135813581358", "1-3-5-8-9-8-5-3-", "1--5--8-3--5--8-", "1.53.81.5.18.53.")


class Bar(NamedTuple):
    """A bar: its first beat, its chord's root, who plays, how loud, and whether its section ends."""

    beat: int
    chord: int
    playing: frozenset[str]
    gain_db: float
    closes: bool


class Note(NamedTuple):
    """One tone; `from_midi` differs from `midi` when the tone slides in."""

    start_s: float
    length_s: float
    midi: float
    from_midi: float
    velocity: float


@dataclass(frozen=True)
class Song:
    """What all stems of a song agree on."""

    beat_s: float
    beats_per_bar: int
    swing: float  # where the off-beat eighth falls within its beat: 0.5 is straight, 0.67 a shuffle
    root_midi: float  # the root in the bass register; the fraction is the tuning
    scale: tuple[int, ...]
    bars: list[Bar]

    def playing(self, stem: str) -> list[Bar]:
        return [bar for bar in self.bars if stem in bar.playing]

    def when_s(self, beat: float, rng: Rng) -> float:
        """Time of a beat position, with swing and a human's imprecision."""
        whole, part = divmod(beat, 1.0)
        swung = whole + float(np.interp(part, (0, 0.5, 1), (0, self.swing, 1)))
        return max(0.0, self.beat_s * swung + rng.normal(0, 0.005))

    def midi(self, degree: int) -> float:
        """Pitch of a scale degree, which may lie in any octave."""
        return self.root_midi + 12 * (degree // 7) + self.scale[degree % 7]

    def hits(self, pattern: str, bar: Bar) -> list[tuple[float, float, str]]:
        """(beat, length in beats, symbol) of each hit of a pattern that is played in a bar."""
        pattern = pattern[: 4 * self.beats_per_bar]
        found = []
        for sixteenth, symbol in enumerate(pattern):
            if symbol not in ".-":
                rest = pattern[sixteenth + 1 :]
                held = len(rest) - len(rest.lstrip("-"))
                found.append((bar.beat + sixteenth / 4, (1 + held) / 4, symbol))
        return found


def _compose(rng: Rng, seconds: float) -> Song:
    """Draw what all stems agree on, sections of 1, 2 or 4 bars with the same players one after the other."""
    beat_s = 60 / rng.uniform(70, 170)
    beats_per_bar = int(rng.choice((4, 4, 4, 4, 3)))
    band = [stem for stem in STEMS if rng.random() > ABSENT[stem]] or ["other"]
    chords = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    bars = []
    while len(bars) * beats_per_bar * beat_s < seconds:
        playing = [stem for stem in band if rng.random() < 0.78] or [str(rng.choice(band))]
        gain_db = rng.uniform(-9, 0)
        count = int(rng.choice((1, 2, 2, 4)))
        for left in reversed(range(count)):
            beat = len(bars) * beats_per_bar
            chord = chords[len(bars) % len(chords)]
            bars.append(Bar(beat, chord, frozenset(playing), gain_db, closes=left == 0))
    swing = max(0.5, rng.uniform(0.4, 0.67))
    root_midi = rng.uniform(27.5, 39.5)
    scale = SCALES[rng.integers(len(SCALES))]
    return Song(beat_s, beats_per_bar, swing, root_midi, scale, bars)


def _tune(rng: Rng) -> str:
    """A melodic pattern with rests whose pitch walks up and down."""
    lengths = rng.choice(("1-", "1---", "1-----", "..", "...."), 8, p=(0.4, 0.3, 0.1, 0.1, 0.1))
    rhythm = "".join(lengths)[:16]
    walk = 1 + abs(np.cumsum(rng.choice((-3, -2, -1, 1, 2, 3), 16)) + rng.integers(9)) % 9
    return "".join(str(step) if symbol == "1" else symbol for symbol, step in zip(rhythm, walk, strict=True))


def _part(song: Song, rng: Rng, stem: str, patterns: list[str], octave: int, slides: float) -> list[Note]:
    """The notes of one part: in each bar of the stem one of the patterns."""
    notes = []
    gate = rng.uniform(0.6, 1.0)
    voices = int(rng.choice((3, 3, 4)))
    for bar in song.playing(stem):
        for beat, beats, symbol in song.hits(patterns[rng.integers(len(patterns))], bar):
            start_s = song.when_s(beat, rng)
            length_s = gate * beats * song.beat_s
            # Velocities come in layers, as in a sampler, so that equal notes are rendered once.
            velocity = float(rng.choice((0.55, 0.7, 0.85, 1.0)))
            slide = rng.random() < slides and notes
            steps = range(0, 2 * voices, 2) if symbol == "x" else [int(symbol) - 1]
            for step in steps:
                midi = song.midi(bar.chord + step + 7 * octave)
                from_midi = notes[-1].midi if slide else midi
                notes.append(Note(start_s, length_s, midi, from_midi, velocity))
    return notes


def _log_uniform(rng: Rng, low: float | tuple, high: float | tuple) -> float | list[float]:
    return np.exp(rng.uniform(np.log(low), np.log(high))).tolist()


def _band(hz: Array, low_hz: float, high_hz: float) -> Array:
    """Magnitude of second-order Butterworth high-pass and low-pass filters in series."""
    return 1 / np.sqrt((1 + (low_hz / np.maximum(hz, 1)) ** 4) * (1 + (hz / high_hz) ** 4))


def _peaks(hz: Array, centres_hz: Iterable, widths_hz: Iterable, gains: Iterable) -> Array:
    """Magnitude of resonances in parallel; their centres may move, as arrays (K, 1)."""
    peaks = zip(centres_hz, widths_hz, gains, strict=True)
    return sum(gain / np.sqrt(1 + ((hz - centre) / width) ** 2) for centre, width, gain in peaks)


def _noise(seed: int, length: int, sample_rate: int, colour: Callable[[Array], Array]) -> Array:
    """Gaussian noise (T,) with spectrum `colour(hz)`, of unit RMS when heard up to 20 kHz."""
    hz = fft.rfftfreq(length, 1 / sample_rate)
    bins = np.random.default_rng(seed).standard_normal((len(hz), 2), dtype=np.float32).view(np.complex64)
    power = 4 * length / sample_rate * TOP_HZ * np.mean(colour(np.linspace(0, TOP_HZ, 2000)) ** 2)
    return fft.irfft(bins[:, 0] * np.float32(colour(hz) * length / np.sqrt(power)), length)


@dataclass(frozen=True)
class Instrument:
    """Moving harmonics, and coloured noise at the onset."""

    seed: int
    # Number k (H,), frequency hz (K, H) and time t_s (K, 1) of harmonics -> their amplitudes (K, H).
    spectrum: Callable[[Array, Array, Array], Array]
    phases: Array  # (HARMONICS,) radians
    bend_cents: Array  # vibrato and drift over control frames, (2048,)
    level: float = 1.0  # RMS of the tone at its loudest
    attack_s: float = 0.003
    release_s: float = 0.03
    onset_s: float = 0.0  # the tone enters this long after its noise
    detune_cents: tuple[float, ...] = (0.0,)  # one entry per voice of a unison
    # RMS of the noise, its decay in seconds, the share of it that stays.
    noise: tuple[float, float, float] = (0.0, 0.01, 0.0)
    colour: Callable[[Array], Array] = np.ones_like  # the spectrum of the noise: hz -> gain
    # What plays it where songs are sampled: a family of `instrument`, "bass", "voice" or a kind of drum.
    family: str = ""

    def spectra(self, f0_hz: Array, t_s: Array, velocity: float, sample_rate: int) -> Array:
        """Complex harmonics (K, H) at pitch f0_hz (K,), whose loudest frame has an RMS of `level`."""
        top_hz = min(TOP_HZ, 0.48 * sample_rate)
        k = np.arange(1, np.clip(int(top_hz / f0_hz.min()), 2, HARMONICS))
        hz = k * f0_hz[:, None]
        # Soft notes are darker.
        out = self.spectrum(k, hz, t_s[:, None]) * k ** (velocity - 1)
        # The harmonics fade below Nyquist instead of stopping there.
        out = out * np.clip((top_hz - hz) / 1500, 0, 1)
        rms = np.sqrt((out**2).sum(axis=1).max() / 2 + 1e-12)
        return self.level / rms * out * np.exp(1j * self.phases[: len(k)])

    def tone(self, note: Note, sample_rate: int) -> Array:
        """The tone (T,) of a note, from wavetables that fade from control frame to control frame."""
        end_s = self.onset_s + note.length_s + self.release_s
        t_s = np.arange(0, end_s, 1 / sample_rate)
        frame_s = np.arange(0, end_s + 0.02, 1 / CONTROL_HZ)
        slide = (note.from_midi - note.midi) * np.exp(-np.maximum(0, frame_s - self.onset_s) / 0.03)
        f0_hz = 440 * 2 ** ((note.midi - 69 + slide + self.bend_cents[: len(frame_s)] / 100) / 12)
        cycles = np.cumsum(np.interp(t_s, frame_s, f0_hz)) / sample_rate

        tables = self._tables(self.spectra(f0_hz, frame_s, note.velocity, sample_rate))
        size = tables.shape[1] - 1
        out = np.zeros(len(t_s), np.float32)
        for voice, cents in enumerate(self.detune_cents):
            place = [t_s * CONTROL_HZ, size * ((0.37 * voice + cycles * 2 ** (cents / 1200)) % 1.0)]
            out += map_coordinates(tables, place, order=1, output=np.float32)

        rise = np.clip((t_s - self.onset_s) / min(self.attack_s, 0.5 * note.length_s), 0, 1)
        out *= np.sin(np.pi / 2 * rise) ** 2 / np.sqrt(len(self.detune_cents))
        level, decay_s, stays = self.noise
        noise = level * _noise(self.seed, len(t_s), sample_rate, self.colour) * np.minimum(1, t_s / 0.002)
        out += noise * (stays + (1 - stays) * np.exp(-t_s / decay_s))
        fall = np.minimum(1, (end_s - t_s) / self.release_s)
        return np.float32(out * np.sin(np.pi / 2 * fall) ** 2)

    def _tables(self, spectra: Array) -> Array:
        """One cycle of the wave in every control frame, (K, size + 1), its first sample again at its end."""
        # The images of linear interpolation stay below -30 dB.
        size = fft.next_fast_len(6 * spectra.shape[1] + 8, real=True)
        bins = np.pad(-0.5j * size * spectra, ((0, 0), (1, 0))).astype(np.complex64)
        return np.pad(fft.irfft(bins, size, axis=1), ((0, 0), (0, 1)), mode="wrap")


def _perform(score: list[tuple[Instrument, Note]], length: int, sample_rate: int) -> Array:
    """All notes of a score (T,); each distinct tone is rendered once."""
    out = np.zeros(length, np.float32)
    tones = {}
    for instrument, note in score:
        key = (instrument.seed, round(note.length_s, 3), *note[2:])
        if key not in tones:
            tones[key] = instrument.tone(note, sample_rate)
        start = round(note.start_s * sample_rate)
        tone = tones[key][: max(0, length - start)]
        out[start : start + len(tone)] += np.float32(note.velocity**1.5) * tone
    return out


VOWELS_HZ = ((650, 1080, 2650), (400, 1700, 2600), (290, 1870, 2800), (400, 800, 2600), (350, 600, 2700))
WIDTHS_HZ = (60, 80, 110, 130, 160)
FORMANT_GAINS = (1, 0.4, 0.25, 0.2, 0.1)
# The consonants s, sh, t and h: level, low Hz, high Hz and decay in s.
HISSES = ((0.3, 4500, 11_000, 0.08), (0.3, 2000, 6000, 0.07), (0.8, 1500, 9000, 0.01), (0.1, 800, 5000, 0.1))
# The tone's midi, semitones of fall, decay s and level; then the noise's level, low Hz, high Hz and decay s.
DRUMS = {
    "kick": (31, 30, 0.15, 0.8, 0.2, 1500, 8000, 0.006),
    "snare": (54, 7, 0.06, 0.3, 0.6, 900, 9000, 0.1),
    "clap": (60, 0, 0.01, 0.0, 0.7, 700, 3500, 0.05),
    "rim": (76, 2, 0.02, 0.3, 0.4, 1500, 8000, 0.012),
    "hat": (60, 0, 0.01, 0.0, 0.5, 7000, 16_000, 0.035),
    "open": (60, 0, 0.01, 0.0, 0.4, 5000, 16_000, 0.15),
    "ride": (60, 0, 0.01, 0.0, 0.3, 3500, 14_000, 0.3),
    "crash": (60, 0, 0.01, 0.0, 0.5, 2500, 14_000, 0.6),
    "tom": (44, 10, 0.16, 0.6, 0.1, 300, 2500, 0.03),
}


def instrument(rng: Rng, family: str) -> Instrument:
    """A random member of a family: plucked, modulated (FM), struck, organ, bowed, analogue or sub."""
    tilt, pick, loss, sweep, hollow = rng.uniform((0.8, 0.2, 0.03, 0, -1), (1.4, 1.6, 0.4, 4, 1))
    decay_s, bright_s, index = _log_uniform(rng, (0.4, 0.08, 0.3), (3, 1.5, 4))
    cutoff_hz, resonance, slow_s, noise_hz = _log_uniform(rng, (150, 0.6, 0.03, 1500), (4000, 5, 0.35, 9000))
    body_hz = rng.uniform(250, 5000, 6)
    body_gain = rng.uniform(0, 5, 6)
    spread = rng.uniform(2, 16)
    ratio = rng.choice((1, 1, 2, 3, 4, 7, 14))
    cycle = 2 * np.pi * np.arange(1024) / 1024
    drawbars = np.zeros(HARMONICS)
    drawbars[[1, 2, 3, 4, 5, 6, 8, 12, 16]] = rng.random(9) ** 2
    # The modes of a bar are inharmonic: they are written here as harmonics of two octaves below.
    bars = np.zeros(HARMONICS)
    bars[rng.choice(((11, 22, 36), (16, 40, 60), (8, 13, 21), (10, 13, 19)))] = rng.uniform(0.1, 0.6, 3)
    bars[4] = 1

    def modulated(k, hz, t_s):
        # Side band n has amplitude J_n(index).
        wave = np.sin(cycle + index * np.exp(-t_s / bright_s) * np.sin(ratio * cycle))
        return fft.rfft(wave, axis=1)[:, k].imag * np.exp(-t_s / decay_s)

    def analogue(k, hz, t_s):
        # A saw or pulse goes through a resonant low-pass whose cut-off falls.
        octaves = np.log2(hz / cutoff_hz) - sweep * np.exp(-t_s / bright_s)
        low_pass = 1 / np.sqrt((1 - 4**octaves) ** 2 + 4**octaves / resonance**2)
        return (1 - (hollow > 0) * np.cos(2 * k * pick)) / k * low_pass

    spectrum = {
        "plucked": lambda k, hz, t: np.sin(k * pick) / k**tilt * np.exp(-t / decay_s * (1 + loss * k)),
        "modulated": modulated,
        "struck": lambda k, hz, t: bars[k] * np.exp(-t / decay_s * (1 + 0.2 * loss * k)),
        "organ": lambda k, hz, t: drawbars[k],
        "bowed": lambda k, hz, t: k**-tilt * (0.3 + _peaks(hz, body_hz, 0.15 * body_hz, body_gain)),
        "analogue": analogue,
        "sub": lambda k, hz, t: 1.0 * (k < 2),
    }[family]
    bowed = family == "bowed"
    frame_s = np.arange(2048) / CONTROL_HZ
    vibrato = np.minimum(1, frame_s / 0.5) * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * frame_s)
    vibrato *= rng.uniform(0, 30 if bowed else 6)
    return Instrument(
        seed=int(rng.integers(2**62)),
        spectrum=spectrum,
        phases=rng.uniform(0, 2 * np.pi, HARMONICS),
        bend_cents=gaussian_filter1d(rng.normal(0, 8, 2048), 4) + vibrato,
        attack_s={"bowed": slow_s, "analogue": slow_s / 3}.get(family, 0.003),
        release_s=rng.uniform(0.04, 0.3),
        detune_cents=((0.0,), (0.0,), (-spread, spread), (-spread, 0.1 * spread, spread))[rng.integers(4)],
        noise=(rng.uniform(0, 0.06), 0.1, 1.0) if bowed else (rng.uniform(0, 0.3), 0.01, 0.0),
        colour=lambda hz: _band(hz, 0.2 * noise_hz, noise_hz),
        family=family,
    )


def _drum(rng: Rng, name: str) -> tuple[Instrument, Note]:
    """A random member of a family of drums, with the note that strikes it."""
    varied = np.multiply(DRUMS[name], _log_uniform(rng, (0.93, *[0.6] * 7), (1.07, *[1.7] * 7)))
    midi, fall, decay_s, level, noise, low_hz, high_hz, noise_s = varied
    ring_hz = rng.uniform(2000, 15_000, 25)
    ring_gains = rng.uniform(0, rng.uniform(0, 10), 25)
    drum = replace(
        instrument(rng, "sub"),
        spectrum=lambda k, hz, t_s: (k < 2) * np.exp(-t_s / decay_s),
        level=level,
        noise=(noise, noise_s, 0.0),
        family=name,
        colour=lambda hz: _band(hz, low_hz, high_hz) * (1 + _peaks(hz, ring_hz, [9] * 25, ring_gains)),
    )
    return drum, Note(0.0, 6 * max(decay_s, noise_s), midi, midi + fall, 1.0)


def _drums(song: Song, rng: Rng) -> list[tuple[Instrument, Note]]:
    """A kit plays a groove with drops and flams; some sections end in fills and crashes."""
    snare = rng.choice(("snare", "snare", "clap", "rim"))
    hat = rng.choice(("hat", "hat", "open", "ride"))
    kit = [_drum(rng, name) for name in ("kick", snare, hat, "crash", "tom", "tom", "tom")]
    groove = GROOVES[rng.integers(len(GROOVES))]
    loose = rng.uniform(0, 0.1)
    score = []
    for bar in song.playing("drums"):
        for beat, piece, symbol in _strokes(song, rng, bar, groove, loose):
            drum, note = kit[piece]
            velocity = rng.choice((0.7, 0.85, 1.0)) if symbol == "x" else 0.35
            note = note._replace(start_s=song.when_s(beat, rng), velocity=velocity)
            hands = 3 if piece == 1 and snare == "clap" else 1
            for hand in range(hands):
                score.append((drum, note._replace(start_s=note.start_s + 0.011 * hand)))
    return score


def _strokes(
    song: Song, rng: Rng, bar: Bar, groove: tuple[str, ...], loose: float
) -> list[tuple[float, int, str]]:
    """(beat, number of the piece, symbol) of a bar's strokes, a share `loose` of them dropped."""
    strokes = []
    for piece, pattern in enumerate(groove):
        strokes += [(beat, piece, symbol) for beat, _, symbol in song.hits(pattern, bar)]
    strokes = [stroke for stroke in strokes if rng.random() > loose]
    if bar.closes and rng.random() < 0.6:
        end = bar.beat + song.beats_per_bar
        strokes = [stroke for stroke in strokes if stroke[0] < end - 2]
        strokes += [(end - i / 4, rng.choice((0, 1, 4, 5, 6)), "x") for i in range(8, 0, -1)]
        strokes.append((end, 3, "x"))
    return strokes


def _bass(song: Song, rng: Rng) -> list[tuple[Instrument, Note]]:
    """One player, low, who slides in some songs."""
    family = rng.choice(("analogue", "analogue", "modulated", "plucked", "organ", "sub"))
    player = replace(instrument(rng, family), detune_cents=(0.0,), attack_s=0.005, family="bass")
    notes = _part(song, rng, "bass", rng.choice(BASSES, 2), octave=0, slides=rng.choice((0, 0.2)))
    return [(player, note) for note in notes]


def _other(song: Song, rng: Rng) -> list[tuple[Instrument, Note]]:
    """One or two layers of chords, arpeggios or tunes."""
    score = []
    for _ in range(rng.choice((1, 2, 2))):
        family = rng.choice(("plucked", "modulated", "struck", "organ", "bowed", "bowed", "analogue"))
        roles = (*rng.choice(CHORDS, (2, 2)), rng.choice(ARPEGGIOS, 1), [_tune(rng), _tune(rng)])
        player = instrument(rng, family)
        octave = rng.integers(2, 4) - 2 * (family == "struck")
        notes = _part(song, rng, "other", roles[rng.integers(4)], octave, slides=0.05)
        score += [(player, note) for note in notes]
    return score


def _syllable(rng: Rng, singer: Instrument, size: float, tilt: float, breath: float) -> Instrument:
    """A consonant of noise, then formants that move from one vowel to another."""
    first_hz, last_hz = size * rng.choice(VOWELS_HZ, 2)[:, :, None, None]
    level, low_hz, high_hz, decay_s = rng.choice(HISSES)

    def formants(k, hz, t_s):
        moving_hz = last_hz + (first_hz - last_hz) * np.exp(-t_s / 0.1)
        return k**-tilt * _peaks(hz, (*moving_hz, 3300 * size, 4200 * size), WIDTHS_HZ, FORMANT_GAINS)

    singer = replace(singer, spectrum=formants, colour=lambda hz: _band(hz, low_hz, high_hz))
    noise = (level + breath, decay_s, breath / (level + breath))
    return replace(singer, seed=int(rng.integers(2**62)), onset_s=min(decay_s, 0.04), noise=noise)


def _vocals(song: Song, rng: Rng) -> list[tuple[Instrument, Note]]:
    """A singer with six syllables, who slides from tone to tone."""
    size = rng.uniform(0.9, 1.25)
    tilt = rng.uniform(0.2, 1)
    breath = _log_uniform(rng, 0.003, 0.15)
    singer = replace(instrument(rng, "bowed"), attack_s=0.03, release_s=0.08, family="voice")
    syllables = [_syllable(rng, singer, size, tilt, breath) for _ in range(6)]
    notes = _part(song, rng, "vocals", [_tune(rng) for _ in range(3)], rng.integers(1, 3), slides=0.6)
    return [(syllables[rng.integers(6)], note) for note in notes]


def _loudness(audio: Array, sample_rate: int) -> float:
    """RMS without the rests, at least a fifth of the peak; below 4 kHz, so that every sample rate agrees."""
    length = max(1, round(len(audio) * 8000 / sample_rate))
    low = np.abs(fft.irfft(fft.rfft(audio)[: length // 2 + 1], length)) * (length / len(audio))
    return float(max(0.2 * low.max(), np.sqrt(np.mean(np.square(low[low >= 0.03 * low.max()])))))


def _room(rng: Rng, size: int, sample_rate: int) -> Array:
    """Frequency response of a reverberant room: exponentially decaying noise, the highs dying first."""
    t_s = np.arange(0, TAIL_S, 1 / sample_rate, np.float32)
    rt60_s = _log_uniform(rng, 0.2, 2.5)
    seeds = rng.integers(2**62, size=2)
    dark_hz = _log_uniform(rng, 1000, 5000)
    decay = 0.001 ** (t_s / rt60_s)
    reverb = _noise(seeds[0], len(t_s), sample_rate, lambda hz: _band(hz, 150, dark_hz))
    reverb += _noise(seeds[1], len(t_s), sample_rate, np.ones_like) * decay
    response = fft.rfft(reverb * decay, size)
    hz = fft.rfftfreq(size, 1 / sample_rate)
    return response / np.sqrt(np.mean(np.abs(response[(hz > 200) & (hz < 3000)]) ** 2))


def _desk(rng: Rng, stem: Array, room: Array, sample_rate: int) -> Array:
    """A stem (T,) at a random level, often saturated a little, coloured, and sent to the room."""
    saturated = rng.random() < 0.5
    drive = rng.uniform(0.2, 0.8)
    pivot_hz = _log_uniform(rng, 300, 5000)
    level, shelf, send = (10 ** (rng.normal((0, -1, -18), (3.5, 4, 6)) / 20)).tolist()
    if not stem.any():
        return stem
    stem = stem / _loudness(stem, sample_rate)
    if saturated:
        from scipy.signal import resample_poly  # slow to import, and songs rendered before need it not

        # At twice the rate, so that the new harmonics do not alias.
        stem = resample_poly(np.tanh(drive * resample_poly(stem, 2, 1)), 1, 2)[: len(stem)]
    s = 1j * np.linspace(0, sample_rate / 2, len(room), dtype=np.float32)
    high_pass = s**2 / (s**2 + 35 * s + 25**2)
    tone = (1 + shelf * s / pivot_hz) / (1 + s / pivot_hz)
    size = 2 * (len(room) - 1)
    stem = fft.irfft(fft.rfft(stem, size) * high_pass * tone * (1 + send * room), size)[: len(stem)]
    return stem * (level / _loudness(stem, sample_rate))


def render_song(
    seed: int,
    seconds: float = 20.0,
    sample_rate: int = 44_100,
    perform: Callable[[list[tuple[Instrument, Note]], int, int], Array] = _perform,
) -> Array:
    """The stems (S, T) of song `seed` in STEMS order, float32, whose sum peaks between 0.3 and 0.95.

    `perform`: what plays a score, as (score, length in samples, sample rate) -> (T,).
    """
    if sample_rate < 8000:
        raise ValueError(f"sample_rate is {sample_rate} Hz, but must be at least 8000")
    if not 1 <= seconds * sample_rate < np.inf:
        raise ValueError(f"seconds is {seconds}, but must be finite and at least one sample long")
    song_rng, mix_rng, *rngs = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2 + len(STEMS)))
    song = _compose(song_rng, seconds)
    length = round(seconds * sample_rate)
    room = _room(mix_rng, 2 * fft.next_fast_len((length + round(TAIL_S * sample_rate)) // 2), sample_rate)
    bars_s = np.arange(len(song.bars)) * song.beats_per_bar * song.beat_s
    gain_db = np.interp(np.arange(length) / sample_rate, bars_s, [bar.gain_db for bar in song.bars])
    stems = np.zeros((len(STEMS), length), np.float32)
    for stem, rng, write in zip(stems, rngs, (_drums, _bass, _other, _vocals), strict=True):
        dry = perform(write(song, rng), length, sample_rate)
        stem += 10 ** (gain_db / 20) * _desk(rng, dry, room, sample_rate)
    return stems * np.float32(mix_rng.uniform(0.3, 0.95) / max(1e-9, np.abs(stems.sum(axis=0)).max()))
