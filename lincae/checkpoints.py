"""Reading checkpoints: what is checked of a file before a model is made of it."""

import dataclasses
import hashlib
import json
import re
import typing
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HASH_ROW = f"sha256 of {WEIGHTS}"  # of a card's table
LFS_POINTER = b"version https://git-lfs"


def read_checkpoint(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The description in the header of a weights file, and its tensors in fp32.

    Raises FileNotFoundError; ValueError for a damaged file, one without a description, another version.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; a checkpoint is a folder with {WEIGHTS} and {CONFIG}"
        )
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if "config" not in header:
        raise ValueError(
            f"{path} carries no lincae configuration in its header; lincae.pretrained reads others"
        )
    description = json.loads(header["config"])
    if description["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {description['format_version']}, this lincae reads {FORMAT_VERSION}"
        )
    return description, tensors


def refuse_pointer(path: Path) -> None:
    """Raises ValueError for what git leaves of a large file that git-lfs has not fetched."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a git-lfs pointer, not the weights: `git lfs pull` fetches them")


def check_hash(folder: Path) -> None:
    """Compare the weights in a folder with the sha256 in its card. Raises ValueError where they differ or
    the card has none, FileNotFoundError for a missing file."""
    refuse_pointer(folder / WEIGHTS)
    stated = re.search(rf"{re.escape(HASH_ROW)} \| ([0-9a-f]{{64}})", (folder / CARD).read_text())
    with (folder / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not stated or stated[1] != found:
        states = f"states {stated[1]}" if stated else "states none"
        raise ValueError(
            f"{folder / WEIGHTS} has sha256 {found}, its card {CARD} {states}: the file was changed after it "
            "was bundled; restore it (git checkout), or load the folder by its path to use it as it is"
        )


def from_dict(kind: type, values: dict, where: str):
    """A (nested) config dataclass from its `dataclasses.asdict`; an unknown key is an error that names it."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; {kind.__name__} has {', '.join(fields)}")
    types = typing.get_type_hints(kind)
    nested = {
        name: from_dict(types[name], value, f"{where}.{name}")
        if dataclasses.is_dataclass(types[name])
        else value
        for name, value in values.items()
    }
    return kind(**nested)


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """`load_state_dict` that names what is missing, extra or misshapen. Raises ValueError."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = {
        "missing": sorted(expected.keys() - got.keys()),
        "unknown": sorted(got.keys() - expected.keys()),
        "misshapen": [
            f"{key} {got[key]} instead of {expected[key]}"
            for key in sorted(expected.keys() & got.keys())
            if expected[key] != got[key]
        ],
    }
    found = [f"{len(keys)} {kind} ({', '.join(keys[:3])})" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{where} does not fit the network: {'; '.join(found)}")
    module.load_state_dict(tensors)
