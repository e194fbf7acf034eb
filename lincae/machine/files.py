"""Files that are whole or not there, locks that one process holds at a time, JSON that is an object,
tensors."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from safetensors import safe_open

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks
    fcntl = None

log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once it is whole; else `path` stays as it was."""
    path = Path(path)
    temporary = hidden(path, f"{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hidden(path: Path, ending: str) -> Path:
    """A neighbour of `path` for what is not finished: `.NAME.ENDING`, with a hash for a long name."""
    name = path.name
    if len(os.fsencode(name)) > 220:  # file systems take 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{ending}")


class HeldError(BlockingIOError, ValueError):
    """Another process works on what this one was asked to work on."""


@contextlib.contextmanager
def locked(path: str | Path, held: str | None = None) -> Iterator[IO]:
    """Hold the lock file `path` while entered; the lock ends with this process, however that ends.

    While another process holds it, wait; with `held`, a description of that, raise HeldError instead. Where
    a file system or a machine has no locks, a warning says so and nothing is held.
    """
    # lockf and not flock: data workers that outlive a killed process for a moment do not inherit the lock.
    with Path(path).open("a") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if held else 0))
        except (BlockingIOError, PermissionError) as error:
            raise HeldError(f"{held}: wait for it, or end it") from error
        except OSError as error:
            log.warning("%s cannot be locked: start no second run on this folder (%s)", path, error)
        yield file


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_object(text: bytes | str, where: str | Path, kind: type[ValueError] = ValueError) -> dict[str, Any]:
    """The JSON object in a text; for anything else a `kind` of error that names `where` the text stands."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where} is damaged, this is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise kind(f"{where} is damaged: it must hold a JSON object, got {found!r:.80}")
    return found


def tensors_in(path: str | Path) -> safe_open:
    """A safetensors file, mapped. Raises OSError, and SafetensorError for a damaged one."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        # safe_open refuses a name that is not UTF-8, but an open file has another name as well
        with open(path, "rb") as file:
            return safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt")
    return safe_open(path, framework="pt")
