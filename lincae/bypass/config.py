"""What a bypass autoencoder is and how it is trained: configurations and presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from lincae.autoencoder import AutoencoderConfig
from lincae.consistency import NoiseConfig
from lincae.interface import check_fields
from lincae.linearity import LinearityConfig
from lincae.network import NetworkConfig
from lincae.training.config import MODEL_PRESETS, AutoencoderRunConfig, schedule_of
from lincae.transform import TransformConfig

DESK = MODEL_PRESETS["desk"]


@dataclass(frozen=True)
class BypassConfig(AutoencoderConfig):
    """All that defines a bypass autoencoder but its weights. The defaults are preset `desk`: 16 kHz, 500
    latent numbers a second (32x), the network of the consistency autoencoder's `desk`.

    Latents are the lowest bands of an MDCT with a band for every sample of `hop`: with 8 latent channels at
    62.5 Hz the waveform below 250 Hz. A KLT fitted on music keeps the same subspace.
    `learned`: the bands are where the linear map, and the one that leads back, start from: both are trained.
    `code_bound`: above 0, the last channel is no band but what an encoder network has to say of the rest of
    the sound, at most this share of the level of the bands: about the error of an otherwise linear encoder.
    `level_frames`: the decoder's network meets latents divided by their level over so many frames.
    """

    sample_rate: int = DESK.sample_rate
    transform: TransformConfig = field(default_factory=lambda: TransformConfig(hop=128))
    network: NetworkConfig = field(
        default_factory=lambda: replace(DESK.network, centred=False, latent_channels=8)
    )
    noise: NoiseConfig = DESK.noise
    pad_edges: bool = True
    window_frames: int = 768
    context_frames: int = 128
    norm_frames: int = 128
    learned: bool = False
    code_bound: float = 0.0
    level_frames: int = 16

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.code_bound < 1 or self.level_frames < 1:
            raise ValueError(f"need 0 <= code_bound < 1 and level_frames >= 1, got {self}")
        if self.network.time_factor > 3:
            raise ValueError(f"MDCT windows need a time_factor of at most 3, got {self.network.time_factor}")
        if not 1 <= self.bands <= self.hop:
            raise ValueError(f"need 1 to {self.hop} bands, got {self.bands}")

    @property
    def bands(self) -> int:
        """Latent channels that are bands."""
        return self.network.latent_channels - (self.code_bound > 0)


@dataclass(frozen=True)
class BypassLossConfig:
    """Weights of the terms of the loss, all of the one-step decode.

    `waveform`: |error| / |target|, which protects the signal-to-noise ratio. `spectral`: log-mel distance,
    mean over `fft_sizes` with as many `mel_bins`, which asks for the right energy in every band, whatever the
    phase. `frames`: Pseudo-Huber distance of frames, as in consistency training with the clean signal for
    teacher.
    """

    waveform: float = 4.0
    spectral: float = 1.0
    frames: float = 0.02
    fft_sizes: tuple[int, ...] = (256, 512, 1024)
    mel_bins: tuple[int, ...] = (48, 64, 80)

    def __post_init__(self):
        check_fields(self)
        if min(self.waveform, self.spectral, self.frames) < 0 or self.waveform + self.frames <= 0:
            raise ValueError(f"weights must not be negative, and phase must be asked for, got {self}")
        if not self.fft_sizes or len(self.fft_sizes) != len(self.mel_bins):
            raise ValueError(f"need as many mel_bins as fft_sizes, at least one, got {self}")


@dataclass(frozen=True)
class BypassTrainingConfig(AutoencoderRunConfig):
    """A training run of a bypass autoencoder.

    Gains are none: what is linear by construction need not be learned. Originals come at many levels
    (`input_gain_min`), so that mixtures have loud and quiet parts.
    """

    autoencoder: BypassConfig = field(default_factory=BypassConfig)
    loss: BypassLossConfig = field(default_factory=BypassLossConfig)
    linearity: LinearityConfig = field(
        default_factory=lambda: LinearityConfig(gain_probability=0.0, input_gain_min=0.1)
    )


# ---------------------------------------------------------------- presets


TEST_MODEL = BypassConfig(
    transform=TransformConfig(hop=64),
    network=replace(MODEL_PRESETS["test"].network, latent_channels=4),
    window_frames=256,
    context_frames=48,
    norm_frames=64,
)
BYPASS_PRESETS = {
    "desk": BypassTrainingConfig(**schedule_of("desk", crop_frames=32, steps=20_000)),
    "test": BypassTrainingConfig(autoencoder=TEST_MODEL, **schedule_of("test", crop_frames=32)),
}
BYPASS_VARIANTS: dict[str, dict[str, Any]] = {
    "lin-bypass": {},
    "lin-bypass-learned": {"autoencoder.learned": True},
    "lin-bypass-code": {"autoencoder.code_bound": 0.03},
}
