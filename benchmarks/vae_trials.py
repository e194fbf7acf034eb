"""Short trials behind the desk preset of the spectral VAE: one choice changed at a time, with and without
linearity.

    python benchmarks/vae_trials.py               # those without rows yet, about 3 core-minutes each
    python benchmarks/vae_trials.py "desk"        # these, again

Every trial trains `vae` and `lin-vae` on the same synthetic audio and seeds; scores as in
benchmarks/desk_trials.py. What matters is both rows of a trial beside each other: how much more linear the
second is, and what that costs in `mss`.
"""

import csv
import tempfile
import time
from pathlib import Path

import torch
from desk_trials import asked_for, scores

import lincae
from lincae.data.crops import training_data
from lincae.interop.recipes import objective_of
from lincae.training.loop import train

TABLE = Path(__file__).with_suffix(".csv")
SAMPLE_RATE = 16000  # of all desk presets
VARIANTS = ("vae", "lin-vae")
STEPS = 300
GAINS = {"linearity.gain_max": 3.0, "linearity.gain_probability": 0.8}  # the paper's
TRIALS = {  # name: changes of preset desk
    "desk": {},
    "gains annealed": {"linearity.anneal": True},
    "gains to 3, one in five 1": GAINS,
    "gains to 3, one in five 1, annealed": GAINS | {"linearity.anneal": True},
    "gains to 3 of both signs, one in five 1": GAINS | {"linearity.gain_min": -3.0},
    "gains to 30": {"linearity.gain_max": 30.0},
    "no waveform term": {"loss.waveform": 0.0},
    "no emphasis": {"autoencoder.emphasis_hz": 1e9},
    "amplitude warp 0.65": {"autoencoder.transform.alpha": 0.65},
    "RAdam": {"optimiser": "radam"},
    "KL 0.1": {"loss.kl": 0.1},
}


def main() -> None:
    names = asked_for(__doc__, "a trial of TRIALS")
    torch.set_num_threads(1)
    table = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    rows = {(row["trial"], row["variant"]): row for row in table}
    todo = names or [name for name in TRIALS if any((name, variant) not in rows for variant in VARIANTS)]
    data, held_out = (training_data("synthetic", SAMPLE_RATE, split) for split in ("train", "test"))
    for name, variant in [(name, variant) for name in todo for variant in VARIANTS]:
        once = dict.fromkeys(("steps", "checkpoint_every", "validate_every"), STEPS)
        config = lincae.recipe("desk", variant, **once, warmup_steps=STEPS // 10, **TRIALS[name])
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            model = train(objective_of(config), data, folder, device="cpu", progress=False)
        spent = round(time.process_time() - start)
        size = sum(p.numel() for p in model.network.parameters())
        measured = {key: f"{value:.3f}" for key, value in scores(model, held_out.stems).items()}
        row = {"trial": name, "variant": variant, "steps": STEPS, "core_s": spent, "parameters": size}
        rows[name, variant] = row | measured
        print(rows[name, variant], flush=True)
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[name, variant])
            writer.writeheader()
            writer.writerows(rows.values())


if __name__ == "__main__":
    main()
