"""Audio files of any length, read, encoded, decoded and written block by block.

Axis legend: `B` batch (channels of a file), `T` samples, `C` latent channels, `L` latent frames.

soundfile and soxr are imported where they are used.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lincae.data.audio import CHANNEL_MODES, WRITERS, AudioFileError, audio_header, opened, read_frames
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike, check_audio

BLOCK_S = 10.0
WAV_BYTES = 2**32 - 2**16  # what the 32-bit lengths of WAV can state, less a header


def read_blocks(
    path: str | Path, sample_rate: int | None = None, channels: str = "mean", block_s: float = BLOCK_S
) -> Iterator[Tensor]:
    """The whole of a file as consecutive blocks (channels, T) of about `block_s` seconds, in constant memory.

    Joined they are what `read_audio` returns, to the rounding of its resampling. `channels`: "mean" averages
    them to one, "all" keeps them, "mono" expects one. Raises as `read_audio`; a fault within the file when
    it is reached.
    """
    if channels not in CHANNEL_MODES:
        raise ValueError(f"channels must be one of {CHANNEL_MODES}, got {channels!r}")
    with opened(path) as file:
        if channels == "mono" and file.channels > 1:
            raise ValueError(f'{path}: has {file.channels} channels, not one: use channels="mean"')
        rate, read = file.samplerate, 0
        target = sample_rate or rate
        if target != rate:
            import soxr

            n_channels = file.channels if channels == "all" else 1
            resampler = soxr.ResampleStream(rate, target, n_channels, dtype="float32")
            left = math.ceil(file.frames * target / rate)
        while read < file.frames:
            wanted = min(math.ceil(block_s * rate), file.frames - read)
            # not simply the next ones: soundfile seeks after each read, which upsets compressed formats
            block = read_frames(file, read, wanted)
            read += wanted
            if channels != "all":
                block = block.mean(1, keepdims=True)
            if target != rate:
                last = read == file.frames
                if last:  # soxr rounds the length down: as in `audio.resample`
                    block = np.pad(block, ((0, rate // target + 1), (0, 0)))
                block = resampler.resample_chunk(block, last=last)[:left]
                left -= len(block)
            if len(block):
                yield torch.from_numpy(np.ascontiguousarray(block.T))


def write_blocks(
    path: str | Path, blocks: Iterable[Tensor], sample_rate: int, n_samples: int | None = None
) -> None:
    """Write consecutive blocks (channels, T) as .wav (32-bit float), .flac (24 bit) or .mp3, atomically.

    `n_samples`: of all blocks together, where known; a .wav beyond 4 GiB is written as RF64. Raises
    ValueError as `write_audio`, and for no blocks; OSError where the file cannot be written, such as on a
    full disk.
    """
    path, blocks = Path(path), iter(blocks)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: extension must be one of {tuple(WRITERS)}")
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"{path}: nothing to write")
    import soundfile

    container, subtype, holds_any_level = WRITERS[path.suffix.lower()]
    if container == "WAV" and 4 * len(first) * (n_samples or 0) > WAV_BYTES:
        container = "RF64"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        options = {"format": container, "subtype": subtype, "closefd": False}
        try:
            with soundfile.SoundFile(file.fileno(), "w", sample_rate, len(first), **options) as sound:
                for block in itertools.chain([first], blocks):
                    samples = check_audio(block.detach(), name=str(path)).float().cpu()
                    peak = samples.abs().max().item()
                    if peak > 1 and not holds_any_level:
                        raise ValueError(
                            f"{path}: peak {peak:.3f} would be clipped: write .wav, or scale the audio first"
                        )
                    sound.write(samples.T.numpy())
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            raise OSError(f"{path}: cannot be written, is the disk full? {error}") from error


def encode_file(
    model: AutoencoderLike, path: str | Path, channels: str = "mean"
) -> tuple[int, Iterator[Tensor]]:
    """Length of a file at the model's rate, and its consecutive latents (B, C, L_i).

    In constant memory if the model has `encode_stream`, else at once. B is 1 for `channels` "mean", all that
    the file has for "all". Raises AudioFileError for whatever is wrong with the file; the iterator does so
    where it comes to it.
    """
    path = Path(path)
    try:
        rate, n_frames = audio_header(path)
    except OSError as error:
        raise AudioFileError(f"{path}: {error}") from error

    def blocks() -> Iterator[Tensor]:
        try:
            yield from read_blocks(path, model.sample_rate, channels)
        except OSError as error:  # not to be taken for one of the output
            raise AudioFileError(f"{path}: {error}") from error

    n_samples = -(-n_frames * model.sample_rate // rate)
    if hasattr(model, "encode_stream"):
        return n_samples, model.encode_stream(blocks())
    return n_samples, (model.encode(torch.cat(list(b), 1)) for b in [blocks()])


def decode_blocks(
    model: AutoencoderLike,
    latents: Iterable[Tensor],
    length: int | None = None,
    seed: int = 0,
    steps: int = 1,
    first_frame: int = 0,
) -> Iterator[Tensor]:
    """Consecutive latents (B, C, L_i) to consecutive audio (B, T_i), `length` samples in all where given.

    `first_frame`: of the latents within their file, which decides the noise. A model without `decode_stream`
    decodes at once, and as it has one way to, whatever `steps` and `first_frame` say. Raises as its `decode`.
    """
    if hasattr(model, "decode_stream"):
        return model.decode_stream(latents, length, seed, steps, first_frame)
    return (model.decode(torch.cat(list(z), -1), length, seed) for z in [latents])
