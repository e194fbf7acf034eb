"""The day a GPU is at hand: every path that runs on one, then speed and memory, in nine minutes.

    python benchmarks/gpu.py                      # on CUDA; what is measured goes into three tables
    python benchmarks/gpu.py --only smoke
    python benchmarks/gpu.py --pretend            # the same on a CPU at tiny sizes: no times, no tables

`smoke` trains every objective for three steps, in each precision and compiled, and encodes, decodes and
streams with what it trained; after a failure it goes on, and the script fails at its end. Rows in gpu.csv:
seconds, or the error. Then training_step.py runs on preset official (ours and the official step, both eager
and compiled), and inference.py at 10, 60 and 600 s against both peers; they write tables of their own, with
memory. Peers that are not installed are left out (`pip install --no-deps linear-cae==0.1.4
music2latent==0.1.8`), and what the minutes do not suffice for is named.
"""

import argparse
import csv
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import lincae
from lincae.interop.recipes import objective_of
from lincae.machine import free_bytes, generator, precisions, resolve_device
from lincae.reencoder.linear import LinearConfig
from lincae.reencoder.linear_training import LinearObjective, LinearTraining
from lincae.reencoder.pairs import LatentPairs, Source, write_pairs
from lincae.reencoder.training import ReEncoderObjective, fitted, recipe
from lincae.training.loop import train
from lincae.training.objective import compile_network

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit", "hardware")
RATE = 16000  # of preset test
VARIANTS = ("m2l", "lin-cae", "lin-cae-odd-sub", "vae", "lin-vae", "lin-bypass")
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
ONCE = {"steps": 3, "log_every": 1, "checkpoint_every": 3, "validate_every": 3}


class Noise:
    """Training data of which item i is noise."""

    description, sample_rate = "noise", RATE

    def crops(self, indices, length: int, seed: int) -> Tensor:
        return torch.stack([0.1 * torch.randn(length, generator=generator(seed, i)) for i in indices])


class Smoke:
    """Every path on one device, in a folder of its own."""

    def __init__(self, device: torch.device, folder: Path):
        self.device, self.folder = device, folder
        # The compiler itself takes minutes on a CPU: there, tracing has to do.
        self.backend = "inductor" if device.type == "cuda" else "eager"
        self.runs = itertools.count()

    def trained(self, objective, data, **options) -> torch.nn.Module:
        folder = self.folder / f"run {next(self.runs)}"
        return train(objective, data, folder, device=str(self.device), progress=False, **options)

    def train(self, variant: str, precision: str = "fp32", **options) -> None:
        config = lincae.recipe("test", variant, precision=precision, **ONCE)
        held_out = Noise().crops(range(2), config.crop_samples, 1)
        model = self.trained(objective_of(config), Noise(), validation=held_out, **options)
        self.use(model)

    def use(self, model: lincae.Autoencoder) -> None:
        """Encode, decode, excerpts, streams, within a budget; each against the whole."""
        audio = 0.1 * torch.randn(2, 3 * RATE)
        z = model.encode(audio)
        decoded = model.decode(z, audio.shape[1])
        assert z.isfinite().all()
        assert decoded.isfinite().all()
        assert z.device.type == decoded.device.type == self.device.type
        streamed = torch.cat(list(model.encode_stream(audio.split(5000, dim=1))), dim=-1)
        assert torch.equal(streamed, z)
        heard = torch.cat(list(model.decode_stream(z.split(7, dim=-1), audio.shape[1])), dim=-1)
        assert torch.equal(heard, decoded)
        few = z[..., :8].clone().requires_grad_()
        model.decode_with_gradient(few).square().sum().backward()
        assert few.grad.isfinite().all()

    def infer(self, precision: str) -> None:
        model = self.model()
        model.precision, model.memory_gb = precision, 0.8 * free_bytes(self.device) / 1e9
        self.use(model)
        model.decode(model.encode(0.1 * torch.randn(1, RATE)), steps=2)

    def infer_compiled(self) -> None:
        model = self.model()
        compile_network(model, self.backend, self.device)
        model.decode(model.encode(0.1 * torch.randn(1, RATE)))

    def model(self) -> lincae.Autoencoder:
        return lincae.Autoencoder(lincae.recipe("test").autoencoder, "untrained").to(self.device).eval()

    def reencode(self, task: str, objective: str) -> None:
        model = self.model()
        channels = 2 if task == "stereo" else 1
        sources = [Source(f"{i}", lambda _rate: 0.1 * torch.randn(channels, 2 * RATE)) for i in range(2)]
        written = write_pairs(model, sources, self.folder / f"{task} {objective}", task, progress=False)
        config = recipe(task, "test", objective=objective)
        config = fitted(replace(config, chunk_s=0.5, **ONCE), model.latent_rate)
        decoder = model if objective == "l1+mel" else None
        goal = ReEncoderObjective.build(config, LatentPairs(written), decoder)
        module = self.trained(goal, LatentPairs(written))
        assert module.process(model.encode(0.1 * torch.randn(1, RATE))).isfinite().all()

    def linear_pair(self) -> None:
        model = self.model()
        pair = LinearConfig(latent_channels=model.config.network.latent_channels, hidden=16, layers=2)
        once = {key: value for key, value in ONCE.items() if key != "validate_every"}
        config = LinearTraining(pair=pair, batch_size=2, crop_s=0.5, warmup_steps=1, frames=0, **once)
        self.trained(LinearObjective.build(config, model, Noise()), Noise())

    def paths(self) -> Iterator[tuple[str, Callable[[], None]]]:
        offered = [p for p in precisions(self.device) if p != "fp16"]
        for variant in VARIANTS:
            yield f"train {variant}", partial(self.train, variant)
        for precision in offered[1:]:
            yield f"train lin-cae, {precision}", partial(self.train, "lin-cae", precision)
        yield "train lin-cae, compiled", partial(self.train, "lin-cae", offered[-1], compiler=self.backend)
        for precision in precisions(self.device):
            yield f"encode and decode, {precision}", partial(self.infer, precision)
        yield "encode and decode, compiled", self.infer_compiled
        for objective in ("l1", "l1+gan", "l1+mel"):
            yield f"Re-Encoder {objective}", partial(self.reencode, "bandwidth", objective)
        yield "Re-Encoder stereo", partial(self.reencode, "stereo", "l1")
        yield "linear pair", self.linear_pair


def smoke(device: torch.device, write: Callable[..., None]) -> int:
    """Rows of all paths; returns how many failed."""
    n_failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, path in Smoke(device, Path(folder)).paths():
            start = time.perf_counter()
            try:
                path()
                said = "ok"
            except FAILURES as error:
                n_failed += 1
                said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            write("smoke", name, said, time.perf_counter() - start)
    return n_failed


def comparisons(pretend: bool, hardware: str) -> dict[str, list[str]]:
    """The other scripts that are to run, with their arguments, where their peers are installed."""
    device = "cpu" if pretend else "cuda"
    has = {name: importlib.util.find_spec(name.replace("-", "_")) for name in ("linear-cae", "music2latent")}
    tiny = ["--preset", "test", "--no-write"] if pretend else []
    asked = {}
    if has["linear-cae"]:
        few = ["--settings", "fp32", "--repeats", "1"] if pretend else ["--repeats", "10"]
        named = ["--label", hardware.split()[-1].lower(), "--hardware", hardware]
        asked["training_step.py"] = ["--device", device, *named, *few, *tiny]
    peers = ["linear-cae windows"] * bool(has["linear-cae"])
    if not pretend:
        peers += [name for name, found in has.items() if found]
    lengths, few = (
        (["0.5"], ["--precisions", "fp32"]) if pretend else (["10", "60", "600"], ["--repeats", "2"])
    )
    what = ["--only", "times", "--seconds", *lengths, "--peers", *peers]
    asked["inference.py"] = ["--device", device, *what, *few, *tiny]
    return asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretend", action="store_true", help="on the CPU, tiny, no times, nothing written")
    parser.add_argument("--only", choices=["smoke", "training_step.py", "inference.py"])
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop")
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    device = resolve_device("cpu" if asked.pretend else "cuda")
    hardware = "cpu" if asked.pretend else torch.cuda.get_device_name(device)
    rows = []

    def write(name: str, setting: str, said: str, seconds: float) -> None:
        ours = said if asked.pretend or said != "ok" else f"{seconds:.4g}"
        print(name, setting, ours, flush=True)
        unit = "s" if said == "ok" else "error"
        rows.append(
            (name, device.type, setting, ours, "", "", unit, f"{hardware}, torch {torch.__version__}")
        )
        if not asked.pretend:  # at once: a later row that fails loses nothing
            with TABLE.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])

    n_failed = smoke(device, write) if asked.only in (None, "smoke") else 0
    for script, arguments in comparisons(asked.pretend, hardware).items():
        if asked.only not in (None, script):
            continue
        command = [sys.executable, str(TABLE.with_name(script)), *arguments]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            n_failed += process.wait(max(end - time.monotonic(), 1)) != 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()
            print(f"left out: the rest of {script}, {asked.minutes:g} minutes were over", flush=True)
    print(f"{n_failed} failed", flush=True)
    return min(n_failed, 1)


if __name__ == "__main__":
    sys.exit(main())
