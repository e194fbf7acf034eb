"""Peak memory of an evaluation against the length of its track: 1, 4 and 16 minutes.

    python benchmarks/evaluation_memory.py  # writes evaluation_memory.csv beside this file

Each length runs in a process of its own: all protocols on one song with four stems, read from disk, with the
toy `tanh`, since memory that grows with the track does not depend on the network. `ours` is the peak of the
resident set. `peer` is what it was after 10 s of the song, and on top what an evaluation would hold that
takes the whole track at once: mixture, stems and accompaniments as audio, and the latents of all of these. In
MiB; ratio = peer / ours.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

from lincae.data.synth import STEMS, render_song
from lincae.data.tracks import tracks
from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import EvaluationConfig
from lincae.interop.references import TanhToy

MINUTES, RATE = (1, 4, 16), 44100
MIB = 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def measure(minutes: int, folder: str) -> None:
    """Print the peak of an evaluation of so many minutes, and what it would be with the track in memory."""
    model, song = TanhToy(RATE), Path(folder) / "song"
    song.mkdir()
    stems = render_song(0, 20.0, RATE)
    for name, stem in zip(STEMS, stems, strict=True):
        with soundfile.SoundFile(song / f"{name}.wav", "w", RATE, 1, "FLOAT") as file:
            for _ in range(3 * minutes):
                file.write(stem)
    evaluate(model, tracks(folder), config=EvaluationConfig(seconds=10.0), progress=False)
    short = peak_mib()
    evaluate(model, tracks(folder), progress=False)
    n_signals, n_values = 1 + 2 * len(STEMS), 60 * minutes * RATE
    print(peak_mib(), short + 2 * n_signals * n_values * 4 / MIB)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=int, help="measure one length and print it")
    arguments.add_argument("--folder", help="an empty folder for its song")
    asked = arguments.parse_args()
    if asked.minutes:
        return measure(asked.minutes, asked.folder)
    rows = []
    for minutes in MINUTES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--minutes", str(minutes), "--folder", folder]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        ours, peer = map(float, out.split())
        rows.append(
            ["memory", "cpu", f"{minutes} min", f"{ours:.1f}", f"{peer:.1f}", f"{peer / ours:.2f}", "MiB"]
        )
        print(*rows[-1])
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "device", "setting", "ours", "peer", "ratio", "unit"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
