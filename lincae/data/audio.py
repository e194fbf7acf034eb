"""Audio files, read and written, and resampling.

Nothing here clamps or normalises. soundfile, soxr and torchaudio are imported where they are used, since
training on synthetic audio needs none. Axis legend: `T` samples.
"""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lincae.data.containers import (
    AudioFileError,
    Decoder,
    UnreachableFileError,
    decoded_frames,
    stamp_of,
    states_its_length,
)
from lincae.interface import check_audio
from lincae.machine.files import atomic_write

CHANNEL_MODES = ("mono", "mean", "all")
SYSTEM_ERROR = 2
"""libsndfile's code of what is no fault of a file."""
RATES_HZ = (1000, 1_000_000)
"""Sample rates that a file may state; others are damage, and resampling from 1 Hz fills the memory."""

WRITERS = {
    ".wav": ("WAV", "FLOAT", True),
    ".flac": ("FLAC", "PCM_24", False),
    ".mp3": ("MP3", "MPEG_LAYER_III", False),
}
"""libsndfile's format and subtype, and whether samples beyond +-1 survive."""
WAV_BYTES = 2**32 - 2**16  # what the 32-bit lengths of WAV can state, less a header


# ---------------------------------------------------------------- reading


def read_audio(
    path: str | Path,
    sample_rate: int | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    channels: str = "mono",
) -> tuple[Tensor, int]:
    """Float32 audio of a file that libsndfile knows, and its sample rate.

    `sample_rate` resamples (None keeps the file's); `seconds` is the most to read from `start_s` on.
    `channels`: "mono" expects a mono file, "mean" averages, both give (T,); "all" gives (channels, T).

    Raises FileNotFoundError; AudioFileError for an unreadable, empty, truncated or non-finite file;
    ValueError for a start beyond the end, and for a stereo file where mono is expected.
    """
    if start_s < 0 or (seconds is not None and seconds <= 0):
        raise ValueError(f"start_s must be >= 0 and seconds > 0, got {start_s} and {seconds}")
    with opened(path, channels) as file:
        rate = file.sample_rate
        start = round(start_s * rate)
        left = file.frames - start
        wanted = left if seconds is None else min(left, round(seconds * rate))
        if wanted <= 0:
            lasts = file.frames / rate
            raise ValueError(f"{path}: nothing to read from {start_s} s on, it lasts {lasts:.3f} s")
        block = file.read(start, wanted)

    audio = torch.from_numpy(np.ascontiguousarray(block.T))
    if channels != "all":
        audio = audio.mean(0)
    if sample_rate is None:
        return audio, rate
    return resample(audio, rate, sample_rate), sample_rate


def audio_header(path: str | Path) -> tuple[int, int]:
    """Sample rate of a file and the frames that it holds. Raises as `read_audio`."""
    with opened(path) as file:
        return file.sample_rate, file.frames


@contextlib.contextmanager
def opened(path: str | Path, channels: str = "all") -> Iterator["AudioFile"]:
    """A file that has samples, open for reading. What libsndfile finds wrong becomes an AudioFileError.
    Raises ValueError for a stereo file where `channels` is "mono", and for another than CHANNEL_MODES."""
    import soundfile

    if channels not in CHANNEL_MODES:
        raise ValueError(f"channels must be one of {CHANNEL_MODES}, got {channels!r}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    try:
        # As text it would refuse names that are not UTF-8.
        with soundfile.SoundFile(os.fsencode(path)) as sound:
            file = AudioFile(path, sound)
            if channels == "mono" and sound.channels > 1:
                raise ValueError(f'{path}: has {sound.channels} channels, not one: use channels="mean"')
            yield file
    except soundfile.LibsndfileError as error:
        kind = UnreachableFileError if error.code == SYSTEM_ERROR else AudioFileError
        raise kind(f"{path}: cannot be read as audio, or is truncated: {error}") from error


class AudioFile:
    """An open audio file: its `sample_rate` and `channels`, the `frames` that it holds, and any of them."""

    def __init__(self, path: Path, sound: Any):
        """`sound`: a soundfile.SoundFile. AudioFileError for a length that is none or cannot be, and a rate
        beyond RATES_HZ."""
        self.path = path
        self.sample_rate = sound.samplerate
        self.channels = sound.channels
        self._sound = sound
        self._stated = states_its_length(path, sound)
        self._decoder = None if self._stated else Decoder(path, sound.format, sound.samplerate)
        lowest, highest = RATES_HZ
        if not lowest <= self.sample_rate <= highest:
            stated = f"states a sample rate of {self.sample_rate} Hz"
            raise AudioFileError(f"{path}: {stated}, not {lowest} to {highest} Hz")
        if self._stated and sound.frames == 0:
            raise AudioFileError(f"{path}: holds no samples")

    @functools.cached_property
    def frames(self) -> int:
        """The number of frames, counted by decoding where the header does not state it."""
        if self._stated:
            return self._sound.frames
        counted = decoded_frames(self.path, self._sound.format, self.sample_rate, stamp_of(self.path))
        if counted == 0:
            raise AudioFileError(f"{self.path}: holds no samples")
        return counted

    def read(self, start: int, wanted: int) -> np.ndarray:
        """Frames (wanted, channels) float32, from `start` on. AudioFileError as `read_audio`."""
        # What a header states must not decide how much memory is asked for at once: the file's size does.
        size = max(2**16, 2 * self.path.stat().st_size) // self.channels
        stop = start + wanted
        position = start
        parts = []
        while position < stop:
            part = self._part(position, min(size, stop - position))
            parts.append(part)
            position += len(part)
            if len(part) == 0:
                found = f"{position - start} of {wanted} frames could be read"
                raise AudioFileError(f"{self.path}: truncated, {found}")
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not np.isfinite(block).all():
            bad = np.argwhere(~np.isfinite(block))
            first = f"first at frame {start + bad[0, 0]}"
            raise AudioFileError(f"{self.path}: {len(bad)} non-finite samples, {first}")
        return block

    def _part(self, start: int, wanted: int) -> np.ndarray:
        """At most `wanted` frames."""
        seekable = self._sound.format in ("MP3", "OGG") and start + wanted <= self._sound.frames
        if self._decoder is None or seekable:
            lead_in = min(start, self._lead_in(start + wanted))
            self._sound.seek(start - lead_in)
            part = self._sound.read(lead_in + wanted, dtype="float32", always_2d=True)[lead_in:]
            # Where both can, libsndfile is faster, and as right as far as it goes.
            if self._decoder is None or len(part) == wanted:
                return part
        return self._decoder.read(start, wanted)

    def _lead_in(self, stop: int) -> int:
        """Frames to decode and drop before a stretch that ends at `stop`, to have it as cut from the whole:
        after a seek libsndfile 1.2 decodes wrongly MP3 until the bit reservoir is full, a part of a Vorbis
        block, and all behind a seek into the last page of an OGG file (shorter than 5 s)."""
        if self._sound.format == "MP3":
            return 20 * 1152
        if self._sound.format != "OGG":
            return 0
        tail = 5 * self.sample_rate
        return tail if stop > self._sound.frames - tail else 4096


# ---------------------------------------------------------------- writing


def write_audio(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Write (T,) or (channels, T) audio, as `write_blocks`; ValueError for another shape."""
    if audio.ndim not in (1, 2):
        raise ValueError(f"{path}: audio must have shape (T,) or (channels, T), got {tuple(audio.shape)}")
    write_blocks(path, [torch.atleast_2d(audio)], sample_rate, audio.shape[-1])


def write_blocks(
    path: str | Path, blocks: Iterable[Tensor], sample_rate: int, n_samples: int | None = None
) -> None:
    """Write consecutive blocks (channels, T) as .wav (32-bit float), .flac (24 bit) or .mp3, atomically.

    `n_samples`: the length of all, where known; a .wav beyond 4 GiB is RF64. Raises ValueError for another
    extension, no blocks, non-finite samples, and samples beyond +-1 in .flac and .mp3, which would clip them;
    OSError where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: extension must be one of {tuple(WRITERS)}")
    container, subtype, holds_any_level = WRITERS[path.suffix.lower()]
    blocks = iter(blocks)
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"{path}: nothing to write")
    check_audio(first.detach(), name=str(path))
    if container == "WAV" and 4 * len(first) * (n_samples or 0) > WAV_BYTES:
        container = "RF64"
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        options = {"format": container, "subtype": subtype, "closefd": False}
        try:
            with soundfile.SoundFile(file.fileno(), "w", sample_rate, len(first), **options) as sound:
                for block in itertools.chain([first], blocks):
                    samples = check_audio(block.detach(), name=str(path)).float().cpu()
                    peak = samples.abs().max().item()
                    if peak > 1 and not holds_any_level:
                        fix = "write .wav, or scale the audio first"
                        raise ValueError(f"{path}: peak {peak:.3f} would be clipped: {fix}")
                    sound.write(samples.T.numpy())
        # soundfile asserts that all was written
        except (soundfile.LibsndfileError, AssertionError) as error:
            raise OSError(f"{path}: cannot be written, is the disk full? {error}") from error


# ---------------------------------------------------------------- resampling


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample (..., T) to (..., ceil(T * to_rate / from_rate)): soxr HQ on the CPU; torchaudio's kaiser
    kernel (0.09 dB lost at 20 kHz, aliases at -112 dB) on another device and where a gradient is asked
    for."""
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"sample rates must be positive, got {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return audio
    n_samples = math.ceil(audio.shape[-1] * to_rate / from_rate)
    if audio.device.type != "cpu" or audio.requires_grad:
        from torchaudio.functional import resample as sinc_resample

        preset = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492}
        return sinc_resample(audio, from_rate, to_rate, resampling_method="sinc_interp_kaiser", **preset)
    import soxr

    # soxr rounds the length, also down: one more output sample's worth of silence at the end makes it enough.
    padded = torch.nn.functional.pad(audio, (0, from_rate // to_rate + 1))
    columns = padded.flatten(0, -2).T if audio.ndim > 1 else padded
    out = soxr.resample(columns.numpy(), from_rate, to_rate)
    return torch.from_numpy(out[:n_samples].T.copy()).reshape(*audio.shape[:-1], n_samples)
