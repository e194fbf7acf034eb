"""Training recipes by name, whatever kind of model they train."""

from dataclasses import replace
from typing import Any

from lincae.bypass.config import BYPASS_PRESETS, BYPASS_VARIANTS, BypassTrainingConfig
from lincae.bypass.objective import BypassObjective
from lincae.linearity import VARIANTS
from lincae.training.config import OWN_VARIANTS, PRESETS, AutoencoderRunConfig, TrainingConfig, changed
from lincae.training.objective import AutoencoderObjective, Objective
from lincae.vae.config import VAE_PRESETS, VAE_VARIANTS, VaeTrainingConfig
from lincae.vae.objective import VaeObjective

PRESET_NAMES = tuple(PRESETS | VAE_PRESETS | BYPASS_PRESETS)
VARIANT_NAMES = tuple(VARIANTS | OWN_VARIANTS | VAE_VARIANTS | BYPASS_VARIANTS)


def recipe(preset: str = "desk", variant: str = "lin-cae", **changes: Any) -> AutoencoderRunConfig:
    """The configuration of a preset and variant, which says what is trained; `changes` are fields, dotted
    ones nested ("linearity.gain_max"). Raises ValueError naming the allowed presets, variants or fields."""
    presets = PRESETS
    if variant in VAE_VARIANTS:
        presets = VAE_PRESETS
    elif variant in BYPASS_VARIANTS:
        presets = BYPASS_PRESETS
    diffs = OWN_VARIANTS | BYPASS_VARIANTS
    variants = VARIANTS | dict.fromkeys(diffs, VARIANTS["lin-cae"]) | VAE_VARIANTS
    for kind, name, allowed in (("preset", preset, presets), ("variant", variant, variants)):
        if name not in allowed:
            raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(allowed)}")
    config = presets[preset]
    base = variants[variant]
    linearity = replace(
        config.linearity, homogeneity=base.homogeneity, additivity=base.additivity, anneal=base.anneal
    )
    if preset == "official" and variant == "m2l":
        linearity = replace(linearity, premix_probability=0.5)
    config = replace(config, linearity=linearity)
    for path, value in (diffs.get(variant, {}) | changes).items():
        config = changed(config, path.split("."), value)
    return config


OBJECTIVES: dict[type[AutoencoderRunConfig], type[AutoencoderObjective]] = {
    TrainingConfig: Objective,
    VaeTrainingConfig: VaeObjective,
    BypassTrainingConfig: BypassObjective,
}
"""What each kind of configuration trains."""


def objective_of(config: AutoencoderRunConfig) -> AutoencoderObjective:
    """A new model of that configuration and what it minimises, for `lincae.training.loop.train`."""
    return OBJECTIVES[type(config)].build(config)
