"""A run folder: logs that a resumed run continues, training states written atomically, a graceful stop; and
the processes that share a run."""

import contextlib
import csv
import io
import json
import logging
import math
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lincae.checkpoints import flat
from lincae.files import atomic_write, locked

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- logs


class Log:
    """A CSV that grows by rows; rows after step `first` (of a run that is now resumed) are dropped."""

    def __init__(self, path: Path, first: int):
        self.path = path
        rows = self.read(path)
        # A crash may have cut the last row short, also within its step.
        kept = [row for row in rows if None not in row.values() and int(row["step"]) <= first]
        self.columns = list(kept[0]) if kept else []
        if not kept:  # also a header that was cut short
            path.unlink(missing_ok=True)
        elif len(kept) < len(rows):
            self.rewrite(kept)

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """The rows of a log; none where there is no file."""
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_write(self.path) as file:
            text = io.TextIOWrapper(file, newline="", write_through=True)
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(rows)
            text.detach()

    def write(self, row: dict[str, float]) -> None:
        """Append a row; columns that the file does not have yet are added, empty in the rows before."""
        if new := [column for column in row if column not in self.columns]:
            self.columns += new
            self.rewrite(self.read(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def best(self, column: str) -> float:
        """The highest value of a column so far; -inf where there is none."""
        return max((float(row[column]) for row in self.read(self.path) if row.get(column)), default=-math.inf)


class Meter:
    """Sums since the last row of the log, kept on the device until they are read.

    They are part of the training state: the first row after a resumption is that of an undisturbed run.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.loss: Tensor | float = 0.0
        self.norm: Tensor | float = 0.0
        self.steps = self.timed_steps = 0
        self.since = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.loss, self.norm = self.loss + loss.detach(), self.norm + norm.detach()
        self.steps, self.timed_steps = self.steps + 1, self.timed_steps + 1

    def finite(self) -> bool:
        return math.isfinite(float(self.loss)) and math.isfinite(float(self.norm))

    def means(self) -> tuple[float, float, float]:
        """Loss, gradient norm and steps per second since the last call."""
        speed = self.timed_steps / (time.perf_counter() - self.since)
        means = float(self.loss) / self.steps, float(self.norm) / self.steps, speed
        self.clear()
        return means

    def state_dict(self) -> dict[str, float]:
        return {"loss": float(self.loss), "norm": float(self.norm), "steps": self.steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.loss, self.norm, self.steps = state["loss"], state["norm"], state["steps"]


# ---------------------------------------------------------------- stopping


def alone(folder: Path) -> contextlib.AbstractContextManager[IO]:
    """Hold a run folder while entered, as `files.locked`. Raises HeldError while another process has it."""
    return locked(folder / "lock", f"another process trains in {folder}")


class Interruption:
    """While entered, SIGINT and SIGTERM are noted in `signal` instead of acting at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "Interruption":
        self.signal: int | None = None
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self.previous = {number: signal.signal(number, self.note) for number in self.SIGNALS}
        return self

    def note(self, number: int, _frame: Any) -> None:
        self.signal = number

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def raise_if_any(self, of_others: int | None) -> None:
        """End the process as its own signal would have, or else the one that another process got."""
        number = self.signal or of_others
        if number == signal.SIGINT:
            raise KeyboardInterrupt("training was interrupted; a checkpoint was written")
        if number:
            raise SystemExit(128 + number)


def leave_interrupts(_worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, but it is the trainer that ends a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class NonFiniteError(RuntimeError):
    """Training met a loss or gradient that is not finite."""


class OutOfMemoryError(RuntimeError):
    """A training step does not fit into the device's memory."""


@contextlib.contextmanager
def explained(lowerable: dict[str, Any], where: Callable[[], str]) -> Iterator[None]:
    """Errors from below say `where` training stood and, when memory ran out, which settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        settings = ", ".join(f"{key} ({value})" for key, value in lowerable.items())
        raise OutOfMemoryError(
            f"out of memory at {where()}. Lower {settings}; bf16-mixed needs less than fp32. Settings "
            f"belong to a run folder: take another, or continue this one on more devices (--regroup). {error}"
        ) from error
    except OSError as error:
        error.add_note(f"training stopped at {where()}")
        raise


# ---------------------------------------------------------------- training states


def states(folder: Path) -> list[Path]:
    """The training states in a run folder, newest first."""
    # "last.ckpt", the only one of earlier versions, sorts as the oldest.
    return sorted(folder.glob("*.ckpt"), reverse=True)


def store(state: dict, config: dict, step: int, processes: int, folder: Path, keep: int) -> None:
    """Write a training state atomically; the newest `keep` stay. Raises OSError, e.g. on a full disk."""
    tensors = {key: value.state_dict() for key, value in state.items()}
    facts = {"config": json.dumps(config), "step": step, "processes": processes}
    try:
        with atomic_write(folder / f"state-{step:08d}.ckpt") as file:
            torch.save(tensors | facts, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save reports a failed write as "unexpected pos"
            raise error.__context__ from None
        raise
    for old in states(folder)[keep:]:
        old.unlink()


def newest(folder: Path) -> Path | None:
    """The newest whole training state; None in a folder without. Damaged ones are put aside, with a warning.

    Raises ValueError where all are damaged.
    """
    for orphan in [*folder.glob(".*.tmp"), *folder.glob("best/.*.tmp")]:  # of writers that were killed
        orphan.unlink()
    for path in states(folder):
        if not (problem := damage(path)):
            return path
        aside = path.rename(path.with_name(path.name + ".damaged"))
        log.warning("%s is damaged (%s): kept as %s, trying the state before", path, problem, aside.name)
    if damaged := list(folder.glob("*.damaged")):
        names = ", ".join(path.name for path in damaged)
        raise ValueError(
            f"{folder}: all training states are damaged ({names}); train in another run folder "
            "(the EMA weights of this one may still load)"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a training state. Checksums too, which torch.load does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except zipfile.BadZipFile as error:
        return f"truncated: {error}"
    return member and f"wrong checksum of {member}"


def restore(state: dict, config: dict, processes: int, path: Path, regroup: bool) -> int:
    """Load a training state; returns the step to continue from.

    Raises ValueError, showing the difference, for one of another configuration, and unless `regroup` for one
    of another number of processes.
    """
    if not path.exists():
        raise ValueError(f"this process does not see {path}: the run folder must be shared by all nodes")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    old, new = flat(json.loads(stored["config"])), flat(json.loads(json.dumps(config)))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        differences = "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed)
        own = [f"{key}={json.dumps(old[key], separators=(',', ':'))}" for key in changed if key in old]
        hint = f"--set {' '.join(own)}" if len(own) <= 5 else "--preset, --variant, --set"
        raise ValueError(
            f"{path} belongs to a run with another configuration ({differences}); continue it with its own "
            f"({hint}), or choose another run folder"
        )
    before = stored.get("processes", 1)
    if before != processes:
        what = f"{path}: {before} processes trained this state, now there are {processes}"
        if not regroup:
            raise ValueError(
                f"{what}. Each would see the same crops, but other mixtures, gains and noise: continue with "
                f"{before} (devices x nodes), or accept that with --regroup (regroup=True)"
            )
        log.warning("%s: from step %d on with other mixtures, gains and noise", what, stored["step"])
    for key, value in state.items():
        if key != "meter" or key in stored:  # states of earlier versions hold none
            value.load_state_dict(stored[key])
    return stored["step"]


def assignment(text: str) -> tuple[str, Any]:
    """ "a.b=1" -> ("a.b", 1); values are JSON, or else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes FIELD=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@contextlib.contextmanager
def noted(run_dir: Path, log_name: str) -> Iterator[None]:
    """A line about the run in the body, however it ends, in runs.csv beside `run_dir`: when, seconds, step,
    loss, outcome."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    started, outcome = time.monotonic(), "finished"
    try:
        yield
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        rows = Log.read(run_dir / log_name)
        if rows and rank_zero_only.rank == 0:
            last = {key: rows[-1][key] for key in ("step", "loss")}
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            row = {"run": run_dir.name, "ended": ended, "seconds": round(time.monotonic() - started)}
            path = run_dir.parent / "runs.csv"
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, [*row, *last, "outcome"])
                if new:
                    writer.writeheader()
                writer.writerow(row | last | {"outcome": outcome})


# ---------------------------------------------------------------- processes


def launched(devices: int | None, nodes: int | None) -> tuple[int, int]:
    """Processes per node and nodes: what torchrun or SLURM started, else what is asked for (one each).

    Raises ValueError where both differ: every process would take itself for the only one.
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        launcher, per_node = "torchrun", int(os.environ["LOCAL_WORLD_SIZE"])
        started = per_node, int(os.environ["WORLD_SIZE"]) // per_node
    elif SLURMEnvironment.detect():
        launcher, n_nodes = "SLURM", int(os.environ.get("SLURM_NNODES", 1))
        started = int(os.environ["SLURM_NTASKS"]) // n_nodes, n_nodes
    else:
        return devices or 1, nodes or 1
    if (devices or started[0], nodes or started[1]) != started:
        raise ValueError(
            f"{launcher} started {started[0]} processes on each of {started[1]} nodes, which does not match "
            f"devices={devices}, nodes={nodes}: leave both out"
        )
    return started
