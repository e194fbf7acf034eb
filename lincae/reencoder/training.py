"""Training of a Re-Encoder over pairs of cached latents (section 3.2), resumable to the bit.

    python -m lincae.commands.reencoder bandwidth --preset desk --model desk/lin-cae
    python -m lincae.commands.reencoder bandwidth --preset full --size m --objective l1+gan \
        --model lin-cae --data FOLDER ...

No waveform is decoded, but for the mel loss of Table 1's row 7. The crops of step k and all noise are pure
functions of (seed, k), so a resumed run needs no generator state. A run folder holds `log.csv`,
`validation.csv`, `state-STEP.ckpt` and `module.safetensors`, which `ReEncoder.load` reads.

Axis legend: `B` batch, `C` latent channels, `L` latent frames.
"""

import dataclasses
import logging
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lincae.interface import AutoencoderLike
from lincae.latents.store import check_same_model, describe
from lincae.machine import commit, generator, resolve_device
from lincae.reencoder.config import ReEncoderTraining, learning_rate
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.objective import (
    LatentDiscriminator,
    adversarial_loss,
    decoded_mel_loss,
    discriminator_loss,
    feature_matching,
    kl_divergence,
    latent_l1,
    reparameterised,
)
from lincae.reencoder.pairs import LatentPairs
from lincae.training.runs import (
    Interruption,
    Log,
    NonFiniteError,
    alone,
    explained,
    newest,
    restore,
    store,
)

MODULE, LOG, VALIDATION = "module.safetensors", "log.csv", "validation.csv"


log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the loop


def train(
    config: ReEncoderTraining,
    pairs: LatentPairs,
    run_dir: str | Path,
    *,
    validation: LatentPairs | None = None,
    model: AutoencoderLike | None = None,
    start: str | Path | None = None,
    device: str = "auto",
    keep: int = 2,
    stop_at: int | None = None,
    progress: bool = True,
) -> ReEncoder:
    """Train a module, or continue the run in `run_dir`, until `config.steps` (or `stop_at`); returns it.

    `model`: the autoencoder, needed for the mel loss alone. `start`: a module to start from instead of the
    identity. `config.module.latent_channels` is taken from the pairs.

    Raises ValueError for pairs of another task, a `start` that does not fit and a run folder of another
    configuration; LatentFileError for a `model`, `start` or `validation` of another autoencoder;
    NonFiniteError, with the step; BlockingIOError while another process trains in `run_dir`.
    """
    run_dir, device_ = Path(run_dir), resolve_device(device)
    if pairs.task != config.module.task:
        raise ValueError(
            f"{pairs.folder} has pairs of {pairs.task}, the module is one of {config.module.task}"
        )
    config = replace(config, module=replace(config.module, latent_channels=pairs.channels))
    if validation is not None:
        check_same_model(validation.model, pairs.model, validation.folder)
    if model is not None:
        check_same_model(pairs.model, describe(model), pairs.folder)
    if config.objective == "l1+mel" and model is None:
        raise ValueError("the mel loss goes through the decoder: give the autoencoder as model")
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    n_frames = pairs.frames(config.chunk_s)
    metadata = {"training": dataclasses.asdict(config), "factor": pairs.factor, "pairs": len(pairs.names)}
    module = ReEncoder(config.module, pairs.model, pairs.latent_std(n_frames, config.seed + 1), metadata)
    if start is not None:
        module = _started(start, module)
    module = module.train().to(device_)
    adversary = Adversary(config).to(device_) if config.objective == "l1+gan" else None
    optimizer = torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    sums = Sums()
    state = {"module": module, "optimizer": optimizer, "sums": sums}
    if adversary:
        state |= {"discriminator": adversary.network, "discriminator_optimizer": adversary.optimizer}
    described = dataclasses.asdict(config) | {"pairs": pairs.model["fingerprint"], "start": str(start or "")}
    path = newest(run_dir)
    first = restore(state, described, 1, path, False) if path else 0
    stop = min(config.steps, config.steps if stop_at is None else stop_at)
    logs = {kind: Log(run_dir / kind, first) for kind in (LOG, VALIDATION)}
    saved = step = first

    def where() -> str:
        last = f"{run_dir} at step {saved}" if saved else "none"
        return f"step {step} (lr {learning_rate(step, config):.3g}); last good checkpoint: {last}"

    lowerable = {"batch_size": config.batch_size, "chunk_s": config.chunk_s}
    bar = tqdm(range(first, stop), initial=first, total=stop, unit="step", disable=not progress)
    with alone(run_dir), Interruption() as interruption, explained(lowerable, where):
        for step in bar:
            batch = range(step * config.batch_size, (step + 1) * config.batch_size)
            z_in, z_target = (z.to(device_) for z in pairs.crops(batch, n_frames, config.seed))
            optimizer.param_groups[0]["lr"] = learning_rate(step, config)
            losses = step_losses(module, adversary, model, z_in, z_target, config, step)
            optimizer.zero_grad()
            losses["loss"].backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
            sums.add(losses | {"grad_norm": norm})
            done = step + 1
            finishing = done % config.checkpoint_every == 0 or done == stop or interruption.signal
            # reading numbers off an accelerator waits for it: there, only as often as they are written
            read = device_.type == "cpu" or done % config.log_every == 0 or finishing
            if read and not sums.finite():
                raise NonFiniteError(f"loss or gradient is not finite at {where()}")
            optimizer.step()
            if done % config.log_every == 0:
                row = {"step": done, "lr": learning_rate(step, config), **sums.means()}
                logs[LOG].write(row)
                bar.set_postfix(l1=f"{row['l1']:.4g}", refresh=False)
            if validation is not None and (done % config.validate_every == 0 or done == stop):
                logs[VALIDATION].write({"step": done, **validate(module, validation, config)})
            if finishing:
                module.metadata = metadata | {"step": done, "commit": commit()}
                module.save(run_dir / MODULE)
                store(state, described, done, 1, run_dir, keep)
                saved = done
            if interruption.signal:
                break
    interruption.raise_if_any(None)
    return ReEncoder.load(run_dir / MODULE, str(device_))


class Adversary:
    """The latent discriminator and its optimiser."""

    def __init__(self, config: ReEncoderTraining):
        self.config, self.network = config, LatentDiscriminator(config.discriminator_channels)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.discriminator_learning_rate, weight_decay=config.weight_decay
        )

    def to(self, device: torch.device) -> "Adversary":
        self.network.to(device)
        return self

    def learn(self, real: Tensor, fake: Tensor, step: int, autocast: torch.autocast) -> Tensor:
        """One step of equation 4; returns the loss."""
        warm = min(1.0, (step + 1) / self.config.discriminator_warmup_steps)
        self.optimizer.param_groups[0]["lr"] = self.config.discriminator_learning_rate * warm
        self.network.requires_grad_(True)
        with autocast:
            scores = self.network(real)[0], self.network(fake.detach())[0]
        loss = discriminator_loss(*(score.float() for score in scores))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.network.requires_grad_(False)
        return loss.detach()

    def judge(self, real: Tensor, fake: Tensor, autocast: torch.autocast) -> tuple[Tensor, Tensor]:
        """Equations 2 and 3."""
        with autocast:
            with torch.no_grad():
                real_maps = self.network(real)[1]
            score, maps = self.network(fake)
        return adversarial_loss(score.float()), feature_matching(
            [m.float() for m in real_maps], [m.float() for m in maps]
        )


def step_losses(
    module: ReEncoder,
    adversary: Adversary | None,
    model: AutoencoderLike | None,
    z_in: Tensor,
    z_target: Tensor,
    config: ReEncoderTraining,
    step: int,
) -> dict[str, Tensor]:
    """`loss`, the weighted sum, and its terms, of one batch; the discriminator learns first.

    Latents count in units of the module's `latent_std`.
    """
    autocast = torch.autocast(z_in.device.type, torch.bfloat16, enabled=config.precision == "bf16")
    terms: dict[str, Tensor] = {}
    with autocast:
        if module.stereo:
            mean, log_variance = (x.float() for x in module.posterior(z_target))
            noise = torch.randn(mean.shape, generator=generator(config.seed, step, 1)).to(mean)
            prediction = module(z_in, reparameterised(mean, log_variance, noise)).float()
            terms["kl"] = kl_divergence(mean, log_variance)
        else:
            prediction = module(z_in).float()
    scaled, wanted = prediction / module.latent_std, z_target / module.latent_std
    terms["l1"] = latent_l1(scaled, wanted)
    if adversary:
        terms["discriminator"] = adversary.learn(wanted, scaled, step, autocast)
        terms["adversarial"], terms["matching"] = adversary.judge(wanted, scaled, autocast)
    if config.objective == "l1+mel":
        terms["mel"] = decoded_mel_loss(model, prediction, z_target, seed=step)
    weights = {
        "l1": config.reconstruction_weight,
        "kl": config.kl_weight,
        "adversarial": config.adversarial_weight,
        "matching": config.matching_weight,
        "mel": config.mel_weight,
    }
    return {"loss": sum(weights[key] * terms[key] for key in weights if key in terms)} | terms


@torch.no_grad()
def validate(module: ReEncoder, pairs: LatentPairs, config: ReEncoderTraining, items: int = 32) -> dict:
    """Latent L1 of held-out crops, in units of `latent_std`: `input_l1` of the input left as it is (a mono
    latent in both channels), `l1` of the module; of mono-to-stereo with a condition from the prior
    (`prior_l1`) and the oracle's (`oracle_l1`)."""
    z_in, z_target = (
        z.to(module.device) for z in pairs.crops(range(items), pairs.frames(config.chunk_s), config.seed + 2)
    )
    unit = 1 / module.latent_std
    left = z_in[:, None].expand_as(z_target) if module.stereo else z_in
    scores = {"input_l1": unit * latent_l1(left, z_target)}
    if module.stereo:
        scores["prior_l1"] = unit * latent_l1(module.process(z_in), z_target)
        scores["oracle_l1"] = unit * latent_l1(module.process(z_in, module.oracle(z_target)), z_target)
    else:
        scores["l1"] = unit * latent_l1(module.process(z_in), z_target)
    return {key: value.item() for key, value in scores.items()}


def _started(start: str | Path, fresh: ReEncoder) -> ReEncoder:
    """The module in a file, for a run of the same shape on the same autoencoder."""
    module = ReEncoder.load(start, "cpu")
    if module.config != fresh.config:
        raise ValueError(f"{start} is a module of {module.config}, this run's is one of {fresh.config}")
    check_same_model(module.autoencoder, fresh.autoencoder, start)
    module.metadata = fresh.metadata
    return module


class Sums:
    """Sums of what a step measures, since the last row of the log; part of the training state."""

    def __init__(self):
        self.totals: dict[str, Tensor | float] = {}
        self.steps = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            self.totals[key] = self.totals.get(key, 0.0) + value.detach()
        self.steps += 1

    def finite(self) -> bool:
        return all(math.isfinite(float(total)) for total in self.totals.values())

    def means(self) -> dict[str, float]:
        means = {key: float(total) / self.steps for key, total in self.totals.items()}
        self.totals, self.steps = {}, 0
        return means

    def state_dict(self) -> dict:
        return {"totals": {key: float(total) for key, total in self.totals.items()}, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.totals, self.steps = dict(state["totals"]), state["steps"]


def folders(
    model: AutoencoderLike,
    config: ReEncoderTraining,
    pairs: str | None = None,
    run: str | None = None,
    factor: int = 2,
    data: list[str] | None = None,
) -> tuple[Path, dict[str, Path]]:
    """Run folder and folders of pairs. Their names hold the model's hash: another model of the same name
    gets folders of its own."""
    module = config.module
    owner = f"{model.name.replace('/', '-')}-{describe(model)['fingerprint'][:8]}"
    kind = f"bandwidth-{factor}" if module.task == "bandwidth" else "stereo"
    source = "-".join(Path(name).name for name in data or ["synthetic"])
    parts = Path(pairs or f"runs/pairs/{owner}") / f"{source}-{kind}"
    shape = f"{module.blocks}x{module.hidden}"
    extra = config.objective if module.task == "bandwidth" else module.layout
    run = Path(run or f"runs/reencoder/{owner}/{kind}-{shape}-{extra}")
    return run, {split: parts / split for split in ("train", "test")}


def _frozen(model):
    return model if model is None or not hasattr(model, "requires_grad_") else model.requires_grad_(False)
