"""What to train: the configuration of a run, the presets and the variants of the paper's ablation."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from lincae.autoencoder import AutoencoderConfig
from lincae.consistency import ConsistencyConfig, NoiseConfig
from lincae.interface import check_fields
from lincae.linearity import LinearityConfig
from lincae.network import BOTH, FREQUENCY, NetworkConfig
from lincae.training.optimisers import OPTIMISERS
from lincae.transform import TransformConfig


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains. Schedules run over `steps`: to train less, lower it.

    `batch_size`: items of the data in a step, shared by all processes. `warmup_steps` of `learning_rate`; a
    subclass says with `final_learning_rate` where the rate ends. `precision`: see
    `lincae.training.processes.training_precision`. `log_every`, `validate_every`, `checkpoint_every` are in
    steps.
    """

    batch_size: int = 20
    steps: int = 800_000
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    precision: str = "auto"
    seed: int = 0
    log_every: int = 50
    validate_every: int = 5_000
    checkpoint_every: int = 5_000

    FEWEST_ITEMS: ClassVar[int] = 1
    """Items that a micro-batch needs at least."""
    ITEMS_PER_CROP: ClassVar[int] = 1
    """Items that are trained on for each item of the data."""
    LOWERABLE: ClassVar[tuple[str, ...]] = ("batch_size",)
    """Fields that decide how much memory a step takes."""

    def __post_init__(self):
        check_fields(self)
        for name in ("steps", "log_every", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.share(1)

    def share(self, processes: int, accumulate: int | None = None) -> int:
        """Items of each of the micro-batches, `accumulate` in all (by default one a process), that make a
        step. Raises ValueError, naming what would do, unless they are equal, large enough, and enough."""
        parts = processes if accumulate is None else accumulate
        if parts >= processes and parts in self.micro_batches():
            return self.batch_size // parts
        enough = [n for n in self.micro_batches() if n >= processes]
        least = processes * max(self.FEWEST_ITEMS, -(-self.batch_size // processes))
        fix = f"accumulate {' or '.join(map(str, enough))} would do" if enough else f"batch_size {least} can"
        kind = f"equal micro-batches of {self.FEWEST_ITEMS} items or more"
        shared = f"batch_size {self.batch_size} cannot be shared by {processes} processes"
        raise ValueError(f"{shared} in {parts} {kind}: {fix}")

    def micro_batches(self) -> list[int]:
        """The numbers of equal micro-batches, each large enough, that a batch can be divided into."""
        most = self.batch_size // self.FEWEST_ITEMS
        return [n for n in range(1, most + 1) if self.batch_size % n == 0]


@dataclass(frozen=True)
class AutoencoderRunConfig(RunConfig):
    """A run that trains an autoencoder of spectrogram frames; a subclass says which, as `autoencoder`.

    `crop_frames`: spectrogram frames of a crop. `batch_size`: originals of a step, doubled by mixtures.
    `ema_every`, `ema_max_decay`: every so many steps ema += (1 - d) (weights - ema), with
    d = min(ema_max_decay, (1 + n) / (10 + n)) at update n. `optimiser`: "radam", the paper's, or "muon".
    """

    linearity: LinearityConfig = field(default_factory=LinearityConfig)
    crop_frames: int = 168
    final_learning_rate: float = 1e-6
    ema_every: int = 10
    ema_max_decay: float = 0.9999
    optimiser: str = "radam"

    FEWEST_ITEMS = 2  # a mixture takes two
    ITEMS_PER_CROP = 2  # itself, and a mixture
    LOWERABLE = ("batch_size", "crop_frames", "precision")

    def __post_init__(self):
        super().__post_init__()
        factor = self.autoencoder.network.time_factor
        if self.crop_frames < 1 or self.crop_frames % factor:
            raise ValueError(f"crop_frames must be a multiple of {factor}, got {self.crop_frames}")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser must be one of {', '.join(OPTIMISERS)}, got {self.optimiser!r}")
        if self.ema_every < 1:
            raise ValueError(f"ema_every must be at least 1, got {self.ema_every}")

    @property
    def crop_samples(self) -> int:
        return (self.crop_frames - 1) * self.autoencoder.transform.hop + self.autoencoder.transform.window

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate


@dataclass(frozen=True)
class TrainingConfig(AutoencoderRunConfig):
    """A training run of a consistency autoencoder. The defaults are preset `paper`, the paper's section 3.3.

    Differences of the released code, all in preset `official`: crops of 64 frames (the paper says 2 s: here
    168 frames, 1.985 s, the nearest length that the U-Net takes); mixture weights random in [0.5, 1]
    instead of 0.5; gains computed but not applied without homogeneity; half of m2l's originals averaged
    with another item. The released code trains in fp16 with gradient scaling; here CUDA uses bf16.

    Where the paper is silent, both presets do as the code does: the Pseudo-Huber constant, the density of
    noise levels, the cap on every gain, RAdam's default betas, no gradient clipping, a first learning rate of
    0, the EMA's warm-up; in the network, where the noise level enters, where it normalises, and the tanh.
    """

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)


# ---------------------------------------------------------------- presets of models

# Without the numbers that released checkpoints alone carry, from a start that suits small budgets.
LEAN = NetworkConfig(unused_projections=False, unit_variance_init=True)

# A fast latent (125 Hz, 8x) and a U-Net without blocks on its finest grid: benchmarks/desk_trials.csv.
DESK_8X_MODEL = AutoencoderConfig(
    sample_rate=16000,
    transform=TransformConfig(hop=64),
    network=replace(
        LEAN,
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
        centred=True,
    ),
    noise=NoiseConfig(sigma_min=0.01, sigma_max=20.0, rho=-3.0, sigma_data=0.25),
    pad_edges=True,
    window_frames=1536,
    context_frames=256,
    norm_frames=256,
)

# "desk" has the study's rate, 32x (8 numbers at 62.5 Hz); "desk-8x" is the first study's model.
MODEL_PRESETS = {
    "paper": AutoencoderConfig(),
    "official": AutoencoderConfig(),
    "small": AutoencoderConfig(
        network=replace(LEAN, base_channels=16, bottleneck_channels=160, noise_channels=64), pad_edges=True
    ),
    "desk": replace(
        DESK_8X_MODEL,
        transform=TransformConfig(hop=128),
        network=replace(DESK_8X_MODEL.network, latent_channels=8, centred=False),
        window_frames=768,
        context_frames=128,
        norm_frames=128,
    ),
    "desk-8x": DESK_8X_MODEL,
    "test": replace(
        DESK_8X_MODEL,
        network=replace(
            DESK_8X_MODEL.network,
            base_channels=8,
            multipliers=(1, 1, 2),
            attention=(False, False, True),
            unet_blocks=(1, 1, 1),
            bottleneck_channels=32,
            latent_channels=8,
            noise_channels=16,
            heads=2,
            centred=False,
        ),
        noise=NoiseConfig(),
        window_frames=256,
        context_frames=48,
        norm_frames=64,
    ),
}


# ---------------------------------------------------------------- presets of trainings

# Small budgets start where decoding starts: regression with half of the items at sigma_max, then consistency
# over steps that shrink from 1 to 0.2. Smaller steps pass on more errors than a short training can correct.
CURRICULUM = ConsistencyConfig(
    step_start=1.0, step_end=0.2, step_hold=0.6, sigma_max_share=0.5, weight_exponent=0.0
)


# t uniform (a wide normal): small steps need teachers at every noise level.
DESK_8X = TrainingConfig(
    autoencoder=DESK_8X_MODEL,
    linearity=LinearityConfig(input_gain_min=0.1),
    consistency=replace(CURRICULUM, step_end=0.34, step_hold=0.35, log_sigma_std=100.0),
    crop_frames=64,
    batch_size=8,
    steps=4_000,
    learning_rate=3e-3,
    final_learning_rate=1e-5,
    warmup_steps=100,
    ema_every=1,
    optimiser="muon",
    precision="bf16-mixed",
    validate_every=200,
    checkpoint_every=200,
)


# The paper's recipe on recorded music: sounds at the levels they have. As long in samples as DESK_8X.
DESK = replace(
    DESK_8X,
    autoencoder=MODEL_PRESETS["desk"],
    linearity=LinearityConfig(),
    crop_frames=32,
    steps=10_000,
    validate_every=1_000,
    checkpoint_every=250,
)


# Some hundred steps: a gentler end.
BRIEF = replace(
    DESK_8X,
    consistency=replace(DESK_8X.consistency, step_end=0.5, step_hold=0.6),
    steps=400,
    final_learning_rate=1e-6,
    warmup_steps=50,
    log_every=10,
    validate_every=50,
    checkpoint_every=50,
)


PRESETS = {
    "paper": TrainingConfig(),
    "official": TrainingConfig(
        crop_frames=64, linearity=LinearityConfig(mixture_weights="random", plain_gains=False)
    ),
    "small": TrainingConfig(
        autoencoder=MODEL_PRESETS["small"],
        consistency=CURRICULUM,
        crop_frames=64,
        batch_size=32,
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=500,
        validate_every=1_000,
        checkpoint_every=1_000,
    ),
    "desk": DESK,
    "desk-8x": DESK_8X,
    "brief": BRIEF,
    "test": TrainingConfig(
        autoencoder=MODEL_PRESETS["test"],
        consistency=BRIEF.consistency,
        crop_frames=32,
        batch_size=4,
        steps=60,
        learning_rate=1e-2,
        warmup_steps=5,
        ema_every=1,
        log_every=5,
        validate_every=20,
        checkpoint_every=20,
    ),
}


def schedule_of(preset: str, **changes: Any) -> dict[str, Any]:
    """How a preset trains, for presets of other models: the fields of every autoencoder's run but what it
    augments, with these changes."""
    shared = [field.name for field in dataclasses.fields(AutoencoderRunConfig) if field.name != "linearity"]
    return {name: getattr(PRESETS[preset], name) for name in shared} | changes


# Every sound at a gain of its own, quiet ones by up to 20 dB: a constant that all latents share is heard.
ALL_GAINS = {"gain_max": 10.0, "gain_probability": 1.0}

# Variants of our own: lin-cae with these changes.
ODD = {"autoencoder.network.centred": False, "autoencoder.network.odd": True}
WIDE = {f"linearity.{name}": value for name, value in ALL_GAINS.items()}
SUB = {"linearity.subtraction_probability": 0.5}

OWN_VARIANTS: dict[str, dict[str, Any]] = {
    "lin-cae-sub": SUB,
    "lin-cae-odd": ODD,
    "lin-cae-wide": WIDE,
    "lin-cae-odd-sub": ODD | SUB,
    "lin-cae-odd-wide": ODD | WIDE,
}


def changed(config: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of a (nested) config dataclass with the field at `path` replaced, such as ["linearity", "peak"].

    Raises ValueError for an unknown field, naming the known ones, and as the dataclass does for the value.
    """
    name, *rest = path
    types = {f.name: f.type for f in dataclasses.fields(config)}
    where = f"{type(config).__name__}.{name}"
    if name not in types:
        raise ValueError(f"{type(config).__name__} has no {name!r}; it has {', '.join(types)}")
    if rest and not dataclasses.is_dataclass(types[name]):
        raise ValueError(f"{where} has no fields of its own, such as {rest[0]!r}")
    if rest:
        value = changed(getattr(config, name), rest, value)
    return replace(config, **{name: value})
