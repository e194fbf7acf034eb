"""Signals of any length through a network, window by window, from a stream that is held in part only.

Windows lie on a grid of absolute positions and have context at their sides that is dropped; networks take
their statistics around each frame (`lincae.network.Norm`). What remains of the windows in the result is
measured in benchmarks/windows.csv. Streams are `(B, ..., T)`, time in samples or in frames.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Tape:
    """What is still needed of a stream, addressed by absolute position on the last axis."""

    def __init__(self, start: int = 0):
        self.start = self.end = start
        self._parts: list[Tensor] = []

    def append(self, part: Tensor) -> None:
        self._parts.append(part)
        self.end += part.shape[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """A copy of positions start..stop; less where the tape ends before."""
        self._parts = [torch.cat(self._parts, -1)]
        return self._parts[0][..., start - self.start : stop - self.start].clone()

    def forget(self, before: int) -> None:
        """Drop what lies before a position. To be called after `read`."""
        self._parts = [self._parts[0][..., before - self.start :].clone()]
        self.start = before


class Window(NamedTuple):
    """`data` starts with frame `start`; the frames `keep` of what the network makes of it are to stay."""

    start: int
    data: Tensor
    keep: slice


def windowed(
    blocks: Iterable[Tensor], size: int, context: int, first: int = 0, hop: int = 1, overlap: int = 0
) -> Iterator[Window]:
    """Cut a stream that starts with frame `first` into windows of `size` frames; each frame stays in one.

    Frame i is made of the stream's positions `i hop` to `(i + 1) hop + overlap`. Windows start at `first` and
    then at every multiple of size - 2 context, and drop `context` frames on both sides, but none where the
    stream starts or ends. A window is yielded once the stream has gone beyond it, the last one with what is
    left; `size` frames, the overlap and the longest block are held at most.
    """
    step = size - 2 * context
    tape = Tape(first * hop)
    start = keep_from = first
    for block in blocks:
        tape.append(block)
        while tape.end > (start + size) * hop + overlap:
            following = (start // step + 1) * step
            keep_to = following + context
            data = tape.read(start * hop, (start + size) * hop + overlap)
            yield Window(start, data, slice(keep_from - start, keep_to - start))
            start, keep_from = following, keep_to
            tape.forget(start * hop)
    n_frames = -(-(tape.end - overlap) // hop)
    yield Window(start, tape.read(start * hop, tape.end), slice(keep_from - start, n_frames - start))


def one_batch(blocks: Iterable[Tensor], check: Callable[..., Tensor]) -> Iterator[Tensor]:
    """The blocks of a stream, each once `check(block, name=...)` has passed it. Raises as that, and
    ValueError where the batch size changes and where there is no block."""
    n_items = None
    for index, block in enumerate(blocks):
        name = f"block {index}"
        check(block, name=name)
        if n_items is not None and len(block) != n_items:
            raise ValueError(f"{name} has {len(block)} items, the blocks before it have {n_items}")
        n_items = len(block)
        yield block
    if n_items is None:
        raise ValueError("the stream has no blocks")


def in_pieces(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The blocks, cut where they are longer than `size`."""
    for block in blocks:
        yield from block.split(size, dim=-1)


def between_silence(blocks: Iterable[Tensor], before: int, after: Callable[[int], int]) -> Iterator[Tensor]:
    """The stream `(B, t_i)` with zeros around it: `before` samples, and `after(T)` of them behind its T."""
    n_samples = 0
    for block in blocks:
        if n_samples == 0:
            yield block.new_zeros(len(block), before)
        n_samples += block.shape[1]
        yield block
    yield block.new_zeros(len(block), after(n_samples))


def overlap_added(parts: Iterable[Tensor], overlap: int) -> Iterator[Tensor]:
    """The sum of parts `(B, t_i)`, t_i > `overlap`, that share their last `overlap` samples with the next."""
    tail = None
    for part in parts:
        if tail is not None:
            part[:, :overlap] += tail
        tail = part[:, -overlap:]
        yield part[:, :-overlap]
    yield tail


def cut(parts: Iterable[Tensor], edge: int, length: int | None) -> Iterator[Tensor]:
    """A stream `(B, t_i)` from sample `edge` on, `length` samples; None: up to `edge` samples from its end.
    Reads no further than it must. Raises ValueError for a stream that ends before."""
    tape = Tape()
    n_yielded = 0
    for part in parts:
        tape.append(part)
        start = edge + n_yielded
        stop = tape.end - edge if length is None else min(tape.end, edge + length)
        if stop > start:
            n_yielded += stop - start
            yield tape.read(start, stop)
            tape.forget(stop)
        if n_yielded == length:
            return
    if length is not None or n_yielded == 0:
        wanted = 1 if length is None else length
        raise ValueError(f"{wanted} samples were wanted, but the stream held {n_yielded}")


def joined(parts: Iterable[Tensor], out: Tensor) -> Tensor:
    """`out`, filled with the parts one after the other along the last axis."""
    position = 0
    for part in parts:
        out[..., position : position + part.shape[-1]] = part
        position += part.shape[-1]
    return out
