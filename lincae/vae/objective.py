"""What a spectral VAE is trained for: reconstruction of waveform, STFT and mel, and the KL of its posterior.

Linearity is `lincae.linearity`, unchanged: latents are drawn, then formed by arithmetic, and the decoder is
asked for the scaled mixture. The axis legend is that of `lincae.linearity`. auraloss, and librosa, which it
needs for mel, are imported where a loss is built.
"""

import torch
from torch import Tensor, nn

from lincae.linearity import AugmentedBatch, implicit_conditioning
from lincae.training.environment import give_numba_a_cache
from lincae.training.objective import AutoencoderObjective
from lincae.vae.config import VaeLossConfig, VaeTrainingConfig
from lincae.vae.model import SpectralVae, kl_divergence, reparameterised


class VaeObjective(AutoencoderObjective):
    """Weighted sum of the terms of `VaeLossConfig` over the scaled mixtures of a batch."""

    model_class = SpectralVae
    model: SpectralVae
    config: VaeTrainingConfig

    def __init__(self, model: SpectralVae, config: VaeTrainingConfig):
        super().__init__(model, config)
        self.reconstruction = ReconstructionLoss(config.loss, config.sample_rate)

    def forward(self, batch: AugmentedBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        posteriors = []

        def encode(audio: Tensor) -> Tensor:
            posteriors.append(self.model.network.encoder(self.spectrogram(audio)))
            mean, log_variance = posteriors[-1]
            noise = torch.randn(mean.shape, generator=generator, device=generator.device)
            return reparameterised(mean, log_variance, noise.to(mean))

        z = implicit_conditioning(encode, batch, self.config.linearity)
        frames = self.model.network.decoder(z)
        with torch.autocast(z.device.type, enabled=False):
            decoded = self.covered(self.model.transform.inverse(frames.float()))
            target = self.covered(batch.target())
            divergence = torch.stack([kl_divergence(*p).mean() for p in posteriors]).mean()
            loss = sum(self.reconstruction(decoded, target).values()) + self.config.loss.kl * divergence
        return {"loss": loss}

    def covered(self, audio: Tensor) -> Tensor:
        """Audio without the hops at both ends, which fade because fewer windows cover them."""
        transform = self.config.autoencoder.transform
        edge = transform.window - transform.hop
        return audio[..., edge:-edge]

    def validate(self, held_out: Tensor) -> dict[str, float]:
        """What all autoencoders report, and the terms of the loss: weighted, but for `kl`."""
        model = self.ema
        row = super().validate(held_out)
        with torch.no_grad():
            audio = held_out.to(model.device)
            spectrogram = model.transform(audio)
            mean, log_variance = model.network.encoder(spectrogram)
            decoded = model.transform.inverse(model.network.decoder(mean))
            terms = self.reconstruction(self.covered(decoded), self.covered(audio))
            terms["kl"] = kl_divergence(mean, log_variance).mean()
        return row | {name: term.item() for name, term in terms.items()}


class ReconstructionLoss(nn.Module):
    """The weighted terms "stft", "mel" and "waveform" of audio `(V, T)` against its target, by name, as
    ratios of sums over the whole batch: a silent target does no harm. ImportError without auraloss or
    librosa."""

    def __init__(self, config: VaeLossConfig, sample_rate: int):
        super().__init__()
        self.config = config
        give_numba_a_cache()
        import librosa  # noqa: F401 (auraloss only prints that it lacks it)
        from auraloss.freq import STFTLoss

        class MagnitudeLoss(STFTLoss):
            def stft(self, x: Tensor) -> tuple[Tensor, None]:
                """The magnitudes alone: auraloss computes the phase even where its weight is 0."""
                spectrum = torch.stft(
                    x, self.fft_size, self.hop_size, self.win_length, self.window.to(x), return_complex=True
                )
                return (spectrum.real**2 + spectrum.imag**2).clamp_min(self.eps).sqrt(), None

        common = {"eps": config.floor**2}
        mel = {"scale": "mel", "sample_rate": sample_rate, "n_bins": config.mel_bins, **common}
        self.stft = nn.ModuleList(MagnitudeLoss(n, n // 4, n, **common) for n in config.fft_sizes)
        self.mel = nn.ModuleList(MagnitudeLoss(n, n // 4, n, **mel) for n in config.mel_fft_sizes)
        self.float()  # whatever torch's default dtype is

    def forward(self, audio: Tensor, target: Tensor) -> dict[str, Tensor]:
        terms = {}
        config = self.config
        for name, weight, distances in (("stft", config.stft, self.stft), ("mel", config.mel, self.mel)):
            if weight:
                each = [distance(audio[:, None], target[:, None]) for distance in distances]
                terms[name] = weight * sum(each) / len(each)
        if config.waveform:
            error = (audio - target).abs().mean() / target.abs().mean().clamp_min(1e-8)
            terms["waveform"] = config.waveform * error
        return terms
