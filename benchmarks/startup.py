"""How long `import lincae` and `lincae --help` take, in seconds of processor time.

    python benchmarks/startup.py        # writes startup.csv beside this file

Each is a process of its own, and the least of `--repeats` counts: then files are cached. Peer of the import
is `import torch`, which it contains, and of the help the half second that it is to take.
"""

import argparse
import csv
import platform
import resource
import subprocess
import sys
from pathlib import Path

COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit", "hardware")
CODES = {
    "torch": "import torch",
    "lincae": "import lincae; lincae.load, lincae.Autoencoder",
    "help": "import sys; from lincae.cli import main; sys.argv[1:] = ['--help']; main()",
}
GOAL_S = 0.5


def cpu_s(code: str, repeats: int) -> float:
    """The least processor time of a process that runs some code."""
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hardware", default=platform.processor(), help="what to call the machine")
    asked = parser.parse_args()
    taken = {name: cpu_s(code, asked.repeats) for name, code in CODES.items()}
    rows = []
    for name, peer, setting in (
        ("import lincae", taken["torch"], "against import torch"),
        ("lincae --help", GOAL_S, "against the goal"),
    ):
        ours = taken[name.removeprefix("import ").removeprefix("lincae --")]
        shown = [f"{number:.3f}" for number in (ours, peer, peer / ours)]
        rows.append((name, "cpu", setting, *shown, "s", asked.hardware))
        print(*rows[-1])
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
