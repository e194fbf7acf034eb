"""What a folder of data says of itself: a manifest, and a list of the files that were left out."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lincae.files import atomic_write, json_object, write_json


def claim(
    path: str | Path,
    holds: str,
    facts: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    later: Collection[str] = (),
) -> dict[str, Any]:
    """Make `path` the manifest of its folder, a JSON object of `facts` and `notes`; or return the one there.

    The manifest is the first file of its folder. A later call must come with the same `facts`; `notes` are
    written, but may differ. `holds` says what the folder is for, as an error calls it ("latents"). `later`
    names facts that manifests of earlier versions may lack.

    Raises ValueError for a folder that has other files and no manifest, a damaged manifest, and other facts.
    """
    path = Path(path)
    folder = path.parent
    if not path.is_file():
        if folder.is_dir() and any(child.name[0] != "." for child in folder.iterdir()):
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
