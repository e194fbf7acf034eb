"""Our training step against the official one: seconds, peak memory, and what limits ours.

    python benchmarks/training_step.py                # writes training_step.csv beside this file
    python benchmarks/training_step.py --preset desk --items 8 --repeats 20 --no-write
    python benchmarks/training_step.py --settings bf16 --no-counts    # minutes: steps and memory alone

The official trainer is not in the `linear-cae` package; its step is rebuilt here from the package's modules,
in the order and with the settings of the released code: NCHW, nn.MultiheadAttention, the encoder on all 2 B
items, two transforms, a teacher with graph, per-tensor EMA; fp32 on the CPU, fp16 autocast with a gradient
scaler on CUDA, there also compiled. Ours is `lincae.training`'s objective with its optimizer and EMA. Both
take turns in one process and are compared by the median of `--repeats` steps after one to warm up. On a CPU
ours keeps freed memory (`keep_freed_memory`) and the peer has glibc's thresholds, but also the memory that
ours has kept: alone it is slower. Memory is the peak of a process of its own (CUDA: of the allocator).

Rows: `step` in s and `memory` in MiB, with `low` and `high` the least and greatest ratio of neighbouring
steps; `operations` and `traffic`, the multiplications and additions of a step and the bytes that its
operators read and write; `peak`, what the machine reaches in arithmetic (the better of a matrix product of
4096 and a 3x3 convolution of 256 channels) and in a copy. `peak_share` is our share of that arithmetic,
`bound_s` the seconds that the operations would take at the one peak and then the traffic at the other.
"""

import argparse
import csv
import ctypes
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import lincae
from lincae.linearity import augment
from lincae.machine import generator, resolve_device
from lincae.training.config import TrainingConfig
from lincae.training.environment import keep_freed_memory
from lincae.training.objective import Objective, compile_network, update_ema

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from official import build

MIB, GIB = 2**20, 2**30
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")
COLUMNS += ("low", "high", "peak_share", "bound_s", "hardware")
# Setting: ours, the peer's.
SETTINGS = {
    "cpu": {
        "fp32": ("fp32", "fp32"),
        "bf16": ("bf16", "fp32"),
    },
    "cuda": {
        "bf16": ("bf16", "fp16"),
        "compiled": ("bf16 compiled", "fp16 compiled"),
        "compiled, official not": ("bf16 compiled", "fp16"),
    },
}


class Ours:
    def __init__(self, config: TrainingConfig, device: torch.device, how: str):
        self.config, self.device, self.bf16 = config, device, "bf16" in how
        self.model = lincae.Autoencoder(config.autoencoder).to(device)
        self.ema = lincae.Autoencoder(config.autoencoder).to(device).requires_grad_(False)
        if "compiled" in how:
            compile_network(self.model, "inductor", device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.RAdam(self.parameters, lr=1e-4, foreach=True)
        self.objective = Objective(self.model, config)

    def step(self, audio: Tensor, k: int) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        generate = generator(0, k, device=self.device)
        batch = augment(audio, k / self.config.steps, self.config.linearity, generate)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.objective(batch, k, generate)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.optimizer.step()
        if k % self.config.ema_every == 0:
            update_ema(self.ema, self.model, k // self.config.ema_every + 1, self.config.ema_max_decay)
        loss.item()


class Official:
    def __init__(self, config: TrainingConfig, device: torch.device, how: str):
        self.config, self.device = config, device
        model = build(config.autoencoder).to(device).train()
        self.frontend, self.diffusion = model.frontend, model.diffusion.to(device)
        self.unet = model.generator.requires_grad_(True)
        if "compiled" in how:
            for part in (self.unet.encoder, self.unet.decoder):
                part.compile()
            self.unet.forward_generator = torch.compile(self.unet.forward_generator)
        self.half = "fp16" in how
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)
        self.optimizer = torch.optim.RAdam(self.unet.parameters(), lr=1e-4)
        self.shadow = [p.detach().clone() for p in self.unet.parameters()]

    def step(self, audio: Tensor, k: int) -> None:
        if self.device.type == "cpu":
            default_freed_memory()
        n, device, diffusion = len(audio), self.device, self.diffusion
        w = 0.5 + 0.5 * torch.rand(n, device=device)
        mixed = w[:, None] * audio + (1 - w[:, None]) * audio.roll(1, 0)
        both = torch.cat((audio, mixed))
        gains = torch.where(torch.rand(2 * n, device=device) < 0.8, 3 * torch.rand(2 * n, device=device), 1.0)
        gains = torch.minimum(gains, 1 / (both.abs().amax(-1) + 1e-7))
        clean = self.frontend.to_representation(both)
        target = self.frontend.to_representation(gains[:, None] * both)
        index = torch.multinomial(diffusion.get_sampling_weights(10_000, device), 2 * n, replacement=True)
        t2 = (index + torch.rand(2 * n, device=device)) / 9999
        step = diffusion.get_step_schedule(k, self.config.steps)
        sigma2 = diffusion.get_sigma_continuous(t2)
        sigma1 = diffusion.get_sigma_continuous(diffusion.get_step_continuous(t2, step))
        eps = torch.randn_like(target)
        with torch.autocast(device.type, torch.float16, enabled=self.half):
            z = self.unet.encoder(clean)
            z = torch.cat((z[:n], w[:, None, None] * z[:n] + (1 - w[:, None, None]) * z[:n].roll(1, 0)))
            z = gains[:, None, None] * z
            pyramid = self.unet.decoder(z)
            noisy1, noisy2 = (diffusion.add_noise(target, eps, sigma) for sigma in (sigma1, sigma2))
            teacher = self.unet.forward_generator(z, noisy1, sigma1, pyramid).detach()
            student = self.unet.forward_generator(z, noisy2, sigma2, pyramid)
        c = 0.00054 * target[0].numel() ** 0.5
        distance = ((teacher.float() - student.float()).square().flatten(1).sum(-1) + c * c).sqrt() - c
        loss = (distance * diffusion.get_loss_weight(sigma2, sigma1)).mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        torch.norm(torch.stack([p.grad.norm() for p in self.unet.parameters() if p.grad is not None]))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if k % self.config.ema_every == 0:
            with torch.no_grad():
                for shadow, p in zip(self.shadow, self.unet.parameters(), strict=True):
                    shadow.lerp_(p, 0.1)
        loss.item()


def default_freed_memory() -> None:
    """glibc's settings again, as its dynamic thresholds leave them after the first large blocks."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_mmap_max, m_mmap_threshold, m_trim_threshold = -4, -3, -1  # of malloc.h
        mallopt(m_mmap_max, 65536)
        mallopt(m_mmap_threshold, 32 * MIB)
        mallopt(m_trim_threshold, 64 * MIB)


class Traffic(TorchDispatchMode):
    """Counts the operations, and the bytes of the tensors that operators take and return; views move none."""

    n_bytes = n_flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.n_flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.n_bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def seconds(act: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident_peak_mib() -> float:
    """Of this process alone (Linux): getrusage's would begin with that of the process it was forked from."""
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in text)
    return int(line.split()[1]) / 1024


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of dense arithmetic, of the better of two libraries, and bytes/s of a copy: best of five."""
    size, (items, channels, n) = 4096, (8, 256, 64)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    maps = torch.randn(items, channels, n, n, device=device).to(dtype)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    source = torch.ones(GIB // 4, device=device)
    copy = torch.empty_like(source)

    def rate(amount: float, act: Callable[[], object]) -> float:
        return amount / min(seconds(act, device) for _ in range(5))

    product = rate(2 * size**3, lambda: a @ b)
    convolution = rate(2 * 9 * items * (channels * n) ** 2, lambda: F.conv2d(maps, kernel, padding=1))
    return max(product, convolution), rate(2 * GIB, lambda: copy.copy_(source))


def peak_memory(side: str, how: str, options: argparse.Namespace) -> float:
    """MiB of one side's steps in a process of their own."""
    command = [sys.executable, __file__, "--preset", options.preset, "--items", str(options.items)]
    command += ["--device", options.device, "--memory-of", side, how]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


SIDES = {"ours": Ours, "peer": Official}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="official")
    parser.add_argument("--items", type=int, default=2, help="B; the network sees 2 B")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--label", help="device name in the CSV (default: cpu or cuda)")
    parser.add_argument("--settings", nargs="+", help="(default: all of the device)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hardware", default="", help="what to call the machine in the CSV")
    parser.add_argument("--no-counts", action="store_true", help="no rows but step and memory")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "HOW"), help="print a side's peak in MiB")
    options = parser.parse_args()
    device = resolve_device(options.device)
    config = lincae.recipe(options.preset, "lin-cae", batch_size=options.items)
    torch.manual_seed(0)
    audio = 0.1 * torch.randn(options.items, config.crop_samples, device=device)
    if options.memory_of:
        side, how = options.memory_of
        taking = SIDES[side](config, device, how)
        for k in range(2):  # the second with gradients and the optimizer's state there
            taking.step(audio, k)
        cuda = device.type == "cuda"
        print(torch.cuda.max_memory_allocated() / MIB if cuda else resident_peak_mib())
        return

    label = options.label or device.type
    threads = f"{torch.get_num_threads()} threads, " if device.type == "cpu" else ""
    hardware = (
        f"{options.hardware or platform.processor() or device.type}, {threads}torch {torch.__version__}"
    )
    path = Path(__file__).with_suffix(".csv")
    rows = list(csv.DictReader(path.open())) if path.exists() else []

    def write(
        name: str, setting: str, unit: str, ours: float, peer: float | None = None, **more: float
    ) -> None:
        values = {"ours": ours, "peer": peer, "ratio": peer and peer / ours, **more}
        shown = {key: "" if value is None else f"{value:.4g}" for key, value in values.items()}
        if device.type == "cpu" and torch.get_num_threads() == 1:
            setting += ", one thread"
        row = {
            "name": name,
            "device": label,
            "setting": setting,
            "unit": unit,
            "hardware": hardware,
            **shown,
        }
        key = ("name", "device", "setting")
        rows[:] = [kept for kept in rows if any(kept[k] != row[k] for k in key)] + [row]
        print({k: v for k, v in row.items() if k != "hardware"}, flush=True)
        if not options.no_write:  # at once: a later row that fails loses nothing
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(rows)

    settings, counts = SETTINGS[device.type], {}
    for setting in options.settings or settings:
        how = settings[setting]
        ours, peer = (side(config, device, h) for side, h in zip(SIDES.values(), how, strict=True))
        for side in (ours, peer):
            side.step(audio, 0)
        times = []
        for k in range(1, options.repeats + 1):
            times.append(
                [seconds(lambda side=side, k=k: side.step(audio, k), device) for side in (ours, peer)]
            )
            print(setting, *times[-1], flush=True)
        mine, theirs = (statistics.median(side) for side in zip(*times, strict=True))
        for side, key in zip((ours, peer), zip(SIDES, how, strict=True), strict=True):
            if "compiled" in setting or key in counts or options.no_counts:
                continue
            attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
            with attention, Traffic() as products:
                side.step(audio, 1)
            with Traffic() as traffic:
                side.step(audio, 1)
            counts[key] = products.n_flops, traffic.n_bytes
        dtype = torch.bfloat16 if "bf16" in how[0] else torch.float32
        ratios = [b / a for a, b in times]
        more = {"low": min(ratios), "high": max(ratios)}
        if "compiled" not in setting and not options.no_counts:
            arithmetic, copy = peaks(device, dtype)
            sides = [counts[key] for key in zip(SIDES, how, strict=True)]
            n_flops, n_bytes = sides[0]
            more["peak_share"] = n_flops / mine / arithmetic
            more["bound_s"] = n_flops / arithmetic + n_bytes / copy
            write("operations", setting, "TFLOP", *(side[0] / 1e12 for side in sides))
            write("traffic", setting, "GB", *(side[1] / 1e9 for side in sides))
            write("peak", f"{setting} arithmetic", "GFLOP/s", arithmetic / 1e9)
            write("peak", f"{setting} copy", "GB/s", copy / 1e9)
        write("step", setting, "s", mine, theirs, **more)
        del ours, peer
        write("memory", setting, "MiB", *map(peak_memory, SIDES, how, [options] * 2))


if __name__ == "__main__":
    main()
