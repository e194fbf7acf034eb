"""What the trainer minimises, follows and watches: loss, learning rate, EMA, validation (paper 3.3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from lincae.autoencoder import Autoencoder, FramewiseAutoencoder
from lincae.consistency import consistency_loss, precondition, step_size
from lincae.linearity import AugmentedBatch, augment, gain_range, implicit_conditioning
from lincae.training.config import RunConfig, TrainingConfig


class TrainingData(Protocol):
    """Crops to train on. Item i is a pure function of (seed, i); see `lincae.data`."""

    description: str
    sample_rate: int

    def crops(self, indices: range, n_samples: int, seed: int) -> Tensor:
        """Items `indices` as audio (B, n_samples)."""


@runtime_checkable
class SkippingData(Protocol):
    """Training data that goes on without the files that it cannot read, and keeps a list of them."""

    skipped: Mapping[str, str]
    """File -> reason: all that failed so far, in any process of the run."""

    def share_skipped(self, path: str | Path) -> None:
        """List them in the CSV `path` (file, reason): to be called before data workers start."""

    def skip_report(self) -> str:
        """One line for the log: how many, the first with their reasons, where the list is."""


class TrainingObjective(nn.Module):
    """All that the trainer asks of what it trains. A subclass says which model, and the loss of a batch in
    `forward(batch, step, generator)`; the rest is as it suits an autoencoder, and may be overridden.

    Fabric wraps it, so that precision and gradient averaging apply to `forward`. All of its parameters that
    require a gradient are trained; the EMA and the checkpoint are of `model`, whose `network` they are.
    """

    model_class: ClassVar[type[FramewiseAutoencoder]]

    def __init__(self, model: nn.Module, config: RunConfig):
        super().__init__()
        self.model, self.config = model, config

    @classmethod
    def build(cls, config: RunConfig, name: str = "autoencoder") -> Self:
        """The objective around a new model of that name, whose weights are a function of `config.seed`."""
        torch.manual_seed(config.seed)
        return cls(cls.model_class(config.autoencoder, name), config)

    def prepare(self, audio: Tensor, step: int, generator: torch.Generator) -> Any:
        """What `forward` takes, from the crops `(B, T)` of a step; outside Fabric's precision."""
        return augment(audio, step / self.config.steps, self.config.linearity, generator)

    def parts(self) -> dict[str, nn.Module]:
        """By name, what a training state holds besides model and EMA."""
        return {}

    def schedules(self, progress: float) -> dict[str, float]:
        """Columns of the log at `progress` = step / steps."""
        low, high = gain_range(progress, self.config.linearity)
        return {"gain_min": low, "gain_max": high}

    def validate(self, model: Any, audio: Tensor) -> dict[str, float]:
        """A row of `validation.csv`; the higher its `rec_snr_db`, the better."""
        return validate(model, audio)

    def publish(self, model: Any, folders: Sequence[Path], data: TrainingData) -> None:
        """Write checkpoints of the EMA model, which afterwards is as it was, to the bit: a resumed run goes
        on with it."""
        model.config = replace(self.config.autoencoder, latent_scale=self.latent_scale(model, data))
        for folder in folders:
            model.save(folder)
        model.config = self.config.autoencoder

    def latent_scale(self, model: FramewiseAutoencoder, data: TrainingData, n_items: int = 64) -> float:
        """The factor that gives the network's latents unit deviation on (other) items of the data."""
        audio = data.crops(range(n_items), self.config.crop_samples, self.config.seed + 1)
        model.config = replace(model.config, latent_scale=1.0)
        z = torch.cat([model.encode(part) for part in audio.split(self.config.batch_size)])
        return 1 / max(z.std().item(), 1e-8)

    def spectrogram(self, audio: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            return self.model.transform(audio)


class Objective(TrainingObjective):
    """Consistency training (paper 3.3)."""

    model_class = Autoencoder
    model: Autoencoder
    config: TrainingConfig

    def schedules(self, progress: float) -> dict[str, float]:
        return {"step_size": step_size(progress, self.config.consistency), **super().schedules(progress)}

    def forward(self, batch: AugmentedBatch, step: int, generator: torch.Generator) -> Tensor:
        config, network = self.config, self.model.network
        latents = implicit_conditioning(
            lambda audio: network.encoder(self.spectrogram(audio)), batch, config.linearity
        )
        return consistency_loss(
            precondition(network.denoiser, config.autoencoder.noise),
            self.spectrogram(batch.target()),
            network.condition(latents, calls=2),
            step_size(step / config.steps, config.consistency),
            config.autoencoder.noise,
            config.consistency,
            generator,
        )


def compile_network(model: nn.Module, backend: str) -> None:
    """Let a backend of torch.compile take the parts of the network; the state dict stays as it is."""
    for part in model.network.children():
        part.compile(backend=backend)


def learning_rate(step: int, config: RunConfig) -> float:
    """Linear from 0 over the warm-up, then a cosine to the final rate at `steps` (section 3.3)."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    moved = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + 0.5 * span * (1 + math.cos(math.pi * moved))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, n_updates: int, max_decay: float) -> None:
    """EMA update number `n_updates` (from 1). The warmed-up decay forgets the initial weights at once, and
    until it reaches `max_decay` averages over the latest tenth of the training."""
    decay = min(max_decay, (1 + n_updates) / (10 + n_updates))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def validate(model: FramewiseAutoencoder, audio: Tensor) -> dict[str, float]:
    """What a run should watch, on held-out crops `(B, T)` with B >= 2, B even.

    `rec_rel_l2`: one-step reconstruction error in the transform domain, `rec_snr_db` on the waveform;
    `swap_rel_l2`: the same error when every item is given another item's latent (a decoder that ignores its
    latent scores no worse); `level_ratio`: |Enc(0.1 x)| / |Enc(x)|, 0.1 when homogeneous, 1 when the
    encoder is blind to level; `enc_additivity_error`: relative L2 of Enc(u) + Enc(v) against Enc(u + v);
    `dec_homogeneity_snr_db`: Dec(0.5 z) against 0.5 Dec(z); `dec_additivity_snr_db`: Dec(Enc(u) + Enc(v))
    against Dec(Enc(u + v)). All decodes start from the same noise.
    """

    def relative(prediction: Tensor, reference: Tensor) -> float:
        error, size = (x.flatten(1).norm(dim=1) for x in (prediction - reference, reference))
        return (error / size).mean().item()

    def snr_db(prediction: Tensor, reference: Tensor) -> float:
        noise_power, power = ((x**2).sum(-1) for x in (prediction - reference, reference))
        return (10 * torch.log10(power / noise_power)).mean().item()

    z = model.encode(audio)
    audio = audio.to(z.device)
    u, v = audio.chunk(2)
    z_sum, z_of_sum, z_quiet = sum(z.chunk(2)), model.encode(u + v), model.encode(0.1 * audio)
    decode = partial(model.decode, length=audio.shape[-1])
    decoded, target = decode(z), model.transform(audio)
    return {
        "rec_rel_l2": relative(model.transform(decoded), target),
        "swap_rel_l2": relative(model.transform(decode(z.roll(1, 0))), target),
        "rec_snr_db": snr_db(decoded, audio),
        "level_ratio": (z_quiet.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).mean().item(),
        "enc_additivity_error": relative(z_sum, z_of_sum),
        "dec_homogeneity_snr_db": snr_db(decode(0.5 * z), 0.5 * decoded),
        "dec_additivity_snr_db": snr_db(decode(z_sum), decode(z_of_sum)),
    }
