"""Latents of many audio files: a folder of shards, written by any number of processes and read at random.

    python -m lincae.commands.latents encode data/jamendo /mnt/latents --model desk/lin-cae

A folder has `latents.json` (written first: the model, the dtype, the channels), shards
`RANK-NUMBER.safetensors` (`lincae.latents.files`), and `skipped.csv` (file, reason) once files failed. Every
process takes its part of the files, by rank, and writes shards of its own; which process wrote what does not
matter to later ones.

Axis legend: `B` batch (channels of a file), `T` samples, `C` latent channels, `L` latent frames.
"""

import contextlib
import csv
import io
import logging
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lincae.data.audio import AudioFileError
from lincae.data.streams import BLOCK_S, decode_blocks, encode_file
from lincae.data.tracks import audio_files
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike
from lincae.latents.files import (
    DTYPES,
    SUFFIX,
    VERSION,
    Entry,
    LatentFileError,
    Shard,
    check_same_model,
    claim,
    describe,
    journalled,
    read_header,
    tensor_name,
)
from lincae.machine import generator

MANIFEST, SKIPPED = "latents.json", "skipped.csv"
SHARD_BYTES, SHARD_FILES = 2**27, 10_000  # a shard is full with either; its header is not to grow too long
CHANNELS = ("mean", "all")
OPEN_SHARDS = 32  # that a dataset keeps mapped, in each process

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Summary:
    """What one process did: files and seconds of audio encoded, files encoded before, file -> why skipped."""

    encoded: int
    seconds: float
    present: int
    skipped: dict[str, str]


def named_files(folders: Sequence[str | Path]) -> dict[str, Path]:
    """FOLDER/relative/name -> path of all audio files in some folders, at any depth (`tracks.audio_files`).

    Raises FileNotFoundError for a folder that is missing or without audio; ValueError for two of one name.
    """
    roots = [Path(folder) for folder in folders]
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise ValueError(f"folders must differ in their names, which become those of the files, got {names}")
    return {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in zip(names, roots, strict=True)
        for path in audio_files(root)
    }


def encode_corpus(
    model: AutoencoderLike,
    folders: Sequence[str | Path],
    out: str | Path,
    dtype: str = "float32",
    channels: str = "mean",
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> Summary:
    """Encode the audio files of some folders into a folder of shards; a later call continues a killed one.

    Of `world` processes this one, `rank`, takes every world-th file. A file that is encoded already is not
    encoded again, whoever did it; one that failed before is tried again. `channels`: "mean" encodes the mean
    of a file's channels, "all" each of them, as items of a batch.

    Raises ValueError for an `out` that holds something else, or latents of another model (naming both), dtype
    or choice of channels, and where another process works as the same rank; LatentFileError for damaged files
    in `out`; OSError, e.g. on a full disk: what was encoded before stays.
    """
    out = Path(out)
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
    for name, value, allowed in (("channels", channels, CHANNELS), ("dtype", dtype, tuple(DTYPES))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    files = named_files(folders)
    described = describe(model)
    manifest = {"version": VERSION, "dtype": dtype, "channels": channels, "model": described}
    claim(out / MANIFEST, "latents", manifest)
    with _alone(out / f".{rank:05d}.lock", f"process {rank} of another run encodes into {out}"):
        # journals first: what one holds may be in a shard a moment later, but never the other way round
        done = {entry.file for path in _shards(out, ".jsonl") for _, entry in journalled(path, dtype)}
        done |= {entry.file for path in _shards(out) for entry in read_header(path)[1]}
        shard = _continued(out, described, dtype, rank, world)
        numbers = [int(path.stem.split("-")[1]) for path in out.glob(f"{rank:05d}-*{SUFFIX}")]
        number, skipped, samples, encoded = max(numbers, default=-1) + 1, {}, 0, 0
        mine = list(files)[rank::world]
        try:
            for name in tqdm(mine, "encoding", unit="file", disable=not progress or rank > 0):
                if name in done:
                    continue
                if shard is not None and (shard.n_bytes >= SHARD_BYTES or len(shard.entries) >= SHARD_FILES):
                    shard.finish()
                    shard, number = None, number + 1
                shard = shard or Shard(out / f"{rank:05d}-{number:06d}{SUFFIX}", described, dtype)
                try:
                    n_samples, latents = encode_file(model, files[name], channels)
                    shard.add(name, latents, n_samples)
                except (AudioFileError, LatentFileError) as error:
                    skipped[name] = str(error)
                    log.warning("skipped: %s", error)
                    continue
                samples, encoded = samples + n_samples, encoded + 1
            if shard is not None:
                shard.finish()
            _report(out, set(files) - set(mine), skipped)
        except OSError as error:
            error.add_note(f"What was encoded until then stays in {out}: the same command continues.")
            raise
    present = len(mine) - encoded - len(skipped)
    return Summary(encoded, samples / model.sample_rate, present, skipped)


def _shards(folder: Path, suffix: str = SUFFIX) -> list[Path]:
    return sorted(folder.glob(f"[0-9]*-[0-9]*{suffix}"))


def _continued(out: Path, model: dict[str, Any], dtype: str, rank: int, world: int) -> Shard | None:
    """The shard that a killed process of this rank began. Those of ranks beyond `world` are finished."""
    own = None
    begun = [*_shards(out, ".jsonl"), *_shards(out, ".data")]
    for path in sorted({child.with_suffix(SUFFIX) for child in begun}):
        its_rank = int(path.stem.split("-")[0])
        if its_rank % world == rank:
            shard = Shard(path, model, dtype)
            if its_rank == rank and not path.exists():
                own = shard
            elif not path.exists():
                shard.finish()
    return own


@contextlib.contextmanager
def _alone(path: Path, problem: str) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends. Raises ValueError where another has it."""
    with path.open("a") as file:
        try:
            _lock(file, wait=False)
        except BlockingIOError as error:
            raise ValueError(f"{problem}: wait for it, or end it") from error
        yield


def _lock(file: IO, wait: bool) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:  # some file systems of clusters have no locks
        log.warning("%s cannot be locked: start no second run on this folder (%s)", file.name, error)


def _report(out: Path, others: Set[str], skipped: dict[str, str]) -> None:
    """List what this process skipped, beside what is listed of the `others`' files."""
    path = out / SKIPPED
    with (out / f".{SKIPPED}.lock").open("a") as lock:
        _lock(lock, wait=True)
        known = read_skipped(out)
        rows = {name: reason for name, reason in known.items() if name in others} | skipped
        if rows == known:
            return
        with atomic_write(path) as file:
            text = io.TextIOWrapper(
                file, "utf-8", errors="surrogateescape", newline="", write_through=True
            )  # of names that are not UTF-8
            csv.writer(text).writerows([("file", "reason"), *sorted(rows.items())])
            text.detach()


def read_skipped(folder: str | Path) -> dict[str, str]:
    """File -> reason of what could not be encoded."""
    path = Path(folder) / SKIPPED
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


# ---------------------------------------------------------------- reading


class LatentDataset(Dataset):
    """Latents on disk: a folder of `encode_corpus`, or one file of latents; read lazily, as float32.

    Item i is one channel of one file: its latents (C, L), or with `crop_frames` a stretch (C, crop_frames)
    whose place is a pure function of (seed, epoch, i), files that are shorter being left out. `set_epoch`
    before each epoch draws other stretches.
    """

    def __init__(self, source: str | Path, crop_frames: int | None = None, seed: int = 0):
        """Raises FileNotFoundError where there are no latents; LatentFileError for damaged ones, of several
        models or another version; ValueError where no file has `crop_frames`."""
        self.source, self.crop_frames, self.seed, self.epoch = Path(source), crop_frames, seed, 0
        paths = _shards(self.source) if self.source.is_dir() else [self.source]
        if not paths:
            raise FileNotFoundError(
                f"{source} holds no latents (python -m lincae.commands.latents encode writes them)"
            )
        if unfinished := _shards(self.source, ".data"):
            log.warning("%s: encoding goes on or was killed; %d shards are missing", source, len(unfinished))
        found: dict[str, tuple[Path, int, Entry]] = {}
        for path in paths:
            header, entries = read_header(path)
            if path == paths[0]:
                self.model, self.dtype = header["model"], header["dtype"]
            check_same_model(header["model"], self.model, path)
            found |= {entry.file: (path, k, entry) for k, entry in enumerate(entries)}
        self._entries = dict(sorted(found.items()))  # which process wrote a file does not matter
        shortest = 1 if crop_frames is None else crop_frames
        self._items = [
            (entry.file, channel)
            for _, _, entry in self._entries.values()
            for channel in range(entry.channels)
            if entry.n_frames >= shortest >= 1
        ]
        if not self._items:
            longest = max(entry.n_frames for _, _, entry in self._entries.values())
            raise ValueError(
                f"{source}: crop_frames must lie in 1..{longest}, the longest file, got {crop_frames}"
            )
        self._open: dict[Path, Any] = {}

    @property
    def files(self) -> list[str]:
        return list(self._entries)

    def entry(self, file: str) -> Entry:
        """Length, channels and frames of a file. Raises LatentFileError, naming what there is."""
        if file not in self._entries:
            known = ", ".join(self.files[:3])
            raise LatentFileError(f"{self.source} has {len(self._entries)} files ({known}, ...), no {file!r}")
        return self._entries[file][2]

    def only_file(self) -> str:
        """The one file that there is. Raises LatentFileError for several, naming the first."""
        if len(self._entries) > 1:
            some = ", ".join(self.files[:3])
            raise LatentFileError(f"{self.source} has {len(self._entries)} files, name one: {some}, ...")
        return self.files[0]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        """(C, L), or (C, crop_frames). Raises IndexError beyond the end, else as `frames`."""
        file, channel = self._items[index]
        if self.crop_frames is None:
            return self.frames(file)[channel]
        n_starts = self.entry(file).n_frames - self.crop_frames + 1
        draw = generator(self.seed, self.epoch, index % len(self))
        start = int(torch.randint(n_starts, (), generator=draw))
        return self.frames(file, start, self.crop_frames)[channel]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def frames(self, file: str, first: int = 0, n_frames: int | None = None) -> Tensor:
        """Latents (B, C, n_frames) of a file from its frame `first` on, to its end by default; B channels.

        Only these are read. Raises ValueError for frames that the file does not have; LatentFileError for an
        unknown file and for values that are not finite.
        """
        path, k, entry = self._range(file, first, n_frames)
        n_frames = entry.n_frames - first if n_frames is None else n_frames
        pieces = []
        for p, (start, length) in enumerate(entry.parts):
            low, high = max(first - start, 0), min(first + n_frames - start, length)
            if low < high:
                pieces.append(self._shard(path).get_slice(tensor_name(k, p))[:, :, low:high])
        z = torch.cat(pieces, -1).float()
        if not torch.isfinite(z).all():
            channel, latent_channel, frame = (~torch.isfinite(z)).nonzero()[0].tolist()
            place = f"channel {channel}, latent channel {latent_channel}, frame {first + frame}"
            raise LatentFileError(f"{path}: latents of {file} are not finite, first at {place}")
        return z

    def frame_at(self, time_s: float, name: str = "a time") -> int:
        """The frame nearest to a time in seconds: frame i begins at i / latent_rate.

        Raises ValueError, calling the time `name`, for one that no file can have, such as infinity.
        """
        place = time_s * self.model["latent_rate"]
        if not abs(place) < 2**53:
            raise ValueError(f"{name} must be finite and within the file, got {time_s} s")
        return round(place)

    def seconds(self, file: str, start_s: float = 0.0, seconds: float | None = None) -> Tensor:
        """Latents (B, C, L) of a stretch of a file, to its end by default; both ends at the nearest frame.

        Raises as `frames` and `frame_at`.
        """
        return self.frames(file, *self._stretch(start_s, seconds))

    def _stretch(self, start_s: float, seconds: float | None) -> tuple[int, int | None]:
        first = self.frame_at(start_s, "start_s")
        if seconds is None:
            return first, None
        self.frame_at(seconds, "seconds")
        return first, self.frame_at(start_s + seconds) - first

    def check_model(self, model: AutoencoderLike) -> None:
        """Raises LatentFileError, naming both, unless `model` made these latents."""
        check_same_model(self.model, describe(model), self.source)

    def decode(
        self,
        model: AutoencoderLike,
        file: str,
        start_s: float = 0.0,
        seconds: float | None = None,
        seed: int = 0,
        steps: int = 1,
    ) -> Iterator[Tensor]:
        """Blocks (B, T_i) of the audio of a stretch of a file, from the frame nearest to `start_s`.

        In constant memory if the model has `decode_stream`. The noise is that of the file's own frames, but
        at the ends of a stretch a decoder misses what was cut off. Raises as `check_model`, `frames` and
        `frame_at`.
        """
        self.check_model(model)
        first, n_frames = self._stretch(start_s, seconds)
        _, _, entry = self._range(file, first, n_frames)
        stop = entry.n_frames if n_frames is None else first + n_frames
        hop = round(model.sample_rate / model.latent_rate)
        length = entry.n_samples - first * hop if stop == entry.n_frames else None
        size = math.ceil(BLOCK_S * model.latent_rate)
        latents = (self.frames(file, a, min(size, stop - a)) for a in range(first, stop, size))
        return decode_blocks(model, latents, length, seed, steps, first)

    def _range(self, file: str, first: int, n_frames: int | None) -> tuple[Path, int, Entry]:
        entry = self.entry(file)
        if not (
            0 <= first < entry.n_frames and (n_frames is None or 1 <= n_frames <= entry.n_frames - first)
        ):
            wanted = f"{'all' if n_frames is None else n_frames} from {first} on"
            raise ValueError(f"{file} has frames 0..{entry.n_frames - 1}, wanted {wanted}")
        return self._entries[file]

    def _shard(self, path: Path) -> Any:
        if path not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[path] = safe_open(path, "pt")
        return self._open[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # maps do not travel to data workers
