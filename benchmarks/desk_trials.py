"""Short trials behind the desk preset: what a few CPU minutes reach with one choice changed at a time.

    python benchmarks/desk_trials.py                  # those without a row yet, 2 to 4 core-minutes each
    python benchmarks/desk_trials.py "desk"           # these, again
    python benchmarks/desk_trials.py desk/lin-cae runs/desk-lin-cae-wide    # scores of trained models

All see the same synthetic audio and seeds; compare them at equal `core_s`, not at equal steps. Scores are of
1.5 s of each held-out song, EMA weights, one-step decode: reconstruction, with the swap control (decode of
another song's latent); errors of the encoder, relative L2 (additivity: Enc(mix) against the sum of the
latents of four stems, some of them silent); linearity of the decoder; and SI-SDR of
Dec(Enc(mix) - Enc(mix - s)) against Dec(Enc(s)), the mean of the stems.
"""

import argparse
import csv
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import lincae
from lincae import Autoencoder, metrics
from lincae.consistency import NoiseConfig
from lincae.data.crops import training_data
from lincae.interop.recipes import objective_of
from lincae.training.config import OWN_VARIANTS
from lincae.training.loop import train

TABLE = Path(__file__).with_suffix(".csv")
EXCERPT_S, START = 1.5, 0.2  # of each test song, from this share of it
AUDIBLE_RMS = 3e-3
NETWORK = "autoencoder.network."
FORMER = {  # the preset before these trials
    NETWORK + "attention": (False, False, True),
    NETWORK + "unet_blocks": (1, 1, 1),
    NETWORK + "latent_channels": 8,
    NETWORK + "centred": False,
    "autoencoder.noise": NoiseConfig(),
    "consistency.step_end": 0.2,
    "consistency.step_hold": 0.6,
    "consistency.log_sigma_std": 2.0,
    "linearity.input_gain_min": 1.0,
    "optimiser": "radam",
    "precision": "32-true",
}
BF16 = FORMER | {"precision": "bf16-mixed"}
# Most of the time goes into the finest level; none of the 16 latents a frame costs any.
CHEAP = BF16 | {
    NETWORK + "attention": (False, False, False),
    NETWORK + "encoder_blocks": (0, 1, 1),
    NETWORK + "unet_blocks": (0, 1, 1),
    NETWORK + "latent_channels": 16,
}
MUON = CHEAP | {"optimiser": "muon"}
UNIFORM = MUON | {
    NETWORK + "encoder_blocks": (1, 1, 1),
    "autoencoder.noise": NoiseConfig(sigma_max=20.0, sigma_data=0.25),
    "consistency.log_sigma_std": 100.0,
}
LEVELS = UNIFORM | {"linearity.input_gain_min": 0.1}
CENTRED = LEVELS | {NETWORK + "centred": True}
# How far steps shrink after half of the training, and where that puts their teachers (sigma at 1 - Delta t).
HALF = CENTRED | {"consistency.step_hold": 0.5}
QUIET = HALF | {"autoencoder.noise": NoiseConfig(sigma_min=0.01, sigma_max=20.0, rho=-3.0, sigma_data=0.25)}
NOT_ANNEALED = {"linearity.anneal": False}
TRIALS = {  # name: (steps, changes of preset desk-8x)
    "former desk": (230, FORMER),
    "bf16": (330, BF16),
    "bf16, cheap network, 16 channels": (300, CHEAP),
    "the same, Muon": (300, MUON),
    "Muon, beta 1.5": (300, MUON | {"autoencoder.transform.beta": 1.5}),
    "Muon, consistency from a fifth on, down to 0.1, sigma_max 10": (
        300,
        MUON
        | {
            "autoencoder.noise": NoiseConfig(sigma_max=10.0),
            "consistency.step_end": 0.1,
            "consistency.step_hold": 0.2,
            "consistency.sigma_max_share": 0.25,
            "consistency.log_sigma_std": 100.0,
        },
    ),
    "Muon, encoder block at the finest level, t uniform, sigma_max 20": (260, UNIFORM),
    "the same, originals at many levels": (260, LEVELS),
    "the same, centred encoder": (260, CENTRED),
    "centred, steps to 0.5, teacher at 0.8": (400, HALF | {"consistency.step_end": 0.5}),
    "rho -3, steps to 0.34, teachers at 0.17, 0.03": (400, QUIET | {"consistency.step_end": 0.34}),
    "desk": (400, {}),
    "desk, mixture weights random": (400, {"linearity.mixture_weights": "random"}),
    "desk, gains not annealed": (400, NOT_ANNEALED),
    "desk, gains to 10, all, not annealed": (400, OWN_VARIANTS["lin-cae-wide"] | NOT_ANNEALED),
    "desk, gains to 10, all (lin-cae-wide)": (400, OWN_VARIANTS["lin-cae-wide"]),
    "desk, mixtures give way to differences (lin-cae-sub)": (400, OWN_VARIANTS["lin-cae-sub"]),
    "desk, odd encoder (lin-cae-odd)": (400, OWN_VARIANTS["lin-cae-odd"]),
    "desk, odd encoder, mixtures give way to differences (lin-cae-odd-sub)": (
        400,
        OWN_VARIANTS["lin-cae-odd-sub"],
    ),
    "desk, odd encoder, gains to 10, all, not annealed": (
        400,
        OWN_VARIANTS["lin-cae-odd-wide"] | NOT_ANNEALED,
    ),
    "desk, odd encoder, gains to 10, all (lin-cae-odd-wide)": (400, OWN_VARIANTS["lin-cae-odd-wide"]),
}


@torch.no_grad()
def scores(model: Autoencoder, songs: list[Tensor]) -> dict[str, float]:
    """Scores of a model on stems `(S, T)` of songs."""
    rate = model.sample_rate
    first, length = int(START * songs[0].shape[1]), int(EXCERPT_S * rate)
    stems = torch.stack([song[:, first : first + length] for song in songs])
    stems = stems[~metrics.is_silent(stems.sum(1))]
    mixtures, n_stems = stems.sum(1), stems.shape[1]
    decode = partial(model.decode, length=length)
    gains = 0.1 + 2.9 * torch.rand(len(mixtures), 1, generator=torch.Generator().manual_seed(0))
    z = model.encode(mixtures)
    z_stems = model.encode(stems.flatten(0, 1)).unflatten(0, (-1, n_stems))
    decoded, parts = decode(z), decode(z_stems.flatten(0, 1)).unflatten(0, (-1, n_stems))
    of_sum, sum_of = decode(z_stems.sum(1)), parts.sum(1)
    separated = []
    for s in range(n_stems):
        estimate = decode(z - model.encode(mixtures - stems[:, s]))
        audible = stems[:, s].square().mean(1).sqrt() > AUDIBLE_RMS
        separated.append(metrics.si_sdr_db(estimate, parts[:, s])[audible].nanmean())
    edges_hz = (0, 300, 700, 1500, 3000, rate // 2)
    bands = metrics.band_snr_db(decoded, mixtures, rate, edges_hz).nanmean(0)
    values = {
        "mss": metrics.mss(decoded, mixtures, rate),
        "snr_db": metrics.snr_db(decoded, mixtures),
        "swap_snr_db": metrics.snr_db(decode(z.roll(1, 0)), mixtures),
        "enc_additivity": metrics.relative_l2(z_stems.sum(1), z),
        "enc_homogeneity": metrics.relative_l2(model.encode(gains * mixtures), gains[..., None] * z),
        "dec_homogeneity_snr_db": metrics.snr_db(decode(gains[..., None] * z), gains * decoded),
        "dec_additivity_snr_db": metrics.snr_db(of_sum, sum_of),
        "dec_additivity_mss": metrics.mss(of_sum, sum_of, rate),
        "si_sdr_db": torch.stack(separated),
    }
    means = {name: value.nanmean().item() for name, value in values.items()}
    return means | {f"snr_db_below_{hz}": v for hz, v in zip(edges_hz[1:], bands.tolist(), strict=True)}


def asked_for(description: str, names: str) -> list[str]:
    """The names on the command line."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help=f"{names} (default: what has no row yet)")
    return parser.parse_args().names


def main() -> None:
    names = asked_for(__doc__, "a trial of TRIALS, a model or a run")
    torch.set_num_threads(1)
    rows = {row["trial"]: row for row in csv.DictReader(TABLE.open())} if TABLE.exists() else {}
    for name in names or [name for name in TRIALS if name not in rows]:
        if name not in TRIALS:
            write(rows, trained(name))
            continue
        steps, changes = TRIALS[name]
        once = dict.fromkeys(("steps", "checkpoint_every", "validate_every"), steps)
        config = lincae.recipe("desk-8x", "lin-cae", warmup_steps=min(50, steps // 10), **once, **changes)
        rate = config.autoencoder.sample_rate
        data, held_out = (training_data("synthetic", rate, split) for split in ("train", "test"))
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            model = train(objective_of(config), data, folder, device="cpu", progress=False)
        spent = round(time.process_time() - start)
        write(rows, {"trial": name, "steps": steps, "core_s": spent, **described(model, held_out.stems)})


def trained(name: str) -> dict[str, object]:
    """The row of a bundled model or a finished run."""
    model = lincae.load(name, "cpu")
    songs = training_data("synthetic", model.sample_rate, "test").stems
    kind = f"{name.removeprefix('runs/').replace('desk-', 'desk/')}, trained"
    return {"trial": kind, "steps": model.metadata["step"], "core_s": "", **described(model, songs)}


def described(model: Autoencoder, songs: list[Tensor]) -> dict[str, object]:
    size = sum(p.numel() for p in model.network.parameters())
    return {"parameters": size} | {key: f"{value:.3f}" for key, value in scores(model, songs).items()}


def write(rows: dict[str, dict[str, object]], row: dict[str, object]) -> None:
    """The table with a row more, or with that row anew."""
    rows[row["trial"]] = row
    print(row, flush=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerows(rows.values())


if __name__ == "__main__":
    main()
