"""Where a run takes place: the source, the machine and its processes, the allocator, a place for caches."""

import atexit
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def commit() -> str:
    """The commit of the running source, with "-dirty" where it was changed; "unknown" outside a checkout."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(device: torch.device) -> str:
    """The machine as a checkpoint's card names it: the accelerator, or the processor and the threads used."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # which Linux alone has
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    n_threads = torch.get_num_threads()
    return f"{found[1] if found else processor}, {n_threads} thread{'s' if n_threads > 1 else ''}"


def user_cache() -> Path:
    """The folder of the user's caches; one that cannot be written for a user without a home."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return Path(os.devnull)


def give_numba_a_cache() -> None:
    """Have numba, which librosa imports, keep what it compiles elsewhere where the user's cache cannot be
    written: it refuses to be imported otherwise."""
    try:
        (user_cache() / "numba").mkdir(parents=True, exist_ok=True)
        writable = os.access(user_cache() / "numba", os.W_OK)
    except OSError:
        writable = False
    if not writable and "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)


def launched_process() -> tuple[int, int, int]:
    """Which process this is, of how many, and which of its machine, as torchrun or srun says; (0, 1, 0)
    where neither started it.

    A batch script of SLURM has the variables of its job without being one of several processes: it is srun
    that numbers its step.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, world, local_rank = names
    return int(os.environ.get(rank, 0)), int(os.environ.get(world, 1)), int(os.environ.get(local_rank, 0))


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
