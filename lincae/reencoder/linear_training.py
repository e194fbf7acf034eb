"""What a linear pair is trained for: Lin-CAE's arithmetic, on latents of a frozen autoencoder alone.

    lincae reencoder linear --model desk/m2l --data FOLDER --out m2l-linear.safetensors

`linearity.augment` makes waveforms t = a m(x) of originals x: mixtures m, what is left of them, and gains a
of both signs. `linearity.implicit_conditioning` does the same on linear latents, w = a m(phi(Enc(x))).
Minimised is the weighted sum of

    arithmetic  d(psi(w), Enc(t))
    encoder     d(phi(Enc(t)), w)
    identity    d(psi(phi(Enc(t))), Enc(t))      zero by construction for couplings, where it is left out
    adversarial, matching                        optional: a latent discriminator tells psi(w) from Enc(t),
                                                 as that of the other Re-Encoders (equations 2 to 4 there)

with d(p, r) the mean over items of |p - r| / (|r|^2 + |FLOOR s|^2)^(1/2), Euclidean norms and s the deviation
of latents: an error counts relative to its sound, loud or quiet, as the metrics of linearity do. Items of
gain 0 have no arithmetic to learn and are left out.

The autoencoder encodes and is never decoded or changed. Batches are encoded once into a folder and read again
in turn (`EncodedBatches`), or encoded at each step. Axis legend: `B` originals, `V` = 2 B items, `T` samples,
`C` latent channels, `L` latent frames.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from lincae.data.folders import claim
from lincae.interface import AutoencoderLike, check_latents
from lincae.latents.store import describe
from lincae.linearity import AugmentedBatch, LinearityConfig, augment, implicit_conditioning
from lincae.machine import generator
from lincae.machine.files import atomic_write, locked
from lincae.reencoder.linear import LinearConfig, LinearPair
from lincae.reencoder.training import LatentDiscriminator, adversarial_terms
from lincae.training.config import RunConfig
from lincae.training.objective import TrainingData, TrainingObjective

MODULE = "module.safetensors"
MANIFEST = "batches.json"
FLOOR = 0.05
VALIDATION_BATCHES = 4
ARITHMETIC = LinearityConfig(
    gain_min=-3.0,
    gain_max=3.0,
    anneal=False,
    peak=3.0,
    mixture_weights="random",
    input_gain_min=0.05,
    premix_probability=0.25,
    subtraction_probability=0.25,
)


@dataclass(frozen=True)
class LinearTraining(RunConfig):
    """One run. `crop_s`: seconds of an original. `frames`: latent frames of it that a step takes, a stretch
    that is drawn anew each time; 0: all. `encoded_batches`: how many batches are encoded once, and read again
    in turn; 0: every step encodes its own. The rate falls on a cosine to `final_share` of it.
    `tolerated`: relative errors far below it count as their squares, so that a map that is right stays where
    it is. `adversarial_weight`: above 0, a discriminator of `discriminator_channels` learns beside the pair.
    """

    pair: LinearConfig = field(default_factory=LinearConfig)
    linearity: LinearityConfig = ARITHMETIC
    arithmetic_weight: float = 1.0
    encoder_weight: float = 1.0
    identity_weight: float = 5.0
    tolerated: float = 0.01
    adversarial_weight: float = 0.0
    matching_weight: float = 0.1
    discriminator_channels: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_share: float = 0.02
    weight_decay: float = 1e-4
    largest_gradient: float = 1.0
    batch_size: int = 16
    crop_s: float = 2.0
    frames: int = 64
    encoded_batches: int = 200
    steps: int = 10_000
    precision: str = "fp32"
    log_every: int = 100
    validate_every: int = 500
    checkpoint_every: int = 500

    FEWEST_ITEMS = 2  # a mixture takes two
    LOWERABLE: ClassVar[tuple[str, ...]] = ("batch_size", "crop_s", "frames")

    def __post_init__(self):
        """Raises ValueError for values out of range."""
        super().__post_init__()
        if not (self.crop_s > 0 and self.tolerated > 0) or self.frames < 0 or self.encoded_batches < 0:
            needs = "need crop_s > 0, tolerated > 0, frames >= 0 and encoded_batches >= 0"
            raise ValueError(f"{needs}, got {self}")

    @property
    def final_learning_rate(self) -> float:
        return self.final_share * self.learning_rate


# ---------------------------------------------------------------- batches of latents


class Arithmetic(NamedTuple):
    """What one step needs: the latents `(N, C, L)` that the arithmetic starts from, those of what it has to
    give, `(V, C, L)`, and `weights`, `gains` and `subtracted` of a `linearity.AugmentedBatch`."""

    parts: Tensor
    targets: Tensor
    weights: Tensor
    gains: Tensor
    subtracted: Tensor


def encoded(
    model: AutoencoderLike,
    audio: Tensor,
    config: LinearityConfig,
    draw: torch.Generator,
    progress: float = 0.0,
) -> Arithmetic:
    """Originals `(B, T)` augmented and encoded."""
    batch = augment(audio, progress, config, draw)
    parts = []

    def encode(sounds: Tensor) -> Tensor:
        parts.append(model.encode(sounds))
        return parts[0]

    implicit_conditioning(encode, batch, config)
    subtracted = batch.subtracted
    if subtracted is None:
        subtracted = torch.zeros(len(audio), dtype=torch.bool)
    return Arithmetic(parts[0], model.encode(batch.target()), batch.weights, batch.gains, subtracted)


def mixed(latents: Tensor, batch: Arithmetic, config: LinearityConfig) -> Tensor:
    """The arithmetic of a batch `(V, C, L)` on what a map made of its `parts`."""
    no_sound = torch.zeros(len(batch.gains), 1, device=batch.gains.device)
    subtracted = batch.subtracted if config.subtraction_probability > 0 else None
    augmented = AugmentedBatch(no_sound, batch.weights, batch.gains, subtracted)
    return implicit_conditioning(lambda _: latents, augmented, config)


class EncodedBatches:
    """Batches that were encoded once, in a folder; step k reads number k modulo their count."""

    def __init__(self, folder: str | Path, count: int, description: str):
        self.folder = Path(folder)
        self.count = count
        self.description = description

    def crops(self, indices: Sequence[int], length: int, seed: int) -> Arithmetic:
        """The batch of the step that would take these items."""
        number = indices[0] // len(indices) % self.count
        return Arithmetic(**load_file(self.folder / f"{number:05d}.safetensors"))


def encode_batches(
    model: AutoencoderLike,
    data: TrainingData,
    config: LinearTraining,
    folder: str | Path,
    count: int,
    progress: bool = True,
) -> EncodedBatches:
    """Encode `count` batches into a folder, while other processes wait; a later call continues a killed one.

    Raises ValueError for a folder of another model, other data or another configuration, and as `data.crops`.
    """
    folder = Path(folder)
    facts = {"data": data.description, "linearity": asdict(config.linearity), "seed": config.seed}
    facts |= {"batch_size": config.batch_size, "crop_s": config.crop_s, "model": describe(model)}
    claim(folder / MANIFEST, "batches", facts)
    n_samples = round(config.crop_s * model.sample_rate)
    with locked(folder / ".lock"):
        for number in tqdm(range(count), "encoding", unit="batch", disable=not progress):
            path = folder / f"{number:05d}.safetensors"
            if path.exists():
                continue
            first = number * config.batch_size
            audio = data.crops(range(first, first + config.batch_size), n_samples, config.seed)
            batch = encoded(model, audio, config.linearity, generator(config.seed, number, 2))
            tensors = {name: tensor.cpu().contiguous() for name, tensor in batch._asdict().items()}
            with atomic_write(path) as file:
                file.write(save(tensors))
    return EncodedBatches(folder, count, f"{count} encoded batches of {data.description}")


def check_encoder(model: AutoencoderLike) -> None:
    """Raises TypeError or ValueError, with the reason, for latents that no map can make linear: several
    tensors, codes, quantised values, and those of an encoder that draws."""
    noise = 0.1 * torch.randn(1, 2 * model.sample_rate, generator=generator(0), dtype=torch.float32)
    z = model.encode(noise)
    if isinstance(z, tuple | list):
        raise TypeError(
            f"{model.name}: encode returns {len(z)} tensors: lincae.interop.adapters.adapt joins them"
        )
    check_latents(z, name=f"latents of {model.name}")
    values = z.unique().numel()
    if values < z.numel() / 2:
        raise ValueError(
            f"{model.name}: latents are quantised, to {values} values in {z.numel()} numbers, and a sum of "
            "codes is no code: take what the encoder gives to the quantiser"
        )
    if not torch.equal(model.encode(noise), z):
        raise ValueError(f"{model.name}: two latents of one sound differ: take the mean of its posterior")


# ---------------------------------------------------------------- the objective


class LinearObjective(TrainingObjective):
    """The losses of the module docstring, over audio `(B, T)`, which is encoded, or `EncodedBatches`."""

    model: LinearPair
    config: LinearTraining

    def __init__(self, pair: LinearPair, config: LinearTraining, autoencoder: AutoencoderLike):
        super().__init__(pair.train(), config)
        self._frozen = (autoencoder,)  # no part of this module, whose parameters are trained
        self.discriminator = None
        if config.adversarial_weight > 0:
            self.discriminator = LatentDiscriminator(config.discriminator_channels)

    @classmethod
    def build(cls, config: LinearTraining, autoencoder: AutoencoderLike, data: TrainingData) -> Self:
        """The objective around a new pair for a frozen autoencoder, whose weights are a function of
        `config.seed`. `config.pair.latent_channels` is that of the autoencoder.

        Raises as `check_encoder`.
        """
        check_encoder(autoencoder)
        n_samples = round(config.crop_s * autoencoder.sample_rate)
        silence = autoencoder.encode(torch.zeros(1, n_samples))
        batch = data.crops(range(config.batch_size), n_samples, config.seed)
        z = autoencoder.encode(batch) if isinstance(batch, Tensor) else batch.parts
        config = replace(config, pair=replace(config.pair, latent_channels=z.shape[1]))
        torch.manual_seed(config.seed)
        pair = LinearPair(config.pair, describe(autoencoder))
        pair.fit_start(z.cpu(), silence.cpu())
        return cls(pair, config, autoencoder)

    def identity(self) -> dict[str, str]:
        return {"autoencoder": self.model.autoencoder["fingerprint"]}

    def crop_length(self, data: TrainingData) -> int:
        return round(self.config.crop_s * self.model.autoencoder["sample_rate"])

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        config = self.config
        parameters = self.trained()
        return {
            "optimizer": torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        }

    def parts(self) -> dict[str, torch.nn.Module]:
        own = {} if self.discriminator is None else {"discriminator": self.discriminator}
        return {"module": self.model} | own

    @torch.no_grad()
    def prepare(self, batch: Tensor | Arithmetic, step: int, generator: torch.Generator) -> Arithmetic:
        if isinstance(batch, Tensor):
            progress = step / self.config.steps
            batch = encoded(self._frozen[0], batch.float(), self.config.linearity, generator, progress)
        n_frames = batch.targets.shape[-1]
        length = self.config.frames or n_frames
        if length >= n_frames:
            return batch
        first = int(torch.randint(n_frames - length + 1, (), generator=generator, device=generator.device))
        stretch = slice(first, first + length)
        return batch._replace(parts=batch.parts[..., stretch], targets=batch.targets[..., stretch])

    def forward(self, batch: Arithmetic, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        terms = self.terms(batch)
        weights = {
            "arithmetic": config.arithmetic_weight,
            "encoder": config.encoder_weight,
            "identity": config.identity_weight,
            "adversarial": config.adversarial_weight,
            "matching": config.matching_weight,
        }
        return {"loss": sum(weights[name] * terms[name] for name in weights if name in terms), **terms}

    def minimised(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["loss"] + terms.get("discriminator", 0.0)

    def terms(self, batch: Arithmetic) -> dict[str, Tensor]:
        """The terms of the module docstring, and what the discriminator minimises."""
        pair = self.model
        heard = batch.gains != 0
        targets = batch.targets[heard]
        w = mixed(pair.phi(batch.parts), batch, self.config.linearity)[heard]
        w_of_targets = pair.phi(targets)
        std = pair.phi.latent_std
        made = pair.psi(w)
        terms = {"arithmetic": self.distance(made, targets, std)}
        level = w.detach().square().mean().sqrt()
        terms["encoder"] = relative_error(w_of_targets, w, level, self.config.tolerated)
        if pair.config.design == "residual":
            terms["identity"] = self.distance(pair.psi(w_of_targets), targets, std)
        if self.discriminator is not None:
            terms |= adversarial_terms(self.discriminator, made / std, targets / std)
        return terms

    def distance(self, prediction: Tensor, reference: Tensor, level: Tensor) -> Tensor:
        """d of the module docstring between latents of the autoencoder."""
        return relative_error(prediction, reference, level, self.config.tolerated)

    @torch.no_grad()
    def validate(self, held_out: EncodedBatches) -> dict[str, float]:
        """Means of the terms over all held-out batches."""
        rows = []
        for number in range(held_out.count):
            batch = held_out.crops(range(number, number + 1), 0, 0)
            batch = Arithmetic(*(tensor.to(self.model.device) for tensor in batch))
            rows.append(self.terms(batch))
        return {name: sum(row[name].item() for row in rows) / len(rows) for name in rows[0]}

    def publish(self, folder: Path, data: TrainingData, metadata: dict[str, Any]) -> None:
        names = ("training", "data", "step", "commit", "command")
        self.model.metadata |= {name: metadata[name] for name in names if name in metadata}
        self.model.save(folder / MODULE)

    def load(self, folder: Path, device: str) -> LinearPair:
        return LinearPair.load(folder / MODULE, device)


def relative_error(prediction: Tensor, reference: Tensor, level: Tensor, tolerated: float) -> Tensor:
    """d of the module docstring, for items `(n, C, L)`; `level` is s."""
    error = (prediction - reference).flatten(1).square().mean(1)
    energy = reference.flatten(1).square().mean(1) + (FLOOR * level).square()
    return ((error / energy + tolerated**2).sqrt() - tolerated).mean()
