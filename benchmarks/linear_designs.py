"""Designs of the linear Re-Encoder for one frozen autoencoder, trained alike and measured alike.

    python benchmarks/linear_designs.py                    # designs without rows yet -> linear_designs.csv
    python benchmarks/linear_designs.py "coupling, odd"        # these, again

Needs the shards of `make music`. Every design takes the same batches, encoded once into runs/linear-designs/;
one core trains one in one to three minutes. Medians over 12 pairs of held-out recordings of 2 s, each at gain
0.5, of `desk/m2l` and of the designs around it; decibels of signal over error, `separation` as SI-SDR, in
comparison with what the frozen autoencoder decodes of the true sum or stem, `against truth` with the sound
itself. `core_s`: seconds of one core for the training, without the encoding.
"""

import csv
import time
from dataclasses import replace
from pathlib import Path

import torch
from desk_trials import asked_for
from torch import Tensor

import lincae
from lincae import metrics
from lincae.data.crops import training_data
from lincae.interface import AutoencoderLike
from lincae.reencoder.linear import linearise
from lincae.reencoder.linear_training import (
    VALIDATION_BATCHES,
    LinearObjective,
    LinearTraining,
    encode_batches,
)
from lincae.training.config import changed
from lincae.training.loop import train

TABLE = Path(__file__).with_suffix(".csv")
FOLDER = Path("runs/linear-designs")
MODEL = "desk/m2l"
SHARDS = "shards:runs/free-music-16k"
BATCHES = 64
STEPS = 600
PAIRS, SECONDS, PAIRS_SEED = 12, 2.0, 4321
DESIGNS = {  # name: changes of the defaults of LinearTraining
    "coupling": {},
    "residual": {"pair.design": "residual", "pair.hidden": 48},
    "coupling, odd": {"pair.odd": True},
    "coupling, 10 layers of 3 frames": {"pair.layers": 10, "pair.hidden": 32, "pair.kernel": 3},
    "coupling, 128 frames, half the steps": {"frames": 128, "steps": STEPS // 2},
    "coupling, arithmetic counts twice": {"arithmetic_weight": 2.0},
    "coupling, twice the channels": {"pair.expansion": 2, "pair.hidden": 20},
    "coupling, latent discriminator": {"adversarial_weight": 0.05, "discriminator_channels": 8},
}


def main() -> None:
    names = asked_for(__doc__, "a design of DESIGNS")
    torch.set_num_threads(1)
    model = lincae.load(MODEL, "cpu")
    sounds = pairs(model.sample_rate)
    for name in names or ["frozen", *DESIGNS]:
        if name in written() and not names:
            continue
        row = {"design": name, "steps": 0, "core_s": 0, "parameters": 0, "arithmetic": "", "encoder": ""}
        linear = model
        if name != "frozen":
            linear, facts = trained(model, name)
            row |= facts
        row |= {key: f"{value:.3f}" for key, value in scores(linear, *sounds).items()}
        print(row, flush=True)
        rows = written() | {name: row}
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(rows.values())


def written() -> dict[str, dict[str, str]]:
    """The rows of the table by design."""
    if not TABLE.exists():
        return {}
    return {row["design"]: row for row in csv.DictReader(TABLE.open())}


def pairs(sample_rate: int) -> tuple[Tensor, Tensor]:
    """Pairs of held-out excerpts `(PAIRS, T)`."""
    held_out = training_data(f"{SHARDS}-valid", sample_rate)
    crops = held_out.crops(range(2 * PAIRS), int(SECONDS * sample_rate), PAIRS_SEED)
    return 0.5 * crops[:PAIRS], 0.5 * crops[PAIRS:]


def trained(model: AutoencoderLike, name: str) -> tuple[AutoencoderLike, dict[str, float]]:
    """The model between the trained maps of a design, and what training took and reached."""
    once = dict.fromkeys(("steps", "checkpoint_every", "validate_every"), STEPS)
    config = LinearTraining(**once)
    for key, value in DESIGNS[name].items():
        config = changed(config, key.split("."), value)
    data = training_data(SHARDS, model.sample_rate)
    held_out = training_data(f"{SHARDS}-valid", model.sample_rate)
    data = encode_batches(model, data, config, FOLDER / "batches", BATCHES)
    other_draws = replace(config, seed=config.seed + 1)
    held_out = encode_batches(model, held_out, other_draws, FOLDER / "validation", VALIDATION_BATCHES)

    start = time.process_time()
    goal = LinearObjective.build(config, model, data)
    pair = train(goal, data, FOLDER / name, validation=held_out, device="cpu", progress=False)
    facts = {"steps": config.steps, "core_s": round(time.process_time() - start)}
    facts["parameters"] = sum(p.numel() for p in pair.parameters())
    terms = goal.validate(held_out)
    facts |= {key: f"{terms[key]:.4f}" for key in ("arithmetic", "encoder")}
    return linearise(model, pair.phi, pair.psi), facts


@torch.no_grad()
def scores(model: AutoencoderLike, u: Tensor, v: Tensor) -> dict[str, float]:
    """Medians over pairs `(B, T)` of sounds and their sums."""
    mixture = u + v

    def decode(z: Tensor) -> Tensor:
        return model.decode(z, length=u.shape[1])

    z_u, z_v, z_mixture = (model.encode(sound) for sound in (u, v, mixture))
    decoded = decode(z_mixture)
    decoded_u = decode(z_u)
    of_sum = decode(z_u + z_v)
    of_difference = decode(z_mixture - z_v)
    found = {
        "reconstruction_snr": metrics.snr_db(decoded, mixture),
        "reconstruction_mss": metrics.mss(decoded, mixture, model.sample_rate),
        "additivity_snr": metrics.snr_db(of_sum, decoded),
        "sum_against_truth_snr": metrics.snr_db(of_sum, mixture),
        "separation_si_sdr": metrics.si_sdr_db(of_difference, decoded_u),
        "separation_against_truth_si_sdr": metrics.si_sdr_db(of_difference, u),
    }
    for gain in (0.25, -1.0):
        found[f"homogeneity_snr_{gain:g}"] = metrics.snr_db(decode(gain * z_mixture), gain * decoded)
    found["encoder_additivity"] = metrics.relative_l2(z_u + z_v, z_mixture)
    for gain in (0.25, -1.0):
        scaled = model.encode(gain * mixture)
        found[f"encoder_homogeneity_{gain:g}"] = metrics.relative_l2(scaled, gain * z_mixture)
    return {key: values.nanmedian().item() for key, values in found.items()}


if __name__ == "__main__":
    main()
