"""The crops that training sees: stems in memory, or weighted folders of audio files.

Item i is a pure function of (seed, i), so that neither resuming nor several processes need loader state.
Axis legend: `B` batch, `S` source (stem), `T` samples.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .audio import AudioFileError, audio_header, generator, read_audio
from .synth import render_song
from .tracks import N_SONGS, SONG_S, SPLITS, Track, audio_files, parallel, song_seed

MIN_RMS = 1e-3  # quieter crops (-60 dBFS) are drawn again
MAX_DRAWS = 200

log = logging.getLogger(__name__)


class StemBank:
    """Stems of songs in memory. An item is a random stretch of a random song: a stem, or the mixture."""

    def __init__(self, stems: Iterable[Tensor], sample_rate: int, description: str, solo_share: float = 0.5):
        """`stems`: (S, T) for each song; `solo_share`: the probability that an item is a single stem."""
        self.stems = [song.to("cpu", torch.float32) for song in stems]
        self.sample_rate, self.description, self.solo_share = sample_rate, description, solo_share
        if not self.stems or any(song.ndim != 2 or song.numel() == 0 for song in self.stems):
            raise ValueError(f"stems must be (S, T), one or more, got {[tuple(s.shape) for s in self.stems]}")
        if not 0 <= solo_share <= 1:
            raise ValueError(f"solo_share must be in [0, 1], got {solo_share}")

    @classmethod
    def from_tracks(cls, tracks: Sequence[Track], sample_rate: int, solo_share: float = 0.5) -> "StemBank":
        """All of some tracks. Raises AudioFileError naming a file that cannot be read."""
        description = f"{len(tracks)} tracks of {', '.join(sorted({track.dataset for track in tracks}))}"
        return cls([track.stems(sample_rate) for track in tracks], sample_rate, description, solo_share)

    @classmethod
    def from_synth(
        cls, n_songs: int, seconds: float, sample_rate: int, seed: int = 0, split: str = "train"
    ) -> "StemBank":
        """The first songs that `write_synthetic` would write, rendered at `sample_rate`, in memory."""
        if split not in SPLITS["synthetic"]:
            raise ValueError(f"dataset 'synthetic' has no split {split!r}: use one of {SPLITS['synthetic']}")
        jobs = [(song_seed(split, index, seed), seconds, sample_rate) for index in range(n_songs)]
        stems = [torch.from_numpy(song) for song in parallel(render_song, jobs)]
        return cls(stems, sample_rate, f"{n_songs} synthetic {split} songs of {seconds:g} s, seed {seed}")

    def crops(self, indices: Sequence[int], n_samples: int, seed: int) -> Tensor:
        """Items `indices` (B, T) float32. ValueError naming a song that is too short or silent."""
        return torch.from_numpy(np.stack([self._draw(generator(seed, i), n_samples) for i in indices]))

    def _draw(self, rng: torch.Generator, n_samples: int) -> np.ndarray:
        for _ in range(MAX_DRAWS):
            u_song, u_start, u_solo, u_stem = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
            number = int(u_song * len(self.stems))
            # numpy: torch would wake its thread pool for each of these small operations
            song = self.stems[number].numpy()
            if song.shape[1] < n_samples:
                raise ValueError(f"song {number} of {self.description} is shorter than {n_samples} samples")
            start = int(u_start * (song.shape[1] - n_samples + 1))
            part = song[:, start : start + n_samples]
            crop = part[int(u_stem * len(song))] if u_solo < self.solo_share else part.sum(0)
            if _rms(crop) >= MIN_RMS:
                return crop
        raise ValueError(f"song {number} of {self.description} is silent, as all {MAX_DRAWS} crops drawn")


class Corpora:
    """Weighted folders of audio files (paper 4.1): a folder by weight, then a file, then a stretch of it.

    A file that is too short, or cannot be read, is drawn again within its folder, so that weights hold; it is
    logged once and kept, with the reason, in `skipped`.
    """

    def __init__(self, folders: Mapping[str | Path, float], sample_rate: int, min_rms: float = MIN_RMS):
        """`folders`: folder -> weight; searched recursively (`tracks.audio_files`)."""
        weights = list(folders.values())
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
            raise ValueError(f"weights must be >= 0 with a positive sum, got {dict(folders)}")
        self.sample_rate, self.min_rms = sample_rate, min_rms
        self.skipped: dict[Path, str] = {}
        self._headers: dict[Path, tuple[int, int]] = {}
        self._folders = [Path(folder) for folder in folders]
        self._files = [audio_files(folder) for folder in self._folders]
        self._weights = torch.tensor(weights, dtype=torch.float64)
        counts = zip(self._folders, weights, map(len, self._files), strict=True)
        self.description = ", ".join(f"{folder.name}={weight:g} ({n} files)" for folder, weight, n in counts)

    def crops(self, indices: Sequence[int], n_samples: int, seed: int) -> Tensor:
        """Items `indices` (B, T) float32. ValueError naming a folder where no draw gave a crop."""
        with ThreadPoolExecutor(min(8, len(indices))) as pool:
            return torch.stack(list(pool.map(lambda i: self._draw(generator(seed, i), n_samples), indices)))

    def _draw(self, rng: torch.Generator, n_samples: int) -> Tensor:
        which = int(torch.multinomial(self._weights, 1, generator=rng))
        folder, files = self._folders[which], self._files[which]
        for _ in range(MAX_DRAWS):
            u_file, u_start = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
            crop = self._read(files[int(u_file * len(files))], u_start, n_samples)
            if crop is not None and _rms(crop.numpy()) >= self.min_rms:
                return crop
        reason = f"{MAX_DRAWS} draws gave no {n_samples} samples of RMS >= {self.min_rms:g}"
        raise ValueError(f"{folder}: {reason}; skipped so far: {self.skipped}")

    def _read(self, path: Path, u_start: float, n_samples: int) -> Tensor | None:
        try:
            if path not in self._headers:
                self._headers[path] = audio_header(path)
            rate, n_frames = self._headers[path]
            n_wanted = math.ceil(n_samples * rate / self.sample_rate)
            if n_frames < n_wanted:
                raise AudioFileError(f"{path}: {n_frames} frames at {rate} Hz are too short for a crop")
            start = int(u_start * (n_frames - n_wanted + 1))
            crop, _ = read_audio(path, self.sample_rate, start / rate, n_wanted / rate, channels="mean")
            return crop[:n_samples]
        except (AudioFileError, OSError) as error:
            reason = str(error)
            if self.skipped.setdefault(path, reason) is reason:
                log.warning("skipped: %s", reason)
            return None


def _rms(crop: np.ndarray) -> float:
    return math.sqrt(np.dot(crop, crop) / len(crop))


def training_data(spec: str | Sequence[str], sample_rate: int, split: str = "train") -> StemBank | Corpora:
    """What a command line names: "synthetic", or FOLDER=WEIGHT once or more often. Else ValueError."""
    names = [spec] if isinstance(spec, str) else list(spec)
    if names == ["synthetic"]:
        return StemBank.from_synth(N_SONGS.get(split, 0), SONG_S, sample_rate, split=split)
    pairs = [re.fullmatch(r"(.+)=(\d+(?:\.\d*)?)", name) for name in names]
    if not names or None in pairs or split != "train":
        allowed = "'synthetic', or FOLDER=WEIGHT once or more often (split 'train' only)"
        raise ValueError(f"training data is {allowed}; got {names}, split {split!r}")
    return Corpora({folder: float(weight) for folder, weight in map(re.Match.groups, pairs)}, sample_rate)
