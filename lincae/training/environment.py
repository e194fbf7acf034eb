"""Where a run takes place: the source and the machine, as checkpoints state them, and a place for caches."""

import atexit
import os
import platform
import re
import shutil
import subprocess
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
