"""Stand-in for torchaudio's compiled extension where it cannot be loaded."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

EXTENSION = "torchaudio._extension"


def ensure_torchaudio() -> None:
    """Make `import torchaudio` work beside any torch, also where transformers or diffusers do it. Must run
    before the first of these imports; imports none of them, nor torch."""
    # PyPI's torchaudio links to CUDA libraries: beside a CPU-only torch its import fails, though resampling
    # and mel filters are plain torch. The stub mirrors what torchaudio 2.9-2.11 take from their extension,
    # which is private: hence the version pin.
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stub when torchaudio asks for its extension and the libraries of that do not load."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != EXTENSION:
            return None

        import torch

        try:
            for folder in path:
                for library in (Path(folder) / "lib").glob("_torchaudio*.*"):
                    torch.ops.load_library(str(library))
        except OSError:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def exec_module(self, module) -> None:
        module._IS_TORCHAUDIO_EXT_AVAILABLE = False
        module._IS_ALIGN_AVAILABLE = False
        module.fail_if_no_align = _refuse
        module._load_lib = lambda library: False
        module._check_cuda_version = lambda: None


def _refuse(function):
    def refused(*args, **kwargs):
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension")

    return refused
