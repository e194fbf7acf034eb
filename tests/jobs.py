"""Training jobs that tests run as processes of their own; OPTIONS and CHANGES are JSON.

python tests/jobs.py train FOLDER OPTIONS CHANGES     one run; under torchrun, of several processes
python tests/jobs.py faults FOLDER FAULT CHANGES      a run with a fault at each of its writes, and resumed
"""

import csv
import errno
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lincae.interop.recipes import objective_of, recipe
from lincae.machine import generator
from lincae.training.config import TrainingConfig
from lincae.training.loop import train
from lincae.training.runs import states


class Noise:
    """Item i is noise."""

    description = "noise"
    sample_rate = 16000

    def crops(self, indices, n_samples, seed):
        return torch.stack([0.1 * torch.randn(n_samples, generator=generator(seed, i)) for i in indices])


def small(**changes) -> TrainingConfig:
    """The recipe "test" with a network of two levels, for runs that need not learn."""
    config = recipe("test", **changes)
    levels = {"multipliers": (1, 2), "attention": (False, False), "downsampling": ("both",)}
    network = replace(config.autoencoder.network, encoder_blocks=(1, 1), unet_blocks=(0, 1), **levels)
    return replace(config, autoencoder=replace(config.autoencoder, network=network))


def trained(config: TrainingConfig, data, folder: Path, **options):
    """The model of a run on the processor, without a word."""
    return train(objective_of(config), data, folder, device="cpu", progress=False, **options)


def rows(path: Path) -> list[dict[str, float]]:
    """Rows of a log."""
    return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(path.open())]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest training state of a run: of the model, its average and the optimisers."""
    stored = torch.load(states(folder)[0], weights_only=True)
    tensors = {f"{part}.{key}": value for part in ("model", "ema") for key, value in stored[part].items()}
    for part in {"optimizer", "muon"} & set(stored):
        for index, values in stored[part]["state"].items():
            tensors |= {f"{part}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def job(folder: Path, config: TrainingConfig, **options) -> None:
    held_out = Noise().crops(range(4), config.crop_samples, 7)
    options |= {"device": "cpu", "progress": False, "name": "job"}
    train(objective_of(config), Noise(), folder, validation=held_out, **options)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def strike(folder: Path, number: int, fault) -> None:
    """From now on have `fault` at write `number` to `folder`: opening a file to write, renaming, removing.

    A full disk refuses no removal. There is no way back from an audit hook: for a process that ends soon.
    """
    done = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal done
        if event == "open":
            writes = isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wxa+"))
        else:
            writes = event == "os.rename" or (event == "os.remove" and fault is kill)
        if writes and str(arguments[0]).startswith(str(folder)):
            done += 1
            if done == number:
                fault()

    sys.addaudithook(hook)


def fork(folder: Path, config: TrainingConfig, number: int = 0, fault=None) -> bool:
    """Train in a fork, in which torch is imported already; whether it was whole, without a fault."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            strike(folder, number, fault)
            job(folder, config)
            status = 0
        except OSError as error:
            status = 2 if error.errno == errno.ENOSPC else 1
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, 2, -signal.SIGKILL), "the job failed"
    return status == 0


def faults(folder: Path, fault, config: TrainingConfig) -> int:
    """Runs 1, 2, ... with a fault at that write of their second half, after which they were resumed, and
    run 0 without. Returns how many of these met their fault."""
    job(folder / "half", config, stop_at=config.steps // 2)
    shutil.rmtree(folder / "half" / "best")  # so that the next validation writes one
    shutil.copytree(folder / "half", folder / "0")
    fork(folder / "0", config)
    number = 0
    while True:
        number += 1
        part = folder / str(number)
        shutil.copytree(folder / "half", part)
        if fork(part, config, number, fault):
            return number - 1
        fork(part, config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, folder, option, changes = sys.argv[1:]
    config = small(**json.loads(changes))
    if command == "faults":
        print(faults(Path(folder), {"kill": kill, "full disk": full_disk}[option], config))
    else:
        job(Path(folder), config, **json.loads(option))
