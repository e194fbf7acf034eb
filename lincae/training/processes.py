"""The processes of a run: how they start, how a signal ends them in order, and what their errors say."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from lincae.machine import (
    OutOfMemoryError,
    allow_tf32,
    check_precision,
    is_out_of_memory,
    precisions,
    resolve_device,
)
from lincae.training.config import RunConfig
from lincae.training.environment import keep_freed_memory

FABRIC_NAMES = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16", "16-true": "fp16"}


def launch(
    config: RunConfig, device: str, devices: int | None, nodes: int | None, accumulate: int | None
) -> Fabric:
    """Start the other processes of a run, unless a launcher did; devices and precision are Fabric's matter.

    Raises ValueError for devices that are not there, for several on a chosen one, for processes that a batch
    cannot be shared by, and as `training_precision`.
    """
    first = resolve_device(device)
    devices, nodes = launched(devices, nodes)
    here = devices if first.type == "cpu" else torch.accelerator.device_count()
    if devices > here:
        raise ValueError(f"devices={devices} on a machine where each process sees {here} of {first.type}")
    if first.index is not None and devices > 1:
        raise ValueError(f"device {device!r} is a single one, devices={devices} are several: leave one out")
    config.share(devices * nodes, accumulate)
    precision = training_precision(config.precision, first)
    chosen = devices if first.index is None else [first.index]
    name = "bf16-mixed" if precision == "bf16" else "32-true"
    # What Fabric says of the precision stands in the run's configuration.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    fabric = Fabric(accelerator=first.type, devices=chosen, num_nodes=nodes, precision=name)
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # the shapes of a run are the same at every step
    if precision == "tf32":
        allow_tf32()
    return fabric


def training_precision(precision: str, device: torch.device) -> str:
    """The one of `lincae.machine.PRECISIONS` that a configuration asks for, also by Fabric's name; "auto" is
    bf16 where a CUDA device computes in it, else fp32. Raises as `check_precision`, and for fp16."""
    precision = FABRIC_NAMES.get(precision, precision)
    if precision == "auto":
        has_bf16 = device.type not in ("cpu", "mps") and "bf16" in precisions(device)
        return "bf16" if has_bf16 else "fp32"
    if precision == "fp16":
        reason = "its gradients need scaling, which the logged norm, the finiteness test and Muon lack"
        raise ValueError(f"precision fp16 is not for training, {reason}: use auto, bf16 or fp32")
    check_precision(precision, device)
    return precision


def launched(devices: int | None, nodes: int | None) -> tuple[int, int]:
    """Processes per node and nodes: what torchrun or SLURM started, else what is asked for (one each).

    Raises ValueError where both differ.
    """
    if TorchElasticEnvironment.detect():
        launcher = "torchrun"
        started_devices = int(os.environ["LOCAL_WORLD_SIZE"])
        started_nodes = int(os.environ["WORLD_SIZE"]) // started_devices
    elif SLURMEnvironment.detect():
        launcher = "SLURM"
        started_nodes = int(os.environ.get("SLURM_NNODES", 1))
        started_devices = int(os.environ["SLURM_NTASKS"]) // started_nodes
    else:
        return devices or 1, nodes or 1
    if devices not in (None, started_devices) or nodes not in (None, started_nodes):
        started = f"{launcher} started {started_devices} processes on each of {started_nodes} nodes"
        raise ValueError(f"{started}, not devices={devices}, nodes={nodes}: leave both out")
    return started_devices, started_nodes


# ---------------------------------------------------------------- signals


class Interruption:
    """While entered, SIGINT and SIGTERM are noted in `signal` instead of acting at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "Interruption":
        self.signal: int | None = None
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self.previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.signal = number

    def raise_if_any(self, elsewhere: int | None) -> None:
        """End this process as its own signal would have, or else the one that another process got."""
        number = self.signal or elsewhere
        if number == signal.SIGINT:
            raise KeyboardInterrupt("training was interrupted; a checkpoint was written")
        if number:
            raise SystemExit(128 + number)


def leave_interrupts(_worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, but it is the trainer that ends a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---------------------------------------------------------------- errors


class NonFiniteError(RuntimeError):
    """Training met a loss or gradient that is not finite."""


@contextlib.contextmanager
def explained(config: RunConfig, micro_batches: int, where: Callable[[], str]) -> Iterator[None]:
    """Errors of the body say `where` training stood and, when memory ran out, which settings to lower."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        settings = ", ".join(f"{name} ({getattr(config, name)})" for name in config.LOWERABLE)
        fix = f"Lower {settings} in another run folder"
        more = [n for n in config.micro_batches() if n > micro_batches]
        if more:
            items = f"{config.batch_size // more[0]} instead of {config.batch_size // micro_batches} items"
            fix += f", or continue this one with --accumulate {more[0]} --regroup: {items} at once"
        raise OutOfMemoryError(f"out of memory at {where()}. {fix}. {error}") from error
    except OSError as error:
        error.add_note(f"training stopped at {where()}")
        raise
