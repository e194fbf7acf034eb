"""Tracks with stems `(S, T)`: synthetic songs and their rendering, the real clip, MUSDB18, free music, own
folders. A mixture is the sum of the stems, by definition."""

import contextlib
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
from torch import Tensor
from tqdm.auto import tqdm

from lincae.data import data_folder
from lincae.data.audio import AudioFileError, audio_header, read_audio, resample
from lincae.data.folders import audio_files, claim
from lincae.data.free_music import recordings
from lincae.data.sampled import render_sampled_song, soundfont_hash
from lincae.data.synth import STEMS, render_song
from lincae.machine.files import json_object, locked

SPLITS = {
    "synthetic": ("train", "test"),
    "sampled": ("train", "test"),
    "clip": ("test",),
    "musdb": ("train", "valid", "test"),
    "embedded": ("test",),
    "free-music": ("train", "valid", "test"),
    "pairs": ("test",),
}
N_SONGS = {"train": 48, "test": 12}
SONG_S = 20.0
SYNTH_VERSION = 1
"""To be raised when an edit of `synth` changes the song of a seed: folders rendered before are then
refused."""
MANIFEST = "synthetic.json"

MARGIN_S = 0.05  # longer than the resampler's kernel down to rates of some kHz
CLIP_CUT_S = (0.05, 0.037)
"""Left out at the ends of the clip: its encoder's delay and a spike in every stem, and another one."""
STEM_FILE = ".stem.mp4"
LEAD_IN_S = 0.1  # decoded and dropped before a stretch of a STEMS file: more than its codec's frame

PAIR_RATE = 44100
PAIR_GAIN = 0.5
"""Level of each recording of a pair, so that the mixture stays at the level of one."""

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

        They are round(seconds r) samples, or those up to the end, of the whole track at the rate r of the
        result, from its sample round(start_s r) on, to 1e-4 of its level: MARGIN_S more is read on both
        sides. Raises AudioFileError or FileNotFoundError, naming the file; ValueError for no such sample.
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

    - "synthetic": songs of `lincae.data.synth` in `root` (default `data_folder("synthetic")`), rendered on
      first use.
    - "sampled": other songs of the same composer, played by a soundfont (`lincae.data.sampled`), likewise.
    - "clip": the real four-stem track that the stempeg package carries (CC BY-NC-SA 3.0), for testing only.
    - "embedded": the clip, then the synthetic test songs (`root` is theirs).
    - "musdb": MUSDB18-HQ, or MUSDB18 in STEMS form, in `root` (default `$MUSDB_PATH`), with the official
      splits: "train" leaves out the 14 songs of "valid".
    - "free-music": recordings from free packages, in `root`, and "pairs": its test recordings two by two, as
      mixtures of known parts (`lincae.data.free_music`).
    - the path of a folder: its subfolders with stems, if any is shaped as a track of MUSDB18-HQ; else every
      audio file in it, as a track with the one stem "mixture". Split "test" only.

    A WAV track has the stems whose files exist; a warning names those that are missing.

    Raises ValueError for an unknown dataset or split, FileNotFoundError for a missing root or one without
    tracks, AudioFileError naming a file that cannot be used or a song without stems, ImportError,
    saying what to install, for a package that is missing.
    """
    folder = Path(dataset).expanduser()
    own = dataset not in SPLITS
    if own and not (dataset and folder.is_dir()):
        allowed = f"use one of {tuple(SPLITS)}, or the path of an existing folder"
        raise ValueError(f"unknown dataset {str(dataset)!r}: {allowed}")
    check_split(dataset, split)
    if n_tracks is not None and n_tracks < 1:
        raise ValueError(f"n_tracks must be at least 1, or None for all, got {n_tracks}")
    if root is not None and (own or dataset == "clip"):
        where = "is a folder itself" if own else "lies in the installed stempeg package"
        raise ValueError(f"dataset {str(dataset)!r} {where} and takes no root")

    if own:
        return _folder_tracks(folder, n_tracks)
    found = [_clip()] if dataset in ("clip", "embedded") else []
    if dataset in ("synthetic", "embedded") and len(found) != n_tracks:
        found += _rendered_tracks("synthetic", split, root)
    elif dataset == "sampled":
        found = _rendered_tracks("sampled", split, root)
    elif dataset == "musdb":
        found = _musdb_tracks(split, root)
    elif dataset == "free-music":
        found = _recording_tracks(split, root)
    elif dataset == "pairs":
        found = _pair_tracks(root)
    return found[:n_tracks]


def check_split(dataset: str | Path, split: str) -> None:
    """Raises ValueError, naming those that there are, for a split that a dataset does not have."""
    splits = SPLITS.get(dataset, ("test",))
    if split not in splits:
        raise ValueError(f"dataset {str(dataset)!r} has no split {split!r}: use one of {splits}")


def _rendered_tracks(dataset: str, split: str, root: str | Path | None) -> list[Track]:
    root = Path(root or data_folder(dataset))
    manifest = root / MANIFEST
    known = json_object(manifest.read_bytes(), manifest) if manifest.is_file() else {}
    parameters = ("n_train", "n_test", "seconds", "sample_rate", "seed")
    stated = {key: value for key, value in known.items() if key in parameters}
    sampled = dataset == "sampled"
    try:
        write_synthetic(root, splits=(split,), sampled=sampled, **{"seed": int(sampled)} | stated)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        fix = "set LINCAE_DATA to a folder that can, or pass root=..."
        raise PermissionError(f"{root}, for {dataset} songs, cannot be written ({error}): {fix}") from error
    return [_song_track(song, dataset) for song in _song_folders(root / split)]


def _musdb_tracks(split: str, root: str | Path | None) -> list[Track]:
    root = root or os.environ.get("MUSDB_PATH")
    if not root:
        raise FileNotFoundError("no MUSDB root: pass root=..., or set the environment variable MUSDB_PATH")
    folder = Path(root).expanduser() / ("test" if split == "test" else "train")
    if not folder.is_dir():
        raise FileNotFoundError(f"MUSDB root {root}: {folder} does not exist")
    songs = sorted(folder.glob(f"*{STEM_FILE}")) or _song_folders(folder)
    if split != "test":
        import yaml

        setup = yaml.safe_load((_package_folder("musdb") / "configs" / "mus.yaml").read_bytes())
        held_out = {song for song in songs if song.name.removesuffix(STEM_FILE) in setup["validation_tracks"]}
        songs = [song for song in songs if (song in held_out) == (split == "valid")]
    if not songs:
        kinds = f"*{STEM_FILE}, */mixture.wav"
        raise FileNotFoundError(f"MUSDB root {root}: no {split} tracks ({kinds}) in {folder}")
    return [_stem_file_track(song) if song.is_file() else _song_track(song, "musdb") for song in songs]


def _recording_tracks(split: str, root: str | Path | None) -> list[Track]:
    """Every recording of free-music in a split, as a track with the one stem "mixture"."""
    found = []
    for path in recordings(split, root):
        found.append(file_track(f"{path.parent.name}/{path.stem}", "free-music", {"mixture": path}))
    return found


def _pair_tracks(root: str | Path | None) -> list[Track]:
    """Test recordings two by two, as tracks with the stems "first" and "second", mono, each at PAIR_GAIN:
    each recording with the one that stands half the list away, of another album."""
    firsts = _recording_tracks("test", root)
    half = len(firsts) // 2
    pairs = []
    for first, second in zip(firsts, firsts[half:] + firsts[:half], strict=True):
        duration_s = min(first.duration_s, second.duration_s)
        name = f"{first.name} + {second.name}"
        read = partial(_read_pair, (first, second))
        pairs.append(Track(name, "pairs", ("first", "second"), PAIR_RATE, duration_s, read))
    return pairs


def _read_pair(parts: Sequence[Track], start_s: float, seconds: float | None) -> Tensor:
    stems = [part.stems(PAIR_RATE, start_s, seconds)[0] for part in parts]
    shortest = min(len(stem) for stem in stems)
    return PAIR_GAIN * torch.stack([stem[:shortest] for stem in stems])


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
    path = _package_folder("stempeg") / "data" / f"The Easton Ellises - Falcon 69{STEM_FILE}"
    return _stem_file_track(path, "clip", CLIP_CUT_S)


def _stem_file_track(path: Path, dataset: str = "musdb", cut_s: tuple[float, float] = (0.0, 0.0)) -> Track:
    """A track of a file in STEMS form, without `cut_s` of both its ends."""
    with _opened_stems(path) as container:
        stream = container.streams.audio[0]
        rate = stream.rate
        n_samples = round(stream.duration * stream.time_base * rate)
        if len(container.streams.audio) != 1 + len(STEMS):
            raise AudioFileError(f"{path}: must hold the mixture and {STEMS}")
    first, last = (round(seconds * rate) for seconds in cut_s)
    n_samples -= first + last
    read = partial(_read_stem_file, path, first / rate, n_samples / rate)
    return Track(path.name.removesuffix(STEM_FILE), dataset, STEMS, rate, n_samples / rate, read)


@contextlib.contextmanager
def _opened_stems(path: Path) -> Iterator[Any]:
    import av

    try:
        with path.open("rb") as file, av.open(file) as container:
            yield container
    except av.error.FFmpegError as error:
        raise AudioFileError(f"{path}: cannot be read: {error}") from error


def _read_stem_file(
    path: Path, offset_s: float, duration_s: float, start_s: float, seconds: float | None
) -> Tensor:
    """Stems (S, T) from `offset_s` and `start_s` on; `duration_s` is that of the track."""
    with _opened_stems(path) as container:
        # The first stream is the mixture, which is not the sum of the stems.
        streams = container.streams.audio[1:]
        rate = streams[0].rate
        start = round((offset_s + start_s) * rate)
        stop = round((offset_s + duration_s) * rate) if seconds is None else start + round(seconds * rate)
        container.seek(round(1e6 * max(0.0, start / rate - LEAD_IN_S)))

        begins = {}
        blocks = {stream.index: [] for stream in streams}
        for packet in container.demux(streams):
            for frame in packet.decode():
                begins.setdefault(packet.stream.index, round(frame.time * rate))
                blocks[packet.stream.index].append(frame.to_ndarray().mean(0))
            ends = [begins.get(k, 0) + sum(map(len, parts)) for k, parts in blocks.items()]
            if min(ends) >= stop:
                break
    if min(ends) < stop:
        raise AudioFileError(f"{path}: truncated, it ends at sample {min(ends)}, not at {stop}")
    stems = [np.concatenate(parts)[start - begins[k] : stop - begins[k]] for k, parts in blocks.items()]
    return torch.from_numpy(np.stack(stems))


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
    sampled: bool = False,
) -> Path:
    """Render songs into `root`, shaped as MUSDB18-HQ: train/ and test/, a folder a song, 16-bit mono WAV.
    Complete songs stay. `workers` processes (None: one a core); only the songs of `splits`; `sampled`: played
    by a soundfont. Raises ValueError where `root` has songs of other parameters, of another version of the
    synthesizer, or something else; ImportError where the soundfont is missing."""
    root = Path(root)
    wanted = {"n_train": n_train, "n_test": n_test, "seconds": seconds, "sample_rate": sample_rate}
    wanted |= {"seed": seed, "version": SYNTH_VERSION}
    if sampled:
        wanted["soundfont"] = soundfont_hash()
    # The first manifests state no version.
    claim(root / MANIFEST, "songs", wanted, later=("version",) if SYNTH_VERSION == 1 else ())
    jobs = []
    for split, n_songs in (("train", n_train), ("test", n_test)):
        for index in range(n_songs if split in splits else 0):
            song = root / split / f"{split}_{index:03d}"
            jobs.append((song, song_seed(split, index, seed), seconds, sample_rate, sampled))
    # Notebooks side by side, or the processes of one training: the first renders, the others wait for it.
    with locked(root / ".lock"):
        list(parallel(_write_song, [job for job in jobs if not job[0].is_dir()], workers))
    return root


def _write_song(folder: Path, seed: int, seconds: float, sample_rate: int, sampled: bool) -> None:
    from scipy.io import wavfile  # slow to import, and songs rendered before need it not

    render = render_sampled_song if sampled else render_song
    stems = np.round(render(seed, seconds, sample_rate).astype(np.float64) * 2**15)
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
