"""What the windows of a long signal leave in it: their result against that of one window over the whole.

    python benchmarks/windows.py                # both bundled checkpoints, ten minutes on one core
    python benchmarks/windows.py paper          # the paper's network with random weights: a number, no claim

A minute of synthetic test songs goes through encoder and decoder in windows, and as one window. Columns:
`own_db`, SNR of the reconstruction against the audio; `encode_db` and `decode_db`, SNR of windowed latents
and of the windowed decode of the same latents against those of one window; `round_trip_db`, of both in
sequence, without the first and last second; `above_own_db`, how far that is above the reconstruction's own
error (goal: 30); `seam_db`, level of the difference within one STFT window of the seams, against its mean.
`norm_frames` "window" is GroupNorm as in training, over all of a window. Writes windows.csv (rows are
appended, those it has are not measured again) and, for the default windows of a bundled checkpoint,
windows_<model>.png: where the difference lies in time and frequency.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import lincae
from lincae import Autoencoder
from lincae.data.tracks import tracks
from lincae.metrics import snr_db
from lincae.training.config import MODEL_PRESETS

TABLE = Path(__file__).with_suffix(".csv")
WHOLE = 10**6
# (norm_frames, window_frames, context_frames)
TRIALS = {
    "desk": [
        (WHOLE, 512, 32),
        (WHOLE, 2048, 32),
        (WHOLE, 512, 128),
        (WHOLE, 2048, 512),
        (64, 1280, 64),
        (128, 1280, 64),
        (128, 1280, 96),
        (256, 1280, 64),
        (256, 1280, 128),
        (256, 1280, 160),
        (256, 640, 160),
        (256, 1280, 256),
        (256, 1536, 256),
        (512, 1280, 320),
    ],
    "paper": [(WHOLE, 64, 4), (WHOLE, 160, 16), (24, 64, 16), (24, 160, 12), (24, 160, 16)],
}


def random_paper() -> Autoencoder:
    """The paper's network with random weights, none zero."""
    torch.manual_seed(0)
    model = Autoencoder(MODEL_PRESETS["paper"], "paper, random").eval()
    for parameter in model.network.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def music(sample_rate: int, seconds: float) -> Tensor:
    """Synthetic test songs of 20 s, one after the other `(1, T)`."""
    songs = [track.stems(sample_rate).sum(0) for track in tracks("synthetic")[: -(-int(seconds) // 20)]]
    return torch.cat(songs)[None, : round(seconds * sample_rate)]


def seams(model: Autoencoder, n_frames: int) -> list[int]:
    """Samples where one window hands over to the next."""
    step = model.config.window_frames - 2 * model.config.context_frames
    context, hop = model.config.context_frames, model.config.hop
    n_windows = -(-(n_frames - 2 * context) // step)
    return [(k * step + context) * hop for k in range(1, n_windows)]


def near_seams_db(difference: Tensor, model: Autoencoder, n_frames: int) -> float:
    """Mean power within one STFT window around the seams over that of all, in dB."""
    reach, power = model.config.transform.window // 2, difference.square()
    near = torch.cat([power[:, max(s - reach, 0) : s + reach].flatten() for s in seams(model, n_frames)])
    return (10 * torch.log10(near.mean() / power.mean())).item()


def figure(model: Autoencoder, audio: Tensor, whole: Tensor, windowed: Tensor, n_frames: int) -> None:
    """Spectrograms of the reconstruction, its own error and the windows' difference, on one scale of dB."""
    rows = {
        "reconstruction": whole,
        "its own error": whole - audio,
        "difference made by windows": windowed - whole,
    }
    axes = plt.subplots(3, 1, figsize=(10, 7), sharex=True, layout="constrained")[1]
    for ax, (title, signal) in zip(axes, rows.items(), strict=True):
        bins = torch.stft(signal[0], 1024, 512, window=torch.hann_window(1024), return_complex=True)
        level = 20 * torch.log10(bins.abs() + 1e-6)
        extent = (0, signal.shape[1] / model.sample_rate, 0, model.sample_rate / 2000)
        image = ax.imshow(
            level, origin="lower", aspect="auto", extent=extent, vmin=-90, vmax=40, interpolation="nearest"
        )
        times = [s / model.sample_rate for s in seams(model, n_frames)]
        ax.plot(times, [extent[3] * 1.02] * len(times), "rv", markersize=5, clip_on=False)
        ax.set(title=title, ylabel="kHz")
    axes[-1].set_xlabel("s; triangles: seams of windows")
    plt.colorbar(image, ax=axes, label="dB")
    name = model.name.replace("/", "_")
    plt.savefig(TABLE.with_name(f"windows_{name}.png"), dpi=70)


def measure(model: Autoencoder, trial: tuple[int, int, int], audio: Tensor, seconds: float) -> dict:
    """One row: the windows of a trial against one window with the same normalisation."""
    norm, window, context = trial
    default, model.config = (
        model.config,
        replace(model.config, norm_frames=norm, window_frames=WHOLE, context_frames=0),
    )
    n_samples = audio.shape[1]
    z_whole = model.encode(audio)
    whole = model.decode(z_whole, n_samples)
    model.config = replace(model.config, window_frames=window, context_frames=context)
    z = model.encode(audio)
    from_whole, both = model.decode(z_whole, n_samples), model.decode(z, n_samples)
    inner = slice(model.sample_rate, -model.sample_rate)
    round_trip, own = snr_db(both[:, inner], whole[:, inner]).item(), snr_db(whole, audio).item()
    row = {
        "model": model.name,
        "seconds": seconds,
        "norm_frames": "window" if norm == WHOLE else norm,
        "window_frames": window,
        "context_frames": context,
        "own_db": own,
        "encode_db": snr_db(z.flatten(1), z_whole.flatten(1)).item(),
        "decode_db": snr_db(from_whole[:, inner], whole[:, inner]).item(),
        "round_trip_db": round_trip,
        "above_own_db": round_trip - own,
        "seam_db": near_seams_db(both - whole, model, z.shape[-1]),
    }
    if model.config == default and "/" in model.name:
        figure(model, audio, whole, both, z.shape[-1])
    model.config = default
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("models", nargs="*", default=["desk/lin-cae", "desk/m2l"])
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    rows = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    keys = ("model", "norm_frames", "window_frames", "context_frames")
    for name in asked.models:
        paper = name == "paper"
        model, seconds = (random_paper(), 20.0) if paper else (lincae.load(name, device="cpu"), 60.0)
        audio = music(model.sample_rate, seconds)
        for trial in TRIALS["paper" if paper else "desk"]:
            key = (model.name, "window" if trial[0] == WHOLE else str(trial[0]), str(trial[1]), str(trial[2]))
            if key in [tuple(row[k] for k in keys) for row in rows]:
                continue
            rows.append({k: str(v) for k, v in measure(model, trial, audio, seconds).items()})
            print(*rows[-1].values(), flush=True)
            with TABLE.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[-1])
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
