"""Checkpoints that ship: finished runs into data/checkpoints/, in half precision, each with a card.

    python -m lincae.bundle runs/desk-lin-cae desk/lin-cae

The card holds the weights' sha256, which `lincae.load` compares for every bundled model.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from .pretrained import BUNDLED, load


def bundle(run: str | Path, name: str, folder: str | Path = BUNDLED, **facts: str) -> Path:
    """The EMA weights of a run as fp16 in `folder`/`name`, with the run's CSV logs; returns that folder.

    `facts` go into the card beside what the run recorded, such as `hardware`. Raises FileNotFoundError
    for a run without a checkpoint, ValueError for one that is not finished.
    """
    run, target = Path(run), Path(folder) / name
    if not run.is_dir():
        raise FileNotFoundError(f"{run} does not exist: give the folder of a finished run")
    model = load(run, "cpu")
    done, steps = model.metadata.get("step"), model.metadata.get("training", {}).get("steps")
    if done != steps:
        raise ValueError(f"{run} stands at step {done} of {steps}: finish it first")
    model.name = name
    model.metadata = {**model.metadata, **facts}
    model.save(target, torch.float16)
    for log in sorted(run.glob("*.csv")):
        shutil.copyfile(log, target / log.name)
    return target


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m lincae.bundle", description="A finished run into data/checkpoints/."
    )
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("name", help="such as desk/lin-cae")
    parser.add_argument(
        "--fact", nargs="*", default=[], metavar="KEY=TEXT", help="more for the card, such as hardware=..."
    )
    options = parser.parse_args(arguments)
    try:
        facts = dict(text.split("=", 1) for text in options.fact)
        print(bundle(options.run, options.name, **facts))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
