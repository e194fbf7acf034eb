"""Recorded music from free packages of Debian: fetched by apt, split by album, checked against a list.

The list `free_music.csv` beside this file is committed, no recording is: package and version, file, sha256,
album, split, licence, seconds. Albums (or their artists) lie in one split each, so that tests share none with
training.
"""

import csv
import functools
import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from lincae.data import data_folder
from lincae.machine.files import atomic_write, sha256_of

LIST = Path(__file__).with_name("free_music.csv")
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


@functools.cache
def listed() -> tuple[dict[str, str], ...]:
    """The rows of the list, as text."""
    with LIST.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def _place(row: dict[str, str], root: Path) -> Path:
    return root / row["split"] / row["package"] / Path(row["file"]).name


def recordings(split: str, root: str | Path | None = None) -> list[Path]:
    """The recordings of a split, ROOT/SPLIT/PACKAGE/NAME, with `root` by default `data_folder("free-music")`.
    Raises FileNotFoundError, with the command that fetches them, where some are missing."""
    folder = Path(root or data_folder("free-music"))
    paths = [_place(row, folder) for row in listed() if row["split"] == split]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"free-music: {len(absent)} recordings of split {split!r} are missing, the first is {absent[0]}:"
            " `lincae data free-music` fetches them where there is apt-get (Debian, Ubuntu); elsewhere unpack"
            f" the packages of {LIST} into one folder and run `lincae data free-music --unpacked FOLDER`"
        )
    return paths


def split_folders(split: str) -> dict[str, float]:
    """The folders of a split with their weights, for `Corpora`. Raises as `recordings`."""
    folders = sorted({path.parent for path in recordings(split)})
    return {str(folder): FOLDER_WEIGHTS.get(folder.name, 1.0) for folder in folders}


def refuse_test_recordings(files: Iterable[str | Path]) -> None:
    """Raise ValueError where a file to be trained on is, by name and content, a test recording of the
    list."""
    held_out = {Path(row["file"]).name: row for row in listed() if row["split"] == "test"}
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
    a folder of its own name. Raises OSError where the disk is too small, before anything is fetched;
    RuntimeError without apt-get or dpkg-deb, and where apt-get fails, with its message; ValueError, naming
    it, for a package of another version or a recording with another hash.
    """
    folder = Path(root or data_folder("free-music"))
    missing: dict[str, list[dict[str, str]]] = {}
    for row in listed():
        if not _place(row, folder).is_file():
            missing.setdefault(row["package"], []).append(row)
    if missing:
        _check_machine(folder, needs_apt=unpacked is None)

    for package, rows in sorted(missing.items()):
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            if unpacked:
                source = Path(unpacked) / package
            else:
                source = _download(package, rows[0]["version"], Path(temporary))
            for row in rows:
                _keep(row, source, _place(row, folder))
    return folder


def _check_machine(folder: Path, needs_apt: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        needed = f"{NEEDED_BYTES / 1e9:.1f} GB"
        raise OSError(f"free-music needs {needed} of free disk at {folder}, it has {free_bytes / 1e9:.1f} GB")
    absent = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if needs_apt and absent:
        raise RuntimeError(
            f"free-music is fetched with {absent[0]}, which is not on this machine: unpack the packages of"
            f" {LIST} elsewhere (dpkg-deb --extract), each into a folder of its own name, and give the"
            " folder that holds them as --unpacked"
        )


def _download(package: str, version: str, temporary: Path) -> Path:
    """The package unpacked below `temporary`."""
    # Not PACKAGE=VERSION: an archive that has another version should say so below, and which.
    _run(["apt-get", "download", package], temporary, f"package {package} (`apt-get update` first?)")
    (archive,) = temporary.glob("*.deb")
    found = _run(["dpkg-deb", "--field", archive.name, "Version"], temporary, str(archive)).strip()
    if found != version:
        raise ValueError(
            f"package {package} is of version {found} here, the list is of {version}: fetch that one from"
            " snapshot.debian.org, unpack it and give it as --unpacked"
        )
    _run(["dpkg-deb", "--extract", archive.name, "unpacked"], temporary, str(archive))
    return temporary / "unpacked"


def _run(command: list[str], folder: Path, what: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        failed = f"{what}: {command[0]} {command[1]} failed"
        raise RuntimeError(f"{failed}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _keep(row: dict[str, str], source: Path, target: Path) -> None:
    """Copy a recording of an unpacked package, compared with its hash."""
    path = source / row["file"]
    archive, is_archived, member = row["file"].partition(f"{ARCHIVE}/")
    if is_archived:
        path = zipfile.Path(source / f"{archive}{ARCHIVE}", member)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != row["sha256"]:
        raise ValueError(
            f"{row['package']}: {row['file']} has the sha256 {found}, the list has {row['sha256']}:"
            f" the package is not of version {row['version']}, or damaged"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write(content)
