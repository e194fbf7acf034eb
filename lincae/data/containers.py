"""What an audio file says of its own length, and what it really holds.

Headers are written before the audio is. `states_its_length` tells from a few bytes whether one can be
believed; else `Decoder` reads to the end.
"""

import functools
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

DEMUXERS = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
"""libsndfile's names of formats, and FFmpeg's."""
# What writers state that do not know the length yet: SoX 2**31 - 4096 (AIFF: 0x7F000000 and a header), others
# 2**31 - 1, 2**31 or 2**32 - 1, less the header.
UNKNOWN_BYTES = (range(0x7F000000, 0x80000100), range(0xFFFF0000, 0x100000000))
WAV_PADDING = 4096  # bytes that may follow the samples without being samples
MAX_BLOCK = 65535  # samples of a FLAC frame
MIN_FLAC_FRAME = 9  # bytes
MIN_MP3_FRAME = 24  # bytes
MP3_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")


class AudioFileError(ValueError):
    """An audio file that cannot be used; the message names the file."""


class UnreachableFileError(AudioFileError, OSError):
    """An audio file that the system could not read, which may pass."""


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of modification (ns) of a file: what is known of one holds as long as they stay."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def states_its_length(path: Path, sound: Any) -> bool:
    """Whether a file, open as a soundfile.SoundFile, holds the number of frames that libsndfile reports;
    False where the header states none or less. Raises AudioFileError for one that its bytes cannot hold."""
    # libsndfile shortens the chunk of a file that was cut and goes on: only its account of the header tells.
    chunk = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if chunk is not None:
        stated, present = map(int, chunk.groups())
        unknown = any(stated in values for values in UNKNOWN_BYTES)
        if stated > present and not unknown:
            missing = f"{stated - present} bytes fewer than its header states"
            raise AudioFileError(f"{path}: truncated, {missing}")
    return _is_whole(path, sound.format, stamp_of(path))


@functools.lru_cache(maxsize=2**16)
def _is_whole(path: Path, kind: str, stamp: tuple[int, int]) -> bool:
    checks = {"WAV": _wav_is_whole, "WAVEX": _wav_is_whole, "FLAC": _flac_is_whole}
    checks |= {"MP3": _mp3_is_whole, "OGG": _ogg_is_whole}
    if kind not in checks:
        return True
    with path.open("rb") as file:
        try:
            return checks[kind](file, stamp[0])
        except struct.error:
            # The header is not laid out as expected: RIFX, for one, which libsndfile knows.
            return kind in ("WAV", "WAVEX")
        except ValueError as error:
            raise AudioFileError(f"{path}: truncated, {error}") from error


def _wav_is_whole(file: BinaryIO, size: int) -> bool:
    """Not where samples follow the data chunk: its length was left 0 or is old, or overflowed its 32 bits."""
    file.seek(12)
    name, length = struct.unpack("<4sI", file.read(8))
    while name != b"data":
        file.seek(length + length % 2, os.SEEK_CUR)
        name, length = struct.unpack("<4sI", file.read(8))
    end = file.tell() + length + length % 2
    left = size - end
    if left >= 2**32:
        return False
    file.seek(end)
    after = file.read(4)
    next_chunk = len(after) == 4 and after.isascii() and after.decode().isprintable()
    return next_chunk or left <= (WAV_PADDING if length else 0)


def _flac_is_whole(file: BinaryIO, size: int) -> bool:
    _skip_id3(file)
    begin = file.tell()
    info = file.read(42)[8:]
    min_block = int.from_bytes(info[:2])
    max_frame = int.from_bytes(info[7:10])
    n_samples = int.from_bytes(info[13:18]) & 0xFFFFFFFFF
    if n_samples > ((size - begin) // MIN_FLAC_FRAME + 1) * MAX_BLOCK:
        raise ValueError(f"{size} bytes cannot hold the {n_samples} samples that its header states")
    if n_samples == 0:
        return False

    # The audio begins behind the block of metadata that is marked as the last.
    audio_at = begin + 4
    last = False
    while not last:
        file.seek(audio_at)
        kind, length = struct.unpack(">B3s", file.read(4))
        last = bool(kind & 0x80)
        audio_at += 4 + int.from_bytes(length)
    most = (n_samples // max(min_block, 1) + 1) * max_frame
    return max_frame == 0 or size - audio_at <= most + 2**16


def _mp3_is_whole(file: BinaryIO, size: int) -> bool:
    """Only with a Xing header that states frames and bytes, behind which the file ends, or tags follow."""
    _skip_id3(file)
    begin = file.tell()
    head = file.read(200)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or int.from_bytes(head[at + 4 : at + 8]) & 3 != 3:
        return False
    n_frames, n_bytes = struct.unpack(">II", head[at + 8 : at + 16])
    if n_frames > (size - begin) // MIN_MP3_FRAME + 1:
        raise ValueError(f"{size} bytes cannot hold the {n_frames} MPEG frames that its header states")
    file.seek(begin + n_bytes)
    after = file.read(16)
    return not after.strip(b"\0") or after.startswith(MP3_TAGS)


def _skip_id3(file: BinaryIO) -> None:
    position = 0
    while (header := file.read(10))[:3] == b"ID3":
        length = 0
        for byte in header[6:]:
            length = length << 7 | byte & 0x7F
        position += 10 + length + 10 * bool(header[5] & 0x10)
        file.seek(position)
    file.seek(position)


def _ogg_is_whole(file: BinaryIO, size: int) -> bool:
    """Not where a second stream begins behind the first."""
    first_page = file.read(28)
    begins = first_page[:4] + b"\0\2"
    held = b""
    while block := file.read(2**20):
        if begins in held + block:
            return False
        held = block[-len(begins) :]
    return True


# ---------------------------------------------------------------- until the data ends


NOTHING = np.zeros((0, 1), np.float32)


class Decoder:
    """A file decoded from its beginning by FFmpeg's libraries, whatever its header says of its length. The
    samples are those of libsndfile, to their rounding."""

    def __init__(self, path: Path, kind: str, sample_rate: int):
        """`kind`: a key of DEMUXERS; `sample_rate`: libsndfile's, which for Opus need not be FFmpeg's."""
        self.path = path
        self.kind = kind
        self.sample_rate = sample_rate
        self._blocks: Iterator[np.ndarray] = iter(())
        self._held: np.ndarray | None = None
        self._position = 0

    def read(self, start: int, wanted: int) -> np.ndarray:
        """At most `wanted` frames from `start` on, (frames, channels) float32. Raises AudioFileError."""
        if self._held is None or start < self._position:
            self._blocks = self.blocks()
            self._held = next(self._blocks, NOTHING)
            self._position = 0
        parts = [self._held[:0]]
        end = start + wanted
        while self._position < end and len(self._held):
            first = max(0, start - self._position)
            last = min(len(self._held), end - self._position)
            parts.append(self._held[first:last])
            self._held = self._held[last:]
            self._position += last
            if len(self._held) == 0:
                self._held = next(self._blocks, NOTHING)
        return np.concatenate(parts)

    def blocks(self) -> Iterator[np.ndarray]:
        """All of the file, (frames, channels) float32 each. Raises AudioFileError for damage within it."""
        import av

        demuxer = DEMUXERS[self.kind]
        options = {"ignore_length": "1"} if demuxer == "wav" else {}
        try:
            with self.path.open("rb") as file, av.open(file, format=demuxer, options=options) as container:
                layout = container.streams.audio[0].codec_context.layout
                resampler = av.AudioResampler("fltp", layout, self.sample_rate)
                for frame in _frames(container):
                    for part in resampler.resample(frame):
                        yield np.ascontiguousarray(part.to_ndarray().T)
        except (av.error.FFmpegError, IndexError, ValueError) as error:
            raise AudioFileError(f"{self.path}: cannot be read as audio: {error}") from error


def _frames(container: Any) -> Iterator[Any]:
    """FFmpeg's frames of an open file, and None behind the last."""
    import av

    damage = None
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            damage = error
            continue
        # Damage is where a file was cut, unless more follows it.
        if damage is not None and frames:
            raise damage
        for frame in frames:
            # Times begin anew where one file is joined to another, which would drop the rest.
            frame.pts = None
            yield frame
    yield None


@functools.lru_cache(maxsize=2**16)
def decoded_frames(path: Path, kind: str, sample_rate: int, stamp: tuple[int, int]) -> int:
    """The number of frames that a file, as its `stamp_of` is, really holds. Raises as `Decoder.blocks`."""
    return sum(len(block) for block in Decoder(path, kind, sample_rate).blocks())
