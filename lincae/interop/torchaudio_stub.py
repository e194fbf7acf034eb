"""Stand-in for torchaudio's compiled extension where it cannot be loaded."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import torch


def ensure_torchaudio() -> bool:
    """Make `import torchaudio` work beside any torch; return whether torchaudio is installed.

    Must run before the first import of torchaudio, transformers or diffusers; imports none of them.
    """
    # PyPI's torchaudio links to CUDA libraries. Beside a CPU-only torch, loading its extension raises
    # OSError: `import torchaudio` fails, and with it transformers and diffusers, which import it.
    # Resampling and mel filter banks are plain torch and need no extension. The stub mirrors what torchaudio
    # 2.9-2.11 take from torchaudio._extension, which is private: hence the version pin.
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or "torchaudio" in sys.modules:
        return spec is not None
    try:
        for library in (Path(spec.origin).parent / "lib").glob("_torchaudio*.*"):
            torch.ops.load_library(str(library))
    except OSError:
        sys.modules["torchaudio._extension"] = _extension_stub()
    return True


def _extension_stub():
    def refuse(function):
        def refused(*args, **kwargs):
            raise RuntimeError(
                f"{function.__name__} needs torchaudio's compiled extension, which cannot be loaded here"
            )

        return refused

    stub = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("torchaudio._extension", None))
    stub._IS_TORCHAUDIO_EXT_AVAILABLE = stub._IS_ALIGN_AVAILABLE = False
    stub.fail_if_no_align = refuse
    stub._load_lib = lambda library: False
    stub._check_cuda_version = lambda: None
    return stub
