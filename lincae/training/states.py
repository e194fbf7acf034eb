"""Training states: written atomically, checked before they are read, refused where they do not fit."""

import json
import logging
import zipfile
from pathlib import Path

import torch

from lincae.checkpoints import flat
from lincae.files import atomic_write

log = logging.getLogger(__name__)


def states(folder: Path) -> list[Path]:
    """The training states in a run folder, newest first."""
    # "last.ckpt", the only one of earlier versions, sorts as the oldest.
    return sorted(folder.glob("*.ckpt"), reverse=True)


def store(state: dict, config: dict, step: int, processes: int, folder: Path, keep: int) -> None:
    """Write a training state atomically; the newest `keep` stay. Raises OSError, for one on a full disk.

    `state` names what has a `state_dict`; `config` and `processes` are compared by `restore`.
    """
    content = {name: part.state_dict() for name, part in state.items()}
    content |= {"config": json.dumps(config), "step": step, "processes": processes}
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
    except zipfile.BadZipFile as error:
        return f"truncated: {error}"
    return None if member is None else f"wrong checksum of {member}"


def restore(state: dict, config: dict, processes: int, path: Path, regroup: bool) -> int:
    """Load a training state into the parts of `state`; returns the step to continue from.

    Raises ValueError, showing the difference, for one of another configuration, and unless `regroup` for one
    of another number of processes.
    """
    if not path.exists():
        raise ValueError(f"this process does not see {path}: the run folder must be shared by all nodes")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    _refuse_other_configuration(path, json.loads(stored["config"]), config)
    before = stored.get("processes", 1)
    if before != processes:
        what = f"{path}: {before} processes trained this state, now there are {processes}"
        if not regroup:
            raise ValueError(
                f"{what}. Each would see the same crops, but other mixtures, gains and noise: continue with "
                f"{before} (devices x nodes), or accept that with --regroup (regroup=True)"
            )
        log.warning("%s: from step %d on with other mixtures, gains and noise", what, stored["step"])
    for name, part in state.items():
        if name == "meter":  # states of former versions hold none, or call it "sums"
            held = stored.get("meter", stored.get("sums"))
            if held is None:
                continue
            part.load_state_dict(held)
        else:
            part.load_state_dict(stored[name])
    return stored["step"]


def _refuse_other_configuration(path: Path, stored: dict, config: dict) -> None:
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
