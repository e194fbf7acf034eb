"""A convolutional spectral VAE in the manner of Vocos (Siuzdak, ICLR 2024), as the Re-Encoder paper uses it
(section 3.1.1): STFT in, ConvNeXt-V2 blocks at the frame rate, a 1-d latent with a KL term, inverse STFT out.

Real and imaginary parts of a frame are the channels that the network takes and gives: in magnitude and phase,
as Vocos has it, sums are not linear. Nothing outside the blocks normalises or saturates. Axis legend: see
`lincae.interface`; here N = L.
"""

import torch
from torch import Tensor, nn

from lincae.autoencoder import FramewiseAutoencoder
from lincae.checkpoints import unwrapped
from lincae.vae.config import SpectralVaeConfig, VaeNetworkConfig
from lincae.vae.convnext import ConvNeXtBlock

LOG_VARIANCE_RANGE = (-30.0, 20.0)
LOG_VARIANCE_AT_FIRST = -4.0  # little noise: the decoder learns what latents mean before the KL is paid for


class SpectralVae(FramewiseAutoencoder):
    """`encode` audio `(B, T)` to posterior means `(B, C, L)`, and back, as `FramewiseAutoencoder` has it.

    Posteriors are sampled in training alone: there is one step to decode with, and no noise for `seed` to
    choose.
    """

    kind = "spectral-vae"
    config_class = SpectralVaeConfig

    def __init__(self, config: SpectralVaeConfig, name: str = "vae", metadata: dict | None = None):
        super().__init__(config, VaeNetwork(config), name, metadata)

    def _latents_of(self, audio: Tensor) -> Tensor:
        spectrogram = self.transform(audio)
        with self._precise():
            mean, _ = unwrapped(self.network).encoder(spectrogram)
        return mean

    def _frames_of(self, latents: Tensor, start: int, seed: int, steps: int) -> Tensor:
        if steps != 1:
            raise ValueError(f"{self.name} decodes in one step, not {steps}: it is no consistency model")
        with self._precise():
            return unwrapped(self.network).decoder(latents).float()


class VaeNetwork(nn.Module):
    """The encoder and the decoder."""

    def __init__(self, config: SpectralVaeConfig):
        super().__init__()
        n_bins = config.transform.n_bins
        bins_hz = torch.arange(n_bins, dtype=torch.float32) * config.sample_rate / config.transform.window
        emphasis = (1 + bins_hz / config.emphasis_hz).sqrt()[:, None]
        self.encoder = VaeEncoder(config.network, emphasis)
        self.decoder = VaeDecoder(config.network, emphasis)


class VaeEncoder(nn.Module):
    """Spectrogram `(B, 2, F, N)` to mean and log variance of the posterior, each `(B, C, L)` float32.

    `emphasis`: the factors of the bins, `(F, 1)`.
    """

    def __init__(self, config: VaeNetworkConfig, emphasis: Tensor):
        super().__init__()
        self.register_buffer("emphasis", emphasis, persistent=False)
        self.project_in = nn.Conv1d(2 * len(emphasis), config.channels, 1)
        self.blocks = blocks(config)
        # The projection to latents spans several frames: frames of the STFT overlap, latents need not.
        self.project_out = nn.Conv1d(
            config.channels, config.latent_channels, config.kernel, padding=config.kernel // 2
        )
        zero_biases(self.project_in, self.project_out)
        # The variance is that of normalised maps: that of a loud sound would otherwise grow without bound.
        self.norm_variance = nn.LayerNorm(config.channels, eps=1e-6)
        self.log_variance = nn.Linear(config.channels, config.latent_channels)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, LOG_VARIANCE_AT_FIRST)

    def forward(self, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(self.project_in((spectrogram * self.emphasis).flatten(1, 2)))
        log_variance = self.log_variance(self.norm_variance(x.transpose(1, 2))).transpose(1, 2)
        return self.project_out(x).float(), log_variance.float().clamp(*LOG_VARIANCE_RANGE)


class VaeDecoder(nn.Module):
    """Unscaled latents `(B, C, L)` to a spectrogram `(B, 2, F, N)`, by the mirror image of `VaeEncoder`."""

    def __init__(self, config: VaeNetworkConfig, emphasis: Tensor):
        super().__init__()
        self.register_buffer("emphasis", emphasis, persistent=False)
        self.project_in = nn.Conv1d(
            config.latent_channels, config.channels, config.kernel, padding=config.kernel // 2
        )
        self.blocks = blocks(config)
        self.project_out = nn.Conv1d(config.channels, 2 * len(emphasis), 1)
        zero_biases(self.project_in, self.project_out)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.project_out(self.blocks(self.project_in(latents)))
        return x.unflatten(1, (2, -1)) / self.emphasis


def blocks(config: VaeNetworkConfig) -> nn.Sequential:
    """The blocks of an encoder or a decoder, `(B, channels, L)` in and out."""
    sizes = (config.channels, config.hidden, config.kernel)
    each = [ConvNeXtBlock(*sizes, norm_frames=config.norm_frames) for _ in range(config.blocks)]
    return nn.Sequential(*each)


def zero_biases(*layers: nn.Module) -> None:
    """Biases begin at zero: at first, silence is encoded and decoded as zero."""
    for layer in layers:
        nn.init.zeros_(layer.bias)


# ---------------------------------------------------------------- posteriors


def reparameterised(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A draw from the normal posterior, mu + sigma eps (Kingma & Welling, 2014, section 2.4)."""
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The divergence of the normal posterior from the standard normal, in nats for every number of `mean`
    (Kingma & Welling, 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
