"""A convolutional spectral VAE in the manner of Vocos (Siuzdak, ICLR 2024), as the Re-Encoder paper uses it
(section 3.1.1): STFT in, ConvNeXt-V2 blocks at the frame rate, a 1-d latent with a KL term, inverse STFT out.

The STFT enters as it is: real and imaginary parts of a frame are its channels, and the decoder answers with
real and imaginary parts. Magnitude and phase, the head of Vocos, would make every scaling of a sound an
addition for the network, and every sum a nonlinear affair. Nothing outside the blocks normalises or
saturates: a level survives; how faithfully is for training to decide.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames, `F` frequency bins, `N`
spectrogram frames, here N = L.
"""

import torch
from torch import Tensor, nn

from .convnext import ConvNeXtBlock
from .framewise import FramewiseAutoencoder
from .presets import SpectralVaeConfig, VaeNetworkConfig

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class SpectralVae(FramewiseAutoencoder):
    """`encode` audio `(B, T)` to posterior means `(B, C, L)`, `decode` them; an `AutoencoderLike`.

    Both are deterministic; posteriors are sampled in training alone. `metadata` and `precision`: see
    `FramewiseAutoencoder`. Methods and errors are those of `Autoencoder`, but that there is one step to
    decode with, and no noise for `seed` to choose.
    """

    kind, config_class = "spectral-vae", SpectralVaeConfig

    def __init__(self, config: SpectralVaeConfig, name: str = "vae", metadata: dict | None = None):
        super().__init__(config, VaeNetwork(config.network, config.transform.n_bins), name, metadata)

    def _latents_of(self, audio: Tensor) -> Tensor:
        spectrogram = self.transform(audio)
        with self._precise():
            mean, _ = self.network.encoder(spectrogram)
        return mean

    def _frames_of(self, latents: Tensor, start: int, seed: int, steps: int) -> Tensor:
        if steps != 1:
            raise ValueError(f"{self.name} decodes in one step, not {steps}: it is no consistency model")
        with self._precise():
            return self.network.decoder(latents).float()


class VaeNetwork(nn.Module):
    def __init__(self, config: VaeNetworkConfig, n_bins: int):
        super().__init__()
        self.config = config
        self.encoder = VaeEncoder(config, n_bins)
        self.decoder = VaeDecoder(config, n_bins)


class VaeEncoder(nn.Module):
    """Spectrogram `(B, 2, F, N)` to mean and log variance of the posterior, each `(B, C, L)` float32."""

    def __init__(self, config: VaeNetworkConfig, n_bins: int):
        super().__init__()
        self.stack = Stack(2 * n_bins, 2 * config.latent_channels, config)

    def forward(self, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.stack(spectrogram.flatten(1, 2)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


class VaeDecoder(nn.Module):
    """Unscaled latents `(B, C, L)` to a spectrogram `(B, 2, F, N)`."""

    def __init__(self, config: VaeNetworkConfig, n_bins: int):
        super().__init__()
        self.stack = Stack(config.latent_channels, 2 * n_bins, config)

    def forward(self, latents: Tensor) -> Tensor:
        return self.stack(latents).unflatten(1, (2, -1))


class Stack(nn.Module):
    """`(B, n_in, L)` to `(B, n_out, L)`: a projection, ConvNeXt-V2 blocks, a projection."""

    def __init__(self, n_in: int, n_out: int, config: VaeNetworkConfig):
        super().__init__()
        self.project_in = nn.Conv1d(n_in, config.channels, 1)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.channels, config.hidden, config.kernel, norm_frames=config.norm_frames)
            for _ in range(config.blocks)
        )
        self.project_out = nn.Conv1d(config.channels, n_out, 1)
        for layer in (self.project_in, self.project_out):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x)
        for block in self.blocks:
            x = block(x)
        return self.project_out(x)


def sampled(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """A draw `(B, C, L)` from the normal posterior (Kingma & Welling, 2014, section 2.4)."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return mean + torch.exp(0.5 * log_variance) * noise.to(mean)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of the normal posterior from the standard normal, in nats per latent number, a scalar:
    mean of (mu^2 + sigma^2 - 1 - ln sigma^2) / 2 (Kingma & Welling, 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
