"""How a Re-Encoder is trained (section 3.2): configuration, losses, and an objective of the common loop.

Equation 5 and the KL divergence stand in `lincae.vae.model`; what the paper leaves open: docs/reencoder.md.
No waveform is decoded, but for the mel loss of Table 1's row 7. A run folder holds what every run's does
(`lincae.training.loop`), and `module.safetensors`, which `ReEncoder.load` reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lincae.interface import AutoencoderLike
from lincae.latents.store import check_same_model, describe
from lincae.metrics import mss
from lincae.reencoder.module import SIZES, TASKS, ReEncoder, ReEncoderConfig
from lincae.reencoder.pairs import LatentPairs
from lincae.training.config import RunConfig
from lincae.training.objective import TrainingObjective
from lincae.vae.model import kl_divergence, reparameterised

MODULE = "module.safetensors"
VALIDATION_PAIRS = 32


# ---------------------------------------------------------------- configuration

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


# ---------------------------------------------------------------- losses

EPS = 1e-8


def latent_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 1, of latents of equal shape."""
    if prediction.shape != target.shape:
        raise ValueError(f"latents must agree, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    return (prediction - target).abs().mean()


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """Equation 2: what a generator minimises of the scores of its outputs (Mao et al., ICCV 2017)."""
    return (1 - fake_scores).square().mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Equation 4: real scores are to be 1, those of a generator, which is cut off, 0."""
    return (1 - real_scores).square().mean() + fake_scores.square().mean()


def with_fixed_weights(network: nn.Module, *inputs: Tensor) -> Any:
    """The output of a network, with gradients for its inputs and none for its weights."""
    weights = {name: p.detach() for name, p in network.named_parameters()}
    return functional_call(network, weights, inputs)


def feature_matching(real_maps: Sequence[Tensor], fake_maps: Sequence[Tensor]) -> Tensor:
    """Equation 3 over hidden maps `(B, ...)` of real and made latents. The real ones are constants; the
    denominator is not, as the equation is written."""
    terms = [
        (real.detach() - fake).abs().flatten(1).sum(1) / (fake.abs().flatten(1).sum(1) + EPS)
        for real, fake in zip(real_maps, fake_maps, strict=True)
    ]
    return torch.stack(terms).sum(0).mean()


def decoded_mel_loss(model: Any, prediction: Tensor, target: Tensor, seed: int = 0) -> Tensor:
    """Table 1, row 7: the multi-scale mel distance of decoded latents `(B, C, L)`, through the decoder.

    The reference is the decode of the target latents with the same noise: the best that latents can give,
    and no waveform is needed. Items whose reference is silent do not count. `model`: an autoencoder with
    `decode_with_gradient`, its parameters frozen.
    """
    with torch.no_grad():
        reference = model.decode_with_gradient(target, seed)
    distances = mss(model.decode_with_gradient(prediction, seed), reference, model.sample_rate)
    heard = distances[torch.isfinite(distances)]
    return heard.mean() if len(heard) else 0 * prediction.sum()


class LatentDiscriminator(nn.Module):
    """D of section 3.1.2: six 2-D convolutions over `(B, 1, C, L)`, kernels (3, 7) five times, then (3, 3).

    Padding is 1 on both sides of both axes, stride 1, so a map loses 4 frames in each of the first five
    layers: 21 frames are the fewest. Returns the score `(B, 1, C, L - 20)` and the five hidden maps.
    """

    KERNELS = ((3, 7),) * 5 + ((3, 3),)
    FEWEST_FRAMES = 21

    def __init__(self, channels: int = 256):
        super().__init__()
        widths = [1, *[channels] * 5, 1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(widths[i], widths[i + 1], kernel, padding=1))
            for i, kernel in enumerate(self.KERNELS)
        )

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents `(B, C, L)`. Raises ValueError for another shape and for fewer than 21 frames."""
        if z.ndim != 3 or z.shape[-1] < self.FEWEST_FRAMES:
            needs = f"latents (B, C, L) of {self.FEWEST_FRAMES} frames or more"
            raise ValueError(f"the discriminator needs {needs}, got {tuple(z.shape)}")
        x = z[:, None]
        maps = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.1)
            maps.append(x)
        return self.layers[-1](x), maps


def adversarial_terms(discriminator: LatentDiscriminator, made: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Equations 4, 2 and 3 for latents `(B, C, L)`: what the discriminator minimises, which has no gradient
    for what made them, and what that minimises, which has none for the discriminator's weights."""
    real_score, real_maps = discriminator(real)
    made_score, _ = discriminator(made.detach())
    score, maps = with_fixed_weights(discriminator, made)
    return {
        "discriminator": discriminator_loss(real_score.float(), made_score.float()),
        "adversarial": adversarial_loss(score.float()),
        "matching": feature_matching([m.float() for m in real_maps], [m.float() for m in maps]),
    }


# ---------------------------------------------------------------- the objective


class ReEncoderObjective(TrainingObjective):
    """The weighted losses of a configuration, over batches of inputs `(B, C, L)` and targets, `(B, C, L)` or
    for stereo `(B, 2, C, L)`. Latents count in units of the module's `latent_std`.

    The latent discriminator learns in the same backward pass, from outputs that are cut off from the module,
    and judges them with its weights held fixed.
    """

    model: ReEncoder
    config: ReEncoderTraining

    def __init__(
        self,
        module: ReEncoder,
        config: ReEncoderTraining,
        autoencoder: AutoencoderLike | None = None,
        start: str | Path = "",
    ):
        super().__init__(module.train(), config)
        self.autoencoder = autoencoder
        self.start = str(start)
        self.discriminator = None
        if config.objective == "l1+gan":
            self.discriminator = LatentDiscriminator(config.discriminator_channels)

    @classmethod
    def build(
        cls,
        config: ReEncoderTraining,
        pairs: LatentPairs,
        autoencoder: AutoencoderLike | None = None,
        start: str | Path | None = None,
    ) -> Self:
        """The objective around a new module for the pairs, whose weights are a function of `config.seed`.

        `autoencoder`: for the mel loss, which freezes its parameters. `start`: a module to start from instead
        of the identity. Raises ValueError for pairs of another task, chunks that a loss cannot take and a
        `start` that does not fit; LatentFileError for a `start` or an `autoencoder` of other latents.
        """
        if pairs.task != config.module.task:
            raise ValueError(f"{pairs.folder} has pairs of {pairs.task}, not of {config.module.task}")
        config = replace(config, module=replace(config.module, latent_channels=pairs.channels))
        check_chunks(config, pairs.model["latent_rate"])
        if autoencoder is not None:
            check_same_model(pairs.model, describe(autoencoder), pairs.folder)
        if config.objective == "l1+mel":
            check_decoder(autoencoder, config)
            if isinstance(autoencoder, nn.Module):
                autoencoder.requires_grad_(False)
        else:
            autoencoder = None
        torch.manual_seed(config.seed)
        metadata = {"factor": pairs.factor, "pairs": len(pairs.names)}
        latent_std = pairs.latent_std(pairs.frames(config.chunk_s), config.seed + 1)
        module = ReEncoder(config.module, pairs.model, latent_std, metadata)
        if start is not None:
            fresh = module
            module = ReEncoder.load(start, "cpu")
            if module.config != fresh.config:
                has = f"{start} is a module of {module.config}"
                raise ValueError(f"{has}, this run's is one of {fresh.config}")
            check_same_model(module.autoencoder, fresh.autoencoder, start)
            module.metadata = fresh.metadata
        return cls(module, config, autoencoder, start or "")

    def identity(self) -> dict[str, str]:
        return {"pairs": self.model.autoencoder["fingerprint"], "start": self.start}

    def check_data(self, data: LatentPairs, held_out: LatentPairs | None = None) -> None:
        for pairs in (data, held_out):
            if pairs is not None:
                check_same_model(pairs.model, self.model.autoencoder, pairs.folder)

    def crop_length(self, data: LatentPairs) -> int:
        return data.frames(self.config.chunk_s)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        def adamw(network: nn.Module, rate: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(network.parameters(), rate, weight_decay=self.config.weight_decay)

        found = {"optimizer": adamw(self.model, self.config.learning_rate)}
        if self.discriminator is not None:
            rate = self.config.discriminator_learning_rate
            found["discriminator_optimizer"] = adamw(self.discriminator, rate)
        return found

    def learning_rate(self, optimiser: str, step: int) -> float:
        if optimiser == "optimizer":
            return super().learning_rate(optimiser, step)
        rate = self.config.discriminator_learning_rate
        warmup_steps = self.config.discriminator_warmup_steps
        return rate * step / warmup_steps if step < warmup_steps else rate

    def parts(self) -> dict[str, nn.Module]:
        own = {} if self.discriminator is None else {"discriminator": self.discriminator}
        return {"module": self.model} | own

    def forward(
        self, batch: tuple[Tensor, Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        z_in, z_target = batch
        terms: dict[str, Tensor] = {}
        condition = None
        if self.model.stereo:
            mean, log_variance = (x.float() for x in self.model.posterior(z_target))
            noise = torch.randn(mean.shape, generator=generator, device=generator.device)
            condition = reparameterised(mean, log_variance, noise.to(mean))
            terms["kl"] = kl_divergence(mean, log_variance).sum(-1).mean()
        prediction = self.model(z_in, condition).float()
        scaled = prediction / self.model.latent_std
        wanted = z_target / self.model.latent_std
        terms["l1"] = latent_l1(scaled, wanted)
        if self.discriminator is not None:
            terms |= adversarial_terms(self.discriminator, scaled, wanted)
        if self.config.objective == "l1+mel":
            with torch.autocast(z_in.device.type, enabled=False):
                terms["mel"] = decoded_mel_loss(self.autoencoder, prediction, z_target, seed=step)
        weights = {
            "l1": self.config.reconstruction_weight,
            "kl": self.config.kl_weight,
            "adversarial": self.config.adversarial_weight,
            "matching": self.config.matching_weight,
            "mel": self.config.mel_weight,
        }
        return {"loss": sum(weights[name] * terms[name] for name in weights if name in terms), **terms}

    def minimised(self, terms: dict[str, Tensor]) -> Tensor:
        """The discriminator's own loss besides, which has no gradient for the module."""
        if self.discriminator is None:
            return terms["loss"]
        return terms["loss"] + terms["discriminator"]

    @torch.no_grad()
    def validate(self, held_out: LatentPairs) -> dict[str, float]:
        """Latent L1 of held-out crops, in units of `latent_std`: of the input as it is (`input_l1`) and of
        the module (`l1`; for stereo `prior_l1` and `oracle_l1`, by where the condition is from)."""
        module = self.model
        n_frames = held_out.frames(self.config.chunk_s)
        crops = held_out.crops(range(VALIDATION_PAIRS), n_frames, self.config.seed + 2)
        z_in, z_target = (z.to(module.device) for z in crops)
        if module.stereo:
            oracle = module.oracle(z_target)
            predictions = {"input_l1": z_in[:, None].expand_as(z_target), "prior_l1": module.process(z_in)}
            predictions["oracle_l1"] = module.process(z_in, oracle)
        else:
            predictions = {"input_l1": z_in, "l1": module.process(z_in)}
        return {
            name: (latent_l1(prediction, z_target) / module.latent_std).item()
            for name, prediction in predictions.items()
        }

    def publish(self, folder: Path, data: LatentPairs, metadata: dict[str, Any]) -> None:
        names = ("training", "step", "commit", "command")
        self.model.metadata |= {name: metadata[name] for name in names if name in metadata}
        self.model.save(folder / MODULE)

    def load(self, folder: Path, device: str) -> ReEncoder:
        return ReEncoder.load(folder / MODULE, device)


# ---------------------------------------------------------------- what a recipe needs


def shortest_chunk(config: ReEncoderTraining) -> tuple[int, str]:
    """The latent frames that a training needs in a chunk, and for which of its parts."""
    if config.objective == "l1+gan" and config.module.kernel < LatentDiscriminator.FEWEST_FRAMES:
        return LatentDiscriminator.FEWEST_FRAMES, "the discriminator"
    return config.module.kernel, "the kernel of the blocks"


def fitted(config: ReEncoderTraining, latent_rate: float) -> ReEncoderTraining:
    """The configuration with chunks as long as all parts need at a latent rate, in hundredths of a second."""
    shortest_s = math.ceil(100 * shortest_chunk(config)[0] / latent_rate) / 100
    return replace(config, chunk_s=max(config.chunk_s, shortest_s))


def check_chunks(config: ReEncoderTraining, latent_rate: float) -> None:
    """Raises ValueError for chunks that are too short for a part of the training."""
    n_frames = round(config.chunk_s * latent_rate)
    fewest, part = shortest_chunk(config)
    if n_frames < fewest:
        has = f"chunk_s {config.chunk_s:g} are {n_frames} latent frames at {latent_rate:g} Hz"
        raise ValueError(f"{has}, {part} needs {fewest}: chunk_s={fitted(config, latent_rate).chunk_s:g}")


def check_decoder(autoencoder: AutoencoderLike | None, config: ReEncoderTraining) -> None:
    """Raises ValueError for an autoencoder through which a mel loss of such chunks has no gradient."""
    if autoencoder is None:
        raise ValueError("the mel loss goes through the decoder: give the autoencoder")
    if not hasattr(autoencoder, "decode_with_gradient"):
        lacks = f"{autoencoder.name} has no decode_with_gradient"
        raise ValueError(f"{lacks}: a mel loss cannot reach the latents")
    longest = getattr(getattr(autoencoder, "config", None), "window_frames", math.inf)
    n_frames = round(config.chunk_s * autoencoder.latent_rate)
    if n_frames > longest:
        has = f"chunk_s {config.chunk_s:g} are {n_frames} latent frames, a gradient reaches {longest}"
        raise ValueError(f"{has}: chunk_s={longest / autoencoder.latent_rate:.2f}")


def folders(
    model: AutoencoderLike,
    config: ReEncoderTraining,
    pairs: str | None,
    run: str | None,
    factor: int,
    data: Sequence[str],
) -> tuple[Path, dict[str, Path]]:
    """Run folder and folders of pairs, where they are not given with the model's hash in their names."""
    module = config.module
    owner = f"{model.name.replace('/', '-')}-{describe(model)['fingerprint'][:8]}"
    kind = f"bandwidth-{factor}" if module.task == "bandwidth" else "stereo"
    source = "-".join(Path(name).name for name in data)
    parts = Path(pairs or f"runs/pairs/{owner}") / f"{source}-{kind}"
    shape = f"{module.blocks}x{module.hidden}"
    extra = config.objective if module.task == "bandwidth" else module.layout
    run = Path(run or f"runs/reencoder/{owner}/{kind}-{shape}-{extra}")
    return run, {split: parts / split for split in ("train", "test")}
