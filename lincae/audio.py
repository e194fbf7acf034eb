"""Audio in and out, devices, seeds and overlap-add windows.

Axis legend: `B` batch, `S` source (stem), `T` samples, `C` latent channels, `L` latent frames,
`F` frequency bins, `N` spectrogram frames. Audio is (B, T) float32 mono; stereo is two items of a batch.
Nothing here clamps or normalises: gain is the experiment.

soundfile, soxr and torchaudio are imported where they are used: training on synthetic audio needs none.
"""

import contextlib
import ctypes
import io
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

CHANNEL_MODES = ("mono", "mean", "all")
# libsndfile format, subtype, and whether samples beyond +-1 survive
WRITERS = {
    ".wav": ("WAV", "FLOAT", True),
    ".flac": ("FLAC", "PCM_24", False),
    ".mp3": ("MP3", "MPEG_LAYER_III", False),
}


class AudioFileError(ValueError):
    """An audio file that cannot be used; the message names the file."""


@runtime_checkable
class AutoencoderLike(Protocol):
    """All that evaluation, baselines, mixer and Re-Encoder know of an autoencoder."""

    name: str
    sample_rate: int
    latent_rate: float
    """Latent frames per second."""

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, L)."""

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, T), T = `length` where given; equal seeds, equal noise."""


def check_audio(audio: Tensor, *, name: str = "audio") -> Tensor:
    """Return `audio` as it is, if it is a finite, non-empty, floating-point (B, T) tensor.

    Raises TypeError for another type or dtype, ValueError for another shape and for NaN or inf.
    """
    if not isinstance(audio, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(audio).__name__}: use torch.as_tensor({name})"
        )
    if audio.ndim != 2:
        fix = {1: f"{name}[None]", 3: f"{name}.flatten(0, 1) (a channel is a batch item) or {name}.mean(1)"}
        hint = f": use {fix[audio.ndim]}" if audio.ndim in fix else ""
        raise ValueError(f"{name} must have shape (B, T), got {tuple(audio.shape)}{hint}")
    if not audio.is_floating_point():
        raise TypeError(
            f"{name} must be floating point, full scale 1, got {audio.dtype}: 16-bit audio is {name} / 32768"
        )
    if audio.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(audio.shape)}")
    # a sum shows in constant memory that all is finite; what overflows it is looked at sample by sample
    if not torch.isfinite(audio.sum()) and (bad := ~torch.isfinite(audio)).any():
        item, sample = bad.nonzero()[0].tolist()
        value = audio[item, sample].item()
        raise ValueError(
            f"{name} has {int(bad.sum())} non-finite samples, first {value} at item {item}, sample {sample}"
        )
    return audio


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


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once it is whole; else `path` stays as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The one place where a device is chosen: "auto" is CUDA where there is one, else the CPU.

    Raises ValueError for an unknown device and for one that this machine or this torch does not have.
    """
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if n_cuda else "cpu")
    allowed = "'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use {allowed}") from error
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {device!r}: use {allowed}")
    if resolved.type == "cuda" and (resolved.index or 0) >= n_cuda:
        raise ValueError(
            f"device {device!r} is not available: torch {torch.__version__} sees {n_cuda} CUDA devices"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} is not available: torch {torch.__version__} sees no MPS device")
    return resolved


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for its next use; False where there is no glibc.

    By default glibc returns large blocks to the kernel at once, which hands them out again page by page,
    zeroed, a large part of the time of a large network on a CPU (benchmarks/inference.py --allocator). The
    price is a higher peak. For the whole process: an application's choice, to be made before the first large
    tensors.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1))


def generator(*keys: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that is a pure function of its integer `keys`, such as (seed, step) or (seed, item).

    Different tuples give different streams. Raises ValueError for keys outside [0, 2**64), and for none.
    """
    if not keys or any(not 0 <= key < 2**64 for key in keys):
        raise ValueError(f"keys must be integers in [0, 2**64), at least one, got {keys}")
    # SeedSequence pads with zeros: without the count, (1,) and (1, 0) would be one stream
    words = [word for key in keys for word in divmod(int(key), 2**32)]
    seed = np.random.SeedSequence([len(keys), *words]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def window_starts(n_samples: int, window_samples: int, overlap_samples: int) -> list[int]:
    """Start of every window of a signal, `overlap_samples` shared by neighbours.

    The last window is moved back to end with the signal, so that all are whole; a signal shorter than one
    window has one start, 0. Raises ValueError unless 0 <= overlap <= window / 2 and n_samples >= 1.
    """
    if n_samples < 1 or window_samples < 1 or not 0 <= overlap_samples <= window_samples // 2:
        raise ValueError(
            "need n_samples >= 1, window_samples >= 1 and 0 <= overlap_samples <= window_samples // 2, "
            f"got {n_samples}, {window_samples}, {overlap_samples}"
        )
    last = max(0, n_samples - window_samples)
    return [*range(0, last, window_samples - overlap_samples), last]


def overlap_add(
    chunks: Sequence[Tensor], starts: Sequence[int], n_samples: int, overlap_samples: int
) -> Tensor:
    """Join windows (..., T) into (..., n_samples), each fading in linearly over `overlap_samples`.

    The weights sum to one at every sample. Raises ValueError where chunks leave a gap or end elsewhere.
    """
    if len(chunks) != len(starts) or not chunks:
        raise ValueError(f"need one start for every chunk, got {len(chunks)} chunks and {len(starts)} starts")
    out = chunks[0].new_empty(*chunks[0].shape[:-1], n_samples)
    ramp = (torch.arange(overlap_samples, device=out.device, dtype=out.dtype) + 0.5) / max(overlap_samples, 1)
    end = 0
    for chunk, start in zip(chunks, starts, strict=True):
        fade = overlap_samples if start else 0
        if start + fade > end or start + chunk.shape[-1] < end:
            raise ValueError(
                f"chunk at {start} of {chunk.shape[-1]} samples does not continue one that ends at {end}"
            )
        end = start + chunk.shape[-1]
        if end > n_samples:
            raise ValueError(f"chunk at {start} ends at {end}, beyond n_samples = {n_samples}")
        head = out[..., start : start + fade]
        out[..., start : start + fade] = torch.lerp(head, chunk[..., :fade], ramp[:fade])
        out[..., start + fade : end] = chunk[..., fade:]
    if end != n_samples:
        raise ValueError(f"the chunks end at {end}, not at n_samples = {n_samples}")
    return out
