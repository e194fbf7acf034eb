"""Corpora as few large files, for folders that outgrow a disk or are slow to read at random.

    lincae shards data/jamendo=60 data/moisesdb=20 /mnt/shards --sample-rate 44100
    lincae train --preset paper --data shards:/mnt/shards      # or shards:s3://bucket/shards

The same seed draws the same crops as from the folders, rounded to 16 bits with a step that follows the level.
Samples are mono, at the rate of training, and not compressed: a crop is one range of bytes on anything that
fsspec knows (webdataset and LitData read in sequence; here crop i is a function of (seed, i)). A folder has
`shards.json`, written first, `00000.safetensors` ..., and `index.safetensors`, written last.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from lincae.data.audio import AudioFileError
from lincae.data.corpora import MIN_RMS, Corpora, WeightedFiles
from lincae.data.folders import claim, write_json
from lincae.data.free_music import refuse_test_recordings
from lincae.data.tracks import file_track
from lincae.machine.files import atomic_write, json_object, tensors_in

MANIFEST = "shards.json"
INDEX = "index.safetensors"
VERSION = 1
BLOCK_S = 30
"""Seconds that have a step of their own; files of hours need not fit memory several times."""
SHARD_BYTES = 2**27
COLUMNS = ("corpus", "shard", "byte", "frames", "step")
"""The columns of the index, which has a row for each file; `step` is the number of its first step."""

log = logging.getLogger(__name__)


class Shards(WeightedFiles):
    """What `write_shards` wrote, in a folder or at an address such as s3://bucket/folder."""

    def __init__(self, folder: str | Path, sample_rate: int, min_rms: float = MIN_RMS):
        """Raises FileNotFoundError where there are no shards, or unfinished ones; ValueError for shards of
        another sample rate or of another version, and for damaged ones."""
        self._folder = str(folder)
        where = f"{folder}/{MANIFEST}"
        try:
            manifest = json_object(self._bytes(MANIFEST), where)
            index = self._bytes(INDEX)
        except FileNotFoundError as error:
            fix = "lincae shards FOLDER=WEIGHT ... writes them, or finishes"
            raise FileNotFoundError(f"{folder} holds no complete shards ({fix}): {error}") from error
        if (found := manifest.get("version")) != VERSION:
            raise ValueError(f"{where}: shards of version {found}, this lincae reads {VERSION}")
        if (rate := manifest.get("sample_rate")) != sample_rate:
            raise ValueError(f"{where}: shards at {rate} Hz, wanted {sample_rate}: write them at that rate")
        self._block = rate * BLOCK_S
        weights = _weights(manifest.get("corpora"), where)
        table, self._steps = _read_index(index, len(weights), self._block, f"{folder}/{INDEX}")
        self._files = [table[:, table[0] == k] for k in range(len(weights))]
        headers = [np.stack([np.full_like(files[3], rate), files[3]]) for files in self._files]
        super().__init__(weights, headers, rate, min_rms, {})

    def _read(self, folder: int, number: int, start: int, n_samples: int) -> Tensor:
        _, shard, byte, _, step = self._files[folder][:, number].tolist()
        first = byte + 2 * start
        data = self._bytes(_shard(shard), first, first + 2 * n_samples)
        if len(data) < 2 * n_samples:
            raise AudioFileError(f"{self._name(folder, number)}: truncated, {len(data) // 2} of {n_samples}")
        blocks = np.arange(start, start + n_samples) // self._block
        return torch.from_numpy(np.frombuffer(data, "<i2") * self._steps[step + blocks])

    def _name(self, folder: int, number: int) -> str:
        _, shard, byte, _, _ = self._files[folder][:, number]
        return f"{self._folder}/{_shard(shard)} at byte {byte}"

    def _bytes(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        from fsspec.core import url_to_fs

        # In each process, which its connections must not outlive; fsspec caches them.
        system, root = url_to_fs(self._folder)
        return system.cat_file(f"{root}/{name}", start=start, end=stop)


def _weights(corpora: Any, where: str) -> dict[str, float]:
    """The weights of a manifest. Raises ValueError for anything that cannot be weights."""
    weights = corpora if isinstance(corpora, dict) else {}
    allowed = [type(weight) in (int, float) and 0 <= weight < math.inf for weight in weights.values()]
    if not all(allowed) or sum(weights.values()) <= 0:
        raise ValueError(f"{where} is damaged: corpora must be folders with weights, got {corpora!r:.80}")
    return weights


def _read_index(index: bytes, n_corpora: int, block: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """COLUMNS (5, n_files) and steps (n,) of an index. Raises ValueError for what cannot be one."""
    try:
        tensors = safetensors.torch.load(index)
    except SafetensorError as error:
        raise ValueError(f"{where} is not a whole safetensors file: {error}") from error
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    steps = tensors.pop("steps", torch.empty(0, 0))
    if set(tensors) != set(COLUMNS) or len({shapes[name] for name in COLUMNS}) > 1 or steps.ndim != 1:
        raise ValueError(f"{where} is damaged: it must hold {', '.join(COLUMNS)} and steps, got {shapes}")
    table = np.stack([tensors[name].numpy() for name in COLUMNS])
    corpus, _, _, frames, step = table
    n_steps = -(-frames // block)
    if table.dtype != np.int64 or table.ndim != 2 or (table < 0).any() or (corpus >= n_corpora).any():
        raise ValueError(f"{where} is damaged: its columns must be whole numbers >= 0 of {n_corpora} corpora")
    if (step + n_steps > len(steps)).any() or not (torch.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"{where} is damaged: it must have a step > 0 for every {BLOCK_S} s")
    return table, steps.numpy()


def _shard(number: int) -> str:
    return f"{number:05d}.safetensors"


# ---------------------------------------------------------------- writing


def write_shards(corpora: Corpora, folder: str | Path, workers: int | None = None) -> Path:
    """Write all files of some corpora, with their weights and at their rate, into a folder of shards, or go
    on with that. Files that fail are left out, logged, and listed in the manifest. `workers`: threads (None:
    one a core), each with 0.5 GB, or a file of hours.

    Raises ValueError where `folder` holds something else, or shards of files that have changed since, and for
    a test recording of free-music; FileNotFoundError for a file that has vanished.
    """
    folder = Path(folder)
    rate = corpora.sample_rate
    files = corpora.files()
    refuse_test_recordings(path for _, path, _, _ in files)
    # Size and time of modification tell a file from another of equal length that has taken its place.
    described = repr((files, corpora.stamps(), SHARD_BYTES, BLOCK_S)).encode()
    plan = {"version": VERSION, "sample_rate": rate, "corpora": corpora.weights()}
    plan["files"] = f"{len(files)} files as they were, sha256 {hashlib.sha256(described).hexdigest()}"
    claim(folder / MANIFEST, "shards", plan)

    groups = _groups(files, rate)
    write = partial(_write_shard, folder, rate)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = pool.map(write, range(len(groups)), groups)
        parts = list(tqdm(jobs, "writing shards", len(groups), unit="shard"))

    skipped = {}
    n_steps = 0
    for part in parts:
        skipped |= part.pop("skipped")
        part["step"] += n_steps
        n_steps += len(part["steps"])
    with atomic_write(folder / INDEX) as file:
        file.write(safetensors.torch.save({name: torch.cat([p[name] for p in parts]) for name in parts[0]}))
    write_json(folder / MANIFEST, {**plan, "skipped": skipped})
    return folder


def _groups(files: Sequence[tuple], rate: int) -> list[list[tuple]]:
    """The files of each shard, of SHARD_BYTES or a little more."""
    groups = [[]]
    n_bytes = 0
    for corpus, name, own_rate, n_frames in files:
        if n_bytes >= SHARD_BYTES:
            groups.append([])
            n_bytes = 0
        groups[-1].append((corpus, name))
        n_bytes += 2 * n_frames * rate // own_rate
    return groups


def _write_shard(folder: Path, rate: int, number: int, files: Sequence[tuple]) -> dict[str, Any]:
    """The rows of the index that are about one shard, which is written first where it is missing."""
    path = folder / _shard(number)
    if not path.is_file():
        _write_files(path, rate, number, files)
    try:
        # This checks the header, before as many bytes are read as it says that it has.
        with tensors_in(path) as file:
            columns = {name: file.get_tensor(name) for name in (*COLUMNS, "steps")}
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            header = json_object(file.read(n_bytes), path)
        columns["byte"] += 8 + n_bytes + header["audio"]["data_offsets"][0]
        return {**columns, "skipped": json_object(header["__metadata__"]["skipped"], path)}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no whole shard, delete it to have it written anew: {error}") from error


def _write_files(path: Path, rate: int, number: int, files: Sequence[tuple]) -> None:
    rows = []
    steps = []
    skipped = {}
    audio = [np.empty(0, np.int16)]
    n_samples = 0
    for corpus, name in files:
        try:
            blocks = list(_blocks(Path(name), rate))
        except AudioFileError as error:
            skipped[name] = str(error)
            log.warning("skipped: %s", error)
            continue
        n_frames = sum(len(samples) for samples, _ in blocks)
        rows.append((corpus, number, 2 * n_samples, n_frames, len(steps)))
        audio += [samples for samples, _ in blocks]
        steps += [step for _, step in blocks]
        n_samples += n_frames
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, len(COLUMNS)).T.contiguous()
    tensors = dict(zip(COLUMNS, table.unbind(), strict=True))
    tensors["audio"] = torch.from_numpy(np.concatenate(audio))
    tensors["steps"] = torch.tensor(steps, dtype=torch.float32)
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(tensors, {"skipped": json.dumps(skipped)}))


def _blocks(path: Path, rate: int) -> Iterator[tuple[np.ndarray, float]]:
    """Stretches of BLOCK_S of a file as 16-bit samples, each with its step: a power of two, so that 16-bit
    mono audio below full scale is kept to the bit."""
    track = file_track(path.name, "corpus", {"mixture": path})
    n_samples = math.ceil(round(track.duration_s * track.sample_rate) * rate / track.sample_rate)
    for start in range(0, n_samples, rate * BLOCK_S):
        audio = track.stems(rate, start / rate, BLOCK_S)[0]
        # 32767.5 would round to 32768, which 16 bits do not hold.
        _, exponent = math.frexp(audio.abs().max().item() * 65536 / 65535)
        step = 2.0 ** (exponent - 15)
        yield (audio / step).round().to(torch.int16).numpy(), step
