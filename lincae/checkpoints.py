"""What is checked of a checkpoint before a model is made of it, and what tells one model from another."""

import contextlib
import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FORMAT_VERSION = 1
FIRST_KIND = "consistency"  # of files that do not say
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HASH_ROW = "sha256 of {}"  # of a card's table, with the name of the file
PACKAGE = Path(__file__).resolve().parent
REPOSITORY_DATA = PACKAGE.parent / "data"
"""The data folder of a clone. An installed package has none."""
BUNDLED = REPOSITORY_DATA / "checkpoints"
"""The checkpoints that ship: in a clone they lie with the other data, in an installed package within it."""
if not BUNDLED.is_dir():
    BUNDLED = PACKAGE / "bundled"
LFS_POINTER = b"version https://git-lfs"
# Settings that say how a long signal is cut for the network, not what its latents mean.
CUTTING = ("window_frames", "context_frames", "norm_frames")


def read_checkpoint(path: Path, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """The description in the header of a weights file, and its tensors in fp32.

    Raises FileNotFoundError; ValueError for a damaged file, one without a description, another version or
    another `kind` of model.
    """
    with opened(path) as (file, description):
        if (held := description.get("kind", FIRST_KIND)) != kind:
            raise ValueError(f"{path} holds a {held} model, not a {kind} one: use lincae.load")
        return description, {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118


def kind_of(path: Path) -> str:
    """The kind of model in a weights file. Raises as `read_checkpoint`."""
    with opened(path) as (_, description):
        return description.get("kind", FIRST_KIND)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    """A weights file, and the description in its header. Raises as `read_checkpoint`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; a checkpoint is a folder with {WEIGHTS} and {CONFIG}"
        )
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if "config" not in header:
                raise ValueError(
                    f"{path} carries no lincae configuration in its header; lincae.load reads others"
                )
            description = json.loads(header["config"])
            if description["format_version"] != FORMAT_VERSION:
                version = description["format_version"]
                raise ValueError(f"{path}: format version {version}, this lincae reads {FORMAT_VERSION}")
            yield file, description
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def require_bundled() -> None:
    """Raises FileNotFoundError where this package was installed without the checkpoints that ship with it."""
    if not BUNDLED.is_dir():
        raise FileNotFoundError(
            f"this lincae has no bundled checkpoints: {BUNDLED} does not exist; reinstall it or run from a "
            "clone of its repository"
        )


@contextlib.contextmanager
def fetching(repository: str | Path) -> Iterator[None]:
    """Around what reads a hub repository, or a folder as libraries of the hub save it.

    Raises FileNotFoundError for a repository that is not in the cache while HF_HUB_OFFLINE forbids to fetch
    it, where the libraries speak of a missing file or connection; ValueError, naming it, for a damaged file.
    """
    from huggingface_hub import constants

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{repository} holds no whole safetensors file: {error}") from error
    except OSError as error:
        if not constants.HF_HUB_OFFLINE or Path(repository).exists():
            raise
        fix = "unset it, or load a local folder"
        raise FileNotFoundError(
            f"{repository} is not in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it: {fix}"
        ) from error


def refuse_pointer(path: Path) -> None:
    """Raises ValueError for what git leaves of a large file that git-lfs has not fetched."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a git-lfs pointer, not the weights: `git lfs pull` fetches them")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, otherwise: str = "load the folder by its path to use it as it is") -> None:
    """Compare a weights file with its sha256 in the card beside it. Raises ValueError where they differ or
    no card states one (`otherwise`: what else to do than to restore the file); FileNotFoundError for a
    missing file."""
    refuse_pointer(path)
    card, row = path.parent / CARD, re.escape(HASH_ROW.format(path.name))
    stated = re.search(rf"{row} \| ([0-9a-f]{{64}})", card.read_text() if card.is_file() else "")
    found = sha256_of(path)
    if not stated or stated[1] != found:
        states = f"states {stated[1]}" if stated else "states none"
        raise ValueError(
            f"{path} has sha256 {found}, its card {CARD} {states}: the file was changed after it "
            f"was bundled; restore it (git checkout), or {otherwise}"
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


# ---------------------------------------------------------------- identity


def content_fingerprint(kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of what decides a model's latents: its kind, its settings and its weights.

    `settings` is JSON-able. Weights count as float32, so the value is the same on every device and after
    saving and loading in float32. The `fingerprint` method of every kind of model is this function.
    """
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def changed_settings(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass, as {"a.b": value}, that differ from its defaults and decide latents.

    Settings at their default do not count, so that the fingerprint of a model stays the same in a later
    version with more settings; nor does how long signals are cut into windows (`CUTTING`).
    """
    defaults = flat(plain(type(config)()))
    changed = {}
    for key, value in flat(plain(config)).items():
        if key not in CUTTING and value != defaults.get(key):
            changed[key] = value
    return changed


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as it comes back from JSON, where a tuple is a list."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    pairs = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = value
    return pairs
