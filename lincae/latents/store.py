"""Latents on disk: files and folders of them, whole after a kill, written by any number of processes and read
at random.

    encode_corpus(lincae.load("desk/lin-cae"), ["data/jamendo"], "/mnt/latents")
    crops = LatentDataset("/mnt/latents", crop_frames=256, seed=0)

A file of latents is a safetensors file with those of one or more audio files, each as one or more tensors
(B, C, L) of consecutive frames, B being the channels of the audio file. Its header says, as JSON under
`lincae.latents`, which model made them (`describe`) and what they are (`Entry`).

A folder has `latents.json` (written first: the model, the dtype, the channels), such files as shards, named
`RANK-NUMBER.safetensors`, and `skipped.csv` once audio files failed. Every process takes its part of the
audio files, by rank, and writes shards of its own; which process wrote what does not matter to later ones.

Until a shard is full, its tensors stand in `NAME.data`, byte after byte, and `NAME.jsonl` has one line for
every audio file whose latents are whole and on the disk. A line is added last, so that a crash costs the file
that was being encoded, and no other.

Not LitData: it brings torchvision, whose wheels do not load beside a CPU-only torch; and a safetensors slice
is one read from a memory map.
"""

import dataclasses
import glob
import json
import logging
import math
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lincae.checkpoints import tensors_in
from lincae.data.audio import AudioFileError, audio_header
from lincae.data.folders import audio_files, claim, read_skipped, write_skipped
from lincae.data.streams import BLOCK_S, decode_blocks, encode_file
from lincae.files import atomic_write, hidden, json_object, locked, sha256_of
from lincae.interface import AutoencoderLike, first_non_finite
from lincae.machine import generator

VERSION = 1
KEY = "lincae.latents"  # under which a header has its description
SUFFIX = ".safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
CODES = {"float32": "F32", "float16": "F16"}  # as safetensors calls them
CHANNELS = ("mean", "all")
TENSOR_VALUES = 2**20  # in one tensor at most: what is held in memory while a long file is encoded
SHARD_BYTES = 2**27  # a shard is full with so many bytes,
SHARD_FILES = 10_000  # or so many audio files: its header is not to grow too long
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
    """`manifests.claim` of a folder of latents, which are those of one model.

    Raises ValueError as `claim`, LatentFileError for a folder of another model and a damaged description.
    """
    found = claim(path, holds, facts, {"model": model}, later).get("model")
    check_description(found, path)
    check_same_model(found, model, path.parent)


# ---------------------------------------------------------------- entries


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

    @property
    def n_frames(self) -> int:
        return sum(frames for _, frames in self.parts)

    @property
    def n_values(self) -> int:
        return self.channels * self.latent_channels * self.n_frames

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, without what is at its default."""
        values = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if values[field.name] == field.default:
                del values[field.name]
        return values

    @classmethod
    def from_json(cls, values: Any, where: str) -> "Entry":
        """Raises LatentFileError, naming `where` it stands and the value, for what cannot be."""
        needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        names = set(values) if isinstance(values, dict) else set()
        if not set(needed) <= names <= {*needed, "source", "edition"} or not isinstance(values["file"], str):
            raise LatentFileError(f"{where} must be an object of {', '.join(needed)}, got {values!r:.80}")

        where = f"{where} ({values['file']})"
        for key in ("n_samples", "channels", "latent_channels", "edition"):
            value = values.get(key, 1)
            if type(value) is not int or value < 1:
                raise LatentFileError(f"{where}: {key} must be a whole number >= 1, got {value!r:.80}")
        source = values.get("source")
        noted = isinstance(source, list) and [type(value) for value in source] == [int, int, str]
        if source is not None and not noted:
            raise LatentFileError(f"{where}: source must be [bytes, ns, sha256], got {source!r:.80}")

        parts = values["parts"]
        if not isinstance(parts, list) or not parts:
            raise LatentFileError(f"{where}: parts must be a list of one or more, got {parts!r:.80}")
        frame = 0
        for part in parts:
            fits = isinstance(part, list) and [type(number) for number in part] == [int, int]
            if not fits or part[0] != frame or part[1] < 1:
                wanted = f"[{frame}, a number of frames]"
                raise LatentFileError(f"{where}: the next of parts must be {wanted}, got {part!r:.80}")
            frame += part[1]

        values = {**values, "parts": tuple(map(tuple, parts)), "source": tuple(source) if noted else None}
        return cls(**values)


def newer(entry: Entry, known: Entry | None) -> bool:
    return known is None or entry.edition >= known.edition


def read_header(path: str | Path) -> tuple[dict[str, Any], list[Entry]]:
    """What a file says of its model and its dtype, and its entries.

    Raises FileNotFoundError; LatentFileError for another or a damaged file, another version, and a header
    that cannot be or does not fit the tensors.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of latents")
    try:
        with tensors_in(path) as file:
            text = (file.metadata() or {}).get(KEY)
            shapes = {}
            codes = set()
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                shapes[name] = tuple(tensor.get_shape())
                codes.add(tensor.get_dtype())
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
    if codes != {CODES[dtype]}:
        raise LatentFileError(f"{path}: the header states {dtype}, the tensors are {sorted(codes)}")

    listed = header.pop("entries", None)
    if not isinstance(listed, list) or not listed:
        raise LatentFileError(f"{path}: entries must be a list of one or more, got {listed!r:.80}")
    entries = [Entry.from_json(values, f"{path}: entry {k}") for k, values in enumerate(listed)]
    for k, entry in enumerate(entries):
        for p, (_, frames) in enumerate(entry.parts):
            stated = (entry.channels, entry.latent_channels, frames)
            found = shapes.get(tensor_name(k, p))
            if stated != found:
                there = f"the tensor is {found}" if found else "there is no such tensor"
                where = f"{path}: entry {k} ({entry.file})"
                raise LatentFileError(f"{where}: the header states {stated} for part {p}, {there}")
        check_length(entry, header["model"], f"{path}: entry {k}")
    return header, entries


def check_length(entry: Entry, model: Mapping[str, Any], where: str | Path) -> None:
    """Raises LatentFileError for more samples than the frames can stand for: a decoder is told the length."""
    hop = model["sample_rate"] / model["latent_rate"]
    if entry.n_samples > 2 * hop * (entry.n_frames + SPARE_FRAMES):
        states = f"n_samples {entry.n_samples:.3e}" if entry.n_samples < 1e300 else "n_samples beyond 1e300"
        raise LatentFileError(f"{where} ({entry.file}) states {states} of {entry.n_frames} latent frames")


def tensor_name(entry: int, part: int) -> str:
    return f"{entry}.{part}"


# ---------------------------------------------------------------- writing one file


def in_parts(latents: Iterable[Tensor]) -> Iterator[Tensor]:
    """Consecutive (B, C, L_i) cut anew, into tensors of TENSOR_VALUES at most, whatever the L_i."""
    held: list[Tensor] = []
    n_frames = 0
    for z in latents:
        size = max(1, TENSOR_VALUES // (z.shape[0] * z.shape[1]))
        held.append(z)
        n_frames += z.shape[-1]
        if n_frames >= size:
            *whole, rest = torch.cat(held, -1).split(size, -1)
            yield from whole
            held = [rest]
            n_frames = rest.shape[-1]
    if n_frames:
        yield torch.cat(held, -1)


class Shard:
    """A file of latents on its way: `add` audio files, then `finish`. A new one of the same path continues a
    killed one."""

    def __init__(
        self, path: str | Path, model: Mapping[str, Any], dtype: str = "float32", anew: bool = False
    ):
        """`dtype`: one of DTYPES; `anew`: leave out what a killed process wrote. Raises OSError, and
        LatentFileError for a damaged journal."""
        self.path = Path(path)
        self.model = model
        self.dtype = dtype
        # hidden where the folder is the user's, who may have a NAME.data and a NAME.jsonl beside the file
        unfinished = hidden(self.path, "part") if anew else self.path
        self.data = unfinished.with_suffix(".data")
        self.journal = unfinished.with_suffix(".jsonl")
        for orphan in self.path.parent.glob(glob.escape(hidden(self.path, "").name) + "*.tmp"):
            orphan.unlink()
        if anew or self.path.exists():  # killed between the last two steps of `finish`
            self.discard()

        self.entries: list[Entry] = []
        self.n_bytes = 0
        lines = b""
        for line, entry in journalled(self.journal, dtype):
            check_length(entry, model, self.journal)
            self._note(entry)
            lines += line
        for file, size in ((self.data, self.n_bytes), (self.journal, len(lines))):
            if file.exists():  # beyond these sizes stands what a killed process wrote of its last file
                os.truncate(file, size)

    def _note(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.n_bytes += entry.n_values * DTYPES[self.dtype].itemsize

    def add(self, name: str, latents: Iterable[Tensor], n_samples: int, **about: Any) -> Entry:
        """Write the latents (B, C, L_i) of one audio file, consecutive in time, and then its line.

        `n_samples` is the length of the audio file at the model's rate, `about` its `source` and `edition`.
        What fails leaves the files before as they are. Raises OSError, e.g. on a full disk; LatentFileError
        for values that are not finite, or too large for float16, and for no frames.
        """
        parts = []
        frame = 0
        shape = (0, 0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.data.open("ab") as file:
            file.truncate(self.n_bytes)  # drops what an audio file that failed has left
            for part in in_parts(latents):
                stored = part.detach().to("cpu", DTYPES[self.dtype]).contiguous()
                if first_non_finite(stored) is not None:
                    too_large = first_non_finite(part) is None
                    fix = f"exceed {self.dtype}: use float32" if too_large else "are not finite"
                    raise LatentFileError(f"{name}: latents from frame {frame} on {fix}")
                file.write(stored.numpy())
                parts.append((frame, part.shape[-1]))
                frame += part.shape[-1]
                shape = part.shape[:2]
            if not parts:
                raise LatentFileError(f"{name}: no latents")
            file.flush()
            os.fsync(file.fileno())

        entry = Entry(name, n_samples, *shape, tuple(parts), **about)
        with self.journal.open("ab") as file:
            file.write(json.dumps(entry.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._note(entry)
        return entry

    def finish(self) -> None:
        """Make the safetensors file, if there is anything to put in. Raises OSError."""
        if self.entries:
            header = json.dumps(self._header()).encode()
            header += b" " * (-len(header) % 8)
            with atomic_write(self.path) as file, self.data.open("rb") as data:
                file.write(len(header).to_bytes(8, "little") + header)
                shutil.copyfileobj(data, file, 2**20)
        self.discard()

    def _header(self) -> dict[str, Any]:
        """That of the safetensors file, whose tensors lie as they were added."""
        description = {"version": VERSION, "dtype": self.dtype, "model": self.model}
        description["entries"] = [entry.to_json() for entry in self.entries]
        tensors: dict[str, Any] = {"__metadata__": {KEY: json.dumps(description)}}
        start = 0
        for k, entry in enumerate(self.entries):
            for p, (_, frames) in enumerate(entry.parts):
                shape = (entry.channels, entry.latent_channels, frames)
                stop = start + math.prod(shape) * DTYPES[self.dtype].itemsize
                where = {"dtype": CODES[self.dtype], "shape": shape, "data_offsets": [start, stop]}
                tensors[tensor_name(k, p)] = where
                start = stop
        return tensors

    def discard(self) -> None:
        """Remove what is not finished."""
        # the journal first: without it the data is nothing, with it and without data it would seem damaged
        self.journal.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)


def journalled(journal: Path, dtype: str) -> Iterator[tuple[bytes, Entry]]:
    """The lines of a journal, and what they say, as far as they are whole and their data is on the disk.

    Raises LatentFileError, naming the line, for one that is damaged.
    """
    try:
        lines = journal.read_bytes().splitlines(keepends=True)
        left = journal.with_suffix(".data").stat().st_size
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):  # a crash may have cut the last one
            return
        where = f"{journal}: line {number}"
        entry = Entry.from_json(json_object(line, where, LatentFileError), where)
        left -= entry.n_values * DTYPES[dtype].itemsize
        if left < 0:
            return
        yield line, entry


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
) -> None:
    """Write one file of latents with those of one audio file, as `Shard.add` takes them.

    What stands at `path` stays until the new file is whole. Raises as `check_suffix` and `Shard.add`; OSError
    names the file.
    """
    shard = Shard(check_suffix(path), model, dtype, anew=True)
    try:
        shard.add(name, latents, n_samples)
        shard.finish()
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        shard.discard()


# ---------------------------------------------------------------- writing a folder


class Shards:
    """The shards that one process, `rank` of `world`, adds to a folder, beginning where a killed one stopped.

    `done`: the entries of all audio files that are encoded already, whoever did it, by name.
    """

    def __init__(
        self, folder: str | Path, model: Mapping[str, Any], dtype: str, rank: int = 0, world: int = 1
    ):
        """Raises OSError; LatentFileError for damaged files in the folder."""
        self.folder = Path(folder)
        self.model = model
        self.dtype = dtype
        self.rank = rank
        self.done: dict[str, Entry] = {}
        # journals first: what one holds may be in a shard a moment later, but never the other way round
        entries: list[Entry] = []
        for path in shard_files(self.folder, ".jsonl"):
            entries += [entry for _, entry in journalled(path, dtype)]
        for path in shard_files(self.folder):
            entries += read_header(path)[1]
        for entry in entries:
            if newer(entry, self.done.get(entry.file)):
                self.done[entry.file] = entry
        self._shard = self._continued(world)
        numbers = [int(path.stem.split("-")[1]) for path in self.folder.glob(f"{rank:05d}-*{SUFFIX}")]
        self._number = max(numbers, default=-1) + 1

    def _continued(self, world: int) -> Shard | None:
        """The shard that a killed process of this rank began. Those of ranks beyond `world` are finished."""
        own = None
        begun = [*shard_files(self.folder, ".jsonl"), *shard_files(self.folder, ".data")]
        for path in sorted({child.with_suffix(SUFFIX) for child in begun}):
            its_rank = int(path.stem.split("-")[0])
            if its_rank % world != self.rank:
                continue
            shard = Shard(path, self.model, self.dtype)
            if path.exists():
                continue
            if its_rank == self.rank:
                own = shard
            else:
                shard.finish()
        return own

    def add(
        self, name: str, latents: Iterable[Tensor], n_samples: int, source: tuple[int, int, str] | None = None
    ) -> None:
        """Write the latents of one audio file, in place of those that it has. Raises as `Shard.add`."""
        shard = self._shard
        if shard is not None and (shard.n_bytes >= SHARD_BYTES or len(shard.entries) >= SHARD_FILES):
            shard.finish()
            shard = None
            self._number += 1
        if shard is None:
            path = self.folder / f"{self.rank:05d}-{self._number:06d}{SUFFIX}"
            shard = Shard(path, self.model, self.dtype)
        self._shard = shard
        edition = self.done[name].edition + 1 if name in self.done else 1
        self.done[name] = shard.add(name, latents, n_samples, source=source, edition=edition)

    def finish(self) -> None:
        """Make the last shard a whole file. Raises OSError."""
        if self._shard is not None:
            self._shard.finish()


def shard_files(folder: Path, suffix: str = SUFFIX) -> list[Path]:
    return sorted(folder.glob(f"[0-9]*-[0-9]*{suffix}"))


@dataclass(frozen=True)
class Summary:
    """What one process did: files and seconds of audio encoded, files encoded before, file -> why skipped."""

    encoded: int
    seconds: float
    present: int
    skipped: dict[str, str]


def named_files(folders: Sequence[str | Path]) -> dict[str, Path]:
    """FOLDER/relative/name -> path of all audio files in some folders, at any depth (`folders.audio_files`).

    Raises FileNotFoundError for a folder that is missing or without audio; ValueError for two of one name.
    """
    roots = [Path(folder) for folder in folders]
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise ValueError(f"folders must differ in their names, which become those of the files, got {names}")
    found = {}
    for name, root in zip(names, roots, strict=True):
        for path in audio_files(root):
            found[f"{name}/{path.relative_to(root).as_posix()}"] = path
    return found


def source_of(path: Path) -> tuple[int, int, str]:
    """Size in bytes, time of modification (ns) and sha256 of an audio file. Raises AudioFileError."""
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns, sha256_of(path)
    except OSError as error:
        raise AudioFileError(f"{path}: {error}") from error


def is_of(entry: Entry, path: Path, sample_rate: float) -> bool:
    """Whether an audio file is still the one that an entry was made of. Raises AudioFileError.

    It is read again only if its time of modification has changed and its size has not. Entries of earlier
    versions note its length alone.
    """
    try:
        if entry.source is None:
            rate, n_frames = audio_header(path)
            return -(-n_frames * sample_rate // rate) == entry.n_samples
        n_bytes, modified_ns, sha256 = entry.source
        stat = path.stat()
        if stat.st_mtime_ns == modified_ns or stat.st_size != n_bytes:
            return stat.st_size == n_bytes
        return sha256_of(path) == sha256
    except OSError as error:
        raise AudioFileError(f"{path}: {error}") from error


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
    encoded again, whoever did it, unless it has changed; one that failed before is tried again. `channels`:
    "mean" encodes the mean of a file's channels, "all" each of them, as items of a batch.

    Raises ValueError for an `out` that holds something else, or latents of another model (naming both),
    dtype, precision or choice of channels, and where another process works as the same rank; LatentFileError
    for damaged files in `out`; OSError, e.g. on a full disk: what was encoded before stays.
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
    skipped: dict[str, str] = {}
    n_samples = 0
    encoded = 0
    with locked(out / f".{rank:05d}.lock", f"process {rank} of another run encodes into {out}"):
        shards = Shards(out, described, dtype, rank, world)
        try:
            for name in tqdm(mine, "encoding", unit="file", disable=not progress or rank > 0):
                path = files[name]
                try:
                    if name in shards.done:
                        if is_of(shards.done[name], path, model.sample_rate):
                            continue
                        log.warning("%s has changed since it was encoded: it is encoded anew", path)
                    source = source_of(path)
                    length, latents = encode_file(model, path, channels)
                    shards.add(name, latents, length, source)
                except (AudioFileError, LatentFileError) as error:
                    skipped[name] = str(error)
                    log.warning("skipped: %s", error)
                    continue
                n_samples += length
                encoded += 1
            shards.finish()
            _list_skipped(out, set(files) - set(mine), skipped)
        except OSError as error:
            error.add_note(f"What was encoded until then stays in {out}: the same command continues.")
            raise
    present = len(mine) - encoded - len(skipped)
    return Summary(encoded, n_samples / model.sample_rate, present, skipped)


def _list_skipped(out: Path, others: Set[str], skipped: Mapping[str, str]) -> None:
    """List what this process skipped, beside what is listed of the `others`' files."""
    with locked(out / f".{SKIPPED}.lock"):
        known = read_skipped(out / SKIPPED)
        rows = {name: reason for name, reason in known.items() if name in others}
        rows |= skipped
        if rows != known:
            write_skipped(out / SKIPPED, rows)


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
        unfinished = shard_files(self.source, ".data")
        if unfinished:
            log.warning("%s: encoding goes on or was killed; %d shards are missing", source, len(unfinished))

        found: dict[str, tuple[Path, int, Entry]] = {}
        for path in paths:
            header, entries = read_header(path)
            if path == paths[0]:
                self.model = header["model"]
                self.dtype = header["dtype"]
            check_same_model(header["model"], self.model, path)
            for k, entry in enumerate(entries):
                if entry.file not in found or newer(entry, found[entry.file][2]):
                    found[entry.file] = (path, k, entry)
        self._entries = dict(sorted(found.items()))  # which process wrote a file does not matter

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
            known = ", ".join(self.files[:3])
            raise LatentFileError(f"{self.source} has {len(self._entries)} files ({known}, ...), no {file!r}")
        return self._entries[file][2]

    def only_file(self) -> str:
        """The one file that there is. Raises LatentFileError for several, naming the first."""
        if len(self._entries) > 1:
            some = ", ".join(self.files[:3])
            raise LatentFileError(f"{self.source} has {len(self._entries)} files, name one: {some}, ...")
        return self.files[0]

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
        """Latents (B, C, n_frames) of a file from its frame `first` on, to its end by default; B channels.

        Only these are read. Raises ValueError for frames that the file does not have; LatentFileError for an
        unknown file and for values that are not finite.
        """
        first, stop = self._range(file, first, n_frames)
        path, k, entry = self._entries[file]
        pieces = []
        for p, (start, length) in enumerate(entry.parts):
            low = max(first - start, 0)
            high = min(stop - start, length)
            if low < high:
                pieces.append(self._mapped(path).get_slice(tensor_name(k, p))[:, :, low:high])
        z = torch.cat(pieces, -1).float()

        bad = first_non_finite(z)
        if bad is not None:
            place = f"channel {bad[0]}, latent channel {bad[1]}, frame {first + bad[2]}"
            raise LatentFileError(f"{path}: latents of {file} are not finite, first at {place}")
        return z

    def seconds(self, file: str, start_s: float = 0.0, seconds: float | None = None) -> Tensor:
        """Latents (B, C, L) of a stretch of a file, to its end by default; both ends at the nearest frame,
        where frame i begins at i / latent_rate.

        Raises as `frames`, and ValueError for a time that no file can have, such as infinity.
        """
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
        """Consecutive audio (B, T_i) of a stretch of a file, from the frame nearest to `start_s`.

        It takes constant memory if the model has `decode_stream`. The noise is that of the file's own frames,
        but at the ends of a stretch a decoder misses what was cut off. Raises as `check_model` and `seconds`.
        """
        self.check_model(model)
        first, stop = self._range(file, *self._stretch(start_s, seconds))
        return self._decoded(model, file, first, stop, seed, steps)

    def _decoded(
        self, model: AutoencoderLike, file: str, first: int, stop: int, seed: int, steps: int
    ) -> Iterator[Tensor]:
        entry = self.entry(file)
        length = None
        if stop == entry.n_frames:
            length = entry.n_samples - first * round(model.sample_rate / model.latent_rate)
        size = math.ceil(BLOCK_S * model.latent_rate)
        latents = (self.frames(file, a, min(size, stop - a)) for a in range(first, stop, size))
        try:
            yield from decode_blocks(model, latents, length, seed, steps, first)
        except ValueError as error:
            raise LatentFileError(f"{self.source}: latents of {file}: {error}") from error

    def _stretch(self, start_s: float, seconds: float | None) -> tuple[int, int | None]:
        """First frame and number of frames of a stretch in seconds."""
        first = self._frame_at(start_s, "start_s")
        if seconds is None:
            return first, None
        self._frame_at(seconds, "seconds")
        return first, self._frame_at(start_s + seconds, "the end") - first

    def _frame_at(self, time_s: float, name: str) -> int:
        place = time_s * self.model["latent_rate"]
        if not abs(place) < 2**53:
            raise ValueError(f"{name} must be finite and within the file, got {time_s} s")
        return round(place)

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
