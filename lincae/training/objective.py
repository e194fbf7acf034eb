"""What the trainer minimises, follows and watches: loss, learning rate, EMA, validation (paper 3.3)."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from lincae.autoencoder import Autoencoder, FramewiseAutoencoder
from lincae.checkpoints import unwrapped
from lincae.consistency import consistency_loss, precondition, step_size
from lincae.interface import check_audio
from lincae.linearity import AugmentedBatch, augment, gain_range, implicit_conditioning
from lincae.machine.kernels import compile_loops
from lincae.metrics import relative_l2, snr_db
from lincae.network import Network
from lincae.training.config import AutoencoderRunConfig, RunConfig, TrainingConfig
from lincae.training.optimisers import optimisers
from lincae.training.runs import source

N_NAMED = 8
"""Items whose levels tell one source of data from another."""


class TrainingData(Protocol):
    """Crops to train on. Item i is a pure function of (seed, i); see `lincae.data`. What goes on without
    files that it cannot read has `skipped`, `share_skipped` and `skip_report` besides."""

    description: str

    def crops(self, indices: range, length: int, seed: int) -> Any:
        """Items `indices`: audio (B, length), or what else the objective is made for."""


# ---------------------------------------------------------------- what a run asks for


class TrainingObjective(nn.Module):
    """All that the training loop asks of what it trains. Fabric wraps it, so that precision and gradient
    averaging apply to `forward`."""

    criterion: ClassVar[str | None] = None
    """The column of a validation by whose highest value the checkpoint in `best/` is chosen, if any."""

    def __init__(self, model: nn.Module, config: RunConfig):
        super().__init__()
        self.model = model
        self.config = config

    def identity(self) -> dict[str, str]:
        """What makes a run another one besides its configuration; compared when it is resumed."""
        return {}

    def check_data(self, data: TrainingData, held_out: Any = None) -> None:
        """Raises ValueError for data that the model cannot be trained or validated on."""

    def crop_length(self, data: TrainingData) -> int:
        """The `length` that `data.crops` is asked for."""
        raise NotImplementedError

    def sources(self, data: TrainingData, held_out: Any) -> dict[str, dict[str, Any] | None]:
        """The data and what validation hears, as a training state names them (`runs.Origin`)."""
        named = {}
        for name, items in (("data", data), ("validation", held_out)):
            named[name] = None
            if isinstance(items, Tensor):
                named[name] = source(f"{len(items)} items of {items.shape[-1]} samples", items)
            elif items is not None:
                crops = items.crops(range(N_NAMED), self.crop_length(items), self.config.seed)
                named[name] = source(items.description, crops if isinstance(crops, Tensor) else crops[0])
        return named

    def begin(self, name: str) -> None:
        """Called once, before the optimisers are made and a training state is read."""

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """By their names in a training state; together they take all of `trained`."""
        raise NotImplementedError

    def learning_rate(self, optimiser: str, step: int) -> float:
        """The rate of one of `optimisers`; the log shows that of "optimizer"."""
        return learning_rate(step, self.config)

    def prepare(self, batch: Any, step: int, generator: torch.Generator) -> Any:
        """What `forward` takes, from the crops of a step; outside Fabric's precision."""
        return batch

    def forward(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name, each a column of the log; "loss" is `minimised`."""
        raise NotImplementedError

    def minimised(self, terms: dict[str, Tensor]) -> Tensor:
        """What the backward pass starts from."""
        return terms["loss"]

    def follow(self, done: int) -> None:
        """Called after each update of the parameters, with the number of steps that are done."""

    def parts(self) -> dict[str, nn.Module]:
        """By name, what a training state holds besides optimisers."""
        raise NotImplementedError

    def schedules(self, progress: float) -> dict[str, float]:
        """Columns of the log at `progress` = step / steps."""
        return {}

    def validate(self, held_out: Any) -> dict[str, float]:
        """A row of `validation.csv` from held-out data of the form that `train` was given."""
        raise NotImplementedError

    def publish(self, folder: Path, data: TrainingData, metadata: dict[str, Any]) -> None:
        """Write a checkpoint into a folder. Leaves everything as it was, to the bit: a run goes on."""
        raise NotImplementedError

    def load(self, folder: Path, device: str) -> nn.Module:
        """What was published into a folder."""
        raise NotImplementedError


class AutoencoderObjective(TrainingObjective):
    """What the objectives of autoencoders share: the paper's augmentation, and an EMA, which is what is
    validated and published. A subclass says which model, and the loss."""

    criterion = "rec_snr_db"
    model_class: ClassVar[type[FramewiseAutoencoder]]
    model: FramewiseAutoencoder
    config: AutoencoderRunConfig

    @classmethod
    def build(cls, config: AutoencoderRunConfig, name: str = "autoencoder") -> Self:
        """The objective around a new model of that name, whose weights are a function of `config.seed`."""
        torch.manual_seed(config.seed)
        return cls(cls.model_class(config.autoencoder, name), config)

    def check_data(self, data: TrainingData, held_out: Tensor | None = None) -> None:
        if data.sample_rate != self.config.sample_rate:
            wanted = f"the model works at {self.config.sample_rate} Hz: load it at that rate"
            raise ValueError(f"the data ({data.description}) is at {data.sample_rate} Hz, {wanted}")
        if held_out is not None and len(check_audio(held_out, name="validation")) % 2:
            raise ValueError(f"validation takes an even number of items, got {len(held_out)}")

    def crop_length(self, data: TrainingData) -> int:
        return self.config.crop_samples

    def begin(self, name: str) -> None:
        self.model.name = name
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return optimisers(self.config.optimiser, self.trained(), self.config.learning_rate)

    def prepare(self, audio: Tensor, step: int, generator: torch.Generator) -> Any:
        return augment(audio.float(), step / self.config.steps, self.config.linearity, generator)

    def follow(self, done: int) -> None:
        if done % self.config.ema_every == 0:
            update_ema(self.ema, self.model, done // self.config.ema_every, self.config.ema_max_decay)

    def parts(self) -> dict[str, nn.Module]:
        return {"model": unwrapped(self.model.network), "ema": unwrapped(self.ema.network)}

    def schedules(self, progress: float) -> dict[str, float]:
        low, high = gain_range(progress, self.config.linearity)
        return {"gain_min": low, "gain_max": high}

    def validate(self, held_out: Tensor) -> dict[str, float]:
        return validate(self.ema, held_out)

    def publish(self, folder: Path, data: TrainingData, metadata: dict[str, Any]) -> None:
        self.ema.metadata = metadata
        latent_scale = self.latent_scale(self.ema, data)
        self.ema.config = replace(self.config.autoencoder, latent_scale=latent_scale)
        self.ema.save(folder)
        self.ema.config = self.config.autoencoder

    def load(self, folder: Path, device: str) -> FramewiseAutoencoder:
        return self.model_class.load(folder, device)

    def latent_scale(self, model: FramewiseAutoencoder, data: TrainingData, n_items: int = 64) -> float:
        """The factor that gives the network's latents unit deviation on (other) items of the data."""
        audio = data.crops(range(n_items), self.config.crop_samples, self.config.seed + 1)
        model.config = replace(model.config, latent_scale=1.0)
        z = torch.cat([model.encode(part) for part in audio.split(self.config.batch_size)])
        return 1 / max(z.std().item(), 1e-8)

    def spectrogram(self, audio: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            return self.model.transform(audio)


class Objective(AutoencoderObjective):
    """Consistency training (paper 3.3)."""

    model_class = Autoencoder
    model: Autoencoder
    config: TrainingConfig

    def schedules(self, progress: float) -> dict[str, float]:
        return {"step_size": step_size(progress, self.config.consistency), **super().schedules(progress)}

    def forward(self, batch: AugmentedBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        network = unwrapped(self.model.network)
        latents = implicit_conditioning(
            lambda audio: network.encoder(self.spectrogram(audio)), batch, config.linearity
        )
        loss = consistency_loss(
            precondition(network.denoiser, config.autoencoder.noise),
            self.spectrogram(batch.target()),
            network.pyramid(latents),
            step_size(step / config.steps, config.consistency),
            config.autoencoder.noise,
            config.consistency,
            generator,
        )
        return {"loss": loss}


# ---------------------------------------------------------------- parts of an objective


def compile_network(model: nn.Module, compiler: str | None, device: torch.device) -> None:
    """Let a backend of torch.compile, "backend" or "backend:mode", take what it makes faster; the state dict
    stays as it is. None: nothing. What does not compile runs without, and torch's log says why.

    For a consistency autoencoder on a CPU these are the loops of `lincae.machine.kernels` in the whole
    process; elsewhere the network's parts, for the shapes of a step, which are all alike. Raises ValueError
    for an unknown backend or mode, naming the known ones.
    """
    network = unwrapped(getattr(model, "network", model))
    on_cpu = isinstance(network, Network) and device.type == "cpu"
    options = compiler_options(compiler) if compiler else None
    compile_loops(options if on_cpu else None)
    if options is None:
        return
    torch._dynamo.config.suppress_errors = True
    if not on_cpu:
        for part in network.children():
            part.compile(**options, dynamic=False if isinstance(network, Network) else None)


def compiler_options(compiler: str) -> dict[str, str]:
    """Arguments of torch.compile for "backend" or "backend:mode". Raises as `compile_network`."""
    backend, separator, mode = compiler.partition(":")
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"unknown compiler {backend!r}; choose from {known}")
    if not separator:
        return {"backend": backend}
    modes = list(torch._inductor.list_mode_options()) if backend == "inductor" else []
    if mode not in modes:
        raise ValueError(f"unknown mode {mode!r} of {backend}; choose from {', '.join(modes) or 'none'}")
    return {"backend": backend, "mode": mode}


def learning_rate(step: int, config: RunConfig) -> float:
    """Linear from 0 over the warm-up, then a cosine to the final rate at `steps` (section 3.3)."""
    warmup_steps = config.warmup_steps
    peak = config.learning_rate
    final = config.final_learning_rate
    if step < warmup_steps:
        return peak * step / warmup_steps
    moved = (step - warmup_steps) / max(1, config.steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * moved))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, n_updates: int, max_decay: float) -> None:
    """EMA update number `n_updates` (from 1), with a decay that grows up to `max_decay`."""
    decay = min(max_decay, (1 + n_updates) / (10 + n_updates))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def validate(model: FramewiseAutoencoder, audio: Tensor) -> dict[str, float]:
    """What a run should watch: means over held-out crops `(B, T)`, B even, without silent references.

    `rec_rel_l2`: one-step reconstruction error in the transform domain, `rec_snr_db` on the waveform.
    `swap_rel_l2`: the same error with another item's latent, no worse where a decoder ignores its latent.
    `level_ratio`: |Enc(0.1 x)| / |Enc(x)|, 0.1 when homogeneous, 1 when the encoder is blind to level.
    `enc_additivity_error`: relative L2 of Enc(u) + Enc(v) against Enc(u + v), `dec_additivity_snr_db` of
    their decodes. `dec_homogeneity_snr_db`: Dec(0.5 z) against 0.5 Dec(z). All decodes share their noise.
    """

    def decode(z: Tensor) -> Tensor:
        return model.decode(z, length=audio.shape[-1])

    z = model.encode(audio)
    audio = audio.to(z.device)
    u, v = audio.chunk(2)
    z_u, z_v = z.chunk(2)
    z_of_sum = model.encode(u + v)
    z_quiet = model.encode(0.1 * audio)
    decoded = decode(z)
    target = model.transform(audio)
    measured = {
        "rec_rel_l2": relative_l2(model.transform(decoded), target),
        "swap_rel_l2": relative_l2(model.transform(decode(z.roll(1, 0))), target),
        "rec_snr_db": snr_db(decoded, audio),
        "level_ratio": z_quiet.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1),
        "enc_additivity_error": relative_l2(z_u + z_v, z_of_sum),
        "dec_homogeneity_snr_db": snr_db(decode(0.5 * z), 0.5 * decoded),
        "dec_additivity_snr_db": snr_db(decode(z_u + z_v), decode(z_of_sum)),
    }
    return {name: values.nanmean().item() for name, values in measured.items()}
