"""Latents on disk: files and folders of them, whole after a kill, written by any number of processes and read
at random.

    encode_corpus(lincae.load("study/listen"), ["data/jamendo"], "/mnt/latents")
    crops = LatentDataset("/mnt/latents", crop_frames=256, seed=0)
"""

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Event
from typing import IO, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lincae.data.audio import AudioFileError, audio_header
from lincae.data.containers import stamp_of
from lincae.data.folders import audio_files, claim, read_skipped, write_skipped
from lincae.data.streams import (
    BLOCK_S,
    begun_ahead,
    decode_blocks,
    encode_blocks,
    length_and_blocks,
    read_ahead,
)
from lincae.interface import AutoencoderLike, check_fields, first_non_finite
from lincae.machine import generator
from lincae.machine.files import atomic_write, json_object, locked, sha256_of, tensors_in

VERSION = 1
KEY = "lincae.latents"  # under which a header has its description
SUFFIX = ".safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
CODES = {"float32": "F32", "float16": "F16"}  # as safetensors calls them
CHANNELS = ("mean", "all")
SPOOLED_BYTES = 2**26  # held in memory of a long file while it is encoded
SHARD_BYTES = 2**27  # a shard is full with so many bytes,
SHARD_FILES = 10_000  # or so many audio files: its header is not to grow too long
FILES_TOGETHER = 8  # that an accelerator encodes in one batch
READERS = 4  # threads that read the files that come next,
BLOCKS_AHEAD = 16  # so many of each at a time
FILES_BEHIND = 8  # that wait to be written while those after them are encoded,
WINDOWS_BEHIND = 16  # so many windows of each at a time
SPARE_FRAMES = 64  # that a model may leave out at the ends of a signal
OPEN_SHARDS = 32  # that a dataset keeps mapped, in each process
MANIFEST = "latents.json"
SKIPPED = "skipped.csv"

log = logging.getLogger(__name__)


class LatentFileError(ValueError):
    """Latents on disk that cannot be used; the message names the file."""


# ---------------------------------------------------------------- whose latents


def describe(model: AutoencoderLike) -> dict[str, Any]:
    """What latents on disk say of their model: name, fingerprint, sample rate (Hz), latent rate (Hz)."""
    return {
        "name": model.name,
        "fingerprint": model.fingerprint(),
        "sample_rate": model.sample_rate,
        "latent_rate": model.latent_rate,
    }


def check_same_model(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str | Path) -> None:
    """Raises LatentFileError, naming both, where two descriptions have different fingerprints."""
    if found["fingerprint"] != wanted["fingerprint"]:
        theirs, ours = (f"{model['name']} (hash {model['fingerprint'][:16]})" for model in (found, wanted))
        raise LatentFileError(f"{where} holds latents of another model: {theirs}, not of {ours}")


def check_description(model: Any, where: str | Path) -> None:
    """Raises LatentFileError, naming `where` it stands, for what `describe` does not return."""
    described = model if isinstance(model, dict) else {}
    for key in ("name", "fingerprint"):
        value = described.get(key)
        if not isinstance(value, str):
            raise LatentFileError(f"{where}: {key} of the model must be text, got {value!r:.80}")
    for key in ("sample_rate", "latent_rate"):
        value = described.get(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise LatentFileError(f"{where}: {key} of the model must be a number > 0, got {value!r:.80}")


def claim_for_model(
    path: Path, holds: str, facts: Mapping[str, Any], model: Mapping[str, Any], later: Collection[str]
) -> None:
    """`claim` of a folder of latents of one model. Raises as `claim`; LatentFileError for another model's."""
    found = claim(path, holds, facts, {"model": model}, later).get("model")
    check_description(found, path)
    check_same_model(found, model, path.parent)


# ---------------------------------------------------------------- one file


@dataclass(frozen=True)
class Entry:
    """The latents of one audio file: `channels` items of `n_samples` at the model's rate each.

    `parts`: first frame and number of frames of every tensor. `source`: size in bytes, time of modification
    (ns) and sha256 of the audio file, where these were noted. `edition`: how often that file was encoded; of
    two entries with its name the higher one counts.
    """

    file: str
    n_samples: int
    channels: int
    latent_channels: int
    parts: tuple[tuple[int, int], ...]
    source: tuple[int, int, str] | None = None
    edition: int = 1

    def __post_init__(self):
        """Raises ValueError, naming the field, for what cannot be."""
        check_fields(self)
        for name in ("n_samples", "channels", "latent_channels", "edition"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        frame = 0
        for first, n_frames in self.parts:
            if first != frame or n_frames < 1:
                wanted = f"[{frame}, a number of frames]"
                raise ValueError(f"the next of parts must be {wanted}, got [{first}, {n_frames}]")
            frame += n_frames
        if frame == 0:
            raise ValueError("parts must be one or more, got none")

    @property
    def n_frames(self) -> int:
        return sum(frames for _, frames in self.parts)

    @property
    def n_values(self) -> int:
        return self.channels * self.latent_channels * self.n_frames

    @classmethod
    def from_json(cls, values: Any, where: str) -> "Entry":
        """Raises LatentFileError, naming `where` it stands and the value, for what cannot be."""

        try:
            parts = tuple(tuple(part) if isinstance(part, list) else part for part in values["parts"])
            source = values.get("source")
            source = tuple(source) if isinstance(source, list) else source
            return cls(**values | {"parts": parts, "source": source})
        except KeyError as error:
            raise LatentFileError(f"{where} lacks {error}, got {values!r:.80}") from error
        except (TypeError, ValueError) as error:
            raise LatentFileError(f"{where}: {error}, got {values!r:.80}") from error


def read_header(path: str | Path) -> tuple[dict[str, Any], list[Entry]]:
    """What a file says of its model and its dtype, and its entries.

    A file of latents is a safetensors file with tensors (B, C, L) of consecutive frames, B being the channels
    of an audio file: part p of entry k is the tensor "k.p". Its header has `KEY`, a JSON object.

    Raises FileNotFoundError; LatentFileError for what no file of latents can say.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of latents")
    tensors = {}
    try:
        with tensors_in(path) as file:
            text = (file.metadata() or {}).get(KEY)
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                tensors[name] = (tensor.get_dtype(), *tensor.get_shape())
    except SafetensorError as error:
        raise LatentFileError(f"{path} is not a whole safetensors file: {error}") from error
    if text is None:
        raise LatentFileError(f"{path} is a safetensors file, but not one of latents")

    header = json_object(text, f"{path}: its header", LatentFileError)
    version = header.get("version")
    if version != VERSION:
        raise LatentFileError(f"{path}: latents of version {version}, this lincae reads {VERSION}")
    check_description(header.get("model"), path)
    dtype = header.get("dtype")
    if dtype not in tuple(DTYPES):
        raise LatentFileError(f"{path}: dtype must be one of {tuple(DTYPES)}, got {dtype!r:.80}")
    listed = header.pop("entries", None)
    if not isinstance(listed, list) or not listed:
        raise LatentFileError(f"{path}: entries must be a list of one or more, got {listed!r:.80}")

    hop = header["model"]["sample_rate"] / header["model"]["latent_rate"]
    entries = []
    for k, values in enumerate(listed):
        where = f"{path}: entry {k}"
        entry = Entry.from_json(values, where)
        # A decoder is told the length: it must not ask for more than the frames can stand for.
        if entry.n_samples > 2 * hop * (entry.n_frames + SPARE_FRAMES):
            states = f"n_samples {entry.n_samples!r:.80} of {entry.n_frames} latent frames"
            raise LatentFileError(f"{where} ({entry.file}) states {states}")
        for p, (_, frames) in enumerate(entry.parts):
            stated = (CODES[dtype], entry.channels, entry.latent_channels, frames)
            found = tensors.get(f"{k}.{p}")
            if stated != found:
                raise LatentFileError(f"{where}: the header states {stated} for part {p}, there is {found}")
        entries.append(entry)
    return header, entries


def check_suffix(path: str | Path) -> Path:
    """The path of a file of latents to write. Raises ValueError for another suffix than SUFFIX."""
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"{path}: a file of latents must end in {SUFFIX}")
    return Path(path)


def write_latents(
    path: str | Path,
    model: Mapping[str, Any],
    name: str,
    latents: Iterable[Tensor],
    n_samples: int,
    dtype: str = "float32",
    **about: Any,
) -> Entry:
    """Write a file with the latents (B, C, L_i) of one audio file, consecutive in time, as they come.

    `n_samples` is the length of the audio file at the model's rate, `about` the `source` and `edition` of its
    entry, which is returned. Raises ValueError as `check_suffix`; OSError, naming the file; LatentFileError
    for values that are not finite, or too large for float16, and for no frames.
    """
    path = check_suffix(path)
    parts = []
    frame = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=path.parent) as data:
            for part in latents:
                stored = part.detach().to("cpu", DTYPES[dtype]).contiguous()
                if first_non_finite(stored) is not None:
                    too_large = first_non_finite(part) is None
                    fix = f"exceed {dtype}: use float32" if too_large else "are not finite"
                    raise LatentFileError(f"{name}: latents from frame {frame} on {fix}")
                data.write(stored.numpy())
                parts.append((frame, part.shape[-1]))
                frame += part.shape[-1]
            if not parts:
                raise LatentFileError(f"{name}: no latents")
            entry = Entry(name, n_samples, *part.shape[:2], tuple(parts), **about)
            data.seek(0)
            write_whole(path, model, dtype, [entry], [data])
    except OSError as error:
        raise OSError(f"{path}: latents of {name} cannot be written: {error}") from error
    return entry


def write_whole(
    path: Path, model: Mapping[str, Any], dtype: str, entries: Sequence[Entry], contents: Iterable[IO[bytes]]
) -> None:
    """Write a file of entries whose tensors are the rest of some open files, one after the other."""
    description = {"version": VERSION, "dtype": dtype, "model": model}
    description["entries"] = [asdict(entry) for entry in entries]
    tensors: dict[str, Any] = {"__metadata__": {KEY: json.dumps(description)}}
    start = 0
    for k, entry in enumerate(entries):
        for p, (_, frames) in enumerate(entry.parts):
            shape = (entry.channels, entry.latent_channels, frames)
            stop = start + math.prod(shape) * DTYPES[dtype].itemsize
            tensors[f"{k}.{p}"] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, stop]}
            start = stop
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for content in contents:
            shutil.copyfileobj(content, file, 2**20)


# ---------------------------------------------------------------- a folder


class Shards:
    """The files of latents, `RANK-NUMBER.safetensors`, that one process, `rank` of `world`, adds to a folder.

    Until one is full, its audio files have a file of latents each, in `RANK-NUMBER.part`. A kill costs the
    audio files that were not written yet, and no other; what a killed process left becomes a shard. (LitData,
    which writes shards, brings torchvision, whose wheels do not load beside a CPU-only torch.)

    `done`: the entries of all audio files that are encoded already, whoever did it, by name.
    """

    def __init__(
        self, folder: Path, model: Mapping[str, Any], dtype: str = "float32", rank: int = 0, world: int = 1
    ):
        """Raises OSError; LatentFileError for damaged files in the folder."""
        self.folder = folder
        self.model = model
        self.dtype = dtype
        self.rank = rank
        for begun in shard_files(folder, ".part"):
            if int(begun.name.split("-")[0]) % world == rank:
                self._make_whole(begun)

        # Parts first: what one holds may be in a shard a moment later, but never the other way round.
        entries: list[Entry] = []
        for path in [*folder.glob(f"*.part/*{SUFFIX}"), *shard_files(folder)]:
            with contextlib.suppress(FileNotFoundError):
                entries += read_header(path)[1]
        self.done = {entry.file: entry for entry in sorted(entries, key=lambda entry: entry.edition)}
        self._begin()

    def _begin(self) -> None:
        shards = self.folder.glob(f"{self.rank:05d}-*{SUFFIX}")
        number = max((int(path.stem.split("-")[1]) for path in shards), default=-1) + 1
        self._begun = self.folder / f"{self.rank:05d}-{number:06d}.part"
        self._n_files = 0
        self._n_values = 0

    def add(
        self, name: str, latents: Iterable[Tensor], n_samples: int, source: tuple[int, int, str] | None = None
    ) -> None:
        """Write the latents of one audio file, in place of those that it has. Raises as `write_latents`."""
        n_bytes = self._n_values * DTYPES[self.dtype].itemsize
        if n_bytes >= SHARD_BYTES or self._n_files >= SHARD_FILES:
            self.finish()
        path = self._begun / f"{self._n_files:06d}{SUFFIX}"
        edition = self.done[name].edition + 1 if name in self.done else 1
        entry = write_latents(
            path, self.model, name, latents, n_samples, self.dtype, source=source, edition=edition
        )
        self._n_files += 1
        self._n_values += entry.n_values
        self.done[name] = entry

    def finish(self) -> None:
        """Make a shard of what was added since the last one. Raises OSError."""
        if self._begun.is_dir():
            self._make_whole(self._begun)
            self._begin()

    def _make_whole(self, begun: Path) -> None:
        shard = begun.with_suffix(SUFFIX)
        paths = sorted(begun.glob(f"*{SUFFIX}"))
        if paths and not shard.exists():  # it does after a kill before the last step here
            entries = [entry for path in paths for entry in read_header(path)[1]]
            write_whole(begun / "whole", self.model, self.dtype, entries, tensor_bytes(paths))
            os.replace(begun / "whole", shard)
        shutil.rmtree(begun)


def tensor_bytes(paths: Iterable[Path]) -> Iterator[IO[bytes]]:
    """Safetensors files, each opened behind its header."""
    for path in paths:
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            yield file


def shard_files(folder: Path, suffix: str = SUFFIX) -> list[Path]:
    return sorted(folder.glob(f"[0-9]*-[0-9]*{suffix}"))


# ---------------------------------------------------------------- a corpus


@dataclass(frozen=True)
class Summary:
    """What one process did: files and seconds of audio encoded, files encoded before, file -> why skipped."""

    encoded: int
    seconds: float
    present: int
    skipped: dict[str, str]


def named_files(folders: Sequence[str | Path]) -> dict[str, Path]:
    """FOLDER/relative/name -> path of all audio files in some folders. Raises as `audio_files`; ValueError
    for two folders of one name."""
    roots = [Path(folder) for folder in folders]
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise ValueError(f"folders must differ in their names, which become those of the files, got {names}")
    found = {}
    for name, root in zip(names, roots, strict=True):
        for path in audio_files(root):
            found[f"{name}/{path.relative_to(root).as_posix()}"] = path
    return found


def changed_source(path: Path, known: Entry | None, sample_rate: int) -> tuple[int, int, str] | None:
    """The `source` of an `Entry` for an audio file; None where `known` is the entry of that sound.

    A file is read only where its time of modification has changed. Entries of earlier versions note the
    length of a sound alone. Raises AudioFileError.
    """
    source = known.source if known else None
    try:
        stamp = stamp_of(path)
        if source and source[:2] == stamp:
            return None
        if known and not source:
            rate, n_frames = audio_header(path)
            if -(-n_frames * sample_rate // rate) == known.n_samples:
                return None
        sha256 = sha256_of(path)
    except OSError as error:
        raise AudioFileError(f"{path}: {error}") from error
    if source and sha256 == source[2]:
        return None
    return *stamp, sha256


class Together:
    """Files that are encoded a window of each at a time, all of a turn in one batch."""

    def __init__(self, model: AutoencoderLike, count: int):
        self.model = model
        self.count = count
        self.files: deque[tuple[str, Iterator[Any], deque[Any]]] = deque()

    def __call__(self, begun: Iterable[tuple[str, Iterator[Any]]]) -> Iterator[tuple[str, Iterator[Any]]]:
        """Files by name, each with what `read` of `encode_corpus` says and latents in the place of blocks,
        made when they are asked for, with those of the files after it. Raises AudioFileError in its turn."""
        for name, found in begun:
            made: deque[Any] = deque()
            self.files.append((name, self._windows(found, made), made))
            if len(self.files) == self.count:
                yield from self._first()
        while self.files:
            yield from self._first()

    def _first(self) -> Iterator[tuple[str, Iterator[Any]]]:
        name, _, made = self.files[0]
        yield name, self._all(made)
        self.files.popleft()

    def _all(self, made: deque[Any]) -> Iterator[Any]:
        while made or self._advance(made):
            item = made.popleft()
            if isinstance(item, AudioFileError):
                raise item
            yield item

    def _advance(self, wanted: deque[Any]) -> bool:
        """Encode the next window of each file; whether that made something `wanted`."""
        following = [(made, next(windows, None)) for _, windows, made in self.files]
        taken = [(made, window) for made, window in following if window is not None]
        latents = self.model.encode_windows([window for _, window in taken])
        for (made, _), z in zip(taken, latents, strict=True):
            made.append(z)
        return bool(wanted)

    def _windows(self, found: Iterator[Any], made: deque[Any]) -> Iterator[Any]:
        """The windows of a file; what comes before its blocks, and an error at its end, are made at once."""
        try:
            made.append(next(found))
            if made[-1] is not None:
                made.append(next(found))
                yield from self.model.windows(found)
        except AudioFileError as error:
            made.append(error)


class Behind:
    """Adds files to shards in a thread, in their order, while the latents of those after them are made.

    `n_samples`: of the files that were written. `skipped`: file -> why, of those that could not be.
    """

    def __init__(self, shards: Shards, thread: Executor):
        self.shards = shards
        self.thread = thread
        self.n_samples = 0
        self.skipped: dict[str, str] = {}
        self._waiting: deque[tuple[str, Future[None], int]] = deque()

    def add(self, name: str, latents: Iterable[Tensor], n_samples: int, source: tuple[int, int, str]) -> None:
        """Hand over latents as they are made, once few files wait to be written. Raises as `wait`."""
        self.wait(FILES_BEHIND)
        handed: Queue[Tensor | AudioFileError | None] = Queue(WINDOWS_BEHIND)
        over = Event()
        written = self.thread.submit(self._write, name, handed, over, n_samples, source)
        self._waiting.append((name, written, n_samples))
        fault: AudioFileError | None = AudioFileError(f"{name}: the encoding was interrupted")
        try:
            for z in latents:
                handed.put(z)
                if over.is_set():
                    break
            fault = None
        except AudioFileError as error:
            fault = error
        finally:
            if fault is not None:
                handed.put(fault)
            handed.put(None)

    def _write(
        self, name: str, handed: Queue, over: Event, n_samples: int, source: tuple[int, int, str]
    ) -> None:
        items = iter(handed.get, None)

        def latents() -> Iterator[Tensor]:
            for item in items:
                if isinstance(item, AudioFileError):
                    raise item
                yield item

        try:
            self.shards.add(name, latents(), n_samples, source)
        finally:
            over.set()
            for _ in items:
                pass  # whoever hands over must not wait for an error

    def wait(self, most: int = 0) -> None:
        """Wait until at most so many files are left to be written. Raises OSError, naming the file."""
        while len(self._waiting) > most:
            name, written, n_samples = self._waiting.popleft()
            try:
                written.result()
                self.n_samples += n_samples
            except (AudioFileError, LatentFileError) as error:
                self.skip(name, error)

    def skip(self, name: str, error: ValueError) -> None:
        self.skipped[name] = str(error)
        log.warning("skipped: %s", error)


def encode_corpus(
    model: AutoencoderLike,
    folders: Sequence[str | Path],
    out: str | Path,
    dtype: str = "float32",
    channels: str = "mean",
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
    together: int | None = None,
) -> Summary:
    """Encode the audio files of some folders into a folder of shards; a later call continues a killed one.

    Of `world` processes this one, `rank`, takes every world-th file. Threads read the files that come next,
    and write those before: a kill costs FILES_BEHIND files at most besides the one that is being encoded.
    Windows of `together` files make a batch (by default of one on a CPU, else of FILES_TOGETHER).
    A file is encoded again only where it has changed, or failed before. `channels`: "mean" encodes the mean
    of a file's channels, "all" each of them, as items of a batch.

    Raises ValueError for an `out` of something else, or of another model (naming both), dtype, precision or
    choice of channels, and where another process works as the same rank; LatentFileError for damaged files in
    `out`; OSError, e.g. on a full disk: what was encoded before stays.
    """
    out = Path(out)
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
    for name, value, allowed in (("channels", channels, CHANNELS), ("dtype", dtype, tuple(DTYPES))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")

    files = named_files(folders)
    mine = list(files)[rank::world]
    described = describe(model)
    facts = {"version": VERSION, "dtype": dtype, "channels": channels}
    facts["precision"] = getattr(model, "precision", "fp32")
    claim_for_model(out / MANIFEST, "latents", facts, described, later=("precision",))
    present = 0
    lock = locked(out / f".{rank:05d}.lock", f"process {rank} of another run encodes into {out}")
    with lock, ThreadPoolExecutor(READERS) as pool, ThreadPoolExecutor(1) as writer:
        shards = Shards(out, described, dtype, rank, world)
        behind = Behind(shards, writer)

        def begin(name: str) -> Iterator[Any]:
            return read_ahead(pool, read(name), BLOCKS_AHEAD)

        def read(name: str) -> Iterator[Any]:
            """What `changed_source` says, then of a file to be encoded the length and the blocks."""
            source = changed_source(files[name], shards.done.get(name), model.sample_rate)
            yield source
            if source is not None:
                length, blocks = length_and_blocks(files[name], model.sample_rate, channels)
                yield length
                yield from blocks

        begun = begun_ahead(mine, begin, READERS)
        if together is None:
            on_cpu = getattr(model, "device", torch.device("cpu")).type == "cpu"
            together = 1 if on_cpu else FILES_TOGETHER
        in_batches = together > 1 and hasattr(model, "encode_windows")
        if in_batches:
            begun = Together(model, together)(begun)
        bar = tqdm(desc="encoding", total=len(mine), unit="file", disable=not progress or rank > 0)
        try:
            for name, found in begun:
                bar.update()
                try:
                    source = next(found)
                    if source is None:
                        present += 1
                        continue
                    if name in shards.done:
                        log.warning("%s has changed since it was encoded: it is encoded anew", files[name])
                    length = next(found)
                    latents = found if in_batches else encode_blocks(model, found)
                    behind.add(name, latents, length, source)
                except AudioFileError as error:
                    behind.skip(name, error)
            behind.wait()
            shards.finish()
            skipped = {name: behind.skipped[name] for name in mine if name in behind.skipped}
            with locked(out / f".{SKIPPED}.lock"):
                known = read_skipped(out / SKIPPED)
                others = set(files) - set(mine)
                rows = {name: reason for name, reason in known.items() if name in others}
                if rows | skipped != known:
                    write_skipped(out / SKIPPED, rows | skipped)
        except OSError as error:
            error.add_note(f"What was encoded until then stays in {out}: the same command continues.")
            raise
    encoded = len(mine) - present - len(skipped)
    return Summary(encoded, behind.n_samples / model.sample_rate, present, skipped)


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
        self.source = Path(source)
        self.crop_frames = crop_frames
        self.seed = seed
        # in memory that data workers share, so that those that outlast an epoch see the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        paths = shard_files(self.source) if self.source.is_dir() else [self.source]
        if not paths:
            raise FileNotFoundError(f"{source} holds no latents (`lincae encode` writes them)")
        if unfinished := shard_files(self.source, ".part"):
            log.warning("%s: encoding goes on or was killed; %d shards are missing", source, len(unfinished))

        found = []
        for path in paths:
            header, entries = read_header(path)
            if path == paths[0]:
                self.model = header["model"]
                self.dtype = header["dtype"]
            check_same_model(header["model"], self.model, path)
            found += [(path, k, entry) for k, entry in enumerate(entries)]
        found.sort(key=lambda item: (item[2].file, item[2].edition))  # whoever wrote it
        self._entries = {item[2].file: item for item in found}

        shortest = 1 if crop_frames is None else crop_frames
        self._items: list[tuple[str, int]] = []
        for _, _, entry in self._entries.values():
            if entry.n_frames >= shortest >= 1:
                self._items += [(entry.file, channel) for channel in range(entry.channels)]
        if not self._items:
            longest = max(entry.n_frames for _, _, entry in self._entries.values())
            allowed = f"1..{longest}, the longest file"
            raise ValueError(f"{source}: crop_frames must lie in {allowed}, got {crop_frames}")
        self._open: dict[Path, Any] = {}

    # -------- what there is

    @property
    def files(self) -> list[str]:
        return list(self._entries)

    def entry(self, file: str) -> Entry:
        """Length, channels and frames of a file. Raises LatentFileError, naming what there is."""
        if file not in self._entries:
            raise LatentFileError(f"{self._holds}, no {file!r}")
        return self._entries[file][2]

    def only_file(self) -> str:
        """The one file that there is. Raises LatentFileError for several, naming the first."""
        if len(self.files) > 1:
            raise LatentFileError(f"{self._holds}: name one")
        return self.files[0]

    @property
    def _holds(self) -> str:
        return f"{self.source} has {len(self.files)} files ({', '.join(self.files[:3])}, ...)"

    def check_model(self, model: AutoencoderLike) -> None:
        """Raises LatentFileError, naming both, unless `model` made these latents."""
        check_same_model(self.model, describe(model), self.source)

    # -------- items to train on

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        """(C, L), or (C, crop_frames). Raises IndexError beyond the end, else as `frames`."""
        file, channel = self._items[index]
        if self.crop_frames is None:
            return self.frames(file)[channel]
        n_starts = self.entry(file).n_frames - self.crop_frames + 1
        draw = generator(self.seed, int(self._epoch), index % len(self))
        start = int(torch.randint(n_starts, (), generator=draw))
        return self.frames(file, start, self.crop_frames)[channel]

    def set_epoch(self, epoch: int) -> None:
        """Draw the stretches of this epoch from now on, in running data workers as well."""
        self._epoch.fill_(epoch)

    # -------- stretches of a file

    def frames(self, file: str, first: int = 0, n_frames: int | None = None) -> Tensor:
        """Latents (B, C, n_frames) of a file from its frame `first` on, by default to its end.

        Raises ValueError for frames that the file does not have; LatentFileError for an unknown file and for
        values that are not finite.
        """
        first, stop = self._range(file, first, n_frames)
        path, k, entry = self._entries[file]
        pieces = []
        for p, (start, length) in enumerate(entry.parts):
            low = max(first - start, 0)
            high = min(stop - start, length)
            if low < high:
                pieces.append(self._mapped(path).get_slice(f"{k}.{p}")[:, :, low:high])
        z = torch.cat(pieces, -1).float()

        bad = first_non_finite(z)
        if bad is not None:
            place = f"channel {bad[0]}, latent channel {bad[1]}, frame {first + bad[2]}"
            raise LatentFileError(f"{path}: latents of {file} are not finite, first at {place}")
        return z

    def seconds(self, file: str, start_s: float = 0.0, seconds: float | None = None) -> Tensor:
        """Latents (B, C, L) of a stretch of a file, to its end by default; both ends at the nearest frame.
        Raises as `frames`, and ValueError for a time that no file can have, such as infinity."""
        return self.frames(file, *self._stretch(start_s, seconds))

    def decode(
        self,
        model: AutoencoderLike,
        file: str,
        start_s: float = 0.0,
        seconds: float | None = None,
        seed: int = 0,
        steps: int = 1,
    ) -> Iterator[Tensor]:
        """Consecutive audio (B, T_i) of a stretch of a file, in constant memory if the model streams.

        The noise is that of the file's own frames, but at the ends of a stretch a decoder misses what was cut
        off. Raises as `check_model` and `seconds`.
        """
        self.check_model(model)
        first, stop = self._range(file, *self._stretch(start_s, seconds))
        entry = self.entry(file)
        length = None
        if stop == entry.n_frames:
            length = entry.n_samples - first * round(model.sample_rate / model.latent_rate)
        size = math.ceil(BLOCK_S * model.latent_rate)
        latents = (self.frames(file, a, min(size, stop - a)) for a in range(first, stop, size))

        def blocks() -> Iterator[Tensor]:
            try:
                yield from decode_blocks(model, latents, length, seed, steps, first)
            except ValueError as error:
                raise LatentFileError(f"{self.source}: latents of {file}: {error}") from error

        return blocks()

    def _stretch(self, start_s: float, seconds: float | None) -> tuple[int, int | None]:
        """First frame and number of frames of a stretch in seconds."""
        rate = self.model["latent_rate"]
        for name, value in (("start_s", start_s), ("seconds", seconds or 0.0)):
            if not abs(value * rate) < 2**53:
                raise ValueError(f"{name} must be finite and within the file, got {value} s")
        first = round(start_s * rate)
        n_frames = None if seconds is None else round((start_s + seconds) * rate) - first
        return first, n_frames

    def _range(self, file: str, first: int, n_frames: int | None) -> tuple[int, int]:
        """First frame of a stretch and the one behind it, if the file has them."""
        available = self.entry(file).n_frames
        stop = available if n_frames is None else first + n_frames
        if not 0 <= first < stop <= available:
            wanted = f"{'all' if n_frames is None else n_frames} from {first} on"
            raise ValueError(f"{file} has frames 0..{available - 1}, wanted {wanted}")
        return first, stop

    def _mapped(self, path: Path) -> Any:
        if path not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[path] = tensors_in(path)
        return self._open[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # maps do not travel to data workers
