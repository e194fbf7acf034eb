"""Devices, precision, memory, seeds: what a computation runs on and starts from."""

import contextlib
import math
import sys
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
UINT32 = 2**32 - 1


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The one place where a device is chosen: "auto" is CUDA where there is one, else the CPU.

    Raises ValueError for an unknown device and for one that this machine or this torch does not have.
    """
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if n_cuda else "cpu")

    n_devices = {"cpu": 1, "cuda": n_cuda, "mps": int(torch.backends.mps.is_available())}
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in n_devices:
        raise ValueError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
    n_here = n_devices[resolved.type]
    if resolved.type != "cpu" and (resolved.index or 0) >= n_here:
        sees = f"torch {torch.__version__} sees {n_here} {resolved.type.upper()} devices"
        raise ValueError(f"device {device!r} is not available: {sees}")
    return resolved


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those of PRECISIONS that a device offers.

    "fp32" leaves torch's switches alone: CUDA devices then round factors to 10 bits (TF32) in convolutions.
    "tf32" has them do so in matrix products, too. "tf32" and "bf16" take compute capability 8 (A100, RTX 30);
    on a CPU fp16 is slower than fp32.
    """
    if device.type == "cuda":
        return PRECISIONS if torch.cuda.get_device_capability(device) >= (8, 0) else ("fp32", "fp16")
    return ("fp32", "bf16", "fp16") if device.type == "mps" else ("fp32", "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError for an unknown precision, and for one that the device lacks."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision != "fp32" and precision not in precisions(device):
        offered = " or ".join(precisions(device))
        raise ValueError(f"precision {precision} is not for device {str(device)!r}: use {offered}")


def allow_tf32(convolutions: bool = True, products: bool = True) -> tuple[bool, bool]:
    """Have CUDA devices use TF32 in convolutions and matrix products of this process; returns what was."""
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
    return before


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Have torch compute in one of `precisions(device)` while entered. Raises as `check_precision`."""
    check_precision(precision, device)
    switches = allow_tf32() if precision == "tf32" else None
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    try:
        with torch.autocast(device.type, half, enabled=precision in ("bf16", "fp16")):
            yield
    finally:
        if switches:
            allow_tf32(*switches)


class OutOfMemoryError(RuntimeError):
    """A step of training or a window of inference does not fit into memory; the message says what would."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, of an accelerator or of a CPU, whose allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def free_bytes(device: torch.device) -> int:
    """Memory that tensors on a device can still have. Raises ValueError where it is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        raise ValueError(f"what is free is not known for {device.type} on {sys.platform}: give a number")
    kib = table.read_text().split("MemAvailable:")[1].split()[0]
    return 1024 * int(kib)


def generator(*keys: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that is a pure function of its integer `keys`, such as (seed, step) or (seed, item).

    Different tuples give different streams. Raises ValueError for keys outside [0, 2**64), and for none;
    TypeError for keys that are no integers.
    """
    check_keys(*keys)
    # SeedSequence pads with zeros: without the count, (1,) and (1, 0) would be one stream.
    words = [word for key in keys for word in divmod(int(key), 2**32)]
    seed = np.random.SeedSequence([len(keys), *words]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def check_keys(*keys: int) -> None:
    """Raises as `generator`."""
    if not all(isinstance(key, Integral) for key in keys):
        raise TypeError(f"every seed must be an integer, got {keys}")
    if not keys or any(not 0 <= key < 2**64 for key in keys):
        raise ValueError(f"every seed must be an integer in [0, 2**64), got {keys}")


def frame_noise(
    frames: range, n: int, seed: int, step: int = 0, device: str | torch.device = "cpu"
) -> Tensor:
    """Standard normal numbers `(len(frames), n)`, float32, each a function of seed, step, frame and number.

    The integers behind them are the same on every device (Philox4x32-10 of Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", 2011; counter: number, frame in two words, step; key: seed). The numbers
    agree to the last bits of log and cos. Raises as `generator` for such a seed.
    """
    check_keys(seed)
    seed = int(seed)
    number = torch.arange(-(-n // 4), device=device)
    frame = torch.arange(frames.start, frames.stop, device=device)[:, None]
    counter = [number, frame & UINT32, frame >> 32, torch.tensor(step, device=device)]
    words = philox(counter, (seed & UINT32, seed >> 32))

    # Halves of 2**-23 are exact in float32 and never 0 or 1.
    uniform = [((word >> 9).float() + 0.5) * 2**-23 for word in words]
    normal = []
    for first, second in (uniform[:2], uniform[2:]):
        radius = (-2 * first.log()).sqrt()
        angle = 2 * math.pi * second
        normal += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normal, dim=-1).flatten(1)[:, :n]


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four words of random bits for a counter of four words (int64 that hold 32 bits each)."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    kept = torch.stack((c1, c3))
    k0, k1 = key
    for _ in range(10):
        products = torch.empty_like(kept)
        torch.mul(c2, 0xCD9E8D57, out=products[0])
        torch.mul(c0, 0xD2511F53, out=products[1])
        # The product's sign is wrong above 2**63; its 64 bits are right.
        c0, c2 = (products >> 32).bitwise_and_(UINT32).bitwise_xor_(kept)
        c0.bitwise_xor_(k0)
        c2.bitwise_xor_(k1)
        kept = products.bitwise_and_(UINT32)
        k0 = k0 + 0x9E3779B9 & UINT32
        k1 = k1 + 0xBB67AE85 & UINT32
    return [c0, kept[0], c2, kept[1]]
