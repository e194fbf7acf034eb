"""Hours of audio that one process encodes into a latent dataset in an hour.

    python benchmarks/latent_dataset.py  # 5 minutes -> latent_dataset.csv

Stereo files at 44.1 kHz (WAV, FLAC, MP3; synthetic songs) go through `lincae.latents.store.encode_corpus`:
decoding, the mean of the channels, resampling to the model's rate, encoding, and shards in half precision.

`dataset`: hours of audio an hour. Ours: all of that; peer: the model's `encode` alone, of the same audio in
memory, file by file; ratio = ours / peer is what files and shards leave of the model's speed. Both alternate;
medians over rounds. `desk`: the bundled desk/lin-cae, 3 minutes of audio. `paper`: the network of 58.2 M
parameters with random weights, which take as long as trained ones, and an extrapolation from 20 s of audio.

Committed numbers: two cores of an AMD EPYC.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

import lincae
from lincae.data.audio import read_audio
from lincae.data.folders import audio_files
from lincae.data.synth import render_song
from lincae.latents.store import encode_corpus
from lincae.machine import resolve_device
from lincae.training.environment import keep_freed_memory

FORMATS, RATE = ("wav", "flac", "mp3"), 44100
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")


def write_corpus(folder: Path, n_files: int, seconds: float) -> None:
    folder.mkdir()
    for k in range(n_files):
        stems = render_song(k, seconds, RATE)
        stereo = np.stack([stems[:2].sum(0), stems[2:].sum(0)], 1)
        soundfile.write(folder / f"{k}.{FORMATS[k % len(FORMATS)]}", stereo, RATE)


def seconds_of(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(model: lincae.Autoencoder, n_files: int, seconds: float, rounds: int) -> tuple[float, float]:
    """Hours an hour: into a dataset, and of the model alone."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        write_corpus(corpus, n_files, seconds)
        items = [read_audio(path, model.sample_rate, channels="mean")[0] for path in audio_files(corpus)]
        folders = (Path(scratch) / f"latents-{k}" for k in range(rounds + 1))

        def ours() -> None:
            encode_corpus(model, [corpus], next(folders), "float16", progress=False)

        def peer() -> None:
            for item in items:
                model.encode(item[None]).cpu()

        model.encode(items[0][None, : 2 * model.sample_rate])  # the first call takes longer
        runs = [(seconds_of(ours), seconds_of(peer)) for _ in range(rounds)]
    whole, alone = (statistics.median(run[side] for run in runs) for side in (0, 1))
    return n_files * seconds / whole, n_files * seconds / alone


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", default="auto")
    asked = arguments.parse_args()
    device = resolve_device(asked.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    paper = lincae.Autoencoder(lincae.recipe("paper").autoencoder, "paper").eval().to(device)
    rows = []
    for setting, model, n_files, seconds, rounds in (
        ("desk", lincae.load("desk/lin-cae", str(device)), 6, 30.0, 3),
        ("paper", paper, 2, 10.0, 2),
    ):
        ours, peer = measure(model, n_files, seconds, rounds)
        rows.append(
            ["dataset", device.type, setting, f"{ours:.4g}", f"{peer:.4g}", f"{ours / peer:.2f}", "h/h"]
        )
        print(*rows[-1])
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
