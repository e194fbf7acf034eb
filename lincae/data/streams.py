"""Audio files of any length, read, encoded and decoded block by block. Axis legend: see `lincae.interface`;
here B are the channels of a file."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lincae.data.audio import AudioFileError, audio_header, opened
from lincae.interface import AutoencoderLike

BLOCK_S = 10.0


def read_blocks(
    path: str | Path, sample_rate: int | None = None, channels: str = "mean", block_s: float = BLOCK_S
) -> Iterator[Tensor]:
    """The whole of a file as consecutive blocks (channels, T) of about `block_s` seconds, in constant memory;
    joined, what `read_audio` returns, to the rounding of its resampling. Raises as it, for a fault within the
    file when it is reached."""
    with opened(path, channels) as file:
        size = math.ceil(block_s * file.sample_rate)
        # Not simply the next ones: soundfile seeks after each read, which upsets compressed formats.
        blocks = (file.read(k, min(size, file.frames - k)) for k in range(0, file.frames, size))
        if channels != "all":
            blocks = (block.mean(1, keepdims=True) for block in blocks)
        if sample_rate not in (None, file.sample_rate):
            blocks = _resampled(blocks, file.frames, file.sample_rate, sample_rate)
        for block in blocks:
            yield torch.from_numpy(np.ascontiguousarray(block.T))


def _resampled(
    blocks: Iterator[np.ndarray], n_frames: int, from_rate: int, to_rate: int
) -> Iterator[np.ndarray]:
    """Blocks (frames, channels), `n_frames` in all, at another rate, as `audio.resample` does at once."""
    import soxr

    resampler = None
    wanted = math.ceil(n_frames * to_rate / from_rate)
    for block in blocks:
        resampler = resampler or soxr.ResampleStream(from_rate, to_rate, block.shape[1], dtype="float32")
        n_frames -= len(block)
        last = n_frames == 0
        if last:
            # soxr rounds the length down: silence makes it enough, as in `audio.resample`.
            block = np.pad(block, ((0, from_rate // to_rate + 1), (0, 0)))
        out = resampler.resample_chunk(block, last=last)[:wanted]
        wanted -= len(out)
        if len(out):
            yield out


def length_and_blocks(path: str | Path, sample_rate: int, channels: str) -> tuple[int, Iterator[Tensor]]:
    """Length of a file at a rate, and its blocks as of `read_blocks`. Raises AudioFileError for whatever is
    wrong with the file, the iterator where it comes to it."""
    try:
        rate, n_frames = audio_header(path)
    except OSError as error:
        raise AudioFileError(f"{path}: {error}") from error

    def blocks() -> Iterator[Tensor]:
        try:
            yield from read_blocks(path, sample_rate, channels)
        # An error of the input is not to be taken for one of the output.
        except OSError as error:
            raise AudioFileError(f"{path}: {error}") from error

    return -(-n_frames * sample_rate // rate), blocks()


def encode_blocks(model: AutoencoderLike, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Consecutive audio (B, T_i) to consecutive latents (B, C, L_i): in constant memory if the model has
    `encode_stream`, else at once."""
    if hasattr(model, "encode_stream"):
        return model.encode_stream(blocks)
    return (model.encode(torch.cat(list(b), 1)) for b in [blocks])


def encode_file(
    model: AutoencoderLike, path: str | Path, channels: str = "mean"
) -> tuple[int, Iterator[Tensor]]:
    """Length of a file at the model's rate, and its consecutive latents (B, C, L_i), as of `encode_blocks`; B
    is 1 for `channels` "mean", all that the file has for "all". Raises as `length_and_blocks`."""
    n_samples, blocks = length_and_blocks(path, model.sample_rate, channels)
    return n_samples, encode_blocks(model, blocks)


def read_ahead(pool: Executor, items: Iterator[Any], count: int) -> Iterator[Any]:
    """The same items; a thread of the pool takes the first `count` of them from now on, and always the next
    `count` while those before are used."""

    def taken() -> list[Any]:
        return list(itertools.islice(items, count))

    def given(future: Future) -> Iterator[Any]:
        while held := future.result():
            future = pool.submit(taken)
            yield from held

    return given(pool.submit(taken))


def begun_ahead(
    names: Iterable[str], begin: Callable[[str], Iterator[Any]], count: int
) -> Iterator[tuple[str, Iterator[Any]]]:
    """Each name with what `begin` makes of it, which is called for the `count` names after it before."""
    begun: deque[tuple[str, Iterator[Any]]] = deque()
    for name in names:
        begun.append((name, begin(name)))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def decode_blocks(
    model: AutoencoderLike,
    latents: Iterable[Tensor],
    length: int | None = None,
    seed: int = 0,
    steps: int = 1,
    first_frame: int = 0,
) -> Iterator[Tensor]:
    """Consecutive latents (B, C, L_i) to consecutive audio (B, T_i), `length` samples in all where given.
    `first_frame`: of the latents within their file. A model without `decode_stream` decodes at once, whatever
    `steps` and `first_frame` say. Raises as its `decode`."""
    if hasattr(model, "decode_stream"):
        return model.decode_stream(latents, length, seed, steps, first_frame)
    return (model.decode(torch.cat(list(z), -1), length, seed) for z in [latents])
