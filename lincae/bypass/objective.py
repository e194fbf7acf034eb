"""What a bypass autoencoder is trained for: the waveform, the energy in every band, the frames.

Everything is asked of the one-step decode itself, at the level at which the network works. Linearity is
`lincae.linearity`, unchanged, and so is its axis legend. torchaudio is imported where mel filters are made.
"""

import functools
import warnings

import torch
from torch import Tensor

from lincae.bypass.config import BypassTrainingConfig
from lincae.bypass.model import REFERENCE_RMS, BypassAutoencoder, frame_gains
from lincae.consistency import pseudo_huber
from lincae.linearity import AugmentedBatch, implicit_conditioning, scale
from lincae.training.objective import AutoencoderObjective

HUBER_C = 0.00054
FLOOR = 1e-4
"""Magnitude of an STFT bin below which nothing is heard."""

QUIET = 0.1
"""Norm that is added to that of the target, so that next to silence errors do not count without bound."""

TINY = 0.01
"""Relative error that counts as none."""


class BypassObjective(AutoencoderObjective):
    """Weighted sum of the terms of `BypassLossConfig`, over latents and targets of either sign."""

    model_class = BypassAutoencoder
    model: BypassAutoencoder
    config: BypassTrainingConfig

    def forward(self, batch: AugmentedBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        model, config = self.model, self.config
        latents = implicit_conditioning(model.latents, batch, config.linearity)
        target = batch.target()

        # Decoding sees latents of either sign; a code that is encoded always has the sign of its sound.
        drawn = torch.randint(0, 2, (len(target),), generator=generator, device=generator.device)
        signs = 1 - 2 * drawn.to(target)
        latents, target = scale(latents, signs), scale(target, signs)

        level = model.network.level(latents, latents.shape[-1])
        n_samples = latents.shape[-1] * model.network.hop + model.network.overlap
        noise = torch.randn(len(target), n_samples, generator=generator, device=generator.device)
        frames = model.answer(latents / level, noise.to(target)).float()
        with torch.autocast(target.device.type, enabled=False):
            return self.distance(frames, target[:, :n_samples], level[:, :, :1])

    def distance(self, frames: Tensor, target: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Loss and terms of level-free frames `(V, 2, F, N)`, whose target has bands of `level` `(V, 1, 1)`.

        A sound that is much louder than its bands counts at the reference level, not above it.
        """
        weights = self.config.loss
        rms = target.square().mean(-1).sqrt()
        quieter = (level[:, 0, 0] * REFERENCE_RMS / (rms + FLOOR * REFERENCE_RMS)).clamp_max(1.0)
        target = scale(target, quieter / level[:, 0, 0])
        frames = frames * frame_gains(quieter[:, None, None], 1, self.model.transform)
        distances = pseudo_huber(frames, self.spectrogram(target), HUBER_C)

        # Where windows of frames or bands have no neighbour, the target is not to be had.
        edge = self.model.config.aliased_samples
        decoded = self.model.transform.inverse(frames)[:, edge:-edge]
        target = target[:, edge:-edge]
        errors = (decoded - target).norm(dim=1) / (target.norm(dim=1) + QUIET)

        log_mels = []
        for n_fft, n_mels in zip(weights.fft_sizes, weights.mel_bins, strict=True):
            log_mels.append(log_mel_distance(decoded, target, n_fft, n_mels, self.config.sample_rate))
        terms = {
            "waveform": errors.mean(),
            "decibels": (errors + TINY).log().mean(),
            "spectral": torch.stack(log_mels).mean(),
            "frames": distances.mean(),
        }
        loss = sum(getattr(weights, name) * term for name, term in terms.items())
        return {"loss": loss, **terms}


def log_mel_distance(a: Tensor, b: Tensor, n_fft: int, n_mels: int, sample_rate: int) -> Tensor:
    """Mean |ln A - ln B| of mel magnitudes of audio `(V, T)`, for each item `(V,)`."""
    window = torch.hann_window(n_fft, device=a.device)
    filters = mel_filters(n_fft, n_mels, sample_rate, a.device)
    logs = []
    for audio in (a, b):
        bins = torch.stft(audio, n_fft, n_fft // 4, window=window, return_complex=True)
        power = bins.real.square() + bins.imag.square()
        logs.append((filters @ power.clamp_min(FLOOR**2).sqrt()).log())
    return (logs[0] - logs[1]).abs().mean((1, 2))


@functools.cache
def mel_filters(n_fft: int, n_mels: int, sample_rate: int, device: str | torch.device = "cpu") -> Tensor:
    """Those of `n_mels` mel filters (Slaney's, 0 Hz to Nyquist) that hold a bin: `(n, n_fft // 2 + 1)`."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # empty filters are left out
        bank = melscale_fbanks(n_fft // 2 + 1, 0, sample_rate / 2, n_mels, sample_rate, "slaney", "slaney").T
    return bank[bank.any(1)].contiguous().to(device)
