"""Tracks with stems: the synthetic folder and its rendering, the real clip, MUSDB18, folders of one's own.

A mixture is the sum of the stems, by definition.
Axis legend: `S` source (stem), `T` samples.
"""

import errno
import functools
import importlib.util
import logging
import math
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor
from tqdm.auto import tqdm

from lincae.checkpoints import REPOSITORY_DATA
from lincae.data.audio import AudioFileError, audio_header, read_audio, resample
from lincae.data.folders import audio_files
from lincae.data.manifests import claim
from lincae.data.synth import STEMS, render_song
from lincae.files import json_object, locked

SPLITS = {
    "synthetic": ("train", "test"),
    "clip": ("test",),
    "musdb": ("train", "valid", "test"),
    "embedded": ("test",),
    "free-music": ("train", "valid", "test"),
    "pairs": ("test",),
}
N_SONGS = {"train": 48, "test": 12}
SONG_S = 20.0
# To be raised when an edit of `synth` changes the song that a seed stands for, so that folders rendered
# before are refused instead of mixed with new songs.
SYNTH_VERSION = 1
MANIFEST = "synthetic.json"
MARGIN_S = 0.05  # longer than the resampler's kernel down to rates of some kHz
# Left out of the clip: its encoder's delay, silence that ends in a spike of 0.6 in every stem, and a spike of
# 0.9 in every stem 35 ms before its end, with silence after it.
CLIP_START_S = 0.05
CLIP_END_S = 0.037


log = logging.getLogger(__name__)
_warn_once = functools.cache(log.warning)


@dataclass(frozen=True)
class Track:
    """A piece of music with its stems (or the one stem "mixture"), on disk until it is asked for."""

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

        The rule of stretches: with r the rate of the result, they are the round(seconds r) samples, or those
        up to the end, from sample round(start_s r) on of the whole track at rate r. Neighbours join as if cut
        from it, to 1e-4 of its level: MARGIN_S more is read on both sides, and cut off after resampling.

        Raises AudioFileError or FileNotFoundError, naming the file; ValueError where there is no such sample.
        """
        own_rate = self.sample_rate
        rate = own_rate if sample_rate is None else sample_rate
        n_own = round(self.duration_s * own_rate)
        first = round(start_s * rate)
        count = None if seconds is None else round(seconds * rate)
        if start_s < 0 or first >= math.ceil(n_own * rate / own_rate) or (count is not None and count < 1):
            asked = f"start_s={start_s}, seconds={seconds}, sample_rate={rate}"
            raise ValueError(f"track {self.name!r} lasts {self.duration_s:.3f} s, nothing at {asked}")
        # Both rates have a sample every `grid` own samples: reading from there on keeps the phase.
        grid = own_rate // math.gcd(own_rate, rate)
        margin = 0 if rate == own_rate else math.ceil(MARGIN_S * own_rate)
        begin = max(0, first * own_rate // rate - margin) // grid * grid
        end = n_own if count is None else math.ceil((first + count) * own_rate / rate) + margin
        stems = self.read(begin / own_rate, None if end >= n_own else (end - begin) / own_rate)
        out = resample(stems, own_rate, rate)[:, first - begin * rate // own_rate :]
        return out[:, :count].contiguous()


def tracks(
    dataset: str | Path, split: str = "test", n_tracks: int | None = None, root: str | Path | None = None
) -> list[Track]:
    """The first `n_tracks` (at most; None: all) of a dataset, in order of name.

    - "synthetic": songs of `lincae.data.synth` in `root`, rendered on first use; by default in
      `$LINCAE_DATA/synthetic`, else `data/synthetic` of the repository, without one of the working directory.
    - "clip": the real four-stem track that the stempeg package carries (CC BY-NC-SA 3.0), for testing only;
      without the spikes at its two ends.
    - "embedded": the clip, then the synthetic test songs (`root` is theirs).
    - "musdb": MUSDB18-HQ, or MUSDB18 in STEMS form, in `root` (default `$MUSDB_PATH`), with the official
      splits: "train" leaves out the 14 songs of "valid".
    - "free-music": recordings from free packages, in `root`, and "pairs": its test recordings two by two, as
      mixtures of known parts (`lincae.data.free_music`).
    - the path of a folder: its subfolders with stems, if any is shaped as a track of MUSDB18-HQ; else every
      audio file in it, as a track with the one stem "mixture". Split "test" only.

    A WAV track has the stems whose files exist; a warning names those that are missing.

    Raises ValueError for an unknown dataset or split, FileNotFoundError for a missing root or one without
    tracks, AudioFileError naming a file that cannot be used or a song without stems, ImportError or
    RuntimeError, saying what to install, for a package or ffmpeg that is missing.
    """
    folder = None
    if dataset not in SPLITS:
        folder = Path(dataset).expanduser() if dataset else None
        if folder is None or not folder.is_dir():
            allowed = f"use one of {tuple(SPLITS)}, or the path of an existing folder"
            raise ValueError(f"unknown dataset {str(dataset)!r}: {allowed}")
    splits = SPLITS.get(dataset, ("test",))
    if split not in splits:
        raise ValueError(f"dataset {str(dataset)!r} has no split {split!r}: use one of {splits}")
    if n_tracks is not None and n_tracks < 1:
        raise ValueError(f"n_tracks must be at least 1, or None for all, got {n_tracks}")
    if root is not None and (folder or dataset == "clip"):
        where = "is a folder itself" if folder else "lies in the installed stempeg package"
        raise ValueError(f"dataset {str(dataset)!r} {where} and takes no root")
    if folder:
        return _folder_tracks(folder, n_tracks)
    found = [_clip()] if dataset in ("clip", "embedded") else []
    if dataset in ("synthetic", "embedded") and len(found) != n_tracks:
        found += _synthetic_tracks(split, root)
    elif dataset == "musdb":
        found = _musdb_tracks(split, root)
    elif dataset in ("free-music", "pairs"):
        from lincae.data.free_music import free_music_tracks, pair_tracks

        found = pair_tracks(root) if dataset == "pairs" else free_music_tracks(split, root)
    return found[:n_tracks]


def _synthetic_tracks(split: str, root: str | Path | None) -> list[Track]:
    here = REPOSITORY_DATA if REPOSITORY_DATA.is_dir() else "data"
    root = Path(root or Path(os.environ.get("LINCAE_DATA", here)) / "synthetic")
    manifest = root / MANIFEST
    known = json_object(manifest.read_bytes(), manifest) if manifest.is_file() else {}
    stated = {
        key: known[key] for key in ("n_train", "n_test", "seconds", "sample_rate", "seed") if key in known
    }
    try:
        write_synthetic(root, splits=(split,), **stated)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        fix = "set LINCAE_DATA to a folder that can, or pass root=..."
        raise PermissionError(f"{root}, for synthetic songs, cannot be written ({error}): {fix}") from error
    return [_song_track(song, "synthetic") for song in _song_folders(root / split)]


def _musdb_tracks(split: str, root: str | Path | None) -> list[Track]:
    root = root or os.environ.get("MUSDB_PATH")
    if not root:
        raise FileNotFoundError("no MUSDB root: pass root=..., or set the environment variable MUSDB_PATH")
    folder = Path(root).expanduser() / ("test" if split == "test" else "train")
    if not folder.is_dir():
        raise FileNotFoundError(f"MUSDB root {root}: {folder} does not exist")
    if any(folder.glob("*.stem.mp4")):
        return _stem_file_tracks(folder, split)
    songs = _song_folders(folder)
    if split != "test":
        import yaml

        setup = yaml.safe_load((_package_folder("musdb") / "configs" / "mus.yaml").read_bytes())
        songs = [song for song in songs if (song.name in setup["validation_tracks"]) == (split == "valid")]
    if not songs:
        raise FileNotFoundError(
            f"MUSDB root {root}: no {split} tracks (*.stem.mp4, */mixture.wav) in {folder}"
        )
    return [_song_track(song, "musdb") for song in songs]


def _folder_tracks(folder: Path, n_tracks: int | None) -> list[Track]:
    dataset = folder.resolve().name
    songs = _song_folders(folder)
    if any(_stem_files(song) for song in songs):
        others = [path for path in folder.iterdir() if path.is_dir() and path not in songs]
        if shown := sorted(path.name for path in others if path.name[0] != "."):
            log.warning("left out of %s, without stems as WAV files: %s", folder, ", ".join(shown))
        return [_song_track(song, dataset) for song in songs[:n_tracks]]
    if any(map(_stem_files, _song_folders(folder / "test"))):
        musdb = f"dataset 'musdb' with root={str(folder)!r}, or {str(folder / 'test')!r}"
        raise ValueError(f"{folder} has tracks with stems in its folder test: use {musdb}")
    files = audio_files(folder)
    names = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
    counts = Counter(names.values())
    found = []
    for path in files[:n_tracks]:
        # a.wav beside a.mp3: both keep their suffix.
        name = names[path] if counts[names[path]] == 1 else path.relative_to(folder).as_posix()
        found.append(file_track(name, dataset, {"mixture": path}))
    return found


def _song_folders(folder: Path) -> list[Path]:
    # An interrupted rendering leaves hidden folders.
    names = ("mixture", *STEMS)
    return sorted({path.parent for name in names for path in folder.glob(f"[!.]*/{name}.wav")})


def _stem_files(song: Path) -> dict[str, Path]:
    paths = {stem: song / f"{stem}.wav" for stem in STEMS}
    return {stem: path for stem, path in paths.items() if path.is_file()}


def _song_track(song: Path, dataset: str) -> Track:
    paths = _stem_files(song)
    if not paths:
        raise AudioFileError(f"{song}: has none of the stems {STEMS} as WAV files")
    if missing := [stem for stem in STEMS if stem not in paths]:
        _warn_once("track %s has no %s: %s", song.name, ", ".join(missing), song)
    return file_track(song.name, dataset, paths)


def file_track(name: str, dataset: str, paths: Mapping[str, Path]) -> Track:
    """A track of a file for each stem. AudioFileError where they differ in rate or length, or cannot be
    read."""
    stems = tuple(paths)
    files = tuple(paths.values())
    headers = [audio_header(path) for path in files]
    if len(set(headers)) > 1:
        raise AudioFileError(f"{files[0].parent}: {stems} differ in sample rate or length: {headers}")
    sample_rate, n_samples = headers[0]
    return Track(name, dataset, stems, sample_rate, n_samples / sample_rate, partial(_read_files, files))


def _read_files(paths: Sequence[Path], start_s: float, seconds: float | None) -> Tensor:
    return torch.stack([read_audio(p, start_s=start_s, seconds=seconds, channels="mean")[0] for p in paths])


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"the {package} package is not installed: pip install {package}")
    return Path(spec.origin).parent


def _clip() -> Track:
    # `import stempeg` fails without ffmpeg; its example needs neither.
    path = _package_folder("stempeg") / "data" / "The Easton Ellises - Falcon 69.stem.mp4"
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        sample_rate = stream.rate
        n_samples = round(stream.duration * stream.time_base * sample_rate)
    n_samples -= round(CLIP_START_S * sample_rate) + round(CLIP_END_S * sample_rate)
    name = path.name.removesuffix(".stem.mp4")
    read = partial(_read_clip, path, sample_rate)
    return Track(name, "clip", STEMS, sample_rate, n_samples / sample_rate, read)


def _read_clip(path: Path, sample_rate: int, start_s: float, seconds: float | None) -> Tensor:
    import av

    with av.open(str(path)) as container:
        # The first is the mixture, which is not the sum of the stems.
        streams = container.streams.audio[1:]
        blocks = {stream.index: [] for stream in streams}
        for packet in container.demux(streams):
            blocks[packet.stream.index] += [frame.to_ndarray() for frame in packet.decode()]
    stems = np.stack([np.concatenate(frames, axis=1).mean(0) for frames in blocks.values()])
    stems = stems[:, round(CLIP_START_S * sample_rate) : -round(CLIP_END_S * sample_rate)]
    start = round(start_s * sample_rate)
    stop = None if seconds is None else start + round(seconds * sample_rate)
    return torch.from_numpy(stems[:, start:stop])


def _stem_file_tracks(folder: Path, split: str) -> list[Track]:
    # `import musdb` fails without ffmpeg too, but does not say how to get it.
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

    # The track's own `stems` are read as 16 bit, which clips what overshoots full scale; this is float.
    try:
        streams, _ = stempeg.read_stems(track.path, start=start_s, duration=seconds, info=track.info)
    # stempeg raises Warning
    except (ffmpeg.Error, Warning) as error:
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
    splits: Sequence[str] = ("train", "test"),
) -> Path:
    """Render songs into `root`, shaped as MUSDB18-HQ: train/ and test/, a folder a song, 16-bit mono WAV.

    A later call continues an interrupted one, and leaves complete songs as they are. `workers` processes
    (None: one a core); only the songs of `splits`. Raises ValueError where `root` has songs of other
    parameters or of another version of the synthesizer, or something else.
    """
    root = Path(root)
    wanted = {"n_train": n_train, "n_test": n_test, "seconds": seconds, "sample_rate": sample_rate}
    wanted |= {"seed": seed, "version": SYNTH_VERSION}
    manifest = root / MANIFEST
    if manifest.is_file():
        # The first manifests state no version.
        found = {"version": 1, **json_object(manifest.read_bytes(), manifest)}
        if found != wanted:
            raise ValueError(f"{root} has songs of {found}, not {wanted}: delete it, or use another root")
    claim(manifest, "songs", {}, wanted)
    jobs = [
        (root / split / f"{split}_{index:03d}", song_seed(split, index, seed), seconds, sample_rate)
        for split, n_songs in (("train", n_train), ("test", n_test))
        if split in splits
        for index in range(n_songs)
    ]
    # Notebooks side by side, or the processes of one training: the first renders, the others wait for it.
    with locked(root / ".lock"):
        list(parallel(_write_song, [job for job in jobs if not job[0].is_dir()], workers))
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


def parallel(function: Callable, jobs: Sequence[tuple], workers: int | None = None) -> Iterator:
    """Results of `function(*job)` in order of `jobs`, from `workers` processes, with a progress bar."""
    if not jobs:
        return
    # Fork, where it is safe (no torch in the children): spawned ones would run unguarded scripts again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from tqdm(pool.map(function, *zip(*jobs, strict=True)), "rendering", len(jobs), unit="song")
