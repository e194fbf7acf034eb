"""Pairs of latents to train a Re-Encoder on: inputs and targets, encoded once and read at random.

A folder has `pairs.json` (written first: task, model, factor) and shards of `lincae.latents.store` in
`input/` and `target/`, where items of one name belong together.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lincae.data.audio import audio_header, read_audio, resample
from lincae.data.containers import stamp_of
from lincae.data.stereo import upmix
from lincae.data.synth import render_song
from lincae.data.tracks import N_SONGS, SONG_S, SPLITS, Track, song_seed
from lincae.interface import AutoencoderLike
from lincae.latents.store import (
    LatentDataset,
    LatentFileError,
    Shards,
    check_description,
    check_same_model,
    claim_for_model,
    describe,
    named_files,
)
from lincae.machine import generator
from lincae.machine.files import json_object, locked
from lincae.reencoder.module import TASKS, check_task
from lincae.training.environment import launched_process

MANIFEST = "pairs.json"
HALVES = ("input", "target")
SEGMENT_S = 30.0  # files are encoded in stretches of so long, each a pair


@dataclass(frozen=True)
class Source:
    """A training target: `read(sample_rate)` gives (1, T), or for stereo (2, T). `version` changes with what
    is read, where that is not a function of the name."""

    name: str
    read: Callable[[int], Tensor]
    dataset: str = ""
    version: str = ""


def synthetic_sources(task: str, split: str = "train", n_songs: int | None = None) -> list[Source]:
    """The mixtures of the songs that `write_synthetic` would write, by default of all; for stereo each is
    upmixed by its seed. Raises ValueError for an unknown task or split.
    """
    check_task(task)
    if split not in SPLITS["synthetic"]:
        raise ValueError(f"dataset 'synthetic' has no split {split!r}: use one of {SPLITS['synthetic']}")

    def read(number: int, sample_rate: int) -> Tensor:
        stems = torch.from_numpy(render_song(number, SONG_S, sample_rate))
        return _mixture(task, stems, sample_rate, number)

    indices = range(N_SONGS[split] if n_songs is None else n_songs)
    return [Source(f"{split}_{i:03d}", partial(read, song_seed(split, i, 0))) for i in indices]


def track_sources(task: str, tracks: Sequence[Track], seconds: float | None = None) -> list[Source]:
    """Mixtures of tracks with stems, for evaluation; for stereo upmixed, track i by seed i.

    `seconds`: at most so much from the middle of each. Raises ValueError for an unknown task.
    """
    check_task(task)

    def read(index: int, sample_rate: int) -> Tensor:
        track = tracks[index]
        length_s = min(track.duration_s, seconds or track.duration_s)
        stems = track.stems(sample_rate, (track.duration_s - length_s) / 2, length_s)
        return _mixture(task, stems, sample_rate, index)

    return [Source(track.name, partial(read, i), track.dataset) for i, track in enumerate(tracks)]


def _mixture(task: str, stems: Tensor, sample_rate: int, seed: int) -> Tensor:
    return upmix(stems, sample_rate, seed) if task == "stereo" else stems.sum(0, keepdim=True)


def folder_sources(task: str, folders: Sequence[str | Path]) -> list[Source]:
    """All audio files at any depth, in stretches of SEGMENT_S (MUSDB18-HQ, for one: its `train` folder).

    The end of a file counts from half a stretch on. Bandwidth extension takes the mean of a file's channels.
    Raises as `named_files`; ValueError, when read, for a file that is not stereo where that is asked for.
    """
    channels = "all" if check_task(task) == "stereo" else "mean"

    def read(path: Path, start_s: float, sample_rate: int) -> Tensor:
        audio, _ = read_audio(path, sample_rate, start_s, SEGMENT_S, channels)
        return check_stereo(audio, str(path)) if task == "stereo" else audio[None]

    found = []
    for name, path in named_files(folders).items():
        n_bytes, modified_ns = stamp_of(path)
        version = f"{n_bytes} bytes, modified at {modified_ns} ns"
        rate, n_samples = audio_header(path)
        for part in range(max(1, round(n_samples / rate / SEGMENT_S))):
            found.append(Source(f"{name}@{part}", partial(read, path, part * SEGMENT_S), version=version))
    return found


def check_stereo(audio: Tensor, name: str) -> Tensor:
    """Return audio (2, T) as it is. Raises ValueError for another shape."""
    if audio.ndim != 2 or len(audio) != 2:
        raise ValueError(f"{name}: stereo targets are (2, T), left and right, got {tuple(audio.shape)}")
    return audio


# ---------------------------------------------------------------- inputs


def band_limited(audio: Tensor, sample_rate: int, factor: int = 2) -> Tensor:
    """Audio (B, T) without what lies above `sample_rate / (2 factor)`: resampled down and up, a sinc kernel.

    Raises ValueError unless `factor` >= 2 divides the rate.
    """
    if factor < 2 or sample_rate % factor:
        raise ValueError(f"factor must be at least 2 and divide {sample_rate} Hz, got {factor}")
    low = resample(audio, sample_rate, sample_rate // factor)
    return resample(low, sample_rate // factor, sample_rate)[..., : audio.shape[-1]].contiguous()


def task_input(target: Tensor, task: str, sample_rate: int, factor: int = 2) -> Tensor:
    """What a module is given for a target (B, T): it band-limited, or the mean (1, T) of left and right."""
    if check_task(task) == "stereo":
        return check_stereo(target, "target").mean(0, keepdim=True)
    return band_limited(target, sample_rate, factor)


# ---------------------------------------------------------------- writing and reading


def write_pairs(
    model: AutoencoderLike,
    sources: Sequence[Source],
    out: str | Path,
    task: str,
    factor: int = 2,
    progress: bool = True,
) -> Path:
    """Encode inputs and targets into a folder; a later call continues a killed one. Returns the folder.

    Of processes that a launcher started the first encodes, the others wait. An unreadable file is an error
    that names it. Raises LatentFileError for a folder of another model;
    ValueError for one of another task, factor or other sources, or something else, and as `Source.read`;
    OSError: what was encoded before stays.
    """
    out = Path(out)
    rate = model.sample_rate
    factor = factor if check_task(task) == "bandwidth" else 1
    described = describe(model)
    listed = json.dumps([(source.name, source.version) for source in sources])
    digest = f"{len(sources)} ({hashlib.sha256(listed.encode()).hexdigest()[:16]})"
    facts = {"task": task, "factor": factor, "dtype": "float32", "sources": digest}
    claim_for_model(out / MANIFEST, "pairs", facts, described, later=("sources",))
    _, world, _ = launched_process()
    held = None if world > 1 else f"another run encodes into {out}"
    with locked(out / ".00000.lock", held):
        halves = {half: Shards(out / half, described) for half in HALVES}
        for source in tqdm(sources, f"{task} pairs", unit="item", disable=not progress):
            missing = [half for half, shards in halves.items() if source.name not in shards.done]
            if not missing:
                continue
            target = source.read(rate)
            audio = {"input": task_input(target, task, rate, factor), "target": target}
            for half in missing:
                halves[half].add(source.name, [model.encode(audio[half])], target.shape[-1])
        for shards in halves.values():
            shards.finish()
    return out


class LatentPairs:
    """Pairs on disk. Crop i is a pure function of (seed, i): a random stretch of a random pair.

    Half of the stereo crops have left and right exchanged, which leaves their mono input as it is.
    """

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError where there are none, LatentFileError for damaged or unequal halves."""
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no pairs (`lincae reencoder train` writes them)")
        manifest = json_object(path.read_bytes(), path, LatentFileError)
        check_description(manifest.get("model"), path)
        self.model = manifest["model"]
        self.task = manifest.get("task")
        self.factor = manifest.get("factor")
        self.sources = str(manifest.get("sources", ""))
        if self.task not in TASKS or type(self.factor) is not int:
            stated = f"task {self.task!r:.80}, factor {self.factor!r:.80}"
            raise LatentFileError(f"{path}: no pairs are of {stated}")
        self.inputs, self.targets = (LatentDataset(self.folder / half) for half in HALVES)
        for half in (self.inputs, self.targets):
            check_same_model(half.model, self.model, half.source)
        self._long: dict[int, list[str]] = {}
        if self.inputs.files != self.targets.files:
            differing = sorted(set(self.inputs.files) ^ set(self.targets.files))
            raise LatentFileError(f"{folder}: {len(differing)} items lack their other half: {differing[:3]}")

    @property
    def description(self) -> str:
        """What the pairs are, for cards, and for a resumed run to compare."""
        made_of = f", of sources {self.sources}" if self.sources else ""
        return f"{len(self.names)} pairs of {self.task} in {self.folder.name}{made_of}"

    @property
    def names(self) -> list[str]:
        return self.inputs.files

    @property
    def channels(self) -> int:
        return self.inputs.entry(self.names[0]).latent_channels

    def frames(self, seconds: float) -> int:
        """Latent frames in so many seconds, rounded."""
        return max(1, round(seconds * self.model["latent_rate"]))

    def crops(self, indices: Sequence[int], n_frames: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs `(B, C, L)` and targets, `(B, C, L)` or for stereo `(B, 2, C, L)`, L = `n_frames`. Shorter
        pairs are left out. Raises ValueError where all are."""
        if n_frames not in self._long:
            lengths = {name: self.inputs.entry(name).n_frames for name in self.names}
            longest = max(lengths.values())
            if longest < n_frames:
                has = f"no pair has {n_frames} latent frames, the longest has {longest}"
                raise ValueError(f"{self.folder}: {has}")
            self._long[n_frames] = [name for name, length in lengths.items() if length >= n_frames]
        long = self._long[n_frames]
        pairs = [self._crop(long, n_frames, generator(seed, i)) for i in indices]
        inputs, targets = (torch.stack(half) for half in zip(*pairs, strict=True))
        return inputs.squeeze(1), targets if self.task == "stereo" else targets.squeeze(1)

    def _crop(self, names: list[str], n_frames: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        u_name, u_start, u_swap = torch.rand(3, generator=draw, dtype=torch.float64).tolist()
        name = names[int(u_name * len(names))]
        start = int(u_start * (self.inputs.entry(name).n_frames - n_frames + 1))
        z_in = self.inputs.frames(name, start, n_frames)
        z_target = self.targets.frames(name, start, n_frames)
        return z_in, z_target.flip(0) if u_swap < 0.5 else z_target  # a single channel stays as it is

    def latent_std(self, n_frames: int, seed: int) -> float:
        """Standard deviation of the targets, over some crops."""
        return max(self.crops(range(64), n_frames, seed)[1].std().item(), 1e-8)
