"""Training jobs that tests run as processes of their own; options and configuration changes are JSON.

python tests/jobs.py train FOLDER OPTIONS CHANGES     one run; under torchrun, of several processes
python tests/jobs.py kill FOLDER CHANGES              a run left alone, and runs killed again and again
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lincae.interop.recipes import objective_of, recipe
from lincae.machine import generator
from lincae.training.config import TrainingConfig
from lincae.training.loop import train

N_KILLS, N_KILLS_IN_WRITES = 20, 3


class Noise:
    """Item i is noise; `seen` is called before every batch."""

    description, sample_rate = "noise", 16000

    def __init__(self, seen=lambda: None):
        self.seen = seen

    def crops(self, indices, n_samples, seed):
        self.seen()
        return torch.stack([0.1 * torch.randn(n_samples, generator=generator(seed, i)) for i in indices])


def job(folder: Path, config: TrainingConfig, seen=lambda: None, **options) -> None:
    held_out = Noise().crops(range(4), config.crop_samples, 7)
    options |= {"device": "cpu", "progress": False, "name": "job"}
    train(objective_of(config), Noise(seen), folder, validation=held_out, **options)


def fork(folder: Path, config: TrainingConfig, kill_after_s: float | None, from_start: bool = False) -> bool:
    """Train in a fork, in which torch is imported already; whether it was killed before it ended.

    `kill_after_s`: seconds from the beginning of its first batch (or `from_start`), None to leave it alone.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            job(folder, config, seen=lambda: os.write(writer, b"x"))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    if not from_start:
        os.read(reader, 1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reader)
    assert os.WIFSIGNALED(status) or status == 0, "the job failed"
    return os.WIFSIGNALED(status)


def kill(folder: Path, config: TrainingConfig) -> dict[str, int]:
    """Runs 0, 1, ... in `folder`, killed at random until there were enough kills; "alone" is left alone."""
    draw, begun = random.Random(0), time.perf_counter()
    fork(folder / "alone", config, None)
    seconds = time.perf_counter() - begun
    kills = in_writes = run = 0
    while kills < N_KILLS or in_writes < N_KILLS_IN_WRITES:
        part = folder / str(run)
        if fork(part, config, draw.uniform(0, 0.3) * seconds, from_start=kills % 5 == 4):
            kills += 1
            in_writes += any(part.rglob(".*.tmp"))
        else:
            run += 1
    fork(folder / str(run), config, None)
    return {"kills": kills, "in_writes": in_writes, "runs": run + 1}


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, folder, *options, changes = sys.argv[1:]
    config = recipe("test", **json.loads(changes))
    if command == "kill":
        print(json.dumps(kill(Path(folder), config)))
    else:
        job(Path(folder), config, **json.loads(options[0]))
