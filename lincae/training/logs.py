"""What a run writes down while it goes on: logs that a resumed run continues, and the list of runs."""

import contextlib
import csv
import io
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from lincae.files import atomic_write


class Log:
    """A CSV that grows by rows. Opening it drops the rows after step `first`, where a resumed run starts."""

    def __init__(self, path: Path, first: int):
        self.path = path
        rows = self.read(path)
        # A crash may have cut the last row short, even within the number of its step.
        whole = [row for row in rows if None not in row.values()]
        kept = [row for row in whole if int(row["step"]) <= first]
        self.columns = list(kept[0]) if kept else []
        if not kept:  # a header that was cut short goes as well
            path.unlink(missing_ok=True)
        elif len(kept) < len(rows):
            self._rewrite(kept)

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """The rows of a log; none where there is no file."""
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; columns that the file does not have yet are added, empty in the rows before."""
        new = [column for column in row if column not in self.columns]
        if new:
            self.columns += new
            self._rewrite(self.read(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def best(self, column: str) -> float:
        """The highest value of a column so far; -inf where there is none."""
        values = [float(row[column]) for row in self.read(self.path) if row.get(column)]
        return max(values, default=-math.inf)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_write(self.path) as file:
            text = io.TextIOWrapper(file, newline="", write_through=True)
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(rows)
            text.detach()


class Meter:
    """Sums of what the steps since the last row of the log measured, on the device until they are read.

    They are part of the training state: the first row after a resumption is that of an undisturbed run.
    """

    def __init__(self):
        self._clear()

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

    def _clear(self) -> None:
        self.totals: dict[str, Tensor | float] = {}
        self.steps = 0
        self.timed_steps = 0  # without those before a resumption
        self.since_s = time.perf_counter()


@contextlib.contextmanager
def noted(run_dir: Path, log_name: str) -> Iterator[None]:
    """Add a line about the run in the body to runs.csv beside `run_dir`, however it ends: when it ended,
    seconds, last step, loss and outcome."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    started_s = time.monotonic()
    outcome = "finished"
    try:
        yield
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        rows = Log.read(run_dir / log_name)
        if rows and rank_zero_only.rank == 0:
            row = {
                "run": run_dir.name,
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - started_s),
                "step": rows[-1]["step"],
                "loss": rows[-1]["loss"],
                "outcome": outcome,
            }
            path = run_dir.parent / "runs.csv"
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
