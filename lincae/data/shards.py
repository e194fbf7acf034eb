"""Corpora as few large files, for folders that outgrow a disk or are slow to read at random.

    python -m lincae.commands.shards write data/jamendo=60 data/moisesdb=20 /mnt/shards --sample-rate 44100
    python -m lincae.training --preset paper --data shards:/mnt/shards      # or shards:s3://bucket/shards

The same seed draws the same crops as from the folders, up to rounding to 16 bits. A shard holds 16-bit mono
samples at the rate of training, 318 MB an hour at 44.1 kHz: not compressed, so that a crop is one range of
bytes, which any file system or object store that fsspec knows serves without reading more. The step is that
of 16-bit audio, smaller in quiet stretches and larger where samples pass full scale.
Not LitData: it brings torchvision, whose wheels do not load beside a CPU-only torch.

A folder has `shards.json` (written first), `00000.safetensors` ..., `index.safetensors` (written last).
Axis legend: `T` samples.
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
from torch import Tensor
from tqdm.auto import tqdm

from lincae.data.audio import AudioFileError
from lincae.data.corpora import MIN_RMS, Corpora, WeightedFiles
from lincae.data.tracks import file_track
from lincae.files import atomic_write, claim, write_json

MANIFEST, INDEX = "shards.json", "index.safetensors"


VERSION = 1


BLOCK_S = 30  # stretch with a step of its own; files of hours need not fit memory several times


SHARD_BYTES = 2**27


COLUMNS = ("corpus", "shard", "byte", "frames", "step")  # of the index: a row a file; `step` is its first


log = logging.getLogger(__name__)


class Shards(WeightedFiles):
    """What `write_shards` wrote, in a folder or at an address such as s3://bucket/folder."""

    def __init__(self, folder: str | Path, sample_rate: int, min_rms: float = MIN_RMS):
        """Raises FileNotFoundError where there are no shards, or unfinished ones; ValueError for shards of
        another sample rate or of another version."""
        self._folder = str(folder)
        try:
            manifest = json.loads(self._bytes(MANIFEST))
            index = safetensors.torch.load(self._bytes(INDEX))
        except FileNotFoundError as error:
            fix = "python -m lincae.commands.shards write FOLDER=WEIGHT ... writes them, or finishes"
            raise FileNotFoundError(f"{folder} holds no complete shards ({fix}): {error}") from error
        if (found := manifest["version"]) != VERSION:
            raise ValueError(f"{folder}: shards of version {found}, this lincae reads {VERSION}")
        if (rate := manifest["sample_rate"]) != sample_rate:
            raise ValueError(f"{folder}: shards at {rate} Hz, wanted {sample_rate}: write them at that rate")
        self._block = rate * BLOCK_S
        self._steps = index.pop("steps").numpy()
        columns = {name: column.numpy() for name, column in index.items()}
        members = [np.flatnonzero(columns["corpus"] == k) for k in range(len(manifest["corpora"]))]
        self._files = [{name: column[rows] for name, column in columns.items()} for rows in members]
        headers = [np.stack([np.full_like(f["frames"], rate), f["frames"]]) for f in self._files]
        super().__init__(manifest["corpora"], headers, rate, min_rms, {})

    def _read(self, folder: int, number: int, start: int, n_samples: int) -> Tensor:
        file = {name: int(column[number]) for name, column in self._files[folder].items()}
        first = file["byte"] + 2 * start
        samples = np.frombuffer(self._bytes(_shard(file["shard"]), first, first + 2 * n_samples), "<i2")
        if len(samples) < n_samples:
            raise AudioFileError(f"{self._name(folder, number)}: truncated, {len(samples)} of {n_samples}")
        blocks = np.arange(start, start + n_samples) // self._block
        return torch.from_numpy(samples * self._steps[file["step"] + blocks])

    def _name(self, folder: int, number: int) -> str:
        file = self._files[folder]
        return f"{self._folder}/{_shard(file['shard'][number])} at byte {file['byte'][number]}"

    def _bytes(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        from fsspec.core import url_to_fs

        # in each process, which its connections must not outlive; fsspec caches them
        system, root = url_to_fs(self._folder)
        return system.cat_file(f"{root}/{name}", start=start, end=stop)


def _shard(number: int) -> str:
    return f"{number:05d}.safetensors"


def write_shards(corpora: Corpora, folder: str | Path, workers: int | None = None) -> Path:
    """Write all files of some corpora, with their weights and at their rate, into a folder of shards.

    A later call continues an interrupted one. Files that fail are left out, logged, and listed in the
    manifest. `workers`: threads (None: one a core), each with 0.5 GB at most, or a file of hours. Raises
    ValueError where `folder` holds something else, FileNotFoundError for a file that has vanished.
    """
    folder, rate = Path(folder), corpora.sample_rate
    files = corpora.files()
    plan = {"version": VERSION, "sample_rate": rate, "corpora": corpora.weights()}
    plan["files"] = hashlib.sha256(repr((files, SHARD_BYTES, BLOCK_S)).encode()).hexdigest()
    claim(folder / MANIFEST, "shards", plan)

    groups, n_bytes = [[]], 0
    for file in files:
        if n_bytes >= SHARD_BYTES:
            groups, n_bytes = [*groups, []], 0
        groups[-1].append(file)
        n_bytes += 2 * file[3] * rate // file[2]
    write = partial(_write_shard, folder, rate)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = pool.map(write, range(len(groups)), groups)
        parts = list(tqdm(jobs, "writing shards", len(groups), unit="shard"))
    skipped = {name: reason for part in parts for name, reason in part.pop("skipped").items()}
    n_steps = np.cumsum([0] + [len(part["steps"]) for part in parts])
    for part, first_step in zip(parts, n_steps, strict=False):
        part["step"] += int(first_step)
    with atomic_write(folder / INDEX) as file:
        file.write(safetensors.torch.save({name: torch.cat([p[name] for p in parts]) for name in parts[0]}))
    write_json(folder / MANIFEST, {**plan, "skipped": skipped})
    return folder


def _write_shard(folder: Path, rate: int, number: int, files: Sequence[tuple]) -> dict[str, Any]:
    """The rows of the index that are about one shard, which is written first where it is missing."""
    path = folder / _shard(number)
    if not path.is_file():
        rows, audio, steps, skipped, n_samples = [], [], [], {}, 0
        for corpus, name, *_ in files:
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
        tensors["audio"] = torch.from_numpy(np.concatenate([np.empty(0, np.int16), *audio]))
        tensors["steps"] = torch.tensor(steps, dtype=torch.float32)
        with atomic_write(path) as file:
            file.write(safetensors.torch.save(tensors, {"skipped": json.dumps(skipped)}))
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_bytes))
    with safetensors.safe_open(path, "pt") as file:
        columns = {name: file.get_tensor(name) for name in (*COLUMNS, "steps")}
    columns["byte"] += 8 + n_bytes + header["audio"]["data_offsets"][0]
    return {**columns, "skipped": json.loads(header["__metadata__"]["skipped"])}


def _blocks(path: Path, rate: int) -> Iterator[tuple[np.ndarray, float]]:
    """Stretches of BLOCK_S of a file as 16-bit samples, each with its step: a power of two, so that 16-bit
    mono audio below full scale is kept to the bit."""
    track = file_track(path.name, "corpus", {"mixture": path})
    n_samples = math.ceil(round(track.duration_s * track.sample_rate) * rate / track.sample_rate)
    for start in range(0, n_samples, rate * BLOCK_S):
        audio = track.stems(rate, start / rate, BLOCK_S)[0]
        _, exponent = math.frexp(audio.abs().max().item() * 65536 / 65535)  # 32767.5 would round to 32768
        step = 2.0 ** (exponent - 15)
        yield (audio / step).round().to(torch.int16).numpy(), step
