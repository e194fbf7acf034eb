"""A run folder: logs that a resumed run continues, training state written atomically, a graceful stop."""

import csv
import io
import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import torch

from .audio import atomic_write


class Log:
    """A CSV that grows by rows; rows after step `first` (of a run that is now resumed) are dropped."""

    def __init__(self, path: Path, first: int):
        self.path = path
        rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        # A crash may have cut the last row short, also within its step.
        kept = [row for row in rows if None not in row.values() and int(row["step"]) <= first]
        self.columns = list(rows[0]) if rows else None
        if len(kept) < len(rows):
            with atomic_write(path) as file:
                text = io.TextIOWrapper(file, newline="", write_through=True)
                writer = csv.DictWriter(text, self.columns)
                writer.writeheader()
                writer.writerows(kept)
                text.detach()

    def write(self, row: dict[str, float]) -> None:
        fresh = self.columns is None
        self.columns = self.columns or list(row)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if fresh:
                writer.writeheader()
            writer.writerow(row)


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

    def raise_if_any(self) -> None:
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt("training was interrupted; a checkpoint was written")
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


def leave_interrupts(_worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, but it is the trainer that ends a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---------------------------------------------------------------- training state


def store(state: dict, config: dict, step: int, path: Path) -> None:
    """Write the training state atomically."""
    tensors = {key: value.state_dict() for key, value in state.items()}
    with atomic_write(path) as file:
        torch.save({**tensors, "config": json.dumps(config), "step": step}, file)


def restore(state: dict, config: dict, path: Path) -> int:
    """Load the training state, if there is one; returns the step to continue from."""
    if not path.exists():
        return 0
    stored = torch.load(path, map_location="cpu", weights_only=True)
    old, new = flat(json.loads(stored["config"])), flat(json.loads(json.dumps(config)))
    if differences := [
        f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)
    ]:
        raise ValueError(
            f"{path} belongs to a run with another configuration ({'; '.join(differences)});"
            " continue it with its own, or choose another run folder"
        )
    for key, value in state.items():
        value.load_state_dict(stored[key])
    return stored["step"]


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    pairs = {}
    for key, value in tree.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return pairs


def commit() -> str:
    """Commit of the running source, with "-dirty" where it was changed; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
