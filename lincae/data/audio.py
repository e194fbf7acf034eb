"""Audio in and out, devices, seeds and overlap-add windows.

Axis legend: `B` batch, `S` source (stem), `T` samples, `C` latent channels, `L` latent frames,
`F` frequency bins, `N` spectrogram frames. Audio is (B, T) float32 mono; stereo is two items of a batch.
Nothing here clamps or normalises: gain is the experiment.

soundfile, soxr and torchaudio are imported where they are used: training on synthetic audio needs none.
"""

import contextlib
import io
import math
import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lincae.files import atomic_write
from lincae.interface import check_audio

CHANNEL_MODES = ("mono", "mean", "all")


# libsndfile format, subtype, and whether samples beyond +-1 survive
WRITERS = {
    ".wav": ("WAV", "FLOAT", True),
    ".flac": ("FLAC", "PCM_24", False),
    ".mp3": ("MP3", "MPEG_LAYER_III", False),
}


class AudioFileError(ValueError):
    """An audio file that cannot be used; the message names the file."""


def read_audio(
    path: str | Path,
    sample_rate: int | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    channels: str = "mono",
) -> tuple[Tensor, int]:
    """Read a file that libsndfile knows, or a part of it; return float32 audio and its sample rate.

    `sample_rate` resamples (None keeps the file's); `seconds` is the most to read from `start_s` on
    (None: to the end). `channels`: "mono" expects a mono file, "mean" averages the channels, both give
    (T,); "all" gives (channels, T).

    Raises FileNotFoundError; AudioFileError for an unreadable, empty, truncated or non-finite file
    (truncation shows where the format states a length: WAV, AIFF, FLAC, MP3 with a header); ValueError for a
    start beyond the end, and for a stereo file where mono is expected.
    """
    if channels not in CHANNEL_MODES:
        raise ValueError(f"channels must be one of {CHANNEL_MODES}, got {channels!r}")
    if start_s < 0 or (seconds is not None and seconds <= 0):
        raise ValueError(f"start_s must be >= 0 and seconds > 0, got {start_s} and {seconds}")
    with opened(path) as file:
        rate, start = file.samplerate, round(start_s * file.samplerate)
        wanted = file.frames - start if seconds is None else min(file.frames - start, round(seconds * rate))
        if wanted <= 0:
            raise ValueError(
                f"{path}: nothing to read from {start_s} s on, it lasts {file.frames / rate:.3f} s"
            )
        if channels == "mono" and file.channels > 1:
            raise ValueError(f'{path}: has {file.channels} channels, not one: use channels="mean"')
        block = read_frames(file, start, wanted)
    audio = torch.from_numpy(np.ascontiguousarray(block.T))
    audio = audio if channels == "all" else audio.mean(0)
    return (audio, rate) if sample_rate is None else (resample(audio, rate, sample_rate), sample_rate)


def read_frames(file, start: int, wanted: int) -> np.ndarray:
    """Frames (wanted, channels) of a soundfile.SoundFile, from `start` on. AudioFileError as `read_audio`."""
    name, lead_in = os.fsdecode(file.name), min(start, _lead_in(file, start + wanted))
    file.seek(start - lead_in)
    block = file.read(lead_in + wanted, dtype="float32", always_2d=True)[lead_in:]
    if len(block) < wanted:
        raise AudioFileError(f"{name}: truncated, {len(block)} of {wanted} frames could be read")
    if not np.isfinite(block).all():
        bad = np.argwhere(~np.isfinite(block))
        raise AudioFileError(f"{name}: {len(bad)} non-finite samples, first at frame {start + bad[0, 0]}")
    return block


def _lead_in(file, stop: int) -> int:
    """Frames to decode and drop before a stretch that ends at `stop`, so that it is the same part of the
    whole.

    After a seek libsndfile 1.2 decodes wrongly: MP3 until the bit reservoir is full (20 frames suffice), a
    part of a Vorbis block, and all that follows a seek into the last page of an OGG file; pages were shorter
    than 5 s even at 16 kbit/s.
    """
    if file.format == "OGG":
        tail = 5 * file.samplerate
        return tail if stop > file.frames - tail else 4096
    return 20 * 1152 if file.format == "MP3" else 0


def audio_header(path: str | Path) -> tuple[int, int]:
    """Sample rate and number of frames that a file states. Raises as `read_audio`."""
    with opened(path) as file:
        return file.samplerate, file.frames


@contextlib.contextmanager
def opened(path: str | Path):
    """A soundfile.SoundFile of a file that has samples; its errors become AudioFileError."""
    import soundfile

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # as text it refuses names that are not UTF-8
            if file.frames == 0:
                raise AudioFileError(f"{path}: holds no samples")
            if missing := _missing_bytes(file.extra_info):
                raise AudioFileError(f"{path}: truncated, {missing} bytes fewer than its header states")
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioFileError(f"{path}: cannot be read as audio, or is truncated: {error}") from error


def _missing_bytes(header: str) -> int:
    """Bytes that the data chunk of a WAV or AIFF file lacks, from libsndfile's account of its header.

    libsndfile corrects the length and goes on, so that a cut file looks like a shorter one. WAV written to a
    pipe states 2**31 - 1 bytes or more, its length being unknown then: it counts as whole.
    """
    chunk = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", header, re.MULTILINE)
    stated, present = map(int, chunk.groups()) if chunk else (0, 0)
    return 0 if stated >= 2**31 - 1 else max(0, stated - present)


def write_audio(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Write (T,) or (channels, T) audio as .wav (32-bit float), .flac (24 bit) or .mp3, atomically.

    Raises ValueError for another extension or shape, for non-finite samples, and for samples beyond +-1 in
    .flac and .mp3, which would clip them.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: extension must be one of {tuple(WRITERS)}")
    if audio.ndim not in (1, 2):
        raise ValueError(f"{path}: audio must have shape (T,) or (channels, T), got {tuple(audio.shape)}")
    import soundfile

    container, subtype, holds_any_level = WRITERS[path.suffix.lower()]
    block = check_audio(torch.atleast_2d(audio.detach()), name=str(path)).float().cpu()
    peak = block.abs().max().item()
    if peak > 1 and not holds_any_level:
        raise ValueError(f"{path}: peak {peak:.3f} would be clipped: write .wav, or scale the audio first")
    encoded = io.BytesIO()
    soundfile.write(encoded, block.T.numpy(), sample_rate, format=container, subtype=subtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(encoded.getbuffer())


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample (..., T) to (..., ceil(T * to_rate / from_rate)).

    soxr HQ on the CPU; torchaudio's kaiser kernel on another device and where a gradient is asked for. Its
    default kernel loses 2.6 dB at 20 kHz and aliases at -9 dB, this one 0.09 dB and -112 dB.
    """
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

    # soxr rounds the length, also down: one more output sample's worth of silence at the end makes it enough
    padded = torch.nn.functional.pad(audio, (0, from_rate // to_rate + 1))
    out = soxr.resample(
        padded.flatten(0, -2).T.numpy() if audio.ndim > 1 else padded.numpy(), from_rate, to_rate
    )
    return torch.from_numpy(out[:n_samples].T.copy()).reshape(*audio.shape[:-1], n_samples)
