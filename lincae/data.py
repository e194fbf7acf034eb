"""Tracks with stems for evaluation, and the crops that training sees.

A mixture is the sum of the stems, by definition. Item i of training crops is a pure function of (seed, i),
so that neither resuming nor several processes need loader state.
Axis legend: `B` batch, `S` source (stem), `T` samples.
"""

import importlib.util
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor
from tqdm.auto import tqdm

from .audio import AudioFileError, atomic_write, audio_header, generator, read_audio, resample
from .synth import STEMS, render_song

DATASETS = ("synthetic", "clip", "musdb")
SPLITS = {"synthetic": ("train", "test"), "clip": ("test",), "musdb": ("train", "valid", "test")}
N_SONGS, SONG_S = {"train": 48, "test": 12}, 20.0
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
MIN_RMS = 1e-3  # quieter crops (-60 dBFS) are drawn again
MAX_DRAWS = 200
MANIFEST, SONGS = "synthetic.json", "[!.]*/mixture.wav"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Track:
    """A piece of music with its stems, on disk until it is asked for."""

    name: str
    dataset: str
    stem_names: tuple[str, ...]
    sample_rate: int
    duration_s: float
    read: Callable[[float, float | None], Tensor] = field(repr=False, compare=False)  # (start_s, seconds)

    def stems(
        self, sample_rate: int | None = None, start_s: float = 0, seconds: float | None = None
    ) -> Tensor:
        """Stems (S, T), mono (channel mean), float32; at most `seconds` from `start_s` on.

        Raises AudioFileError or FileNotFoundError, naming the file; ValueError for a start beyond the end.
        """
        if not 0 <= start_s < self.duration_s or (seconds is not None and seconds <= 0):
            asked = f"start_s={start_s}, seconds={seconds}"
            raise ValueError(f"track {self.name!r} lasts {self.duration_s:.3f} s, nothing at {asked}")
        stems = self.read(start_s, seconds)
        return stems if sample_rate is None else resample(stems, self.sample_rate, sample_rate)


def tracks(
    dataset: str, split: str = "test", n_tracks: int | None = None, root: str | Path | None = None
) -> list[Track]:
    """The first `n_tracks` (at most; None: all) of a dataset, in order of name.

    - "synthetic": songs of `lincae.synth` in `root` (default `$LINCAE_DATA/synthetic`, or
      `data/synthetic`), rendered on first use.
    - "clip": the real four-stem track that the stempeg package carries (CC BY-NC-SA 3.0), for testing only.
    - "musdb": MUSDB18-HQ, or MUSDB18 in STEMS form, in `root` (default `$MUSDB_PATH`), with the official
      splits: "train" leaves out the 14 songs of "valid".

    Raises ValueError for an unknown dataset or split, FileNotFoundError for a missing root or one without
    tracks, ImportError or RuntimeError, saying what to install, for a package or ffmpeg that is missing.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}: use one of {DATASETS}")
    if split not in SPLITS[dataset]:
        raise ValueError(f"dataset {dataset!r} has no split {split!r}: use one of {SPLITS[dataset]}")
    if n_tracks is not None and n_tracks < 1:
        raise ValueError(f"n_tracks must be at least 1, or None for all, got {n_tracks}")
    if dataset == "clip":
        if root is not None:
            raise ValueError("dataset 'clip' lies in the installed stempeg package and takes no root")
        return [_clip()]
    found = _synthetic_tracks(split, root) if dataset == "synthetic" else _musdb_tracks(split, root)
    return found[:n_tracks]


def _synthetic_tracks(split: str, root: str | Path | None) -> list[Track]:
    root = Path(root or Path(os.environ.get("LINCAE_DATA", "data")) / "synthetic")
    manifest = root / MANIFEST
    write_synthetic(root, **(json.loads(manifest.read_text()) if manifest.is_file() else {}))
    return [_folder_track(path.parent, "synthetic") for path in sorted((root / split).glob(SONGS))]


def _musdb_tracks(split: str, root: str | Path | None) -> list[Track]:
    root = root or os.environ.get("MUSDB_PATH")
    if not root:
        raise FileNotFoundError("no MUSDB root: pass root=..., or set the environment variable MUSDB_PATH")
    folder = Path(root).expanduser() / ("test" if split == "test" else "train")
    if not folder.is_dir():
        raise FileNotFoundError(f"MUSDB root {root}: {folder} does not exist")
    if any(folder.glob("*.stem.mp4")):
        return _stem_file_tracks(folder, split)
    songs = sorted(path.parent for path in folder.glob(SONGS))
    if split != "test":
        import yaml

        setup = yaml.safe_load((_package_folder("musdb") / "configs" / "mus.yaml").read_bytes())
        songs = [song for song in songs if (song.name in setup["validation_tracks"]) == (split == "valid")]
    if not songs:
        raise FileNotFoundError(
            f"MUSDB root {root}: no {split} tracks (*.stem.mp4, */mixture.wav) in {folder}"
        )
    return [_folder_track(song, "musdb") for song in songs]


def _folder_track(folder: Path, dataset: str) -> Track:
    paths = [folder / f"{stem}.wav" for stem in STEMS]
    headers = [audio_header(path) for path in paths]
    if len(set(headers)) > 1:
        raise AudioFileError(f"{folder}: {STEMS} differ in sample rate or length: {headers}")
    sample_rate, n_samples = headers[0]
    duration_s = n_samples / sample_rate
    return Track(folder.name, dataset, STEMS, sample_rate, duration_s, partial(_read_files, paths))


def _read_files(paths: Sequence[Path], start_s: float, seconds: float | None) -> Tensor:
    return torch.stack([read_audio(p, start_s=start_s, seconds=seconds, channels="mean")[0] for p in paths])


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"the {package} package is not installed: pip install {package}")
    return Path(spec.origin).parent


def _clip() -> Track:
    # `import stempeg` fails without ffmpeg; its example needs neither
    path = _package_folder("stempeg") / "data" / "The Easton Ellises - Falcon 69.stem.mp4"
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        sample_rate, duration_s = stream.rate, float(stream.duration * stream.time_base)
    name = path.name.removesuffix(".stem.mp4")
    return Track(name, "clip", STEMS, sample_rate, duration_s, partial(_read_clip, path, sample_rate))


def _read_clip(path: Path, sample_rate: int, start_s: float, seconds: float | None) -> Tensor:
    import av

    with av.open(str(path)) as container:
        streams = container.streams.audio[1:]  # the first is the mixture, which is not the sum of the stems
        blocks = {stream.index: [] for stream in streams}
        for packet in container.demux(streams):
            blocks[packet.stream.index] += [frame.to_ndarray() for frame in packet.decode()]
    stems = np.stack([np.concatenate(frames, axis=1).mean(0) for frames in blocks.values()])
    start = round(start_s * sample_rate)
    stop = None if seconds is None else start + round(seconds * sample_rate)
    return torch.from_numpy(stems[:, start:stop])


def _stem_file_tracks(folder: Path, split: str) -> list[Track]:
    # `import musdb` fails without ffmpeg too, but does not say how to get it
    if missing := [tool for tool in ("ffmpeg", "ffprobe") if shutil.which(tool) is None]:
        fix = "apt install ffmpeg, or conda install -c conda-forge ffmpeg (MUSDB18-HQ needs none)"
        raise RuntimeError(f"MUSDB18 in STEMS form needs {' and '.join(missing)}: {fix}")
    _package_folder("musdb")
    import ffmpeg
    import musdb

    try:
        db = musdb.DB(str(folder.parent), subsets=folder.name, split=None if split == "test" else split)
    except ffmpeg.Error as error:
        raise AudioFileError(f"a file in {folder} cannot be read: {error.stderr.decode().strip()}") from error
    if not db.tracks:
        raise FileNotFoundError(f"MUSDB root {folder.parent}: no {split} tracks in {folder}")
    return [
        Track(t.name, "musdb", STEMS, int(t.rate), float(t.duration), partial(_read_stem_file, t)) for t in db
    ]


def _read_stem_file(track: Any, start_s: float, seconds: float | None) -> Tensor:
    import ffmpeg
    import stempeg

    # the track's own `stems` are read as 16 bit, which clips what overshoots full scale; this is float
    try:
        streams, _ = stempeg.read_stems(track.path, start=start_s, duration=seconds, info=track.info)
    except (ffmpeg.Error, Warning) as error:  # stempeg raises Warning
        raise AudioFileError(f"{track.path}: cannot be read: {error}") from error
    stems = np.stack([streams[track.sources[stem].stem_id].mean(-1) for stem in STEMS])
    return torch.from_numpy(stems).float()


def song_seed(split: str, index: int, seed: int) -> int:
    """No two songs (split, index, seed) share one, below 500,000 songs a split."""
    return 1_000_000 * seed + 500_000 * SPLITS["synthetic"].index(split) + index


def write_synthetic(
    root: str | Path,
    n_train: int = N_SONGS["train"],
    n_test: int = N_SONGS["test"],
    seconds: float = SONG_S,
    sample_rate: int = 44100,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Render songs into `root`, shaped as MUSDB18-HQ: train/ and test/, a folder a song, 16-bit mono WAV.

    A later call continues an interrupted one, and leaves complete songs as they are. `workers` processes
    (None: one a core). Raises ValueError where `root` has songs of other parameters, or something else.
    """
    root = Path(root)
    songs, audio = {"n_train": n_train, "n_test": n_test}, {"seconds": seconds, "sample_rate": sample_rate}
    wanted = {**songs, **audio, "seed": seed}
    manifest = root / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if found != wanted:
            raise ValueError(f"{root} has songs of {found}, not {wanted}: delete it, or use another root")
    elif root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and has no {MANIFEST}: use an empty or new folder as root")
    else:
        root.mkdir(parents=True, exist_ok=True)
        with atomic_write(manifest) as file:
            file.write((json.dumps(wanted, indent=2) + "\n").encode())
    jobs = [
        (root / split / f"{split}_{index:03d}", song_seed(split, index, seed), seconds, sample_rate)
        for split, n_songs in (("train", n_train), ("test", n_test))
        for index in range(n_songs)
    ]
    list(_parallel(_write_song, [job for job in jobs if not job[0].is_dir()], workers))
    return root


def _write_song(folder: Path, seed: int, seconds: float, sample_rate: int) -> None:
    stems = np.round(render_song(seed, seconds, sample_rate).astype(np.float64) * 2**15)
    wavs = {**dict(zip(STEMS, stems, strict=True)), "mixture": stems.sum(0)}
    peak = max(np.abs(samples).max() for samples in wavs.values())
    if peak >= 2**15:
        raise ValueError(f"{folder}: peak {peak / 2**15:.3f} of song {seed} does not fit 16-bit audio")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        for name, samples in wavs.items():
            wavfile.write(temporary / f"{name}.wav", sample_rate, samples.astype(np.int16))
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parallel(function: Callable, jobs: Sequence[tuple], workers: int | None = None) -> Iterator:
    """Results of `function(*job)` in order of `jobs`, from `workers` processes, with a progress bar."""
    if not jobs:
        return
    # fork, where it is safe (no torch in the children): spawned ones would run unguarded scripts again
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from tqdm(pool.map(function, *zip(*jobs, strict=True)), "rendering", len(jobs), unit="song")


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
        stems = [torch.from_numpy(song) for song in _parallel(render_song, jobs)]
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
        """`folders`: folder -> weight; searched recursively for AUDIO_EXTENSIONS."""
        weights = list(folders.values())
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
            raise ValueError(f"weights must be >= 0 with a positive sum, got {dict(folders)}")
        self.sample_rate, self.min_rms = sample_rate, min_rms
        self.skipped: dict[Path, str] = {}
        self._headers: dict[Path, tuple[int, int]] = {}
        self._folders = [Path(folder) for folder in folders]
        self._files = [_audio_files(folder) for folder in self._folders]
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


def _audio_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_EXTENSIONS and p.name[0] != ".")
    if not files:
        reason = f"holds no file {', '.join(AUDIO_EXTENSIONS)}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"corpus folder {folder} {reason}")
    return files


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
