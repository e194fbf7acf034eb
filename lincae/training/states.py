"""Training states: written atomically, checked before they are read, refused where they do not fit."""

import json
import logging
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lincae.checkpoints import flat
from lincae.files import atomic_write

SAME_LEVEL = 1e-3
"""Relative difference of levels up to which sounds count as equal: another decoder rounds otherwise."""

DAMAGE = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, struct.error,
    NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, OSError,
)  # fmt: skip
"""Errors by which readers of archives and pickles say that a file is not what it should be."""

log = logging.getLogger(__name__)


@dataclass
class Origin:
    """What a training state comes from. A run goes on from a state of the same origin alone.

    `config`: the objective's configuration. `processes`: their number. `sources`: the data and what
    validation hears, each as `source` names it, or None.
    """

    config: dict[str, Any]
    processes: int
    sources: dict[str, dict[str, Any] | None]


def source(description: str, items: Tensor) -> dict[str, Any]:
    """How an `Origin` names a source of items `(B, ..., T)`: its description, and the RMS of the items and of
    their differences in time, which tell equally loud sounds apart."""
    items = items.detach().float()
    levels = [values.flatten(1).square().mean(1).sqrt() for values in (items, items.diff())]
    return {"description": description, "levels": torch.cat(levels).tolist()}


# ---------------------------------------------------------------- files


def states(folder: Path) -> list[Path]:
    """The training states in a run folder, newest first."""
    # "last.ckpt", the only one of earlier versions, sorts as the oldest.
    return sorted(folder.glob("*.ckpt"), reverse=True)


def store(parts: Mapping[str, Any], origin: Origin, step: int, folder: Path, keep: int) -> None:
    """Write a training state atomically; the newest `keep` stay. Raises OSError, for one on a full disk.

    `parts`: by name, what has a `state_dict`.
    """
    content = {name: part.state_dict() for name, part in parts.items()}
    content |= {"config": json.dumps(origin.config), "step": step, "processes": origin.processes}
    content["sources"] = json.dumps(origin.sources)
    try:
        with atomic_write(folder / f"state-{step:08d}.ckpt") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save reports a failed write as "unexpected pos"
            raise error.__context__ from None
        raise
    for old in states(folder)[keep:]:
        old.unlink()


def newest(folder: Path) -> Path | None:
    """The newest whole training state; None in a folder without. Damaged ones are put aside, with a warning.

    What killed writers left is removed: the caller holds the folder's lock. Raises ValueError where all
    states are damaged.
    """
    for orphan in [*folder.glob(".*.tmp"), *folder.glob("best/.*.tmp")]:
        orphan.unlink()
    for path in states(folder):
        problem = damage(path)
        if problem is None:
            return path
        aside = path.rename(path.with_name(path.name + ".damaged"))
        log.warning("%s is damaged (%s): kept as %s, trying the state before", path, problem, aside.name)
    damaged = [path.name for path in folder.glob("*.damaged")]
    if damaged:
        raise ValueError(
            f"{folder}: all training states are damaged ({', '.join(damaged)}); train in another run folder "
            "(the EMA weights of this one may still load)"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with the file of a training state, checksums included, which torch.load skips."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except DAMAGE as error:
        return f"truncated: {error}"
    return None if member is None else f"wrong checksum of {member}"


def read_state(path: Path) -> dict[str, Any]:
    """What stands in a training state. Raises ValueError, naming the file, for anything else."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict) or not {"config", "step"} <= set(stored):
        raise ValueError(f"{path} is no training state")
    return stored


# ---------------------------------------------------------------- going on from a state


def restore(
    parts: Mapping[str, Any],
    origin: Origin,
    path: Path,
    regroup: bool = False,
    other_data: bool = False,
) -> int:
    """Load a training state into its `parts`; returns the step to continue from.

    Raises ValueError, showing the difference, for a state of another origin: of another configuration, unless
    `regroup` of another number of processes, and unless `other_data` of other sources, where the state says
    which. States of former versions say less. Accepted other data is noted in `origin`.
    """
    if not path.exists():
        raise ValueError(f"this process does not see {path}: the run folder must be shared by all nodes")
    stored = read_state(path)
    step = stored["step"]
    _compare_config(path, json.loads(stored["config"]), origin.config)
    _compare_processes(path, step, stored.get("processes", 1), origin.processes, regroup)
    if "sources" in stored:
        _compare_sources(path, step, json.loads(stored["sources"]), origin.sources, other_data)
    held = dict(stored)
    held.setdefault("meter", stored.get("sums"))  # as former versions called it
    for name, part in parts.items():
        if name == "meter" and held["meter"] is None:  # some of them stored none
            continue
        try:
            part.load_state_dict(held[name])
        except DAMAGE as error:
            raise ValueError(f"{path} has another {name} than this run: {error}") from error
    return step


def _compare_config(path: Path, stored: dict, config: dict) -> None:
    old = flat(stored)
    new = flat(json.loads(json.dumps(config)))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if not changed:
        return
    differences = "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed)
    own = [f"{key}={json.dumps(old[key], separators=(',', ':'))}" for key in changed if key in old]
    hint = f"--set {' '.join(own)}" if len(own) <= 5 else "--preset, --variant, --set"
    raise ValueError(
        f"{path} belongs to a run with another configuration ({differences}); continue it with its own "
        f"({hint}), or choose another run folder"
    )


def _compare_processes(path: Path, step: int, before: int, now: int, regroup: bool) -> None:
    if before == now:
        return
    what = f"{path}: {before} processes trained this state, now there are {now}"
    if not regroup:
        raise ValueError(
            f"{what}. Each would see the same crops, but other mixtures, gains and noise: continue with "
            f"{before} (devices x nodes), or accept that with --regroup (regroup=True)"
        )
    log.warning("%s: from step %d on with other mixtures, gains and noise", what, step)


def _compare_sources(path: Path, step: int, stored: dict, sources: dict, other_data: bool) -> None:
    differences = list(_differences(stored, sources))
    if not differences:
        for name, now in sources.items():  # an earlier change of data stays in the record
            if now is not None and "before" in stored[name]:
                now["before"] = stored[name]["before"]
        return
    what = f"{path} belongs to a run on other data ({'; '.join(differences)})"
    if not other_data:
        raise ValueError(
            f"{what}; continue it with its own, choose another run folder, or accept that with --other-data "
            "(other_data=True)"
        )
    log.warning("%s: from step %d on with these", what, step)
    for name, now in sources.items():
        if now is not None and stored.get(name) is not None:
            now["before"] = f"{described(stored[name])} until step {step}"


def _differences(stored: dict, sources: dict) -> Iterator[str]:
    for name, now in sources.items():
        before = stored.get(name)
        if before is None or now is None:
            if before is not now:
                yield f"{name}: {described(before)} -> {described(now)}"
        elif before["description"] != now["description"]:
            yield f"{name}: {before['description']} -> {now['description']}"
        elif not _same_levels(before["levels"], now["levels"]):
            yield f"{name}: {now['description']} then and now, but its crops sound otherwise"


def _same_levels(some: list[float], others: list[float]) -> bool:
    if len(some) != len(others):
        return False
    pairs = zip(some, others, strict=True)
    return all(math.isclose(one, other, rel_tol=SAME_LEVEL, abs_tol=1e-9) for one, other in pairs)


def described(source: dict[str, Any] | None) -> str:
    """A source in words, with the one that it took the place of."""
    if source is None:
        return "none"
    before = f"{source['before']}, then " if "before" in source else ""
    return before + source["description"]
