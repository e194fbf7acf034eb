"""The trainer (paper 3.3): one loop on Lightning Fabric, resumable to the bit.

    python -m lincae.training --preset desk --variant lin-cae --data synthetic --run runs/desk-lin-cae
    python -m lincae.training --preset desk --variant lin-vae
    torchrun --nproc-per-node 4 -m lincae.training --preset paper --data FOLDER=WEIGHT ...

The crops of step k are a pure function of (seed, k), whatever the number W of processes; process r takes the
r-th of W equal parts. What depends on W: an item is mixed with its neighbour within its part, and gains,
noise levels and noise are a pure function of (seed, k, r). Gradients are averaged over the processes.

A resumed run thus needs no generator state. A run folder holds `log.csv`, `validation.csv`, `state-STEP.ckpt`
(training states) and, from the EMA weights, a checkpoint that `lincae.load` reads; another one in `best/`,
of the highest `rec_snr_db` in a validation. What is trained, and what it minimises, is an objective's matter
(`lincae.training.objective.TrainingObjective`). Axis legend: see `lincae.autoencoder`.
"""

import contextlib
import copy
import dataclasses
import logging
import math
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lincae.autoencoder import FramewiseAutoencoder
from lincae.machine import commit, generator, hardware, keep_freed_memory, resolve_device
from lincae.training.config import RunConfig
from lincae.training.objective import (
    SkippingData,
    TrainingData,
    TrainingObjective,
    compile_network,
    learning_rate,
    update_ema,
)
from lincae.training.optimisers import optimisers
from lincae.training.runs import (
    Interruption,
    Log,
    Meter,
    NonFiniteError,
    alone,
    explained,
    launched,
    leave_interrupts,
    newest,
    restore,
    store,
)

LOG, VALIDATION, SKIPPED = "log.csv", "validation.csv", "skipped.csv"


BEST, CRITERION = "best", "rec_snr_db"


log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the loop


def train(
    objective: TrainingObjective,
    data: TrainingData,
    run_dir: str | Path,
    *,
    validation: Tensor | None = None,
    name: str | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    workers: int = 0,
    keep: int = 2,
    regroup: bool = False,
    compiler: str | None = None,
    stop_at: int | None = None,
    progress: bool = True,
    command: str | None = None,
) -> FramewiseAutoencoder:
    """Train, or continue the run in `run_dir`, until `its last step (or `stop_at`); returns the EMA model.

    `objective`: a model and what it minimises (`lincae.interop.recipes.objective_of` makes one of a recipe).

    `validation`: held-out audio `(B, T)` for `validate`. `devices`: processes on each of `nodes` machines (by
    default what torchrun or SLURM started, else 1); they share `run_dir`. `workers`: processes that load data
    for each of them. `keep`: the newest training states that stay. `regroup`: continue a run of another
    number of processes. `compiler`: a backend of torch.compile, such as inductor, which takes minutes first.
    `command`: what started the run, for the checkpoint's card.

    Ctrl-C and SIGTERM finish the step (several processes: the row of the log), write a checkpoint and then
    end the run. A damaged training state is put aside for the one before, with a warning. Raises ValueError
    where batch and processes do not match, and when `run_dir` holds a run of another configuration or number
    of processes (showing the difference); NonFiniteError, OutOfMemoryError and OSError (such as a full disk)
    with the step and the last good checkpoint; BlockingIOError while another process trains in `run_dir`.
    """
    config = objective.config
    run_dir, device_ = Path(run_dir), resolve_device(device)
    if data.sample_rate != config.sample_rate:
        rates = f"{data.sample_rate} Hz, the model works at {config.sample_rate} Hz"
        raise ValueError(f"the data ({data.description}) is at {rates}: load it at the model's rate")
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    devices, nodes = launched(devices, nodes)
    config.share(devices * nodes)
    run_dir.mkdir(parents=True, exist_ok=True)
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if device_.type == "cuda" else "32-true"
    chosen_devices = devices if device_.index is None or devices > 1 else [device_.index]
    fabric = Fabric(accelerator=device_.type, devices=chosen_devices, num_nodes=nodes, precision=precision)
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    model = objective.model
    model.name = name or run_dir.name
    ema = copy.deepcopy(model).eval().requires_grad_(False).to(fabric.device)
    if compiler:
        compile_network(model, compiler)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    chosen = optimisers(config.optimiser, parameters, config.learning_rate)
    wrapped, *chosen = fabric.setup(objective, *chosen)

    main_process, several = fabric.is_global_zero, fabric.world_size > 1
    lock = alone(run_dir) if main_process else contextlib.nullcontext()
    meter, described = Meter(), dataclasses.asdict(config)
    state = {"model": model.network, "ema": ema.network, "meter": meter, **objective.parts()}
    state |= dict(zip(("optimizer", "muon"), chosen, strict=False))
    path = fabric.broadcast(newest(run_dir) if main_process else None)
    first = restore(state, described, fabric.world_size, path, regroup) if path else 0
    stop = min(config.steps, config.steps if stop_at is None else stop_at)
    logs = {kind: Log(run_dir / kind, first) for kind in (LOG, VALIDATION)} if main_process else {}
    best = logs[VALIDATION].best(CRITERION) if logs and (run_dir / BEST).exists() else -math.inf
    metadata = {"data": data.description, "training": described, "commit": commit()}
    metadata |= {"hardware": hardware(fabric.device), **({"command": command} if command else {})}

    def publish(step: int, folders: list[Path]) -> None:
        ema.metadata = {"step": step, **metadata}
        objective.publish(ema, folders, data)

    if isinstance(data, SkippingData):
        data.share_skipped(run_dir / SKIPPED)
    batches = StepBatches(config, data, fabric.global_rank, fabric.world_size)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, stop),
        num_workers=workers,
        worker_init_fn=leave_interrupts,
    )
    bar = tqdm(loader, initial=first, total=stop, unit="step", disable=not (progress and main_process))
    saved, step, stopping = first, first, None

    def where() -> str:
        last = f"{run_dir} at step {saved}" if saved else "none"
        return f"step {step} (lr {learning_rate(step, config):.3g}); last good checkpoint: {last}"

    lowerable = {key: described[key] for key in ("batch_size", "crop_frames", "precision")}
    with lock, Interruption() as interruption, explained(lowerable, where):
        for step, audio in zip(range(first, stop), bar, strict=True):
            generate = generator(config.seed, step, fabric.global_rank, 1, device=fabric.device)
            lr = learning_rate(step, config)
            for optimizer in chosen:
                optimizer.param_groups[0]["lr"] = lr
                optimizer.zero_grad()
            batch = objective.prepare(audio.to(fabric.device), step, generate)
            loss = wrapped(batch, step, generate)
            fabric.backward(loss)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            meter.add(loss, norm)
            done, stopping = step + 1, interruption.signal
            checkpoints = done % config.checkpoint_every == 0 or done == stop
            # Reading numbers off an accelerator waits for it: there, only as often as they are written.
            read = done % config.log_every == 0 or checkpoints or fabric.device.type == "cpu"
            if several:  # they stop together, or some would wait for the gradients of the others
                stopping = read and int(fabric.all_reduce(float(stopping or 0), reduce_op="max"))
                meter.loss = fabric.all_reduce(meter.loss) if read else meter.loss
            read = read or bool(stopping)
            if read and not meter.finite():
                raise NonFiniteError(f"loss or gradient is not finite at {where()}")
            for optimizer in chosen:
                optimizer.step()
            if done % config.ema_every == 0:
                update_ema(ema, model, done // config.ema_every, config.ema_max_decay)
            if done % config.log_every == 0 and logs:
                loss_mean, norm_mean, steps_per_s = meter.means()
                row = {
                    "step": done,
                    "loss": loss_mean,
                    "lr": lr,
                    **objective.schedules((done - 1) / config.steps),
                }
                row |= {"grad_norm": norm_mean, "items_per_s": round(2 * config.batch_size * steps_per_s, 2)}
                logs[LOG].write(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}", lr=f"{lr:.2g}", refresh=False)
            folders = [run_dir] if checkpoints or stopping else []
            if validation is not None and logs and (done % config.validate_every == 0 or done == stop):
                scores = objective.validate(ema, validation)
                logs[VALIDATION].write({"step": done, **scores})
                if scores[CRITERION] > best:
                    best = scores[CRITERION]
                    folders.append(run_dir / BEST)
            if folders and main_process:
                publish(done, folders)
            if checkpoints or stopping:
                if main_process:
                    store(state, described, done, fabric.world_size, run_dir, keep)
                fabric.barrier()
                saved = done
            if stopping:
                break
    if isinstance(data, SkippingData) and data.skipped and fabric.is_global_zero:
        log.warning(data.skip_report())
    interruption.raise_if_any(stopping)
    return objective.model_class.load(run_dir, device=str(fabric.device))


class StepBatches:
    """Item k is this process's part of the batch of step k, which is the same for any number of processes."""

    def __init__(self, config: RunConfig, data: TrainingData, rank: int, world: int):
        self.config, self.data, self.rank, self.world = config, data, rank, world

    def __getitem__(self, step: int) -> Tensor:
        size = self.config.share(self.world)
        start = step * self.config.batch_size + self.rank * size
        return self.data.crops(range(start, start + size), self.config.crop_samples, self.config.seed)
