"""Mixing N stems in the latent and decoding once, against decoding N times and adding.

    python benchmarks/latent_mixing.py  # 4 minutes -> latent_mixing.csv

Stems of synthetic songs that no model was trained on, 5 s each at 16 kHz, encoded beforehand; both ways
decode with the same noise. Seconds are the least of some rounds, in which both alternate.

`mix`: seconds of `lincae.latents.mix` and one decode (ours), and of N decodes and their sum (peer), one after
the other, which on a CPU is faster than as one batch; ratio = peer / ours.
`agreement`: SNR of the one against the other, of desk/lin-cae (ours) and of desk/m2l (peer), the same network
trained without linearity; `truth`: SNR against the sum of the stems' waveforms, of desk/lin-cae, mixed in the
latent (ours) and decoded one by one (peer). ratio = ours / peer. For N = 1 both ways are the same.

Committed numbers: two cores of an AMD EPYC.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lincae
from lincae.data.synth import render_song
from lincae.data.tracks import song_seed
from lincae.latents.algebra import mix
from lincae.machine import resolve_device
from lincae.metrics import snr_db

COUNTS = (1, 2, 4, 8, 16)
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")


def stems(n_stems: int, seconds: float, sample_rate: int) -> Tensor:
    """(S, T), those of as many test songs as it takes."""
    songs = [render_song(song_seed("test", k, 0), seconds, sample_rate) for k in range(-(-n_stems // 4))]
    return torch.cat([torch.from_numpy(song) for song in songs])[:n_stems]


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begun = time.perf_counter()
    result = function()
    if result.device.type != "cpu":
        torch.accelerator.synchronize(result.device)
    return time.perf_counter() - begun, result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    device, rows = resolve_device(asked.device), []
    models = [lincae.load(f"desk/{name}", str(device)) for name in ("lin-cae", "m2l")]
    audio = stems(max(COUNTS), asked.seconds, models[0].sample_rate)
    for n_stems in COUNTS:
        agreement, truth = [], []
        for model in models:
            latents = model.encode(audio[:n_stems]).split(1)

            def ours(model=model, latents=latents) -> Tensor:
                return model.decode(mix(latents, model.latent_rate)[0])

            def peer(model=model, latents=latents) -> Tensor:
                return sum(model.decode(z) for z in latents)

            rounds = asked.rounds if model is models[0] else 1
            runs = [(timed(ours), timed(peer)) for _ in range(rounds)]
            if model is models[0]:
                once, many = (min(run[side][0] for run in runs) for side in (0, 1))
            mixed, added = (decoded.cpu() for _, decoded in runs[0])
            agreement.append(snr_db(mixed, added).item())
            if model is models[0]:
                true = audio[:n_stems].sum(0, keepdim=True)
                truth = [snr_db(decoded[:, : true.shape[1]], true).item() for decoded in (mixed, added)]
        setting = f"{n_stems} stems"
        rows.append(["mix", device.type, setting, f"{once:.4g}", f"{many:.4g}", f"{many / once:.2f}", "s"])
        if n_stems > 1:
            for name, (own, other) in (("agreement", agreement), ("truth", truth)):
                values = f"{own:.2f}", f"{other:.2f}", f"{own / other:.2f}"
                rows.append([name, device.type, setting, *values, "dB"])
        print(*rows[-3:], sep="\n")
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
