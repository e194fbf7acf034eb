"""The trainer (paper 3.3): one loop on Lightning Fabric, resumable to the bit.

The crops of step k are a pure function of (seed, k). A step is made of P equal micro-batches, which the
processes share: by default one each. An item is mixed with its neighbour within its micro-batch; gains, noise
levels and noise of the p-th are a pure function of (seed, k, p). Equal P on any number of processes is the
same training, to the rounding of sums.
"""

import contextlib
import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lincae.machine import generator
from lincae.machine.files import locked
from lincae.training.config import RunConfig
from lincae.training.environment import commit, hardware
from lincae.training.objective import TrainingData, TrainingObjective, compile_network
from lincae.training.processes import Interruption, NonFiniteError, explained, launch, leave_interrupts
from lincae.training.runs import Log, Meter, Origin, described, newest, restore, store

BEST = "best"

log = logging.getLogger(__name__)


def train(
    objective: TrainingObjective,
    data: TrainingData,
    run_dir: str | Path,
    *,
    validation: Any = None,
    name: str | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    accumulate: int | None = None,
    workers: int = 0,
    keep: int = 2,
    regroup: bool = False,
    other_data: bool = False,
    compiler: str | None = None,
    stop_at: int | None = None,
    progress: bool = True,
    command: str | None = None,
) -> nn.Module:
    """Train, or continue the run in `run_dir`, until its last step (or `stop_at`); returns what is published.

    `objective`: a model and what it minimises (`lincae.interop.recipes.objective_of` makes one of a recipe).
    `validation`: held-out data for the objective's `validate`, for an autoencoder audio `(B, T)`. `name`: of
    the model (by default that of the folder). `devices`: processes on each of `nodes` machines (by default
    what torchrun or SLURM started, else 1). `accumulate`: micro-batches of a step in all processes (by
    default one each). `workers`: processes that load data for each of them. `keep`: the newest training
    states that stay. `regroup`, `other_data`: continue a run of another number of micro-batches, or on other
    data or validation. `compiler`: see `compile_network`. `command`: what started the run, for its card.

    The folder holds `log.csv`, `validation.csv`, training states, and what the objective publishes: of an
    autoencoder its EMA weights as a checkpoint, and in `best/` those of the best validation.

    Ctrl-C and SIGTERM finish the step, write a checkpoint and then end the run. A damaged training state is
    put aside for the one before, with a warning. Raises ValueError for data that does not suit the model,
    where batch and processes do not match, and when `run_dir` holds a run of another configuration, number of
    micro-batches or data (showing the difference); NonFiniteError, OutOfMemoryError and OSError (such as a
    full disk) with the step and the last good checkpoint; BlockingIOError while another process trains there.
    """
    run_dir = Path(run_dir)
    objective.check_data(data, validation)
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    fabric = launch(objective.config, device, devices, nodes, accumulate)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext()
    if fabric.is_global_zero:
        lock = locked(run_dir / "lock", f"another process trains in {run_dir}")
    with lock:
        objective.begin(name or run_dir.name)
        compile_network(objective.model, compiler, fabric.device)
        run = Run(objective, data, validation, run_dir, fabric, accumulate, keep)
        run.resume(regroup, other_data)
        run.open_folder(stop_at, command)
        with Interruption() as interruption, explained(objective.config, run.micro_batches, run.where):
            stopping = None
            for micro_batches in run.batches(workers, progress):
                run.backward(micro_batches)
                stopping = run.update(interruption.signal)
                if stopping:
                    break
    if fabric.is_global_zero and getattr(data, "skipped", None):
        log.warning(data.skip_report())
    interruption.raise_if_any(stopping)
    return objective.load(run_dir, str(fabric.device))


class Run:
    """A run in one of its processes: what it trains, where it stands, and the folder it writes, which is the
    matter of the first process."""

    def __init__(
        self,
        objective: TrainingObjective,
        data: TrainingData,
        validation: Any,
        folder: Path,
        fabric: Fabric,
        accumulate: int | None,
        keep: int,
    ):
        self.objective = objective
        self.config = objective.config
        self.data = data
        self.validation = validation
        self.folder = folder
        self.fabric = fabric
        self.keep = keep
        self.writes = fabric.is_global_zero
        if fabric.world_size > 1:
            self.cpu_group = torch.distributed.new_group(backend="gloo")

        self.parameters = objective.trained()
        named = objective.optimisers()
        self.wrapped, *chosen = fabric.setup(objective, *named.values())
        self.optimisers = dict(zip(named, chosen, strict=True))
        self.meter = Meter()
        self.state = {**objective.parts(), **self.optimisers, "meter": self.meter}
        config = dataclasses.asdict(self.config) | objective.identity()
        length = objective.crop_length(data)
        place = (fabric.global_rank, fabric.world_size)
        self.loaded = StepBatches(self.config, data, length, *place, accumulate)
        self.micro_batches = self.loaded.count
        self.origin = Origin(config, self.micro_batches, objective.sources(data, validation))

    def resume(self, regroup: bool, other_data: bool) -> None:
        """Continue from the newest state in the folder, if there is one. Raises ValueError as `restore`."""
        path = self.fabric.broadcast(newest(self.folder) if self.writes else None)
        self.first = 0
        if path is not None:
            self.first = restore(self.state, self.origin, path, regroup, other_data)
        self.step = self.first
        self.saved = self.first

    def open_folder(self, stop_at: int | None, command: str | None) -> None:
        """Logs, the best score so far, the list of skipped files, and what a checkpoint says of the run."""
        self.stop = self.config.steps if stop_at is None else min(stop_at, self.config.steps)
        if hasattr(self.data, "share_skipped"):
            self.data.share_skipped(self.folder / "skipped.csv")
        if not self.writes:
            return
        self.log = Log(self.folder / "log.csv", self.first)
        self.validation_log = Log(self.folder / "validation.csv", self.first)
        self.best = -math.inf
        if self.objective.criterion and (self.folder / BEST).exists():
            self.best = self.validation_log.best(self.objective.criterion)
        self.metadata = {
            "data": described(self.origin.sources["data"]),
            "training": dataclasses.asdict(self.config),
            "commit": commit(),
            "hardware": hardware(self.fabric.device),
        }
        if command:
            self.metadata["command"] = command

    def where(self) -> str:
        """Where the run stands, for an error message."""
        last = f"{self.folder} at step {self.saved}" if self.saved else "none"
        rate = self.objective.learning_rate("optimizer", self.step)
        return f"step {self.step} (lr {rate:.3g}); last good checkpoint: {last}"

    # -------- a step

    def batches(self, workers: int, progress: bool) -> Iterator[list[Any]]:
        """This process's micro-batches of every step that is left, on its device, with a progress bar."""
        steps = range(self.first, self.stop)
        options = {"num_workers": workers, "worker_init_fn": leave_interrupts}
        loader = DataLoader(self.loaded, batch_size=None, sampler=steps, **options)
        silent = not (progress and self.writes)
        self.bar = tqdm(loader, initial=self.first, total=self.stop, unit="step", disable=silent)
        for step, batch in zip(steps, self.bar, strict=True):
            self.step = step
            yield self.fabric.to_device(batch)

    def backward(self, batches: Sequence[Any]) -> None:
        """Gradients of the mean loss of all micro-batches, from those of this process."""
        for name, optimiser in self.optimisers.items():
            optimiser.param_groups[0]["lr"] = self.objective.learning_rate(name, self.step)
            optimiser.zero_grad()
        device = self.fabric.device
        numbers = self.loaded.numbers
        weight = self.fabric.world_size / self.micro_batches  # the mean over the processes is taken after it
        measured: dict[str, Any] = defaultdict(float)
        for number, batch in zip(numbers, batches, strict=True):
            draw = generator(self.config.seed, self.step, number, 1, device=device)
            prepared = self.objective.prepare(batch, self.step, draw)
            goes_on = number < numbers[-1]
            with self.fabric.no_backward_sync(self.wrapped, enabled=goes_on):
                terms = self.wrapped(prepared, self.step, draw)
                self.fabric.backward(weight * self.objective.minimised(terms))
            for name, term in terms.items():
                measured[name] += weight * term.detach()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.meter.add({**measured, "grad_norm": torch.nn.utils.get_total_norm(gradients)})

    def update(self, signal: int | None) -> int | None:
        """Move the parameters and what follows them, then write what is due, in all processes alike: log,
        validation and checkpoint. Returns the number of a signal that one of them got. Raises NonFiniteError,
        where numbers are read."""
        done = self.step + 1
        is_last = done == self.stop
        if self.fabric.world_size > 1:
            # The highest signal, exchanged by the CPUs: no accelerator waits.
            shared = torch.tensor(signal or 0)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, self.cpu_group)
            signal = int(shared)
        logs = done % self.config.log_every == 0
        validates = self.validation is not None and (done % self.config.validate_every == 0 or is_last)
        checkpoints = done % self.config.checkpoint_every == 0 or is_last or bool(signal)

        # Reading numbers off an accelerator waits for it: there, only as often as they are written.
        if logs or checkpoints or self.fabric.device.type == "cpu":
            if self.fabric.world_size > 1:
                self.meter.totals = self.fabric.all_reduce(self.meter.totals)
            if not self.meter.finite():
                raise NonFiniteError(f"loss or gradient is not finite at {self.where()}")
        for optimiser in self.optimisers.values():
            optimiser.step()
        self.objective.follow(done)

        if logs:
            self.log_row()
        if validates and self.writes:
            self.validate()
        if checkpoints:
            self.checkpoint()
        return signal

    # -------- what happens every so many steps

    def log_row(self) -> None:
        """The means since the last row; every process begins anew."""
        means, steps_per_s = self.meter.read()
        if not self.writes:
            return
        rate = self.objective.learning_rate("optimizer", self.step)
        row = {"step": self.step + 1, "loss": means.pop("loss"), "lr": rate}
        row |= self.objective.schedules(self.step / self.config.steps)
        row |= means
        row["items_per_s"] = round(self.config.batch_size * self.config.ITEMS_PER_CROP * steps_per_s, 2)
        self.log.write(row)
        self.bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{rate:.2g}", refresh=False)

    def validate(self) -> None:
        """A row of scores, and a checkpoint in `best/` where they are the highest so far."""
        scores = self.objective.validate(self.validation)
        self.validation_log.write({"step": self.step + 1, **scores})
        if self.objective.criterion and scores[self.objective.criterion] > self.best:
            self.best = scores[self.objective.criterion]
            self._publish(self.folder / BEST)

    def checkpoint(self) -> None:
        """Publish the model and write a training state, from which the run can continue."""
        done = self.step + 1
        if self.writes:
            self._publish(self.folder)
            store(self.state, self.origin, done, self.folder, self.keep)
        self.fabric.barrier()
        self.saved = done

    def _publish(self, folder: Path) -> None:
        self.objective.publish(folder, self.data, {"step": self.step + 1, **self.metadata})


class StepBatches:
    """Item k is this process's part of the batch of step k, in micro-batches: `numbers` of all `count`."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        length: int,
        rank: int,
        world: int,
        accumulate: int | None = None,
    ):
        self.data = data
        self.length = length
        self.seed = config.seed
        self.size = config.share(world, accumulate)
        self.count = config.batch_size // self.size
        self.numbers = range(rank * self.count // world, (rank + 1) * self.count // world)

    def __getitem__(self, step: int) -> list[Any]:
        starts = [(step * self.count + number) * self.size for number in self.numbers]
        return [self.data.crops(range(start, start + self.size), self.length, self.seed) for start in starts]
