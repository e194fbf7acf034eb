"""Folders of data: the audio files in one, at any depth, and their headers, indexed once; its manifest, and
its list of the files that were left out."""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lincae.data.audio import AudioFileError, audio_header
from lincae.data.containers import stamp_of
from lincae.machine.files import atomic_write, json_object
from lincae.training.environment import user_cache

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
# Threads wait for the disk more than they compute.
THREADS = 16
PORTION = 1000
INDEX_VERSION = 2

log = logging.getLogger(__name__)


def audio_files(folder: Path) -> list[Path]:
    """All files with AUDIO_EXTENSIONS at any depth, sorted, hidden ones left out. Else FileNotFoundError.
    Links are followed, each real folder once; a warning names those that are left out."""
    files = sorted(path for path in _walk(folder) if path.suffix.lower() in AUDIO_EXTENSIONS)
    if not files:
        reason = f"holds no file {', '.join(AUDIO_EXTENSIONS)}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"folder {folder} {reason}")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Files in a folder, its subfolders and then in those that links in it lead to; hidden ones left out."""
    root = folder.resolve()
    seen = set()
    tops = [folder]
    for top in tops:
        if top.resolve() in seen or (top != folder and root.is_relative_to(top.resolve())):
            log.warning("left out: %s leads to a folder that is listed already", top)
            continue
        for place, subfolders, names in os.walk(top, onerror=_cannot_list):
            real = Path(place).resolve()
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
            # Links come last, so that a folder is found under its own name first.
            tops += [Path(place, name) for name in subfolders if Path(place, name).is_symlink()]
            for name in names:
                path = Path(place, name)
                if name[0] == ".":
                    continue
                if path.suffix == "" and path.is_symlink() and not path.exists():
                    log.warning("left out: %s leads nowhere", path)
                yield path


def _cannot_list(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        log.warning("left out: %s cannot be listed: %s", error.filename, error.strerror)


def file_index(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Size, time of modification (ns), sample rate and frames of the audio files in a folder, by relative
    name; and the reasons of those that cannot be read. Headers are read again where size or time have
    changed. Raises as `audio_files`."""
    # In the user's cache: corpora are often read-only, or shared by users who should not write into them.
    key = hashlib.sha256(f"{INDEX_VERSION}".encode() + os.fsencode(folder.resolve())).hexdigest()[:20]
    cache = user_cache() / "lincae" / "corpora" / f"{key}.json"
    known = {}
    try:
        known = json_object(cache.read_bytes(), cache)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("headers are indexed again: %s", error)
    names = [path.relative_to(folder).as_posix() for path in audio_files(folder)]

    def entry(name: str) -> list[int] | str:
        try:
            stamp = [*stamp_of(folder / name)]
            if known.get(name, [])[:2] == stamp:
                return known[name]
            return [*stamp, *audio_header(folder / name)]
        except (AudioFileError, OSError) as error:
            return str(error)

    index = {}
    unreadable = {}
    bar = tqdm(desc=f"headers of {folder.name}", total=len(names), unit="file", delay=1)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        # In portions, since a job of its own for each of a million files would take gigabytes.
        for k in range(0, len(names), PORTION):
            portion = names[k : k + PORTION]
            for name, found in zip(portion, pool.map(entry, portion), strict=True):
                kind = unreadable if isinstance(found, str) else index
                kind[name] = found
            bar.update(len(portion))
    if index != known:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(cache) as file:
                file.write(json.dumps(index).encode())
        except OSError as error:
            log.warning("headers will be indexed again next time: %s", error)
    return index, unreadable


# ---------------------------------------------------------------- what a folder says of itself


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def claim(
    path: str | Path,
    holds: str,
    facts: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    later: Collection[str] = (),
) -> dict[str, Any]:
    """Make `path` the manifest of its folder, a JSON object of `facts` and `notes`; or return the one there,
    whose facts must be the same. `holds` says what the folder is for, as an error calls it ("latents").
    `later` names facts that manifests of earlier versions may lack.

    Raises ValueError for a folder that has other files and no manifest, a damaged manifest, and other facts.
    """
    path = Path(path)
    folder = path.parent
    if not path.is_file():
        if folder.is_dir() and any(child.name[0] != "." and child != path for child in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and has no {path.name}: use an empty or new folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**facts, **(notes or {})})
    found = json_object(path.read_bytes(), path)
    for key, wanted in facts.items():
        if found.get(key) != wanted and not (key in later and key not in found):
            has = f"{holds} of {key} {found.get(key)}"
            raise ValueError(f"{folder} has {has}, not {wanted}: use another folder")
    return found


# ---------------------------------------------------------------- lists of skipped files


def read_skipped(path: str | Path) -> dict[str, str]:
    """File -> reason, of a list of files that were skipped; nothing where there is no list."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        # a crash may have cut the last row short
        return {row["file"]: row["reason"] for row in csv.DictReader(file) if None not in row.values()}


def write_skipped(path: str | Path, rows: Mapping[str, str]) -> None:
    """Write a list anew, file -> reason; the files' names need not be UTF-8."""
    with atomic_write(path) as file:
        file.write(_as_csv(("file", "reason"), *sorted(rows.items())))


def add_skipped(path: str | Path, file: str, reason: str) -> None:
    """Add a row to a list. It is one short write at the end: rows of several processes do not mix."""
    with Path(path).open("ab") as rows:
        rows.write(_as_csv((file, reason)))


def _as_csv(*rows: Iterable[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")
