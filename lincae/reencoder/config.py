"""What to train of a Re-Encoder, and how: the configuration of a run, and the presets."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from lincae.reencoder.module import SIZES, TASKS, ReEncoderConfig
from lincae.training.config import RunConfig

OBJECTIVES = ("l1", "l1+mel", "l1+gan")


@dataclass(frozen=True)
class ReEncoderTraining(RunConfig):
    """One run. The defaults are the paper's (section 3.2) for bandwidth extension.

    `objective`: "l1", "l1+mel" (row 7 of Table 1; the paper does not give its weight) or "l1+gan".
    `learning_rate` and `discriminator_learning_rate` rise linearly over their warm-ups; the paper names no
    decay, so `final_share` is 1, and below 1 the module's rate falls on a cosine to that share of it.
    `batch_size` pairs of `chunk_s` seconds a step. `precision`: "bf16" (autocast) or "fp32".
    """

    module: ReEncoderConfig = field(default_factory=ReEncoderConfig)
    objective: str = "l1"
    reconstruction_weight: float = 10.0
    adversarial_weight: float = 0.5
    matching_weight: float = 1.0
    kl_weight: float = 5e-4
    mel_weight: float = 1.0
    learning_rate: float = 5e-4
    discriminator_learning_rate: float = 1e-4
    warmup_steps: int = 1_000
    discriminator_warmup_steps: int = 20_000
    final_share: float = 1.0
    weight_decay: float = 1e-4
    discriminator_channels: int = 256
    batch_size: int = 256
    chunk_s: float = 1.4
    steps: int = 250_000
    precision: str = "bf16"
    log_every: int = 100

    LOWERABLE: ClassVar[tuple[str, ...]] = ("batch_size", "chunk_s")

    def __post_init__(self):
        """Raises ValueError for unknown names and values out of range."""
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, got {self.objective!r}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {self.precision!r}")
        if self.module.task == "stereo" and self.objective != "l1":
            raise ValueError(f"mono-to-stereo is trained with l1 and a KL divergence, got {self.objective!r}")
        if not self.chunk_s > 0:
            raise ValueError(f"chunk_s must be positive, got {self.chunk_s}")

    @property
    def final_learning_rate(self) -> float:
        return self.final_share * self.learning_rate


FULL = ReEncoderTraining()
# Minutes of one CPU core: small modules and discriminators, few steps, and so a rate that falls.
DESK = replace(
    FULL,
    learning_rate=1e-3,
    discriminator_learning_rate=1e-3,
    warmup_steps=50,
    discriminator_warmup_steps=50,
    final_share=0.02,
    discriminator_channels=16,
    batch_size=16,
    steps=600,
    precision="fp32",
    log_every=25,
    validate_every=100,
    checkpoint_every=100,
)
TEST = replace(DESK, batch_size=2, steps=20, log_every=5, validate_every=10, checkpoint_every=10)
# An input keeps 1 / factor of the band. Half rate is the paper's; the desk autoencoders reproduce about
# 1 kHz of their 8 kHz (figures/02_bands.csv), so half of that is where an input is cut for them.
FACTORS = {"full": 2, "desk": 16, "test": 2}
PRESETS = {"full": FULL, "desk": DESK, "test": TEST}
# At desk scale the decoder and the discriminator cost a hundred times the module: fewer steps, which start
# from a module that was trained with l1 (--start).
DESK_CHANGES = {
    "l1": {},
    "l1+mel": {"steps": 60, "batch_size": 4},
    "l1+gan": {"steps": 200, "batch_size": 8},
}
DESK_STEREO = {"chunk_s": 1.0, "batch_size": 32, "steps": 500, "learning_rate": 2e-3}  # many images a step


def recipe(
    task: str,
    preset: str = "desk",
    size: str | None = None,
    objective: str = "l1",
    layout: str = "left_right",
) -> ReEncoderTraining:
    """The configuration of a run; `size` is one of SIZES, by default the preset's M. Raises ValueError."""
    size = size or ("m" if preset == "full" else "desk-m")
    for kind, name, allowed in (("preset", preset, PRESETS), ("size", size, SIZES), ("task", task, TASKS)):
        if name not in allowed:
            raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(allowed)}")
    module = ReEncoderConfig(task, latent_channels=1, layout=layout, **SIZES[size])
    changes = DESK_CHANGES.get(objective, {}) if preset == "desk" else {}
    if task == "stereo":
        changes = DESK_STEREO if preset == "desk" else {"chunk_s": 4.0}
    return replace(PRESETS[preset], module=module, objective=objective, **changes)
