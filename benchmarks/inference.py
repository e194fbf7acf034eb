"""Encode and decode of long audio with the 58 M network, against linear-cae 0.1.4 and music2latent 0.1.8.

    python benchmarks/inference.py                             # 10, 60 and 600 s, hours on a quiet CPU
    python benchmarks/inference.py --seconds 10 --repeats 3    # the least of three runs each
    python benchmarks/inference.py --seconds 600 --precisions fp32 --peers "linear-cae windows"
    python benchmarks/inference.py --seconds 600 --encode-only # minutes instead of hours
    python benchmarks/inference.py --seconds 10 --cpu-time     # on a busy machine
    python benchmarks/inference.py --device cuda
    python benchmarks/inference.py --budgets 0.8 1     # ours within model.memory_gb
    python benchmarks/inference.py --only flat                 # memory of streams of 1 to 60 minutes
    python benchmarks/inference.py --only precision            # bf16 against fp32, bundled checkpoints

All three run the same network at random weights (no time depends on them) on the same noise-like audio,
each in a process of its own, after a warm-up on 15 s of it. Best settings: the peers' whole signal at once,
and windows of 3 s without overlap for linear-cae (`windows`: least work per sample, though its seams are
audible), no gradients anywhere, mixed precision as they have it (CUDA only, encoder only); ours as it is, on
a CPU after `keep_freed_memory`. What that does, `--allocator` tells apart: rows `default allocator` are ours
without it (as peer), rows `same allocator` give it to the peers too. Unit `s`: seconds a call, wall clock, or
process time with `--cpu-time`; `x real time`: seconds of audio a second. `memory`: peak of the resident set
(or of CUDA's allocator) of a process that encodes and decodes, in MiB. Rows `within 1 GB` are ours with that
`model.memory_gb`, and without as peer, under the default allocator; where --peers names some, against those.
ratio > 1 means that ours is better. Rows are added to inference.csv as they are measured.
"""

import argparse
import csv
import importlib
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import lincae
from lincae import Autoencoder
from lincae.data.tracks import tracks
from lincae.metrics import snr_db
from lincae.training.config import MODEL_PRESETS
from lincae.training.environment import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")
RATE = MODEL_PRESETS["paper"].sample_rate
PRECISIONS = ("fp32", "bf16")
MIB = 2**20
WINDOW = 32 * 4096 + 1536  # samples that 32 of linear-cae's latent frames decode to, 3 s


def randomised(module: nn.Module) -> nn.Module:
    """The module without the zeros of its initialisation, as tests/official.py has it."""
    for parameter in module.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return module


class Ours:
    def __init__(self, precision: str, device: str, preset: str):
        self.model = randomised(Autoencoder(MODEL_PRESETS[preset], "lincae")).eval().to(device)
        self.model.precision = precision

    def encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio)

    def decode(self, z: Tensor, length: int) -> Tensor:
        return self.model.decode(z, length)


class LinearCAE:
    def __init__(self, windows: bool, device: str, preset: str):
        official = importlib.import_module("official")
        self.model = official.build(MODEL_PRESETS[preset]).to(device)
        self.model.max_batch_size, self.model.mixed_precision = 1, device != "cpu"
        if windows:
            self.model.max_chunk_size, self.model.overlap_percentage = WINDOW, 0.0

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio.to(next(self.model.parameters()).device))

    @torch.inference_mode()
    def decode(self, z: Tensor, length: int) -> Tensor:
        return self.model.decode(z, full_length=length)


class Music2Latent:
    def __init__(self, device: str):
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            network = randomised(importlib.import_module("music2latent.models").UNet())
            torch.save({"gen_state_dict": network.state_dict()}, file.name)
            package = importlib.import_module("music2latent.inference")
            package.download_model = lambda: None  # no weights are needed
            self.model = package.EncoderDecoder(file.name, torch.device(device))

    def encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio.numpy())

    def decode(self, z: Tensor, length: int) -> Tensor:
        return self.model.decode(z)


BUILDERS = {
    "fp32": lambda device, preset: Ours("fp32", device, preset),
    "bf16": lambda device, preset: Ours("bf16", device, preset),
    "linear-cae": lambda device, preset: LinearCAE(False, device, preset),
    "linear-cae windows": lambda device, preset: LinearCAE(True, device, preset),
    "music2latent": lambda device, _preset: Music2Latent(device),
}
PEERS = ("linear-cae", "linear-cae windows", "music2latent")


def noise(seconds: float) -> Tensor:
    return 0.1 * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def add_row(*values) -> None:
    print(*values, flush=True)
    if "--no-write" in sys.argv:
        return
    fresh = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(COLUMNS)
        writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values])


def clock(cpu_time: bool, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() if cpu_time else time.perf_counter()


# ---------------------------------------------------------------- one process per model and length


def measure(name: str, asked: argparse.Namespace) -> None:
    """Print seconds to encode, seconds to decode (NaN without) and the peak memory in MiB, of one model."""
    if asked.keep:
        keep_freed_memory()
    torch.manual_seed(0)
    device = asked.device
    model, audio = BUILDERS[name](device, asked.preset), noise(asked.seconds[0])
    if asked.budgets:
        model.model.memory_gb = asked.budgets[0]
    warm = noise(min(15.0, asked.seconds[0]))  # a window of ours
    model.decode(model.encode(warm), warm.shape[1])
    encode_s, decode_s = [], []
    for _ in range(asked.repeats):
        start = clock(asked.cpu_time, device)
        z = model.encode(audio)
        encode_s.append(clock(asked.cpu_time, device) - start)
        if not asked.encode_only:
            start = clock(asked.cpu_time, device)
            model.decode(z, audio.shape[1])
            decode_s.append(clock(asked.cpu_time, device) - start)
    print(min(encode_s), min(decode_s, default=math.nan), peak_mib(device))


def peak_mib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class OutOfMemory(RuntimeError):
    """A process was killed for its memory, or PyTorch could not get what it asked for."""


def call(*arguments) -> list[float]:
    """The three numbers that this file prints, called with `arguments`. Raises OutOfMemory, RuntimeError."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL or re.search("can't allocate memory|OutOfMemoryError", done.stderr):
        raise OutOfMemory(f"{' '.join(command)} ran out of memory")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return [float(value) for value in done.stdout.split()[-3:]]


def within_budgets(seconds: float, asked: argparse.Namespace) -> None:
    """Rows of ours within each budget of memory, against peers if they are named, else ours without one."""
    flags = ["--seconds", seconds, "--preset", asked.preset, "--repeats", asked.repeats]
    flags += ["--device", asked.device] + ["--cpu-time"] * asked.cpu_time
    clock_name = ", process time" if asked.cpu_time else ""
    for name in asked.precisions:
        peers = {f" vs {peer}": peer for peer in asked.peers or ()} or {"": name}
        measured = {words: call("--measure", peer, *flags) for words, peer in peers.items()}
        for budget in asked.budgets:
            within = call("--measure", name, "--budgets", budget, *flags)
            for words, theirs in measured.items():
                setting = f"{name} {seconds:g} s within {budget:g} GB{words}{clock_name}"
                rows = zip(("encode", "decode", "memory"), within, theirs, ("s", "s", "MiB"), strict=True)
                for row, ours, peer, unit in rows:
                    add_row(row, asked.device, setting, ours, peer, peer / ours, unit)


def compare(seconds: float, asked: argparse.Namespace) -> None:
    """Rows of all models at one length."""
    flags = ["--device", asked.device, "--repeats", asked.repeats]
    flags += ["--cpu-time"] * asked.cpu_time + ["--encode-only"] * asked.encode_only
    flags += ["--preset", asked.preset]
    device = "cpu" if asked.device == "cpu" else torch.cuda.get_device_name().split()[-1].lower()
    clock_name = ", process time" if asked.cpu_time else ""
    parts = ("encode",) if asked.encode_only else ("encode", "decode")
    memory = "memory of encode" if asked.encode_only else "memory"

    def timed(name: str, keep: bool) -> list[float]:
        found = call("--measure", name, "--seconds", seconds, *flags, *(["--keep"] * keep))
        print(name, "keeps memory" if keep else "", *found, flush=True)
        return found

    ours = {}
    for name in asked.precisions:
        ours[name] = timed(name, True)
        for row, mine in zip(parts, ours[name], strict=False):
            add_row(row, device, f"{name} {seconds:g} s{clock_name}", seconds / mine, "", "", "x real time")
    for name, mine in ours.items() if asked.allocator else ():
        plain = timed(name, False)
        for row, a, b in zip(parts, mine, plain, strict=False):
            add_row(
                row, device, f"{name} {seconds:g} s vs ours, default allocator{clock_name}", a, b, b / a, "s"
            )
    for keep in (False, True) if asked.allocator else (False,):
        for peer in PEERS if asked.peers is None else asked.peers:
            try:
                theirs = timed(peer, keep)
            except OutOfMemory as error:
                print(error, flush=True)
                for name, mine in ours.items():
                    setting = f"{name} {seconds:g} s vs {peer}"
                    add_row(memory, device, setting, mine[2], "out of memory", "", "MiB")
                continue
            for name, mine in ours.items():
                setting = f"{name} {seconds:g} s vs {peer}{', same allocator' * keep}"
                for row, a, b in zip(parts, mine, theirs, strict=False):
                    add_row(row, device, setting + clock_name, a, b, b / a, "s")
                add_row(memory, device, setting, mine[2], theirs[2], theirs[2] / mine[2], "MiB")


# ---------------------------------------------------------------- memory of streams, precision


def stream(minutes: float) -> None:
    """Print 0, 0 and the peak of a process that encodes and decodes a stream with the `test` preset."""
    torch.manual_seed(0)
    model = Autoencoder(MODEL_PRESETS["test"], "test").eval()
    blocks = (torch.zeros(1, model.sample_rate) for _ in range(round(60 * minutes)))
    n_samples = sum(part.shape[1] for part in model.decode_stream(model.encode_stream(blocks)))
    print(n_samples, 0, peak_mib("cpu"))


def flat() -> None:
    peaks = {minutes: call("--stream", minutes)[2] for minutes in (1, 60)}
    setting = "stream of 60 min vs 1 min, test preset"
    add_row("memory", "cpu", setting, peaks[60], peaks[1], peaks[1] / peaks[60], "MiB")


def precision(device: str) -> None:
    """SNR of bf16 against fp32 over a minute of the synthetic test songs; `peer` is the goal."""
    for name in ("desk/lin-cae", "desk/m2l"):
        model = lincae.load(name, device=device)
        songs = [track.stems(model.sample_rate).sum(0) for track in tracks("synthetic")[:3]]
        audio = torch.cat(songs)[None]
        z = model.encode(audio)
        exact = model.decode(z, audio.shape[1])
        model.precision = "bf16"
        found = {
            "encode": snr_db(model.encode(audio).flatten(1), z.flatten(1)).item(),
            "decode": snr_db(model.decode(z, audio.shape[1]), exact).item(),
        }
        for row, db in found.items():
            add_row(row, device, f"bf16 against fp32, {name}", db, 40.0, db / 40, "dB SNR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 600.0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--preset", default="paper", choices=MODEL_PRESETS, help="music2latent has one size")
    parser.add_argument("--cpu-time", action="store_true", help="process time of one thread")
    parser.add_argument("--repeats", type=int, default=1, help="runs in a process, of which the least counts")
    parser.add_argument("--encode-only", action="store_true", help="decode nothing: memory is that of encode")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--budgets", type=float, nargs="+", default=[], help="only ours, within so many GB")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="default: all, with --budgets none")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--allocator", action="store_true", help="also with and without keep_freed_memory")
    parser.add_argument("--only", choices=["times", "flat", "precision"])
    parser.add_argument("--measure", choices=BUILDERS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cpu_time:
        torch.set_num_threads(1)
    if asked.measure:
        return measure(asked.measure, asked)
    if asked.stream:
        return stream(asked.stream)
    if asked.budgets:
        for seconds in asked.seconds:
            within_budgets(seconds, asked)
        return None
    if asked.only in (None, "times"):
        for seconds in asked.seconds:
            compare(seconds, asked)
    if asked.only in (None, "flat") and asked.device == "cpu":
        flat()
    if asked.only in (None, "precision"):
        precision(asked.device)


if __name__ == "__main__":
    main()
