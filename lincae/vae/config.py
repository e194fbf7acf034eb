"""Configuration of the spectral VAE and of its training."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from lincae.interface import check_fields
from lincae.linearity import VARIANTS, LinearityConfig
from lincae.training.config import ALL_GAINS, AutoencoderRunConfig, schedule_of
from lincae.transform import TransformConfig


@dataclass(frozen=True)
class VaeNetworkConfig:
    """Encoder and decoder of the spectral VAE, which have one architecture: `blocks` ConvNeXt-V2 blocks of
    width `channels`, `hidden` within, that span `kernel` frames, as the projections to and from latents do.
    The norms of GRN are taken over `norm_frames` frames."""

    latent_channels: int = 64
    channels: int = 1024
    hidden: int = 4096
    blocks: int = 13
    kernel: int = 7
    norm_frames: int = 64

    time_factor: ClassVar[int] = 1
    """Spectrogram frames per latent frame."""

    def __post_init__(self):
        check_fields(self)
        sizes = (self.latent_channels, self.channels, self.hidden, self.kernel, self.norm_frames)
        if min(sizes) < 1 or self.blocks < 0 or self.kernel % 2 == 0:
            raise ValueError(f"need positive sizes and an odd kernel, got {self}")

    @property
    def reach(self) -> int:
        """Frames on each side that a frame depends on."""
        return self.kernel // 2 + self.blocks * (self.kernel // 2 + self.norm_frames // 2)


@dataclass(frozen=True)
class SpectralVaeConfig:
    """All that defines a spectral VAE but its weights. The defaults are the autoencoder of the Re-Encoder
    paper (section 3.1.1): 44.1 kHz, hop 1024, 64 channels at 43 Hz.

    `transform`: with alpha 1 the network meets the STFT as it is, so what is linear in it is linear in sound.
    `emphasis_hz`: within the network, bins at frequency f are (1 + f / emphasis_hz)^0.5 as large, against the
    slope of music's spectrum. The rest is as in `AutoencoderConfig`, but all that a frame depends on is
    context: windows leave no trace.
    """

    sample_rate: int = 44100
    transform: TransformConfig = field(default_factory=lambda: TransformConfig(1024, alpha=1.0, beta=0.3))
    emphasis_hz: float = 100.0
    network: VaeNetworkConfig = field(default_factory=VaeNetworkConfig)
    pad_edges: bool = True
    latent_scale: float = 1.0
    window_frames: int = 2048

    def __post_init__(self):
        check_fields(self)
        if self.sample_rate < 1 or self.latent_scale <= 0 or self.emphasis_hz <= 0:
            raise ValueError(f"need a positive sample_rate, latent_scale and emphasis_hz, got {self}")
        if 2 * self.context_frames >= self.window_frames:
            reach = f"the reach of the network, {self.context_frames} frames on both sides"
            raise ValueError(f"window_frames must exceed {reach}, got {self}")

    @property
    def context_frames(self) -> int:
        return self.network.reach

    @property
    def hop(self) -> int:
        return self.transform.hop


SMALL = SpectralVaeConfig(sample_rate=16000, transform=TransformConfig(256, alpha=1.0, beta=0.3))

# The desk model has 8 samples per latent number, as the consistency autoencoder's preset has.
VAE_MODEL_PRESETS = {
    "full": SpectralVaeConfig(),
    "desk": replace(
        SMALL,
        network=VaeNetworkConfig(latent_channels=32, channels=192, hidden=576, blocks=2),
        window_frames=1024,
    ),
    "test": replace(
        SMALL,
        network=VaeNetworkConfig(latent_channels=16, channels=32, hidden=64, blocks=1, norm_frames=32),
        window_frames=128,
    ),
}


@dataclass(frozen=True)
class VaeLossConfig:
    """Weights of the terms of a spectral VAE's loss (0 leaves a term out), and the settings of the terms.

    `stft`, `mel`: multi-resolution STFT distances of auraloss (spectral convergence and log magnitude), the
    first with `fft_sizes`, the second with `mel_bins` mel bins and `mel_fft_sizes`. Magnitudes below `floor`
    count as it. `waveform`: the sum of |error| over that of |target|; without it phase is free. `kl`: the
    divergence of the posterior, in nats per number.
    """

    stft: float = 1.0
    mel: float = 1.0
    waveform: float = 1.0
    kl: float = 1e-3
    fft_sizes: tuple[int, ...] = (512, 1024, 2048)
    mel_fft_sizes: tuple[int, ...] = (1024,)
    mel_bins: int = 80
    floor: float = 1e-3

    def __post_init__(self):
        check_fields(self)
        reconstruction = (self.stft, self.mel, self.waveform)
        if min(*reconstruction, self.kl) < 0 or max(reconstruction) == 0:
            raise ValueError(f"weights must not be negative, and something must be reconstructed, got {self}")
        if not self.fft_sizes or not self.mel_fft_sizes or self.mel_bins < 1 or self.floor <= 0:
            raise ValueError(f"need FFT sizes, mel_bins >= 1 and a positive floor, got {self}")


@dataclass(frozen=True)
class VaeTrainingConfig(AutoencoderRunConfig):
    """A training run of a spectral VAE. The defaults are preset `full`.

    The Re-Encoder paper does not say how its model was trained: crops, batch and rate are as in its own
    training.
    """

    autoencoder: SpectralVaeConfig = field(default_factory=SpectralVaeConfig)
    loss: VaeLossConfig = field(default_factory=VaeLossConfig)
    crop_frames: int = 64
    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-6


VAE_PRESETS = {
    "full": VaeTrainingConfig(),
    "desk": VaeTrainingConfig(
        autoencoder=VAE_MODEL_PRESETS["desk"],
        linearity=LinearityConfig(input_gain_min=0.1, **ALL_GAINS),
        loss=VaeLossConfig(fft_sizes=(256, 1024), mel_fft_sizes=(512,), mel_bins=64),
        **schedule_of(
            "desk-8x",
            steps=3_000,
            learning_rate=2e-3,
            warmup_steps=50,
            log_every=10,
            validate_every=150,
            checkpoint_every=150,
        ),
    ),
    "test": VaeTrainingConfig(
        autoencoder=VAE_MODEL_PRESETS["test"],
        loss=VaeLossConfig(fft_sizes=(256, 512), mel_fft_sizes=(512,), mel_bins=40),
        **schedule_of("test", crop_frames=16, steps=100, final_learning_rate=1e-4, optimiser="muon"),
    ),
}


# Gains are not annealed: a decoder of one step has no last, gain-free stage to profit from, and its encoder
# becomes more linear without annealing (benchmarks/vae_trials.csv).
VAE_VARIANTS = {"lin-vae": VARIANTS["lin-cae-2"], "vae": replace(VARIANTS["m2l"], anneal=False)}
