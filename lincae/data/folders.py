"""Folders of audio files: what is in them, at any depth, and the headers of it, indexed once."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from lincae.data.audio import AudioFileError, audio_header
from lincae.files import atomic_write, json_object
from lincae.training.environment import user_cache

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
# Threads wait for the disk more than they compute.
THREADS = 16
PORTION = 1000
INDEX_VERSION = 2

log = logging.getLogger(__name__)


def audio_files(folder: Path) -> list[Path]:
    """All files with AUDIO_EXTENSIONS at any depth, sorted, hidden ones left out. Else FileNotFoundError.

    Linked folders are followed, each real folder once; a warning names those that are left out.
    """
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
    name; and the reasons of those that cannot be read.

    Headers are read once, and again where size or time have changed. Raises FileNotFoundError as
    `audio_files`.
    """
    # In the user's cache: corpora are often read-only, or shared by users who should not write into them.
    cache = user_cache() / "lincae" / "corpora"
    cache /= (
        hashlib.sha256(f"{INDEX_VERSION}".encode() + os.fsencode(folder.resolve())).hexdigest()[:20] + ".json"
    )
    known = _load(cache)
    names = [path.relative_to(folder).as_posix() for path in audio_files(folder)]

    def entry(name: str) -> list[int] | str:
        try:
            stat = (folder / name).stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
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
        _save(cache, index)
    return index, unreadable


def _load(cache: Path) -> dict[str, list[int]]:
    try:
        return json_object(cache.read_bytes(), cache)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("headers are indexed again: %s", error)
        return {}


def _save(cache: Path, index: Mapping[str, Sequence[int]]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cache) as file:
            file.write(json.dumps(index).encode())
    except OSError as error:
        log.warning("headers will be indexed again next time: %s", error)
