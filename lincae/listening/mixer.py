"""The latent mixing desk without its widgets: faders on the latents of stems, one weighted sum, one decode.

mixer = Mixer(model, stems, ("drums", "bass", "other", "vocals"))  # (S, T) at model.sample_rate
audio = mixer.latent_mix([Strip(-6), Strip(mute=True), Strip(inverted=True), Strip(pan=0.5)])  # (2, T)
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lincae.data.audio import read_audio, resample
from lincae.data.folders import audio_files
from lincae.data.stereo import constant_power
from lincae.data.tracks import Track
from lincae.interface import AutoencoderLike, check_audio
from lincae.listening.loudness import amplitude
from lincae.metrics import is_silent
from lincae.reencoder.module import ReEncoder

MAX_STEMS = 8
MAX_CACHED = 64
"""Latents, decoded stems and decoded mixes that a mixer keeps, so many of each."""


@dataclass(frozen=True)
class Strip:
    """Settings of a stem: `gain_db` (-inf: off), `mute`, `solo`, `inverted` polarity, `pan`, -1 (left) to 1,
    or `image`, the number of a stereo image (0 or more) in which a module places it.

    Raises ValueError for a gain that is NaN or +inf, a position outside [-1, 1], and a negative image or one
    of a panned stem.
    """

    gain_db: float = 0.0
    mute: bool = False
    solo: bool = False
    inverted: bool = False
    pan: float = 0.0
    image: int | None = None

    def __post_init__(self):
        if math.isnan(self.gain_db) or self.gain_db == math.inf:
            raise ValueError(f"gain_db must be a number of dB or -inf, got {self.gain_db}")
        if not -1 <= self.pan <= 1:
            raise ValueError(f"pan must lie between -1 (left) and 1 (right), got {self.pan}")
        if self.image is not None and (self.image < 0 or self.pan):
            raise ValueError(f"image must be 0 or more, on a strip that is not panned, got {self}")


def amplitudes(strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
    """Factor of every stem in every channel, (channels, S) float64.

    One channel where all stems that sound are in the centre, else left and right, by the law of constant
    power, 0 dB in the centre. A stem with an image is left and right by itself: its factor is the same in
    both. Where a stem is solo, only solo stems sound; a muted one never does.
    """
    soloed = any(strip.solo for strip in strips)
    placed = False
    factors = []
    for strip in strips:
        level = 0.0
        if not strip.mute and (strip.solo or not soloed):
            level = amplitude(strip.gain_db + master_db) * (-1 if strip.inverted else 1)
        sides = torch.ones(2, dtype=torch.float64)
        if strip.pan and level:  # in the centre exactly 1, where the square roots would only be nearly that
            sides = math.sqrt(2) * torch.stack(constant_power(torch.tensor(strip.pan, dtype=torch.float64)))
        factors.append(level * sides)
        placed = placed or (strip.image is not None and level != 0)
    both = torch.stack(factors, 1)
    return both if placed or not torch.equal(*both) else both[:1]


class Mixer:
    """Stems of one length, their latents and mixes, each computed once, with the noise of `seed`. Mixes are
    (channels, T): one channel, or left and right where a stem is panned or placed.

    For an exactly linear autoencoder `latent_mix` is `waveform_mix`. `decoded_mix`, the same mix of the
    decoded stems, lacks what the autoencoder loses: from it to `latent_mix` is the error of linearity alone.

    A mono-to-stereo Re-Encoder M of the same autoencoder, `module`, can place stems: stem i with image n has
    the latents (left_i, right_i) = M(Enc(stem_i), c_i), c_i being item i of the prior's conditions of seed n,
    and the sides of the mix are Dec(sum_i g_i left_i) and Dec(sum_i g_i right_i).
    """

    def __init__(
        self,
        model: AutoencoderLike,
        stems: Tensor,
        names: Sequence[str] = (),
        seed: int = 0,
        module: ReEncoder | None = None,
    ):
        """`stems` (S, T) at the model's rate. Raises ValueError for none, more than MAX_STEMS, non-finite
        samples and names that are not one a stem; for `module` as `place_by`."""
        check_audio(stems, name="stems")
        if len(stems) > MAX_STEMS:
            raise ValueError(f"a desk has at most {MAX_STEMS} strips, got {len(stems)} stems")
        self.names = tuple(names) or tuple(f"stem {k + 1}" for k in range(len(stems)))
        if len(self.names) != len(stems):
            raise ValueError(f"need a name for each of {len(stems)} stems, got {self.names}")

        self.model = model
        self.sample_rate = model.sample_rate
        self.stems = stems.float()
        self.seed = seed
        self.silent = [name for name, quiet in zip(self.names, is_silent(stems), strict=True) if quiet]
        self.module: ReEncoder | None = None
        self._latent = lru_cache(MAX_CACHED)(self._encode)
        self._stem = lru_cache(MAX_CACHED)(self._decode_stem)
        self._mix = lru_cache(MAX_CACHED)(self._decode_mix)
        if module:
            self.place_by(module)

    def place_by(self, module: ReEncoder) -> None:
        """Take a module of mono-to-stereo for the strips that have an image.

        Raises ValueError for one of bandwidth extension, LatentFileError for one of another autoencoder.
        """
        if module is self.module:
            return
        if not module.stereo:
            raise ValueError(f"stems are placed by a module of mono-to-stereo, got {module.config.task!r}")
        module.check_model(self.model)
        self.module = module

    def latent(self, index: int, image: int | None = None) -> Tensor:
        """Latent (1, C, L) of a stem; with an image its left and right by the module, (2, C, L), or a
        ValueError where there is none."""
        return self._latent(index, image, None if image is None else self.module)

    def decoded_stem(self, index: int, image: int | None = None) -> Tensor:
        """A stem (1, T) through the autoencoder; with an image left and right (2, T). Raises as `latent`."""
        return self._stem(index, image, None if image is None else self.module)

    def latent_mix(self, strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
        """Dec(sum_i g_i z_i), (channels, T), z_i being the latent of stem i, or what the module makes of it
        for this channel. Raises ValueError for another number of strips than stems, and as `latent`."""
        factors, images = self.settings(strips, master_db)
        channels = []
        for channel, row in enumerate(factors.tolist()):
            # Without an image, equal factors are equal sounds in both channels.
            sides = tuple(None if image is None else (image, channel) for image in images)
            channels.append(self._mix(tuple(row), sides, self.module))
        return torch.cat(channels)

    def waveform_mix(self, strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
        """sum_i g_i stem_i, (channels, T), what a desk for waveforms does; a stem with an image is in the
        centre. ValueError as `latent_mix`."""
        factors, _ = self.settings(strips, master_db)
        return (factors @ self.stems.double()).float()

    def decoded_mix(self, strips: Sequence[Strip], master_db: float = 0.0) -> Tensor:
        """sum_i g_i Dec(z_i), (channels, T): a decode a stem, two where it has an image, the first time.
        ValueError as `latent_mix`."""
        factors, images = self.settings(strips, master_db)
        stems = [self.decoded_stem(index, image).double() for index, image in enumerate(images)]
        sides = torch.stack([stem.expand(len(factors), -1) for stem in stems], 1)
        return torch.einsum("cs,cst->ct", factors, sides).float()

    def settings(self, strips: Sequence[Strip], master_db: float) -> tuple[Tensor, list[int | None]]:
        """Factors (channels, S), and the image of each stem: none where it is off."""
        if len(strips) != len(self.stems):
            raise ValueError(f"need a strip for each of {len(self.stems)} stems, got {len(strips)}")
        factors = amplitudes(strips, master_db)
        heard = factors.any(0).tolist()
        return factors, [strip.image if on else None for strip, on in zip(strips, heard, strict=True)]

    def _encode(self, index: int, image: int | None, module: ReEncoder | None) -> Tensor:
        if image is None:
            return self.model.encode(self.stems[index : index + 1])
        if module is None:
            raise ValueError(f"{self.names[index]!r} has the image {image}, but no module places it")
        z = self.latent(index)
        condition = module.prior(index + 1, image)[index:]
        return module.process(z, condition)[0].to(z)

    def _decode_stem(self, index: int, image: int | None, module: ReEncoder | None) -> Tensor:
        return torch.cat([self._decode(side[None]) for side in self._latent(index, image, module)])

    def _decode_mix(
        self, factors: tuple[float, ...], sides: tuple[tuple[int, int] | None, ...], module: ReEncoder | None
    ) -> Tensor:
        latents = []
        for index, side in enumerate(sides):
            if side is None:
                latents.append(self.latent(index))
            else:
                image, channel = side
                latents.append(self._latent(index, image, module)[channel : channel + 1])
        return self._decode(sum(factor * z for factor, z in zip(factors, latents, strict=True)))

    def _decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z, length=self.stems.shape[1], seed=self.seed).cpu()


def song_title(name: str, number: int) -> str:
    """What people read for a track: its name, or "Song 2" for a rendered song, whose name is a number."""
    return f"Song {number}" if re.fullmatch(r"(train|valid|test)_\d+", name) else name


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
    _check_count(files, str(path))
    return files


def stem_track(files: Sequence[Path], name: str) -> tuple[Track, list[str]]:
    """A track of audio files of any rates and lengths, held in memory, and what had to be done to them.

    All become mono (channel mean), resampled to the highest rate, and as long as the longest, with silence.
    Raises AudioFileError naming a file that is not audio, ValueError for no or more than MAX_STEMS files.
    """
    _check_count(files, name)
    sounds = [read_audio(file, channels="all") for file in files]
    rate = max(own_rate for _, own_rate in sounds)
    duration_s = max(audio.shape[1] / own_rate for audio, own_rate in sounds)
    notes = []
    signals = []
    for file, (audio, own_rate) in zip(files, sounds, strict=True):
        if len(audio) > 1:
            notes.append(f"{file.name} has {len(audio)} channels: heard as mono, their mean")
        if own_rate != rate:
            notes.append(f"{file.name} has {own_rate} Hz: resampled to {rate} Hz")
        signals.append(resample(audio.mean(0), own_rate, rate))
        if len(signals[-1]) < round(duration_s * rate):
            seconds = len(signals[-1]) / rate
            notes.append(f"{file.name} lasts {seconds:.2f} s: silence to {duration_s:.2f} s")
    stems = pad_sequence(signals, batch_first=True)

    def read(start_s: float, seconds: float | None) -> Tensor:
        start = round(start_s * rate)
        return stems[:, start : None if seconds is None else start + round(seconds * rate)]

    names = tuple(file.stem for file in files)
    return Track(name, "own", names, rate, stems.shape[1] / rate, read), notes


def _check_count(files: Sequence[Path], source: str) -> None:
    if not 1 <= len(files) <= MAX_STEMS:
        raise ValueError(f"{source}: a desk takes 1 to {MAX_STEMS} stems, got {len(files)} audio files")
