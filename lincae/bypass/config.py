"""What a bypass autoencoder is and how it is trained: configurations and presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from lincae.autoencoder import AutoencoderConfig
from lincae.consistency import NoiseConfig
from lincae.interface import check_fields
from lincae.linearity import LinearityConfig
from lincae.network import BOTH, FREQUENCY, NetworkConfig
from lincae.training.config import MODEL_PRESETS, AutoencoderRunConfig, schedule_of
from lincae.transform import TransformConfig

DESK = MODEL_PRESETS["desk"]


@dataclass(frozen=True)
class BypassConfig(AutoencoderConfig):
    """All that defines a bypass autoencoder but its weights. The defaults are those of the first trials: 16
    kHz, 500 latent numbers a second (32x) at 62.5 Hz, the network of the consistency autoencoder's `desk`.

    Latents are the lowest bands of an MDCT with a band for every sample of `hop`: with 8 latent channels at
    62.5 Hz the waveform below 250 Hz.
    `learned`: the bands are where the linear map, and the one that leads back, start from: both are trained.
    `code_bound`: above 0, the last `code_channels` are no bands but what an encoder network has to say of the
    rest of the sound, at most this share of the level of the bands.
    `kept_bins`: so many of the lowest frequency bins are those of the bands, whatever the network answers.
    `haze`: the network says, for every bin and frame, how loud noise times the bands is added, besides a
    correction of its own. Without `correction` it says no more, and hears magnitudes alone: its answer is one
    for both signs.
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
    code_channels: int = 1
    kept_bins: int = 0
    haze: bool = False
    correction: bool = True
    level_frames: int = 16

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.code_bound < 1 or self.level_frames < 1:
            raise ValueError(f"need 0 <= code_bound < 1 and level_frames >= 1, got {self}")
        if self.code_channels < 1 or not 0 <= self.kept_bins < self.transform.n_bins:
            n_bins = self.transform.n_bins
            raise ValueError(f"need code_channels >= 1 and 0 <= kept_bins < {n_bins}, got {self}")
        if not (self.haze or self.correction):
            raise ValueError("a decoder without haze needs its correction")
        if not 1 <= self.bands <= self.hop:
            raise ValueError(f"need 1 to {self.hop} bands, got {self.bands}")

    @property
    def bands(self) -> int:
        """Latent channels that are bands."""
        return self.network.latent_channels - (self.code_channels if self.code_bound else 0)

    @property
    def aliased_samples(self) -> int:
        """Samples at either end of latent frames whose bands lack the neighbour that they overlap with."""
        return (self.hop + self.transform.window - self.transform.hop) // 2


@dataclass(frozen=True)
class BypassLossConfig:
    """Weights of the terms of the loss, all of the one-step decode.

    `waveform`: |error| / |target|, which protects the signal-to-noise ratio; `decibels`: its logarithm, to
    which a decibel of every sound is worth the same. `spectral`: log-mel distance, mean over `fft_sizes` with
    as many `mel_bins`, which asks for the right energy in every band, whatever the phase. `frames`:
    Pseudo-Huber distance of frames, as in consistency training with the clean signal for teacher.
    """

    waveform: float = 4.0
    decibels: float = 0.0
    spectral: float = 1.0
    frames: float = 0.02
    fft_sizes: tuple[int, ...] = (256, 512, 1024)
    mel_bins: tuple[int, ...] = (48, 64, 80)

    def __post_init__(self):
        check_fields(self)
        weights = (self.waveform, self.decibels, self.spectral, self.frames)
        if min(weights) < 0 or sum(weights) <= self.spectral:
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

# Long frames: of 32 channels one as a code costs 0.03 dB, of 8 at four times their rate 0.25 dB and more. The
# network has two levels more, on which blocks are cheap.
DESK_MODEL = BypassConfig(
    network=replace(
        DESK.network,
        multipliers=(1, 2, 4, 3, 2),
        attention=(False,) * 5,
        encoder_blocks=(1,) * 5,
        unet_blocks=(0, 1, 1, 1, 1),
        downsampling=(FREQUENCY, BOTH, BOTH, BOTH),
        latent_channels=32,
    ),
    window_frames=192,
    context_frames=32,
    norm_frames=32,
    level_frames=8,
    kept_bins=6,
    haze=True,
    correction=False,
)
LISTEN_MODEL = replace(DESK_MODEL, network=replace(DESK_MODEL.network, latent_channels=128), kept_bins=30)
TEST_MODEL = BypassConfig(
    transform=TransformConfig(hop=64),
    network=replace(MODEL_PRESETS["test"].network, latent_channels=4),
    window_frames=256,
    context_frames=48,
    norm_frames=64,
)
# The sum of log-mel distance and decibels, and no more: a distance of frames asks haze to be quiet.
OF_SOUND = BypassLossConfig(waveform=0.0, decibels=1.5, frames=0.0)
LONG_CROPS = schedule_of("desk", crop_frames=64, batch_size=4)
BYPASS_PRESETS = {
    "desk": BypassTrainingConfig(autoencoder=DESK_MODEL, loss=OF_SOUND, **LONG_CROPS),
    "listen": BypassTrainingConfig(autoencoder=LISTEN_MODEL, loss=OF_SOUND, **LONG_CROPS | {"steps": 7000}),
    "test": BypassTrainingConfig(autoencoder=TEST_MODEL, **schedule_of("test", crop_frames=32)),
}
BYPASS_VARIANTS: dict[str, dict[str, Any]] = {
    "lin-bypass": {},
    "lin-bypass-learned": {"autoencoder.learned": True},
    "lin-bypass-code": {"autoencoder.code_bound": 0.03},
}
