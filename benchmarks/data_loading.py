"""How fast crops are read, and how long a training step waits for them.

    python benchmarks/data_loading.py                          # 9 minutes -> data_loading.csv
    python benchmarks/data_loading.py --step-seconds 5 0.5     # training steps of a faster machine

Crops of 2 s, mono, out of 3-minute stereo files at 44.1 kHz: synthetic songs that the script writes to a
temporary folder, so that files come from the page cache, as on a fast disk. Peer: decoding the whole file
with soundfile for each crop. Ours and the peer alternate in one process; numbers are medians over rounds.

`crops`: crops/s of one worker on one core. `margin`: the same against the 12.5 crops/s (here the peer) that
each of 16 workers must deliver for 10 steps/s of batch 20. `wait`: share of a training step that waits for
its batch of 20, with 2 workers on 2 cores, while 2 threads compute for as long as a step takes; `work`: share
of the core time of such a step that reading its batch takes. A step takes 40 s, as for preset `paper` in fp32
(with 4 items of 64 frames it took 46 s on 2 cores; batch 20 takes longer, which leaves more time to read), or
1 s, to show what a faster machine would wait for.

Committed numbers: 2 cores of an AMD EPYC, shared with other jobs.
"""

import argparse
import csv
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lincae.data.corpora import Corpora
from lincae.data.shards import Shards, write_shards
from lincae.data.synth import render_song
from lincae.machine import generator

RATE, CROP_S, FILE_S, N_FILES, BATCH = 44100, 2, 180, 4, 20
FORMATS = ("wav", "flac", "ogg", "mp3")
DEMAND = 10 * BATCH / 16  # crops/s of a worker
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")


class WholeFiles:
    """The naive loader: decode a file, keep two seconds."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.iterdir())

    def crops(self, indices: range, n_samples: int, seed: int) -> Tensor:
        return torch.stack([self.crop(generator(seed, i), n_samples) for i in indices])

    def crop(self, rng: torch.Generator, n_samples: int) -> Tensor:
        u_file, u_start = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        audio, _ = soundfile.read(self.files[int(u_file * len(self.files))], dtype="float32")
        start = int(u_start * (len(audio) - n_samples + 1))
        return torch.from_numpy(audio[start : start + n_samples].mean(1))


class Batches:
    def __init__(self, source):
        self.source = source

    def __getitem__(self, step: int) -> Tensor:
        return self.source.crops(range(step * BATCH, (step + 1) * BATCH), CROP_S * RATE, 0)


def write_files(root: Path) -> None:
    """Songs of 30 s, repeated: how long reading takes depends on the codec, not on what is repeated."""
    for seed in range(N_FILES):
        stems = render_song(seed, 30.0, RATE)
        stereo = np.tile(np.stack([stems.sum(0), stems[:3].sum(0)], 1), (FILE_S // 30, 1))
        for suffix in FORMATS:
            path = root / suffix / f"{seed}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            with soundfile.SoundFile(path, "w", RATE, 2) as file:
                # in parts: libsndfile's OGG writer fails on long blocks
                for part in np.array_split(0.5 * stereo, FILE_S):
                    file.write(part)


def crops_per_s(source, first: int, n_crops: int) -> float:
    start = time.perf_counter()
    source.crops(range(first, first + n_crops), CROP_S * RATE, 0)
    return n_crops / (time.perf_counter() - start)


def compute(seconds: float) -> None:
    """Keep all threads of this process busy, as a training step does."""
    matrix, end = torch.rand(512, 512), time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix @ matrix


def wait_share(source, steps: int, step_s: float) -> float:
    """Percent of the time of `steps` steps, after the first, that goes into waiting for batches."""
    loader = iter(DataLoader(Batches(source), batch_size=None, sampler=range(steps + 1), num_workers=2))
    next(loader)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        compute(step_s)
        asked = time.perf_counter()
        next(loader)
        waited += time.perf_counter() - asked
    return 100 * waited / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Crops per second and waiting for data.")
    parser.add_argument("--step-seconds", type=float, nargs="+", default=[40.0, 1.0], help="of training")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of reading crops")
    options = parser.parse_args()
    table, rows = Path(__file__).with_suffix(".csv"), []

    def add(name: str, setting: str, ours: float, peer: float, ratio: float, unit: str) -> None:
        numbers = (f"{ours:.4g}", f"{peer:.4g}", f"{ratio:.4g}", unit)
        rows.append(dict(zip(COLUMNS, (name, "cpu", setting, *numbers), strict=True)))
        print(*rows[-1].values(), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = folder
        write_files(root)
        peers = {suffix: WholeFiles(root / suffix) for suffix in FORMATS}
        ours = {suffix: Corpora({root / suffix: 1}, RATE) for suffix in FORMATS}
        ours["shards"] = Shards(write_shards(ours["wav"], root / "shards"), RATE)
        peers["shards"] = peers["wav"]  # what the shards were written from
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        torch.set_num_threads(1)
        for kind, source in ours.items():
            pairs = []
            for k in range(options.rounds + 1):
                pairs.append((crops_per_s(source, 100 * k, 100), crops_per_s(peers[kind], 100 * k, 3)))
            fast, slow = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
            add("crops", kind, fast, slow, fast / slow, "crops/s")
            add("margin", kind, fast, DEMAND, fast / DEMAND, "crops/s")
            for step_s in options.step_seconds:
                work = [100 * BATCH / speed / (2 * step_s) for speed in (fast, slow)]
                add("work", f"{kind} {step_s:g} s step", *work, work[1] / work[0], "% of step")
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(2)
        for step_s in options.step_seconds:
            for kind in ("mp3", "shards"):
                steps = max(2, round(15 / step_s))
                waits = [wait_share(source, steps, step_s) for source in (ours[kind], peers[kind])]
                add("wait", f"{kind} {step_s:g} s step 2 workers", *waits, waits[1] / waits[0], "% of step")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
