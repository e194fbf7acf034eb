"""Memory and traffic of a training step by its micro-batches, counted on an accelerator that is not there.

    python benchmarks/training_memory.py          # writes training_memory.csv; minutes of one core

No time is measured: `tests/pretended.py` counts operators on the meta device, with autocast as on CUDA. A row
is the peak of a step with its weights, gradients, EMA and optimizer state, and the bytes that it moves.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

from lincae.interop.recipes import objective_of, recipe

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from pretended import DEVICE, SEED, Counted, Draw  # noqa: E402

COUNTS = {"paper": (1, 2, 5, 10), "official": (1, 2, 5, 10), "small": (1, 4), "desk": (1, 4)}


def counted_step(preset: str, precision: str, accumulate: int) -> tuple[float, float]:
    """Peak in GiB and 10^9 bytes moved; the micro-batches after the second are taken for equal to it."""
    objective = objective_of(recipe(preset, "lin-cae")).to(DEVICE)
    objective.begin("counted")
    config = objective.config
    optimisers = list(objective.optimisers().values())
    audio = torch.empty(config.batch_size // accumulate, config.crop_samples, device=DEVICE)
    draw = Draw()
    draw.manual_seed(SEED)
    for _ in range(2):  # the optimisers' state is there from the second step on
        held = [tensor for part in objective.parts().values() for tensor in part.state_dict().values()]
        for optimiser in optimisers:
            held += [tensor for state in optimiser.state.values() for tensor in state.values()]
        with Counted(audio, *(tensor for tensor in held if isinstance(tensor, torch.Tensor))) as counted:
            for optimiser in optimisers:
                optimiser.zero_grad()
            for _ in range(min(accumulate, 2)):
                before = counted.moved
                prepared = objective.prepare(audio, config.steps // 2, draw)
                with torch.autocast(DEVICE.type, enabled=precision == "bf16"):
                    objective(prepared, config.steps // 2, draw)["loss"].backward()
                del prepared
                last = counted.moved - before
            for optimiser in optimisers:
                optimiser.step()
            objective.follow(config.steps)
    moved = counted.moved + last * max(0, accumulate - 2)
    return counted.peak / 2**30, moved / 1e9


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    hardware = f"none: counted on the meta device, torch {torch.__version__.split('+')[0]}"
    with (HERE / "training_memory.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["preset", "precision", "batch_size", "accumulate", "peak_gib", "moved_gb", "hardware"]
        )
        for preset, counts in COUNTS.items():
            for precision in ("bf16", "fp32"):
                for accumulate in counts:
                    peak_gib, moved_gb = counted_step(preset, precision, accumulate)
                    size = recipe(preset, "lin-cae").batch_size
                    numbers = (size, accumulate, f"{peak_gib:.2f}", f"{moved_gb:.0f}")
                    writer.writerow([preset, precision, *numbers, hardware])
                    file.flush()


if __name__ == "__main__":
    main()
