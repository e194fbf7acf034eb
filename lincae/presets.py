"""What a model is: the configuration of an autoencoder, and the presets."""

from dataclasses import dataclass, field

from lincae.consistency import NoiseConfig
from lincae.network import BOTH, FREQUENCY, NetworkConfig
from lincae.transform import TransformConfig


@dataclass(frozen=True)
class AutoencoderConfig:
    """All that defines a model but its weights.

    `pad_edges`: surround the signal with three hops of silence, so that its ends are covered by as many
    windows as its middle and come back unattenuated; the released models were used without (35 ms fades
    at both ends).
    `latent_scale`: public latents are the network's times this, to have unit standard deviation on the data.
    `window_frames`, `context_frames`: longer signals go through the network in windows of so many latent
    frames, of which so many on each side are context and dropped.
    `norm_frames`: signals of more latent frames are normalised by statistics over so many around each frame,
    shorter ones, as in training and in the released models, over the whole.
    """

    sample_rate: int = 44100
    transform: TransformConfig = field(default_factory=TransformConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    pad_edges: bool = False
    latent_scale: float = 1.0
    window_frames: int = 160
    context_frames: int = 16
    norm_frames: int = 24

    def __post_init__(self):
        if self.sample_rate < 1 or self.latent_scale <= 0 or self.norm_frames < 1:
            raise ValueError(f"need a positive sample_rate, latent_scale and norm_frames, got {self}")
        if not 0 <= 2 * self.context_frames < self.window_frames:
            raise ValueError(f"context_frames on both sides must leave room within window_frames, got {self}")

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.transform.hop * self.network.time_factor


@dataclass(frozen=True)
class VaeNetworkConfig:
    """Encoder and decoder of the spectral VAE, of one architecture: `blocks` ConvNeXt-V2 blocks of width
    `channels`, `hidden` within, over `kernel` frames, as the projections to and from latents are.
    `norm_frames`: GRN's norms are over so many."""

    latent_channels: int = 64
    channels: int = 1024
    hidden: int = 4096
    blocks: int = 13
    kernel: int = 7
    norm_frames: int = 64

    def __post_init__(self):
        sizes = (self.latent_channels, self.channels, self.hidden, self.kernel, self.norm_frames)
        if min(sizes) < 1 or self.blocks < 0 or self.kernel % 2 == 0:
            raise ValueError(f"need positive sizes and an odd kernel, got {self}")

    @property
    def time_factor(self) -> int:
        """Spectrogram frames per latent frame: the blocks run at the frame rate."""
        return 1

    @property
    def reach(self) -> int:
        """Frames on each side that a frame of encoder or decoder depends on."""
        return self.kernel // 2 + self.blocks * (self.kernel // 2 + self.norm_frames // 2)


@dataclass(frozen=True)
class SpectralVaeConfig:
    """All that defines a spectral VAE but its weights; the defaults are the autoencoder of the Re-Encoder
    paper (section 3.1.1): 44.1 kHz, hop 1024, 64 channels at 43 Hz.

    `transform`: with alpha 1 the network meets the STFT as it is: linear in it is linear in sound.
    `emphasis_hz`: within the network, bins at frequency f are (1 + f / emphasis_hz)^0.5 as large, which
    outweighs the usual slope of music's spectrum.
    `pad_edges`, `latent_scale`: as in `AutoencoderConfig`. `window_frames`: longer signals go through the
    network in windows of so many latent frames, of which `context_frames` on each side are dropped: all that
    a frame depends on, so that the windows leave no trace.
    """

    sample_rate: int = 44100
    transform: TransformConfig = field(default_factory=lambda: TransformConfig(1024, alpha=1.0, beta=0.3))
    emphasis_hz: float = 100.0
    network: VaeNetworkConfig = field(default_factory=VaeNetworkConfig)
    pad_edges: bool = True
    latent_scale: float = 1.0
    window_frames: int = 2048

    def __post_init__(self):
        if self.sample_rate < 1 or self.latent_scale <= 0 or self.emphasis_hz <= 0:
            raise ValueError(f"need a positive sample_rate, latent_scale and emphasis_hz, got {self}")
        if 2 * self.context_frames >= self.window_frames:
            sides = f"{self.context_frames} frames on both sides"
            raise ValueError(f"window_frames must exceed the reach of the network, {sides}, got {self}")

    @property
    def context_frames(self) -> int:
        return self.network.reach

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.transform.hop


# ---------------------------------------------------------------- presets

PAPER = AutoencoderConfig()
SMALL = AutoencoderConfig(
    network=NetworkConfig(
        base_channels=16,
        bottleneck_channels=160,
        noise_channels=64,
        unused_projections=False,
        unit_variance_init=True,
    ),
    pad_edges=True,
)
# Short windows, a fast latent (125 Hz, 8x) and a U-Net without blocks on its finest grid, where they cost
# most, are what a CPU can train: benchmarks/desk_trials.csv.
DESK = AutoencoderConfig(
    sample_rate=16000,
    transform=TransformConfig(hop=64),
    network=NetworkConfig(
        base_channels=16,
        multipliers=(1, 2, 4),
        attention=(False, False, False),
        encoder_blocks=(1, 1, 1),
        unet_blocks=(0, 1, 1),
        downsampling=(FREQUENCY, BOTH),
        bottleneck_channels=128,
        bottleneck_blocks=1,
        latent_channels=16,
        noise_channels=64,
        unused_projections=False,
        unit_variance_init=True,
        centred=True,
    ),
    noise=NoiseConfig(sigma_min=0.01, sigma_max=20.0, rho=-3.0, sigma_data=0.25),
    pad_edges=True,
    window_frames=1536,
    context_frames=256,
    norm_frames=256,
)
TEST = AutoencoderConfig(
    sample_rate=16000,
    transform=TransformConfig(hop=64),
    network=NetworkConfig(
        base_channels=8,
        multipliers=(1, 1, 2),
        attention=(False, False, True),
        encoder_blocks=(1, 1, 1),
        unet_blocks=(1, 1, 1),
        downsampling=(FREQUENCY, BOTH),
        bottleneck_channels=32,
        bottleneck_blocks=1,
        latent_channels=8,
        noise_channels=16,
        heads=2,
        unused_projections=False,
        unit_variance_init=True,
    ),
    pad_edges=True,
    window_frames=256,
    context_frames=48,
    norm_frames=64,
)
MODEL_PRESETS = {"paper": PAPER, "official": PAPER, "small": SMALL, "desk": DESK, "test": TEST}

# As many samples per latent number (8) as DESK has.
VAE_MODEL_PRESETS = {
    "full": SpectralVaeConfig(),
    "desk": SpectralVaeConfig(
        sample_rate=16000,
        transform=TransformConfig(256, alpha=1.0, beta=0.3),
        network=VaeNetworkConfig(latent_channels=32, channels=192, hidden=576, blocks=2),
        window_frames=1024,
    ),
    "test": SpectralVaeConfig(
        sample_rate=16000,
        transform=TransformConfig(256, alpha=1.0, beta=0.3),
        network=VaeNetworkConfig(latent_channels=16, channels=32, hidden=64, blocks=1, norm_frames=32),
        window_frames=128,
    ),
}
