"""Short trials behind the desk preset: what a few hundred CPU steps reach with one choice changed at a time.

    python benchmarks/desk_trials.py     # two minutes a trial on one core

Every trial sees the same synthetic audio, seeds and number of steps; scores are of held-out songs, EMA
weights, one-step decode (columns as in `lincae.training.validate`).
"""

import csv
import tempfile
import time
from pathlib import Path

import torch

import lincae
from lincae.consistency import ConsistencyConfig
from lincae.data import training_data
from lincae.training import train, validate

STEPS = 200
TRIALS = {
    "desk": {},
    "PyTorch's initialisation": {"autoencoder.network.unit_variance_init": False},
    "hop 128, same compression": {
        "autoencoder.transform.hop": 128,
        "autoencoder.network.latent_channels": 16,
        "crop_frames": 32,
    },
    "t uniform, consistency down to 0.5": {
        "consistency.step_end": 0.5,
        "consistency.log_sigma_std": 100.0,
    },
    "consistency down to 0.05": {"consistency.step_end": 0.05},
    "paper's consistency schedule": {"consistency": ConsistencyConfig()},
}


def main() -> None:
    torch.set_num_threads(1)
    table = Path(__file__).parent / "desk_trials.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    measured = [row["trial"] for row in rows]  # kept: delete the file to measure all again
    for name, changes in TRIALS.items():
        if name in measured:
            continue
        config = lincae.recipe("desk", "lin-cae", steps=STEPS, checkpoint_every=STEPS, **changes)
        rate = config.autoencoder.sample_rate
        held_out = training_data("synthetic", rate, split="test").crops(range(32), config.crop_samples, 0)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            model = train(config, training_data("synthetic", rate), folder, device="cpu", progress=False)
        seconds = time.perf_counter() - start
        size = sum(p.numel() for p in model.network.parameters())
        scores = {key: f"{value:.4f}" for key, value in validate(model, held_out).items()}
        rows.append({"trial": name, "steps": STEPS, "seconds": round(seconds), "parameters": size, **scores})
        print(rows[-1], flush=True)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[-1])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
