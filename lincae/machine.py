"""Devices, memory, seeds: what a computation runs on and starts from."""

import ctypes
import sys
from numbers import Integral

import numpy as np
import torch


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


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for its next use; False where there is no glibc.

    New memory comes page by page and zeroed, which is much of the time of a large network on a CPU. The price
    is a higher peak (benchmarks/inference.py --allocator). To be called before the first large tensors.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return False
    m_trim_threshold = -1  # these two are named in malloc.h
    m_mmap_max = -4
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1))


def generator(*keys: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that is a pure function of its integer `keys`, such as (seed, step) or (seed, item).

    Different tuples give different streams. Raises ValueError for keys outside [0, 2**64), and for none;
    TypeError for keys that are no integers.
    """
    if not all(isinstance(key, Integral) for key in keys):
        raise TypeError(f"keys must be integers, got {keys}")
    if not keys or any(not 0 <= key < 2**64 for key in keys):
        raise ValueError(f"keys must be integers in [0, 2**64), at least one, got {keys}")
    # SeedSequence pads with zeros: without the count, (1,) and (1, 0) would be one stream.
    words = [word for key in keys for word in divmod(int(key), 2**32)]
    seed = np.random.SeedSequence([len(keys), *words]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))
