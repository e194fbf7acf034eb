"""What a step and a window would ask of a GPU, counted without one: memory, bytes, launches.

    python benchmarks/gpu_counted.py                  # writes gpu_counted.csv beside this file
    python benchmarks/gpu_counted.py --no-write

Tensors are on the meta device, and what CUDA's autocast does to our operators is repeated
(`tests/pretended.py`). A step is the trainer's second, half way through the training, at the preset's batch:
`memory` is the peak of live tensors, weights and optimiser included, `traffic` the bytes that operators read
and write, `launches` the operators that do more than rename. `norm` is the share that the norm of each frame
(without the SiLU behind it) has in the least time of a window in bf16, in which an operator does 400 TFLOP/s
or moves 4 TB/s, whichever takes longer; peer is the goal. The peer of a step is the official step as
`training_step.py` rebuilds it, in fp16 as released. Nothing here is a time, and what an allocator or a
library's workspace takes is not counted.
"""

import argparse
import csv
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

import lincae
from lincae.interop.recipes import objective_of
from lincae.machine import kernels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from pretended import DEVICE, Counted, training_step, window
from training_step import Official

COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")
UNITS = {"memory": "GiB", "traffic": "GB", "launches": "operators"}
NORM_SHARE = 0.2


def figures(counted: Counted) -> dict[str, float]:
    return {
        "memory": round(counted.peak / 2**30, 2),
        "traffic": round(counted.moved / 1e9, 1),
        "launches": counted.launches,
    }


def official_step(config: lincae.TrainingConfig, audio: torch.Tensor) -> dict[str, float]:
    side = Official(config, DEVICE, "fp32")
    side.half = True  # what the gradient scaler adds is not counted
    for _ in range(2):
        states = [x for state in side.optimizer.state.values() for x in state.values()]
        counted = Counted(audio, *side.unet.parameters(), *side.shadow, *states, drawn_by_any=True)
        with counted:
            side.step(audio, config.ema_every)
    return figures(counted)


def steps(preset: str) -> list[dict]:
    config = lincae.recipe(preset, "lin-cae")
    audio = torch.empty(config.batch_size, config.crop_samples, device=DEVICE)
    ours = figures(training_step(objective_of(config), audio))
    peer = official_step(config, audio)
    rows = []
    for name, value in ours.items():
        setting = f"step, {preset}, {config.batch_size} items, bf16"
        row = {"name": name, "setting": setting, "ours": value, "peer": peer[name]}
        rows.append(row | {"ratio": round(peer[name] / value, 2), "unit": UNITS[name]})
    return rows


class TimedNorm:
    """The norm of each frame, whose least time in the last count is `seconds`."""

    def __init__(self):
        self.norm = kernels.sliding_group_norm
        self.counted = None

    def __call__(self, x, norm, width, silu=False):
        counted = _get_current_dispatch_mode()
        if counted is not self.counted:
            self.counted = counted
            self.seconds = 0.0
        before = counted.roofline_s
        h = self.norm(x, norm, width)
        self.seconds += counted.roofline_s - before
        return F.silu(h, inplace=True) if silu else h


def inference(precision: str) -> list[dict]:
    model = lincae.Autoencoder(lincae.recipe("paper", "lin-cae").autoencoder)
    model.precision = precision
    rows = []
    for which in ("encode", "decode"):
        norm = TimedNorm()
        with mock.patch.object(kernels, "sliding_group_norm", norm):
            counted = window(model, which)
        setting = f"{which}, a window of {model.config.window_frames} frames, paper, {precision}"
        for name, value in figures(counted).items():
            rows.append({"name": name, "setting": setting, "ours": value, "unit": UNITS[name]})
        if precision == "fp32":
            continue
        share = norm.seconds / counted.roofline_s
        row = {"name": "norm", "setting": setting, "ours": round(share, 3), "peer": NORM_SHARE}
        rows.append(row | {"ratio": round(NORM_SHARE / share, 2), "unit": "of the least time"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    rows = [row for preset in ("paper", "official") for row in steps(preset)]
    rows += [row for precision in ("fp32", "bf16") for row in inference(precision)]
    for row in rows:
        row["device"] = "counted"
        print(row)
    if not options.no_write:
        with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
