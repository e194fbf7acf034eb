"""What a model is: the configuration of an autoencoder, and the presets."""

from dataclasses import dataclass, field

from .consistency import NoiseConfig
from .network import BOTH, FREQUENCY, NetworkConfig
from .transform import TransformConfig


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
    window_frames: int = 128
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
    window_frames=1280,
    context_frames=160,
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
