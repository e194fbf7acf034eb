"""Latent datasets written by processes that are killed; run as a process of its own.

python tests/latent_jobs.py CORPUS FOLDER
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lincae.latents import store
from lincae.latents.store import encode_corpus
from tests.fakes import Streams

N_KILLS = 15


class Logged(Streams):
    """Notes in a file when a file is begun; takes its time."""

    def __init__(self, begun: Path):
        super().__init__()
        self.begun = begun

    def encode_stream(self, blocks):
        with self.begun.open("a") as file:
            file.write("x")
        for z in super().encode_stream(blocks):
            time.sleep(0.002)
            yield z


def fork(corpus: str, folder: Path, kill_after_s: float | None) -> bool:
    """Whether it was killed before it ended."""
    if (pid := os.fork()) == 0:
        try:
            encode_corpus(Logged(folder.with_suffix(".begun")), [corpus], folder, progress=False)
            os._exit(0)
        finally:
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, "the job failed"
    return os.WIFSIGNALED(status)


def main(corpus: str, folder: Path) -> None:
    draw, start = random.Random(0), time.perf_counter()
    fork(corpus, folder / "alone", None)
    seconds = time.perf_counter() - start
    runs = [0]  # kills of each
    while sum(runs) < N_KILLS:
        if fork(corpus, folder / str(len(runs) - 1), draw.uniform(0, 0.6) * seconds):
            runs[-1] += 1
        else:
            runs.append(0)
    fork(corpus, folder / str(len(runs) - 1), None)
    print(json.dumps(runs))


if __name__ == "__main__":
    torch.set_num_threads(1)
    store.SHARD_BYTES, store.TENSOR_VALUES = 6 * 10**5, 2**15
    main(sys.argv[1], Path(sys.argv[2]))
