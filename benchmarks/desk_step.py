"""A desk training step on one core against that of a former commit: seconds of processor time.

    git worktree add ../former 5b20ae4
    python benchmarks/desk_step.py ../former                     # writes desk_step.csv beside this file
    python benchmarks/desk_step.py ../former --rounds 1 --no-write

The step is the trainer's: augmentation, teacher and student, gradients, their norm, Muon and RAdam, EMA; half
way through the training, where every item has a teacher. Sides take turns, each in a process of its own on
one thread, and are compared by the least of their steps after four to warm up; `low` and `high` are the least
and greatest ratio of a round. Time is the processor's, so that other work on the machine counts little.
`operations` are the multiplications and additions of a step, `peak` what one core reaches in a convolution of
256 channels.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
from pathlib import Path

FORMER = "former"
SIDES = ("former", "ours", "ours, compiled")
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit", "low", "high", "hardware")
STEP = """
import copy, json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
import lincae
try:
    from lincae.machine import generator
    from lincae.training.environment import keep_freed_memory
    from lincae.training.objective import Objective, compile_network, update_ema
    from lincae.training.optimisers import optimisers
except ImportError:  # the commit before the package had folders
    from lincae.audio import generator, keep_freed_memory
    from lincae.objective import Objective, compile_network, update_ema
    from lincae.optimisers import optimisers

half, compiled, n_steps = json.loads(sys.argv[2])
torch.set_num_threads(1)
keep_freed_memory()
config = lincae.recipe("desk-8x")
objective = Objective.build(config, "desk")
model = objective.model
if compiled:
    compile_network(model, "inductor", torch.device("cpu"))
ema = copy.deepcopy(model).eval().requires_grad_(False)
parameters = [p for p in model.parameters() if p.requires_grad]
chosen = optimisers(config.optimiser, parameters, config.learning_rate)
audio = 0.1 * torch.randn(config.batch_size, config.crop_samples)

def step(k):
    generate = generator(0, k)
    for optimizer in chosen:
        optimizer.zero_grad()
    batch = objective.prepare(audio, k, generate)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = objective(batch, k, generate)
    loss = loss["loss"] if isinstance(loss, dict) else loss
    loss.backward()
    torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    for optimizer in chosen:
        optimizer.step()
    update_ema(ema, model, k, config.ema_max_decay)
    loss.item()

seconds = []
for k in range(config.steps // 2, config.steps // 2 + 4 + n_steps):
    start = time.process_time()
    step(k)
    seconds.append(time.process_time() - start)
print(min(seconds[4:]))
"""
COUNTS = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import torch, torch.nn.functional as F
import lincae
from lincae.machine import generator
from lincae.training.objective import Objective
from training_step import Traffic

config = lincae.recipe("desk-8x")
objective = Objective.build(config, "desk")
k, generate = config.steps // 2, generator(0, 0)
with Traffic() as counted:
    batch = objective.prepare(0.1 * torch.randn(config.batch_size, config.crop_samples), k, generate)
    objective(batch, k, generate)["loss"].backward()
torch.set_num_threads(1)
peaks = []
for dtype in (torch.float32, torch.bfloat16):
    x, kernel = torch.randn(4, 256, 64, 64, dtype=dtype), torch.randn(256, 256, 3, 3, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.process_time()
        F.conv2d(x, kernel, padding=1)
        times.append(time.process_time() - start)
    peaks.append(2 * 9 * 256**2 * 4 * 64**2 / min(times))
print(counted.n_flops, *peaks)
"""


def answer(code: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", code, *arguments]
    return [float(word) for word in subprocess.run(command, check=True, capture_output=True).stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("former", help="folder of a checkout of the former commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of a side in a round")
    parser.add_argument(
        "--hardware", default=platform.processor(), help="what to call the machine in the CSV"
    )
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    here = str(Path(__file__).resolve().parent.parent)
    rows = []

    def write(name: str, setting: str, unit: str, *numbers: float | str) -> None:
        ours, peer, ratio, low, high = (f"{n:.4g}" if n != "" else "" for n in (*numbers, *[""] * 4)[:5])
        rows.append((name, "cpu", setting, ours, peer, ratio, unit, low, high, options.hardware))
        print(*rows[-1], flush=True)

    n_flops, *peaks = answer(COUNTS, here)
    write("operations", "desk", "GFLOP", n_flops / 1e9)
    for precision, peak in zip(("fp32", "bf16"), peaks, strict=True):
        write("peak", precision, "GFLOP/s", peak / 1e9)
        times = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, of_side in times.items():
                folder = options.former if side == FORMER else here
                settings = json.dumps([precision == "bf16", "compiled" in side, options.steps])
                of_side += answer(STEP, folder, settings)
        for side in SIDES[1:]:
            ratios = [b / a for a, b in zip(times[side], times[FORMER], strict=True)]
            ours, peer = min(times[side]), min(times[FORMER])
            setting = side.replace("ours", precision)
            write("step", setting, "s", ours, peer, peer / ours, min(ratios), max(ratios))
    if not options.no_write:
        with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
