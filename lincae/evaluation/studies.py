"""Questions that the paper leaves open: more sources than four, more decoding steps than one, what an
encoder's error consists of, and phase.

Gains of any range or sign are the grid of `EvaluationConfig`, shared and independent noise
its `noise`. Axis legend: `S` sounds, `T` samples, `B` items.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from lincae import metrics
from lincae.autoencoder import Autoencoder
from lincae.interface import AutoencoderLike
from lincae.machine import generator


def many_sources(
    model: AutoencoderLike, sounds: Tensor, counts: Sequence[int], n_draws: int = 8, seed: int = 0
) -> pd.DataFrame:
    """Additivity of n sounds drawn without replacement from (S, T), as in paper 4.4, in latents and decodes.

    Sounds are first brought to one RMS, and those of a sum divided by sqrt(n), so that sums are as loud as
    one sound and only their number changes. Rows: `n_sources`, `draw`, `rel_l2` (encoder), `snr_db`, `mss`,
    `si_sdr_db` (decoder; the last of the first sound, by subtracting the rest), `codec_snr_db` (the sum
    reconstructed) and `swap_snr_db` (against the decode of another sum).

    Raises ValueError for silent sounds and counts outside 1..S.
    """
    if silent := metrics.is_silent(sounds).nonzero().flatten().tolist():
        raise ValueError(f"sounds {silent} are silent: nothing to add")
    if bad := [n for n in counts if not 1 <= n <= len(sounds)]:
        raise ValueError(f"counts lie in 1..{len(sounds)}, the number of sounds, got {bad}")
    level = sounds.square().mean(1).sqrt()
    sounds = sounds * (level.mean() / level)[:, None]
    rate, length, rows = model.sample_rate, sounds.shape[1], []
    for n in counts:
        sums, parts = [], []
        for draw in range(n_draws):
            order = torch.randperm(len(sounds), generator=generator(seed, n, draw))
            parts.append(sounds[order[:n]] / n**0.5)
            sums.append(parts[-1].sum(0))
        sums = torch.stack(sums)
        z_sums = model.encode(sums)
        decoded = model.decode(z_sums, length).cpu()
        strangers = decoded.roll(1, 0)
        for draw, each in enumerate(parts):
            z = model.encode(each)
            added = model.decode(z.sum(0, keepdim=True), length).cpu()
            singles = model.decode(z, length).cpu()
            summed = singles.sum(0, keepdim=True)
            values = {
                "rel_l2": metrics.relative_l2(z.sum(0, keepdim=True), z_sums[draw, None]),
                "snr_db": metrics.snr_db(added, summed),
                "mss": metrics.mss(added, summed, rate),
                "codec_snr_db": metrics.snr_db(decoded[draw, None], sums[draw, None]),
                "swap_snr_db": metrics.snr_db(added, strangers[draw, None]),
            }
            if n > 1:
                rest = model.encode((sums[draw] - each[0])[None])
                left = model.decode(z_sums[draw, None] - rest, length).cpu()
                values["si_sdr_db"] = metrics.si_sdr_db(left, singles[:1])
            row = {"model": model.name, "n_sources": n, "draw": draw}
            rows.append(row | {name: value.item() for name, value in values.items()})
    return pd.DataFrame(rows)


class Stepped:
    """An `Autoencoder` that decodes in several steps, as an `AutoencoderLike` for the protocols."""

    def __init__(self, model: Autoencoder, steps: int):
        self.model, self.steps = model, steps
        self.name = f"{model.name}, {steps} step{'s' * (steps > 1)}"
        self.sample_rate, self.latent_rate = model.sample_rate, model.latent_rate

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, L)."""
        return self.model.encode(audio)

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length)."""
        return self.model.decode(z, length, seed, steps=self.steps)


class Odd:
    """An autoencoder with the latents (Enc(x) - Enc(-x)) / 2: its encoder as it is, without what is even."""

    def __init__(self, model: AutoencoderLike):
        self.model, self.name = model, f"{model.name}, odd"
        self.sample_rate, self.latent_rate = model.sample_rate, model.latent_rate

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, L)."""
        return (self.model.encode(audio) - self.model.encode(-audio)) / 2

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length)."""
        return self.model.decode(z, length, seed)


def phase_and_magnitude(
    decoded: Tensor, truth: Tensor, sample_rate: int, edges_hz: Sequence[float], window_s: float = 0.032
) -> pd.DataFrame:
    """What keeps the waveform of (B, T) from its truth, in bands between neighbouring `edges_hz`.

    SNR in dB of the decode as it is ("decode"), with the phases of the truth's STFT ("true phase": what its
    magnitudes miss), and with its magnitudes ("true magnitude": what its phases miss). Hann windows of
    `window_s`, a quarter apart. Rows: `item`, `kind`, `low_hz`, `high_hz`, `snr_db`.
    """
    n_fft = round(window_s * sample_rate)
    window = torch.hann_window(n_fft, device=truth.device)

    def stft(audio: Tensor) -> Tensor:
        return torch.stft(audio, n_fft, n_fft // 4, window=window, return_complex=True)

    def audio(magnitude: Tensor, phase: Tensor) -> Tensor:
        return torch.istft(torch.polar(magnitude, phase), n_fft, n_fft // 4, window=window, length=length)

    length, ours, theirs = truth.shape[-1], stft(decoded), stft(truth)
    kinds = {
        "decode": decoded,
        "true phase": audio(ours.abs(), theirs.angle()),
        "true magnitude": audio(theirs.abs(), ours.angle()),
    }
    rows = []
    for kind, signal in kinds.items():
        for item, values in enumerate(metrics.band_snr_db(signal, truth, sample_rate, edges_hz).tolist()):
            rows += [
                {"item": item, "kind": kind, "low_hz": low, "high_hz": high, "snr_db": value}
                for low, high, value in zip(edges_hz[:-1], edges_hz[1:], values, strict=True)
            ]
    return pd.DataFrame(rows)
