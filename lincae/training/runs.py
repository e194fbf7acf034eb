"""The folder of a run: logs that a resumed run continues, and training states, checked before they are
read."""

import csv
import io
import json
import logging
import math
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lincae.checkpoints import flat
from lincae.machine.files import atomic_write

SAME_LEVEL = 1e-3
"""Relative difference of levels up to which sounds count as equal: another decoder rounds otherwise."""

RETIRED = (
    "loss.adversarial", "loss.feature_matching",
    "loss.discriminator_fft_sizes", "loss.discriminator_channels",
)  # fmt: skip
"""Fields of `VaeLossConfig` of earlier versions, which no recipe used."""

DAMAGE = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, struct.error,
    NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, OSError,
)  # fmt: skip
"""Errors by which readers of archives and pickles say that a file is not what it should be."""

log = logging.getLogger(__name__)


class Log:
    """A CSV that grows by rows. Opening it drops the rows after step `first`, where a resumed run starts."""

    def __init__(self, path: Path, first: int):
        self.path = path
        rows = self.rows()
        # A crash may have cut the last row short, even within the number of its step.
        kept = [row for row in rows if None not in row.values() and int(row["step"]) <= first]
        self.columns = list(kept[0]) if kept else []
        if not kept:  # a header that was cut short goes as well
            path.unlink(missing_ok=True)
        elif len(kept) < len(rows):
            self._rewrite(kept)

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; columns that the file does not have yet are added, empty in the rows before."""
        new = [column for column in row if column not in self.columns]
        if new:
            self.columns += new
            self._rewrite(self.rows())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def best(self, column: str) -> float:
        """The highest value of a column so far; -inf where there is none."""
        return max((float(row[column]) for row in self.rows() if row.get(column)), default=-math.inf)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(self.path) as file:
            file.write(text.getvalue().encode())


class Meter:
    """Sums of what the steps since the last row of the log measured, on the device until they are read; part
    of the training state."""

    def __init__(self):
        self._clear()

    def _clear(self) -> None:
        self.totals: dict[str, Tensor | float] = {}
        self.steps = 0
        self.timed_steps = 0  # without those before a resumption
        self.since_s = time.perf_counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add what one step measured, by name."""
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value.detach()
        self.steps += 1
        self.timed_steps += 1

    def finite(self) -> bool:
        return all(math.isfinite(float(total)) for total in self.totals.values())

    def read(self) -> tuple[dict[str, float], float]:
        """The mean of every value and the steps per second since the last call; starts anew."""
        means = {name: float(total) / self.steps for name, total in self.totals.items()}
        steps_per_s = self.timed_steps / (time.perf_counter() - self.since_s)
        self._clear()
        return means, steps_per_s

    def state_dict(self) -> dict:
        return {"totals": {name: float(total) for name, total in self.totals.items()}, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        if "totals" in state:
            self.totals = dict(state["totals"])
        else:  # as former versions wrote it
            self.totals = {"loss": state["loss"], "grad_norm": state["norm"]}


# ---------------------------------------------------------------- training states


@dataclass
class Origin:
    """What a training state comes from; a run goes on from a state of the same origin alone.

    `config`: the objective's. `micro_batches`: how many make a step ("processes" in the file). `sources`: the
    data and what validation hears, each as `source` names it, or None.
    """

    config: dict[str, Any]
    micro_batches: int
    sources: dict[str, dict[str, Any] | None]


def source(description: str, items: Tensor) -> dict[str, Any]:
    """How an `Origin` names a source of items `(B, ..., T)`: its description, and the RMS of the items and of
    their differences in time, which tell equally loud sounds apart."""
    items = items.detach().float()
    levels = [values.flatten(1).square().mean(1).sqrt() for values in (items, items.diff())]
    return {"description": description, "levels": torch.cat(levels).tolist()}


def described(source: dict[str, Any] | None) -> str:
    """A source in words, with the one that it took the place of."""
    if source is None:
        return "none"
    before = f"{source['before']}, then " if "before" in source else ""
    return before + source["description"]


def states(folder: Path) -> list[Path]:
    """The training states in a run folder, newest first."""
    # "last.ckpt", the only one of earlier versions, sorts as the oldest.
    return sorted(folder.glob("*.ckpt"), reverse=True)


def store(parts: Mapping[str, Any], origin: Origin, step: int, folder: Path, keep: int) -> None:
    """Write a training state of `parts`, which have a `state_dict`, atomically; the newest `keep` stay.
    Raises OSError, for one on a full disk."""
    content = {name: part.state_dict() for name, part in parts.items()}
    content |= {"config": json.dumps(origin.config), "step": step, "processes": origin.micro_batches}
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
    """The newest whole training state; None in a folder without. Damaged ones are put aside, with a warning,
    and what killed writers left is removed: the caller holds the folder's lock. Raises ValueError where all
    states are damaged."""
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
            f"{folder}: all training states are damaged ({', '.join(damaged)}); train in another run folder"
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


def restore(
    parts: Mapping[str, Any], origin: Origin, path: Path, regroup: bool = False, other_data: bool = False
) -> int:
    """Load a training state into its `parts`; returns the step to continue from.

    Raises ValueError for a file that is no training state, and for one of another origin, showing the
    difference, of which `regroup` and `other_data` accept a part. Other data is noted in `origin`.
    """
    if not path.exists():
        raise ValueError(f"this process does not see {path}: the run folder must be shared by all nodes")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict) or not {"config", "step"} <= set(stored):
        raise ValueError(f"{path} is no training state")

    step = stored["step"]
    sources = json.loads(stored["sources"]) if "sources" in stored else origin.sources
    before = flat(json.loads(stored["config"]))
    before = {name: value for name, value in before.items() if name not in RETIRED}
    settings = _changes(before, flat(json.loads(json.dumps(origin.config))))
    groups = _changes({"--accumulate": stored.get("processes", 1)}, {"--accumulate": origin.micro_batches})
    data = _other_sources(sources, origin.sources)
    _accept(path, step, "with another configuration", settings)
    _accept(path, step, "of another number of micro-batches", groups, regroup, "--regroup (regroup=True)")
    _accept(path, step, "on other data", data, other_data, "--other-data (other_data=True)")
    for name, now in origin.sources.items():
        before = sources[name]
        if now and before and name in data:
            now["before"] = f"{described(before)} until step {step}"
        elif now and before and "before" in before:  # an earlier change of data stays in the record
            now["before"] = before["before"]

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


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs, by name."""
    names = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    return {name: f"{before.get(name)} -> {now.get(name)}" for name in names}


def _other_sources(stored: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, str]:
    """What differs of two `Origin.sources`, by name."""
    after = {name: now["description"] if now else "none" for name, now in sources.items()}
    before = {name: then["description"] if then else "none" for name, then in stored.items()}
    differing = _changes(before, after)
    for name, now in sources.items():
        if now is None or name in differing:
            continue
        levels = stored[name]["levels"]
        if len(levels) != len(now["levels"]) or not np.allclose(levels, now["levels"], SAME_LEVEL, 1e-9):
            differing[name] = f"{after[name]} then and now, but its crops sound otherwise"
    return differing


def _accept(
    path: Path, step: int, what: str, changes: dict[str, str], accepted: bool = False, option: str = ""
) -> None:
    """Raises ValueError for changes that are not `accepted`, which an `option` would do."""
    if not changes:
        return
    shown = "; ".join(f"{name}: {change}" for name, change in changes.items())
    if not accepted:
        otherwise = f", or accept that with {option}" if option else ""
        raise ValueError(
            f"{path} belongs to a run {what} ({shown}); continue it with its own, choose another run folder"
            f"{otherwise}"
        )
    log.warning("%s: from step %d on %s (%s)", path, step, what, shown)
