"""Linearity by data augmentation (paper section 3.2): the contribution, in one file that needs only torch.

An autoencoder becomes linear when it is trained to decode arithmetic on latents into the same arithmetic on
waveforms. Nothing is added to the loss, and neither gains nor weights are ever given to the network:

    batch = augment(audio, progress, config, generator)     # waveforms: mixtures and gains
    z = implicit_conditioning(encode, batch, config)        # latents: the same arithmetic, after encoding
    loss = your_loss(decode(z), batch.target())             # any reconstruction loss of any autoencoder

Axis legend: `B` original items, `V` items after mixing (2 B), `T` samples. Audio is `(B, T)`; latents are
any `(B, ...)` tensor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearityConfig:
    """What is augmented, and which part of it the latents have to follow by arithmetic.

    With `homogeneity` gains act on the latent, a Enc(x); without it, on the encoder's input, Enc(a x).
    With `additivity` a mixture's latent is the mixture of its parts' latents; without it, the mixture is
    encoded. All four cases see the same waveforms, gains and mixtures, and differ in the conditioning alone.

    `gain_min`, `gain_max`, `gain_probability`: gains are uniform in the range with that probability, else 1.
    `zero_below`: smaller gains become exact zeros, which teaches that z = 0 is silence.
    `peak`: gains are capped so that no scaled waveform exceeds this magnitude. The cap also lowers the gain 1
    of items that exceed it already, as in the released code; the paper says only that gains are clipped.
    `anneal`: between these shares of the training the gain range narrows to (1, 1).
    `mixture_weights`: "equal" is 0.5 (u + v), the paper's; "random" is w u + (1 - w) v with w uniform in
    [0.5, 1], the released code's.
    `plain_gains`: without homogeneity, gains remain a plain augmentation (the paper's M2L). False: they are
    computed and never used, as in the released code.
    `premix_probability`: this share of the originals is first replaced by an average with another item. The
    released code's M2L has 0.5.

    Two augmentations are our own. `input_gain_min`: originals first get a gain each, log-uniform in
    [input_gain_min, 1], so that the encoder meets one sound at many levels. `subtraction_probability`: this
    share of the mixtures m gives way to what is left of them, (1 - w) v, with the latent Enc(m) - w Enc(u).
    """

    homogeneity: bool = True
    additivity: bool = True
    gain_min: float = 0.0
    gain_max: float = 3.0
    gain_probability: float = 0.8
    zero_below: float = 0.05
    peak: float = 1.0
    anneal: bool = True
    anneal_from: float = 0.2
    anneal_to: float = 0.9
    mixture_weights: str = "equal"
    plain_gains: bool = True
    premix_probability: float = 0.0
    input_gain_min: float = 1.0
    subtraction_probability: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float:
                fits = isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value)
            else:
                fits = isinstance(value, field.type)
            if not fits:
                raise ValueError(f"{field.name} must be {field.type.__name__}, got {value!r}")
        if self.gain_min > self.gain_max:
            raise ValueError(f"gain_min {self.gain_min} is above gain_max {self.gain_max}")
        for name in ("gain_probability", "premix_probability", "subtraction_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {getattr(self, name)}")
        if self.subtraction_probability and not (self.homogeneity and self.additivity):
            raise ValueError("subtraction_probability > 0 needs homogeneity and additivity")
        if not 0 <= self.anneal_from < self.anneal_to <= 1 or self.peak <= 0 or self.zero_below < 0:
            raise ValueError(
                f"need 0 <= anneal_from < anneal_to <= 1, peak > 0 and zero_below >= 0, got {self}"
            )
        if not 0 < self.input_gain_min <= 1:
            raise ValueError(f"input_gain_min lies in (0, 1], got {self.input_gain_min}")
        if self.mixture_weights not in ("equal", "random"):
            raise ValueError(f"mixture_weights is 'equal' or 'random', got {self.mixture_weights!r}")


LIN_CAE = LinearityConfig()

VARIANTS = {
    "lin-cae": LIN_CAE,
    "lin-cae-2": replace(LIN_CAE, anneal=False),
    "no-additivity": replace(LIN_CAE, additivity=False),
    "no-homogeneity": replace(LIN_CAE, homogeneity=False),
    "m2l": replace(LIN_CAE, homogeneity=False, additivity=False),
}
"""The models that the paper compares."""


@dataclass
class AugmentedBatch:
    """`audio` `(V, T)`: B originals, then B mixtures m_i = w_i x_i + (1 - w_i) x_{i-1}, all before gains.

    `weights` `(B,)` are the w_i, `gains` `(V,)` the gain a of every item. Where `subtracted` `(B,)` is True,
    (1 - w_i) x_{i-1} stands in the place of m_i.
    """

    audio: Tensor
    weights: Tensor
    gains: Tensor
    subtracted: Tensor | None = None

    def target(self) -> Tensor:
        """What the decoder has to produce: the scaled waveforms `(V, T)`."""
        return scale(self.audio, self.gains)


def augment(
    audio: Tensor, progress: float, config: LinearityConfig, generator: torch.Generator
) -> AugmentedBatch:
    """Draw the mixtures and the gains of originals `(B, T)`, at `progress` = step / steps of the training.

    Raises ValueError for another shape, for fewer than two items and for integers.
    """
    if audio.dim() != 2 or audio.shape[0] < 2 or not audio.is_floating_point():
        got = f"{tuple(audio.shape)} of {audio.dtype}"
        raise ValueError(f"mixtures need floating-point audio (B, T) with at least two items, got {got}")
    n = audio.shape[0]
    device = generator.device

    if config.premix_probability > 0:
        audio = premix(audio, config.premix_probability, generator)
    if config.input_gain_min < 1:
        exponents = torch.rand(n, generator=generator, device=device)
        audio = scale(audio, config.input_gain_min**exponents)

    weights = sample_mixture_weights(n, config.mixture_weights, generator).to(audio)
    mixtures = mix(audio, weights)
    low, high = gain_range(progress, config)
    gains = sample_gains(2 * n, low, high, config, generator).to(audio)

    subtracted = None
    if config.subtraction_probability > 0:
        drawn = torch.rand(n, generator=generator, device=device)
        subtracted = (drawn < config.subtraction_probability).to(audio.device)
        left = scale(audio.roll(1, 0), 1 - weights)
        mixtures = torch.where(subtracted[:, None], left, mixtures)

    both = torch.cat((audio, mixtures))
    if config.homogeneity or config.plain_gains:
        gains = cap_gains(gains, both, config.peak)
    else:
        gains = torch.ones_like(gains)
    return AugmentedBatch(both, weights, gains, subtracted)


def implicit_conditioning(
    encode: Callable[[Tensor], Tensor], batch: AugmentedBatch, config: LinearityConfig
) -> Tensor:
    """The latents `(V, ...)` that the decoder is given for `batch.target()`.

    With homogeneity, latents are scaled (figure 2b); with additivity, latents of mixtures are mixed from
    those of their parts (figure 2c). `encode` maps audio `(n, T)` to latents `(n, ...)`; n is one number for
    all batches of a size. Gradients flow through all of it.
    """
    n = batch.weights.shape[0]
    originals = batch.audio[:n]

    if not config.additivity:
        if config.homogeneity:
            return scale(encode(batch.audio), batch.gains)
        return encode(batch.target())

    if batch.subtracted is not None:
        wholes = mix(originals, batch.weights)
        z, z_whole = encode(torch.cat((originals, wholes))).chunk(2)
        left = z_whole - scale(z, batch.weights)
        chosen = batch.subtracted.view(-1, *[1] * (z.dim() - 1))
        mixed = torch.where(chosen, left, mix(z, batch.weights))
        return scale(torch.cat((z, mixed)), batch.gains)

    if config.homogeneity or not config.plain_gains:  # in the second case all gains are 1
        z = encode(originals)
        return scale(torch.cat((z, mix(z, batch.weights))), batch.gains)

    # A mixture's gain differs from those of its parts: the parts are encoded once more under that gain.
    gains, mixture_gains = batch.gains.split(n)
    as_originals = scale(originals, gains)
    as_first_parts = scale(originals, mixture_gains)
    as_second_parts = scale(originals.roll(1, 0), mixture_gains)
    z, z_first, z_second = encode(torch.cat((as_originals, as_first_parts, as_second_parts))).chunk(3)
    mixed = scale(z_first, batch.weights) + scale(z_second, 1 - batch.weights)
    return torch.cat((z, mixed))


# ---------------------------------------------------------------- mixtures


def sample_mixture_weights(n: int, kind: str, generator: torch.Generator) -> Tensor:
    """Weights `(n,)` of the first part of each mixture: 0.5 ("equal") or uniform in [0.5, 1] ("random")."""
    if kind == "equal":
        return torch.full((n,), 0.5, device=generator.device)
    return 0.5 + 0.5 * torch.rand(n, generator=generator, device=generator.device)


def mix(items: Tensor, weights: Tensor) -> Tensor:
    """w_i item_i + (1 - w_i) item_{i-1}, for audio or latents `(B, ...)` (figure 2d)."""
    return scale(items, weights) + scale(items.roll(1, 0), 1 - weights)


def premix(audio: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Each item, with `probability`, becomes its average with the item of a random permutation."""
    n = audio.shape[0]
    partner = torch.randperm(n, generator=generator, device=generator.device).to(audio.device)
    drawn = torch.rand(n, generator=generator, device=generator.device)
    chosen = (drawn < probability).to(audio.device)
    return torch.where(chosen[:, None], 0.5 * (audio + audio[partner]), audio)


# ---------------------------------------------------------------- gains


def gain_range(progress: float, config: LinearityConfig) -> tuple[float, float]:
    """The lowest and the highest gain at `progress` in [0, 1]: piecewise cosine to (1, 1) (section 3.3)."""
    if not config.anneal:
        return config.gain_min, config.gain_max
    moved = (progress - config.anneal_from) / (config.anneal_to - config.anneal_from)
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(moved, 0.0), 1.0)))
    return 1 - (1 - config.gain_min) * cosine, 1 + (config.gain_max - 1) * cosine


def sample_gains(
    n: int, low: float, high: float, config: LinearityConfig, generator: torch.Generator
) -> Tensor:
    """Gains `(n,)`: uniform in [low, high) with `gain_probability`, small ones zero; 1 otherwise."""
    drawn = torch.rand(n, generator=generator, device=generator.device)
    gains = low + (high - low) * torch.rand(n, generator=generator, device=generator.device)
    gains = torch.where(gains.abs() < config.zero_below, 0.0, gains)
    return torch.where(drawn < config.gain_probability, gains, 1.0)


def cap_gains(gains: Tensor, audio: Tensor, peak: float) -> Tensor:
    """Gains `(V,)` lowered where `gain * audio` `(V, T)` would exceed `peak`. Signs stay."""
    limit = peak / (audio.abs().amax(-1) + 1e-7)
    return torch.copysign(torch.minimum(gains.abs(), limit), gains)


def scale(items: Tensor, gains: Tensor) -> Tensor:
    """Items `(n, ...)` times one gain each `(n,)`."""
    return items * gains.to(items).reshape(-1, *[1] * (items.dim() - 1))
