"""Latents on disk: whose they are, and shards that a killed process leaves whole.

A shard is a safetensors file with the latents of one or more audio files, each as one or more tensors
(B, C, L) of consecutive frames, B being the channels of the file. Its header says, as JSON under
`lincae.latents`, which model made them (`describe`) and what they are (`Entry`).

Until a shard is full, its tensors stand in `NAME.data`, byte after byte, and `NAME.jsonl` has one line for
every audio file whose latents are whole and on the disk. A line is added last, so that a crash costs the file
that was being encoded, and no other.

Not LitData: it brings torchvision, whose wheels do not load beside a CPU-only torch; and a safetensors slice
is one read from a memory map.

Axis legend: `B` batch (channels of a file), `T` samples, `C` latent channels, `L` latent frames.
"""

import dataclasses
import glob
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lincae.checkpoints import content_fingerprint
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike

VERSION = 1
KEY = "lincae.latents"  # of the description in a shard's header
SUFFIX = ".safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
CODES = {"float32": "F32", "float16": "F16"}  # of safetensors
TENSOR_VALUES = 2**20  # of one tensor, at most: what is held in memory while a long file is encoded


class LatentFileError(ValueError):
    """Latents on disk that cannot be used; the message names the file."""


# ---------------------------------------------------------------- whose latents


def fingerprint(model: AutoencoderLike) -> str:
    """sha256 (hex) of what decides a model's latents, as the model itself says it."""
    if hasattr(model, "fingerprint"):
        return model.fingerprint()
    # Models of lincae.interop, until they say it themselves: a baseline is its name and its settings.
    traits = ("sample_rate", "latent_rate", "hop", "drive")
    settings = {key: getattr(model, key) for key in traits if hasattr(model, key)}
    network = getattr(model, "vae", None)
    if network is None:
        return content_fingerprint(model.name, settings, {})
    return content_fingerprint(type(network).__name__, settings, network.state_dict())


def describe(model: AutoencoderLike) -> dict[str, Any]:
    """What a shard says of the model: name, fingerprint, sample rate (Hz), latent frames per second."""
    return {
        "name": model.name,
        "fingerprint": fingerprint(model),
        "sample_rate": model.sample_rate,
        "latent_rate": model.latent_rate,
    }


def check_same_model(found: dict[str, Any], wanted: dict[str, Any], where: str | Path) -> None:
    """Raises LatentFileError, naming both, where two descriptions have different fingerprints."""
    if found["fingerprint"] != wanted["fingerprint"]:
        ours, theirs = (f"{m['name']} (hash {m['fingerprint'][:16]})" for m in (wanted, found))
        raise LatentFileError(f"{where} holds latents of another model: {theirs}, not of {ours}")


def read_manifest(path: Path) -> dict[str, Any]:
    """The first file of a folder: a JSON object with a model's description. Raises LatentFileError, naming
    the file, for anything else."""
    found = _object(path.read_bytes(), str(path))
    _check_description(found.get("model"), str(path))
    return found


def _object(text: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object; LatentFileError, naming `where` it stands, for anything else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LatentFileError(f"{where} is damaged, this is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise LatentFileError(f"{where} is damaged: it must hold a JSON object, got {found!r:.80}")
    return found


def _check_description(model: Any, where: str) -> None:
    """Raises LatentFileError, naming `where`, for what `describe` does not return."""
    described = model if isinstance(model, dict) else {}
    for key in ("name", "fingerprint", "sample_rate", "latent_rate"):
        value, is_rate = described.get(key), key.endswith("_rate")
        if not (type(value) in (int, float) and 0 < value < math.inf if is_rate else isinstance(value, str)):
            wanted = "a number > 0" if is_rate else "text"
            raise LatentFileError(f"{where}: {key} of the model must be {wanted}, got {value!r:.80}")


def claim(path: Path, holds: str, manifest: dict[str, Any]) -> None:
    """Write `manifest` (JSON; a model's description under "model") to `path`, first file of its folder, or
    check that what is there says the same. `holds`: what the folder is for, as an error calls it.

    Raises ValueError for a folder with other files or another manifest, LatentFileError for another model
    and a damaged manifest.
    """
    folder = path.parent
    if not path.is_file():
        if folder.is_dir() and any(child.name[0] != "." for child in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and has no {path.name}: use an empty or new folder")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write((json.dumps(manifest, indent=2) + "\n").encode())
    found = read_manifest(path)
    check_same_model(found["model"], manifest["model"], folder)
    for key, wanted in manifest.items():
        if key != "model" and found.get(key) != wanted:
            raise ValueError(
                f"{folder} has {holds} of {key} {found.get(key)}, not {wanted}: use another folder"
            )


# ---------------------------------------------------------------- entries


@dataclass(frozen=True)
class Entry:
    """The latents of one audio file: `channels` items of `n_samples` at the model's rate each.

    `parts`: first frame and number of frames of every tensor.
    """

    file: str
    n_samples: int
    channels: int
    latent_channels: int
    parts: tuple[tuple[int, int], ...]

    @property
    def n_frames(self) -> int:
        return sum(frames for _, frames in self.parts)

    @property
    def n_values(self) -> int:
        return self.channels * self.latent_channels * self.n_frames

    @classmethod
    def from_json(cls, values: Any, where: str) -> "Entry":
        """Raises LatentFileError, naming `where` it stands and the value, for what cannot be."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or set(values) != set(names) or not isinstance(values["file"], str):
            raise LatentFileError(f"{where} must be an object of {', '.join(names)}, got {values!r:.80}")
        where = f"{where} ({values['file']})"
        for key in ("n_samples", "channels", "latent_channels"):
            if not _is_count(values[key]):
                raise LatentFileError(f"{where}: {key} must be a whole number >= 1, got {values[key]!r}")
        parts, frame = values["parts"], 0
        if not isinstance(parts, list) or not parts:
            raise LatentFileError(f"{where}: parts must be a list of one or more, got {parts!r:.80}")
        for part in parts:
            pair = part if isinstance(part, list) and [type(n) for n in part] == [int, int] else (-1, 0)
            if pair[0] != frame or pair[1] < 1:
                wanted = f"[{frame}, a number of frames]"
                raise LatentFileError(f"{where}: the next of parts must be {wanted}, got {part!r:.80}")
            frame += part[1]
        return cls(**{**values, "parts": tuple(map(tuple, parts))})


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def read_header(path: str | Path) -> tuple[dict[str, Any], list[Entry]]:
    """What a shard says of its model and its dtype, and its entries.

    Raises FileNotFoundError; LatentFileError for another or a damaged file, another version, and a header
    that cannot be or does not fit the tensors.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of latents")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise LatentFileError(f"{path} is not a whole safetensors file: {error}") from error
    if text is None:
        raise LatentFileError(f"{path} is a safetensors file, but not one of latents")
    header = _object(text, f"{path}: its header")
    if (version := header.get("version")) != VERSION:
        raise LatentFileError(f"{path}: latents of version {version}, this lincae reads {VERSION}")
    _check_description(header.get("model"), str(path))
    if (dtype := header.get("dtype")) not in tuple(DTYPES):
        raise LatentFileError(f"{path}: dtype must be one of {tuple(DTYPES)}, got {dtype!r}")
    if not isinstance(listed := header.pop("entries", None), list) or not listed:
        raise LatentFileError(f"{path}: entries must be a list of one or more, got {listed!r:.80}")
    entries = [Entry.from_json(values, f"{path}: entry {k}") for k, values in enumerate(listed)]
    for k, entry in enumerate(entries):
        for p, (_, frames) in enumerate(entry.parts):
            stated, name = (entry.channels, entry.latent_channels, frames), tensor_name(k, p)
            if stated != shapes.get(name):
                there = f"the tensor is {shapes[name]}" if name in shapes else "there is no such tensor"
                where = f"{path}: entry {k} ({entry.file})"
                raise LatentFileError(f"{where}: the header states {stated} for part {p}, {there}")
    return header, entries


# ---------------------------------------------------------------- writing


def in_parts(latents: Iterable[Tensor]) -> Iterator[Tensor]:
    """Consecutive (B, C, L_i) cut anew, into tensors of TENSOR_VALUES at most, whatever the L_i."""
    held: list[Tensor] = []
    frames = 0
    for z in latents:
        size = max(1, TENSOR_VALUES // (z.shape[0] * z.shape[1]))
        held.append(z)
        frames += z.shape[-1]
        if frames >= size:
            *whole, rest = torch.cat(held, -1).split(size, -1)
            yield from whole
            held, frames = [rest], rest.shape[-1]
    if frames:
        yield torch.cat(held, -1)


class Shard:
    """A shard on its way: `add` files, then `finish`. A new one of the same path continues a killed one."""

    def __init__(self, path: str | Path, model: dict[str, Any], dtype: str = "float32", anew: bool = False):
        """`dtype`: one of DTYPES; `anew`: leave out what a killed process wrote. Raises OSError, and
        LatentFileError for a damaged journal."""
        self.path, self.model, self.dtype = Path(path), model, dtype
        # hidden where the folder is the user's, who may have a NAME.data and a NAME.jsonl beside the file
        unfinished = self.path.with_name(f".{self.path.name}.part") if anew else self.path
        self.data, self.journal = unfinished.with_suffix(".data"), unfinished.with_suffix(".jsonl")
        self.entries, self.n_bytes = [], 0
        for orphan in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
            orphan.unlink()
        if anew or self.path.exists():  # killed between the last two steps of `finish`
            self.discard()
        lines = b""
        for line, entry in journalled(self.journal, dtype):
            self._note(entry)
            lines += line
        for file, size in ((self.data, self.n_bytes), (self.journal, len(lines))):
            if file.exists():  # what a killed process wrote of its last file
                os.truncate(file, size)

    def _bytes(self, entry: Entry) -> int:
        return entry.n_values * DTYPES[self.dtype].itemsize

    def _note(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.n_bytes += self._bytes(entry)

    def add(self, name: str, latents: Iterable[Tensor], n_samples: int) -> Entry:
        """Write the latents (B, C, L_i) of one audio file, consecutive in time, and then its line.

        `n_samples`: of the file, at the model's rate. What fails leaves the files before as they are. Raises
        OSError, e.g. on a full disk; LatentFileError for values that are not finite, or too large for
        float16, and for no frames.
        """
        parts, frame, start, shape = [], 0, self.n_bytes, (0, 0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.data.open("ab") as file:
            file.truncate(start)  # of a file that failed
            for part in in_parts(latents):
                stored = part.detach().to("cpu", DTYPES[self.dtype]).contiguous()
                if not torch.isfinite(stored).all():
                    finite = bool(torch.isfinite(part).all())
                    fix = f"exceed {self.dtype}: use float32" if finite else "are not finite"
                    raise LatentFileError(f"{name}: latents from frame {frame} on {fix}")
                file.write(stored.numpy())
                parts.append((frame, part.shape[-1]))
                frame, shape = frame + part.shape[-1], part.shape[:2]
            if not parts:
                raise LatentFileError(f"{name}: no latents")
            file.flush()
            os.fsync(file.fileno())
        entry = Entry(name, n_samples, *shape, tuple(parts))
        with self.journal.open("ab") as file:
            file.write(json.dumps(dataclasses.asdict(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._note(entry)
        return entry

    def finish(self) -> None:
        """Make the safetensors file, if there is anything to put in. Raises OSError."""
        if self.entries:
            header = {"version": VERSION, "dtype": self.dtype, "model": self.model}
            header["entries"] = [dataclasses.asdict(entry) for entry in self.entries]
            tensors: dict[str, Any] = {"__metadata__": {KEY: json.dumps(header)}}
            start = 0
            for k, entry in enumerate(self.entries):
                for p, (_, frames) in enumerate(entry.parts):
                    shape = (entry.channels, entry.latent_channels, frames)
                    stop = (
                        start + entry.channels * entry.latent_channels * frames * DTYPES[self.dtype].itemsize
                    )
                    described = {"dtype": CODES[self.dtype], "shape": shape, "data_offsets": [start, stop]}
                    tensors[tensor_name(k, p)], start = described, stop
            text = json.dumps(tensors).encode()
            text += b" " * (-len(text) % 8)
            with atomic_write(self.path) as file, self.data.open("rb") as data:
                file.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(data, file, 2**20)
        self.discard()

    def discard(self) -> None:
        """Remove what is not finished."""
        # the journal first: without it the data is nothing, with it and without data it would seem damaged
        self.journal.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)


def check_suffix(path: str | Path) -> Path:
    """The path of a file of latents to write. Raises ValueError for another suffix than SUFFIX."""
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"{path}: a file of latents must end in {SUFFIX}")
    return Path(path)


def write_latents(
    path: str | Path,
    model: dict[str, Any],
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


def tensor_name(entry: int, part: int) -> str:
    return f"{entry}.{part}"


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
        entry = Entry.from_json(_object(line, where), where)
        left -= entry.n_values * DTYPES[dtype].itemsize
        if left < 0:
            return
        yield line, entry
