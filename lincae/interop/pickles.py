"""Files of `torch.save` that others made, read without running what may be in them."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

# NumPy numbers, which training loops leave beside their weights, are as harmless as tensors.
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS = [(_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
HARMLESS += [np.dtype, *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?"))]


def read_pickle(path: Path) -> dict[str, Any]:
    """Content of a file that holds tensors, numbers and text in dicts and lists; {} if it is no dict.

    Raises ValueError naming the file, and the objects where it holds others, which can run code.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = ", ".join(re.findall(r"GLOBAL (\S+)", str(error))) or "more than tensors"
        raise ValueError(
            f"{path} holds {found}: files with such objects can run code and are not loaded."
            " If you trust it, save its state dict anew, alone"
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a whole file of torch.save: {error}") from error
    return content if isinstance(content, dict) else {}
