"""The consistency trainer (paper 3.3): one loop on Lightning Fabric, resumable to the bit.

    python -m lincae.training --preset desk --variant lin-cae --data synthetic --run runs/desk-lin-cae

All randomness of step k on process r is a pure function of (seed, k, r), so a resumed run needs no generator
state. A run folder holds `log.csv`, `validation.csv`, `last.ckpt` (training state) and, from the EMA weights,
a checkpoint that `Autoencoder.load` reads. Axis legend: see `lincae.autoencoder`.
"""

import copy
import dataclasses
import json
import logging
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .audio import generator, resolve_device
from .autoencoder import Autoencoder
from .consistency import consistency_loss, precondition, step_size
from .corpora import WeightedFiles
from .linearity import VARIANTS, AugmentedBatch, augment, gain_range, implicit_conditioning
from .recipes import PRESETS, TrainingConfig, recipe
from .runs import Interruption, Log, commit, leave_interrupts, restore, store

STATE, LOG, VALIDATION, SKIPPED = "last.ckpt", "log.csv", "validation.csv", "skipped.csv"
LOG_COLUMNS = ("step", "loss", "lr", "step_size", "gain_min", "gain_max", "grad_norm", "items_per_s")

log = logging.getLogger(__name__)


class TrainingData(Protocol):
    """Item i is a pure function of (seed, i); see `lincae.data`."""

    description: str
    sample_rate: int

    def crops(self, indices: range, n_samples: int, seed: int) -> Tensor: ...


# ---------------------------------------------------------------- one step


class Objective(nn.Module):
    """Loss of one batch: what Fabric wraps, so that precision and gradient averaging apply to `forward`."""

    def __init__(self, model: Autoencoder, config: TrainingConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: AugmentedBatch, step: int, generator: torch.Generator) -> Tensor:
        config, network = self.config, self.model.network
        latents = implicit_conditioning(
            lambda audio: network.encoder(self.spectrogram(audio)), batch, config.linearity
        )
        return consistency_loss(
            precondition(network.denoiser, config.autoencoder.noise),
            self.spectrogram(batch.target()),
            network.condition(latents),
            step_size(step / config.steps, config.consistency),
            config.autoencoder.noise,
            config.consistency,
            generator,
        )

    def spectrogram(self, audio: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            return self.model.transform(audio)


def learning_rate(step: int, config: TrainingConfig) -> float:
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
def validate(model: Autoencoder, audio: Tensor) -> dict[str, float]:
    """What a run should watch, on held-out crops `(B, T)` with B >= 2, B even.

    `rec_rel_l2`: one-step reconstruction error in the transform domain, `rec_snr_db` on the waveform;
    `swap_rel_l2`: the same error when every item is given another item's latent (a decoder that ignores its
    latent scores no worse); `level_ratio`: |Enc(0.1 x)| / |Enc(x)|, 0.1 when homogeneous, 1 when the
    encoder is blind to level; `enc_additivity_error`: relative L2 of Enc(u) + Enc(v) against Enc(u + v).
    """

    def relative(prediction: Tensor, reference: Tensor) -> float:
        error, size = (x.flatten(1).norm(dim=1) for x in (prediction - reference, reference))
        return (error / size).mean().item()

    z = model.encode(audio)
    audio = audio.to(z.device)
    decoded, swapped = model.decode(z, audio.shape[-1]), model.decode(z.roll(1, 0), audio.shape[-1])
    target = model.transform(audio)
    noise_power, power = ((x**2).sum(-1) for x in (decoded - audio, audio))
    u, v = audio.chunk(2)
    return {
        "rec_rel_l2": relative(model.transform(decoded), target),
        "swap_rel_l2": relative(model.transform(swapped), target),
        "rec_snr_db": (10 * torch.log10(power / noise_power)).mean().item(),
        "level_ratio": (model.encode(0.1 * audio).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1))
        .mean()
        .item(),
        "enc_additivity_error": relative(sum(z.chunk(2)), model.encode(u + v)),
    }


# ---------------------------------------------------------------- the loop


class NonFiniteError(RuntimeError):
    """Training met a loss or gradient that is not finite."""


def train(
    config: TrainingConfig,
    data: TrainingData,
    run_dir: str | Path,
    *,
    validation: Tensor | None = None,
    name: str | None = None,
    device: str = "auto",
    devices: int = 1,
    workers: int = 0,
    stop_at: int | None = None,
    progress: bool = True,
) -> Autoencoder:
    """Train, or continue the run in `run_dir`, until `config.steps` (or `stop_at`); returns the EMA model.

    `validation`: held-out audio `(B, T)` for `validate`. `workers`: processes that load data. Ctrl-C and
    SIGTERM finish the step, write a checkpoint and then end the run. Raises ValueError when `run_dir`
    holds a run of another configuration (showing the difference), NonFiniteError with the step, the
    learning rate and the last good checkpoint.
    """
    run_dir, device_ = Path(run_dir), resolve_device(device)
    if data.sample_rate != config.autoencoder.sample_rate:
        rates = f"{data.sample_rate} Hz, the model works at {config.autoencoder.sample_rate} Hz"
        raise ValueError(f"the data ({data.description}) is at {rates}: load it at the model's rate")
    run_dir.mkdir(parents=True, exist_ok=True)
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if device_.type == "cuda" else "32-true"
    fabric = Fabric(accelerator=device_.type, devices=devices, precision=precision)
    fabric.launch()
    torch.manual_seed(config.seed)
    model = Autoencoder(config.autoencoder, name or run_dir.name)
    ema = copy.deepcopy(model).eval().requires_grad_(False).to(fabric.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.RAdam(parameters, lr=config.learning_rate, foreach=True)
    objective, optimizer = fabric.setup(Objective(model, config), optimizer)

    state = {"model": model.network, "ema": ema.network, "optimizer": optimizer}
    first = restore(state, dataclasses.asdict(config), run_dir / STATE)
    stop = min(config.steps, config.steps if stop_at is None else stop_at)
    logs = (
        {LOG: Log(run_dir / LOG, first), VALIDATION: Log(run_dir / VALIDATION, first)}
        if fabric.is_global_zero
        else {}
    )
    metadata = {
        "step": first,
        "data": data.description,
        "training": dataclasses.asdict(config),
        "commit": commit(),
    }

    def checkpoint(step: int) -> None:
        fabric.barrier()
        if fabric.is_global_zero:
            ema.metadata = {**metadata, "step": step}
            ema.config = replace(config.autoencoder, latent_scale=latent_scale(ema, config, data))
            ema.save(run_dir)
            store(state, dataclasses.asdict(config), step, run_dir / STATE)

    if isinstance(data, WeightedFiles):
        data.share_skipped(run_dir / SKIPPED)
    batches = StepBatches(config, data, fabric.global_rank, fabric.world_size)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, stop),
        num_workers=workers,
        worker_init_fn=leave_interrupts,
    )
    bar = tqdm(
        loader, initial=first, total=stop, unit="step", disable=not (progress and fabric.is_global_zero)
    )
    meter = Meter(config)
    saved, step = first, first
    with Interruption() as interruption:
        for step, audio in zip(range(first, stop), bar, strict=True):
            generate = generator(config.seed, step, fabric.global_rank, 1, device=fabric.device)
            optimizer.param_groups[0]["lr"] = lr = learning_rate(step, config)
            batch = augment(audio.to(fabric.device), step / config.steps, config.linearity, generate)
            loss = objective(batch, step, generate)
            optimizer.zero_grad()
            fabric.backward(loss)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            meter.add(loss, norm, len(batch.gains) * fabric.world_size)
            done = step + 1
            # Reading numbers off an accelerator waits for it: there, only as often as they are written.
            read = done % config.log_every == 0 or done % config.checkpoint_every == 0 or done == stop
            if (read or fabric.device.type == "cpu") and not meter.finite():
                raise NonFiniteError(
                    f"loss or gradient is not finite at step {step} (lr {lr:.3g}); last good checkpoint: "
                    + (f"{run_dir} at step {saved}" if saved else "none")
                )
            optimizer.step()
            if done % config.ema_every == 0:
                update_ema(ema, model, done // config.ema_every, config.ema_max_decay)
            if done % config.log_every == 0 and logs:
                row = meter.row(done, lr)
                logs[LOG].write(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{lr:.2g}", refresh=False)
            if validation is not None and logs and (done % config.validate_every == 0 or done == stop):
                logs[VALIDATION].write({"step": done, **validate(ema, validation)})
            if done % config.checkpoint_every == 0 or done == stop or interruption.signal:
                checkpoint(done)
                saved = done
            if interruption.signal:
                break
    if isinstance(data, WeightedFiles) and data.skipped and fabric.is_global_zero:
        log.warning(data.skip_report())
    interruption.raise_if_any()
    return Autoencoder.load(run_dir, device=str(fabric.device))


class StepBatches:
    """Item k is the batch of step k on this process: items are numbered through, rank after rank."""

    def __init__(self, config: TrainingConfig, data: TrainingData, rank: int, world: int):
        self.config, self.data, self.rank, self.world = config, data, rank, world

    def __getitem__(self, step: int) -> Tensor:
        size = self.config.batch_size
        start = (step * self.world + self.rank) * size
        return self.data.crops(range(start, start + size), self.config.crop_samples, self.config.seed)


class Meter:
    """Sums since the last row, kept on the device until they are read."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.clear()

    def clear(self) -> None:
        self.loss = self.norm = 0.0
        self.steps = self.items = 0
        self.since = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor, items: int) -> None:
        self.loss, self.norm = self.loss + loss.detach(), self.norm + norm.detach()
        self.steps, self.items = self.steps + 1, self.items + items

    def finite(self) -> bool:
        return math.isfinite(float(self.loss)) and math.isfinite(float(self.norm))

    def row(self, done: int, lr: float) -> dict[str, float]:
        """One row of the log: means since the last one; schedules as of the step just done."""
        progress = (done - 1) / self.config.steps
        low, high = gain_range(progress, self.config.linearity)
        speed = self.items / (time.perf_counter() - self.since)
        delta = step_size(progress, self.config.consistency)
        loss, norm = float(self.loss) / self.steps, float(self.norm) / self.steps
        self.clear()
        return dict(zip(LOG_COLUMNS, (done, loss, lr, delta, low, high, norm, round(speed, 2)), strict=True))


def latent_scale(model: Autoencoder, config: TrainingConfig, data: TrainingData, n_items: int = 64) -> float:
    """The factor that gives the network's latents unit standard deviation on (other) items of the data."""
    audio = data.crops(range(n_items), config.crop_samples, config.seed + 1)
    model.config = replace(model.config, latent_scale=1.0)
    z = torch.cat([model.encode(part) for part in audio.split(config.batch_size)])
    return 1 / max(z.std().item(), 1e-8)


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    import argparse

    from .data import training_data

    parser = argparse.ArgumentParser(
        "python -m lincae.training", description="Train a consistency autoencoder."
    )
    parser.add_argument("--preset", default="desk", choices=PRESETS)
    parser.add_argument("--variant", default="lin-cae", choices=VARIANTS)
    parser.add_argument(
        "--data", nargs="+", default=["synthetic"], help="synthetic, FOLDER=WEIGHT ... or shards:FOLDER"
    )
    parser.add_argument("--run", help="run folder, continued if it exists (default: runs/PRESET-VARIANT)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="e.g. steps=1000 linearity.gain_max=2"
    )
    options = parser.parse_args(arguments)
    try:
        changes = dict(assignment(text) for text in options.set)
        config = recipe(options.preset, options.variant, **changes)
        rate = config.autoencoder.sample_rate
        data, held_out = training_data(options.data, rate, split="train"), None
        if options.data == ["synthetic"]:
            held_out = training_data(options.data, rate, split="test").crops(
                range(16), config.crop_samples, 0
            )
        run = options.run or f"runs/{options.preset}-{options.variant}"
        train(
            config,
            data,
            run,
            validation=held_out,
            device=options.device,
            devices=options.devices,
            workers=options.workers,
        )
    except (ValueError, FileNotFoundError, NonFiniteError) as error:
        sys.exit(f"error: {error}")


def assignment(text: str) -> tuple[str, Any]:
    """ "a.b=1" -> ("a.b", 1); values are JSON, or else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes FIELD=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


if __name__ == "__main__":
    main()
