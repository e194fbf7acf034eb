"""The crops that training sees: stems in memory, weighted folders of audio files, or shards of them. Item i
is a pure function of (seed, i): neither resuming nor several processes need loader state."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lincae.data.corpora import MAX_DRAWS, MIN_RMS, Corpora, rms, weighted_folders
from lincae.data.free_music import refuse_test_recordings, split_folders
from lincae.data.shards import Shards
from lincae.data.synth import render_song
from lincae.data.tracks import N_SONGS, SONG_S, SYNTH_VERSION, check_split, parallel, song_seed
from lincae.machine import generator
from lincae.machine.files import atomic_write, locked
from lincae.training.environment import launched_process, user_cache

SOLO_SHARE = 0.5
"""The probability that an item of a StemBank is a single stem."""


class StemBank:
    """Stems of songs in memory. An item is a random stretch of a random song: a stem, or the mixture."""

    def __init__(self, stems: Iterable[Tensor], sample_rate: int, description: str):
        """`stems`: (S, T) for each song."""
        self.stems = [song.to("cpu", torch.float32) for song in stems]
        self.sample_rate = sample_rate
        self.description = description
        if not self.stems or any(song.ndim != 2 or song.numel() == 0 for song in self.stems):
            shapes = [tuple(song.shape) for song in self.stems]
            raise ValueError(f"stems must be (S, T), one or more, got {shapes}")

    @classmethod
    def from_synth(
        cls, n_songs: int, seconds: float, sample_rate: int, seed: int = 0, split: str = "train"
    ) -> "StemBank":
        """The first songs that `write_synthetic` would write, rendered at `sample_rate`, in memory; of
        several processes the first on a machine renders them into the user's cache for all."""
        check_split("synthetic", split)
        jobs = [(song_seed(split, index, seed), seconds, sample_rate) for index in range(n_songs)]
        if launched_process()[1] == 1:
            stems = [torch.from_numpy(song) for song in parallel(render_song, jobs)]
        else:
            name = f"{split}-{n_songs}-{seconds:g}s-{sample_rate}Hz-{seed}-{SYNTH_VERSION}.safetensors"
            stems = rendered_once(user_cache() / "lincae" / "synthetic" / name, jobs)
        return cls(stems, sample_rate, f"{n_songs} synthetic {split} songs of {seconds:g} s, seed {seed}")

    def crops(self, indices: Sequence[int], n_samples: int, seed: int) -> Tensor:
        """Items `indices` (B, T) float32. ValueError naming a song that is too short or silent."""
        return torch.from_numpy(np.stack([self._draw(generator(seed, i), n_samples) for i in indices]))

    def _draw(self, rng: torch.Generator, n_samples: int) -> np.ndarray:
        for _ in range(MAX_DRAWS):
            u_song, u_start, u_solo, u_stem = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
            number = int(u_song * len(self.stems))
            # With numpy: torch would wake its thread pool for each of these small operations.
            song = self.stems[number].numpy()
            if song.shape[1] < n_samples:
                raise ValueError(f"song {number} of {self.description} is shorter than {n_samples} samples")
            start = int(u_start * (song.shape[1] - n_samples + 1))
            part = song[:, start : start + n_samples]
            crop = part[int(u_stem * len(song))] if u_solo < SOLO_SHARE else part.sum(0)
            if rms(crop) >= MIN_RMS:
                return crop
        raise ValueError(f"song {number} of {self.description} is silent, as all {MAX_DRAWS} crops drawn")


def rendered_once(path: Path, jobs: Sequence[tuple]) -> list[Tensor]:
    """The stems of songs, from a file that the first process to come writes. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            stems = {f"{k:06d}": torch.from_numpy(song) for k, song in enumerate(parallel(render_song, jobs))}
            with atomic_write(path) as file:
                file.write(safetensors.torch.save(stems))
    stems = safetensors.torch.load_file(path)
    return [stems[name] for name in sorted(stems)]


def training_data(
    spec: str | Sequence[str], sample_rate: int, split: str = "train"
) -> StemBank | Corpora | Shards:
    """What a command line names: "synthetic"; "free-music"; FOLDER=WEIGHT once or more often; or
    shards:FOLDER, a folder or address that `lincae shards` wrote. Raises ValueError for something else, and
    for a test recording of free-music; FileNotFoundError where free-music has not been fetched."""
    names = [spec] if isinstance(spec, str) else list(spec)
    if names in (["synthetic"], ["free-music"]):
        check_split(names[0], split)
    if names == ["synthetic"]:
        return StemBank.from_synth(N_SONGS[split], SONG_S, sample_rate, split=split)
    if names == ["free-music"]:
        return Corpora(split_folders(split), sample_rate)
    if split != "train":
        has_splits = "only 'synthetic' and 'free-music' have other splits than 'train'"
        raise ValueError(f"{has_splits}; got {names}, split {split!r}")
    if len(names) == 1 and names[0].startswith("shards:"):
        return Shards(names[0].removeprefix("shards:"), sample_rate)
    try:
        folders = weighted_folders(names)
    except ValueError as error:
        allowed = "'synthetic', 'free-music', shards:FOLDER or corpora"
        raise ValueError(f"training data is {allowed}; {error}") from error
    corpora = Corpora(folders, sample_rate)
    refuse_test_recordings(path for _, path, _, _ in corpora.files())
    return corpora
