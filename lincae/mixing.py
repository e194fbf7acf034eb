"""The latent mixing desk without its widgets: faders on the latents of stems, one weighted sum, one decode.

    mixer = Mixer(model, stems, ("drums", "bass", "other", "vocals"))  # (S, T) at model.sample_rate
    audio = mixer.latent_mix([Strip(-6), Strip(mute=True), Strip(inverted=True), Strip(pan=0.5)])  # (2, T)

For an exactly linear autoencoder `latent_mix` is `waveform_mix`; for others, their difference holds what the
autoencoder loses. `decoded_mix`, the same mix of the decoded stems, has that loss too: what is between it and
`latent_mix` is the error of linearity alone.

Axis legend: `S` source (stem), `T` samples, `C` latent channels, `L` latent frames. Stems are (S, T), mixes
(channels, T): one channel, or left and right where a stem is panned.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .audio import AutoencoderLike, check_audio, read_audio, resample
from .latents import mix
from .loudness import amplitude
from .metrics import is_silent
from .tracks import Track, audio_files

MAX_STEMS = 8
MAX_CACHED = 64  # decoded mixes kept by a mixer


@dataclass(frozen=True)
class Strip:
    """Settings of a stem: `gain_db` (-inf: off), `mute`, `solo`, `inverted` polarity, `pan`, -1 (left) to 1.

    Raises ValueError for a gain that is NaN or +inf, and a position outside [-1, 1].
    """

    gain_db: float = 0.0
    mute: bool = False
    solo: bool = False
    inverted: bool = False
    pan: float = 0.0

    def __post_init__(self):
        if math.isnan(self.gain_db) or self.gain_db == math.inf:
            raise ValueError(f"gain_db must be a number of dB or -inf, got {self.gain_db}")
        if not -1 <= self.pan <= 1:
            raise ValueError(f"pan must lie between -1 (left) and 1 (right), got {self.pan}")


def amplitudes(strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
    """Factor of every stem in every channel, (channels, S) float64.

    One channel where all stems that sound are in the centre, else left and right, by the law of constant
    power, 0 dB in the centre. Where a stem is solo, only solo stems sound; a muted one never does.
    """
    soloed = any(strip.solo for strip in strips)
    rows = []
    for strip in strips:
        sounds = not strip.mute and (strip.solo or not soloed)
        level = amplitude(strip.gain_db + master_db) * sounds * (-1 if strip.inverted else 1)
        angle = (strip.pan + 1) * math.pi / 4
        centred = strip.pan == 0 or level == 0  # exactly, where the square roots would only be nearly 1
        sides = (1.0, 1.0) if centred else (math.sqrt(2) * math.cos(angle), math.sqrt(2) * math.sin(angle))
        rows.append([level * side for side in sides])
    matrix = torch.tensor(rows, dtype=torch.float64).T
    return matrix[:1] if torch.equal(matrix[0], matrix[1]) else matrix


class Mixer:
    """Stems of one length, their latents and the mixes decoded so far; each is computed once, when asked for.
    A decode has the noise of `seed`, so equal settings are equal samples."""

    def __init__(self, model: AutoencoderLike, stems: Tensor, names: Sequence[str] = (), seed: int = 0):
        """`stems` (S, T) at the model's rate. ValueError for none, more than MAX_STEMS, non-finite samples,
        and names that are not one a stem."""
        check_audio(stems, name="stems")
        self.names = tuple(names) or tuple(f"stem {k + 1}" for k in range(len(stems)))
        if len(stems) > MAX_STEMS:
            raise ValueError(f"a desk has at most {MAX_STEMS} strips, got {len(stems)} stems")
        if len(self.names) != len(stems):
            raise ValueError(f"need a name for each of {len(stems)} stems, got {self.names}")
        self.model, self.stems, self.seed = model, stems.float(), seed
        self.silent = [name for name, quiet in zip(self.names, is_silent(stems), strict=True) if quiet]
        self._latents: dict[int, Tensor] = {}
        self._stems: dict[int, Tensor] = {}
        self._mixes: OrderedDict[tuple[float, ...], Tensor] = OrderedDict()

    @property
    def sample_rate(self) -> int:
        return self.model.sample_rate

    def latent(self, index: int) -> Tensor:
        """Latent (1, C, L) of a stem."""
        if index not in self._latents:
            self._latents[index] = self.model.encode(self.stems[index : index + 1])
        return self._latents[index]

    def decoded_stem(self, index: int) -> Tensor:
        """A stem (1, T) through the autoencoder."""
        if index not in self._stems:
            self._stems[index] = self._decode(self.latent(index))
        return self._stems[index]

    def latent_mix(self, strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
        """Dec(sum_i g_i Enc(stem_i)), (channels, T): one decode a channel, or none where it was made before.

        Raises ValueError for another number of strips than stems.
        """
        rows = [tuple(row) for row in self._amplitudes(strips, master_db).tolist()]
        return torch.cat([self._mixed(row) for row in rows])

    def waveform_mix(self, strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
        """sum_i g_i stem_i, (channels, T), what a desk for waveforms does. ValueError as `latent_mix`."""
        return (self._amplitudes(strips, master_db) @ self.stems.double()).float()

    def decoded_mix(self, strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
        """sum_i g_i Dec(Enc(stem_i)), (channels, T): a decode a stem, the first time. ValueError as above."""
        factors = self._amplitudes(strips, master_db)
        stems = torch.cat([self.decoded_stem(index) for index in range(len(self.stems))])
        return (factors @ stems.double()).float()

    def effective_gain(self, strips: Sequence[Strip], index: int) -> float:
        """The factor by which a stem really is in `latent_mix`: of what its strip adds to the mix, the part
        along the decoded stem (least squares). The amplitude of its fader, were the model linear.

        For strips in the centre. NaN where the decoded stem is all zero; ValueError as `latent_mix`.
        """
        without = [replace(s, mute=True) if k == index else s for k, s in enumerate(strips)]
        added = (self.latent_mix(strips)[0] - self.latent_mix(without)[0]).double()
        stem = self.decoded_stem(index)[0].double()
        return (added @ stem / (stem @ stem)).item()

    def _amplitudes(self, strips: Sequence[Strip], master_db: float) -> Tensor:
        if len(strips) != len(self.stems):
            raise ValueError(f"need a strip for each of {len(self.stems)} stems, got {len(strips)}")
        return amplitudes(strips, master_db)

    def _mixed(self, factors: tuple[float, ...]) -> Tensor:
        if factors not in self._mixes:
            latents = [self.latent(index) for index in range(len(factors))]
            self._mixes[factors] = self._decode(mix(latents, self.model.latent_rate, gains=factors)[0])
            while len(self._mixes) > MAX_CACHED:
                self._mixes.popitem(last=False)
        self._mixes.move_to_end(factors)
        return self._mixes[factors]

    def _decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z, length=self.stems.shape[1], seed=self.seed).cpu()


# ---------------------------------------------------------------- stems of one's own


def stem_files(path: str | Path) -> list[Path]:
    """The audio files to put on a desk: those of a folder (without "mixture", the sum of the others), or one.

    Raises FileNotFoundError for a path that does not exist or holds no audio file, ValueError for more than
    MAX_STEMS.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or audio file")
    files = audio_files(path) if path.is_dir() else [path]
    files = [file for file in files if file.stem != "mixture"] or files
    return _few(files, str(path))


def stem_track(files: Sequence[Path], name: str) -> tuple[Track, list[str]]:
    """A track of audio files of any rates and lengths, held in memory, and what had to be done to them.

    All are resampled to the highest rate, mono (channel mean), and the shorter ones go on with silence to the
    end of the longest. Raises AudioFileError naming a file that is not audio, ValueError for no or more than
    MAX_STEMS files.
    """
    parts = [read_audio(file, channels="mean") for file in _few(files, name)]
    rate, notes = max(rate for _, rate in parts), []
    signals = [resample(audio, own_rate, rate) for audio, own_rate in parts]
    length = max(len(signal) for signal in signals)
    for file, signal, (_, own_rate) in zip(files, signals, parts, strict=True):
        if own_rate != rate:
            notes.append(f"{file.name} has {own_rate} Hz: resampled to {rate} Hz")
        if len(signal) < length:
            notes.append(f"{file.name} lasts {len(signal) / rate:.2f} s: silence to {length / rate:.2f} s")
    stems = torch.stack([torch.nn.functional.pad(s, (0, length - len(s))) for s in signals])
    names = tuple(file.stem for file in files)
    return Track(name, "own", names, rate, length / rate, _reader(stems, rate)), notes


def _few(files: Sequence[Path], source: str) -> list[Path]:
    if not 1 <= len(files) <= MAX_STEMS:
        raise ValueError(f"{source}: a desk takes 1 to {MAX_STEMS} stems, got {len(files)} audio files")
    return list(files)


def _reader(stems: Tensor, rate: int) -> Callable[[float, float | None], Tensor]:
    def read(start_s: float, seconds: float | None) -> Tensor:
        start = round(start_s * rate)
        return stems[:, start : None if seconds is None else start + round(seconds * rate)]

    return read
