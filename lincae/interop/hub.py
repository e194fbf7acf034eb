"""Models of others: fetched from the Hugging Face hub, published there, read without running what is in
them."""

import contextlib
import pickle
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from lincae.checkpoints import CONFIG, WEIGHTS, Checkpointed

# NumPy numbers, which training loops leave beside their weights, are as harmless as tensors.
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS = [(_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
HARMLESS += [np.dtype, *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?"))]


@contextlib.contextmanager
def fetching(repository: str | Path) -> Iterator[None]:
    """Around what reads a hub repository: raises FileNotFoundError for one that is not in the cache while
    HF_HUB_OFFLINE is set, which the hub's own error does not say, and ValueError for a damaged file."""
    from huggingface_hub import constants

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{repository} holds no whole safetensors file: {error}") from error
    except OSError as error:
        if not constants.HF_HUB_OFFLINE or Path(repository).exists():
            raise
        raise FileNotFoundError(
            f"{repository} is not in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it"
        ) from error


def fetched_file(repository: str, file: str) -> Path:
    """A file of a repository. Raises OSError, as `fetching`."""
    from huggingface_hub import hf_hub_download

    with fetching(repository):
        return Path(hf_hub_download(repo_id=repository, filename=file))


def fetched_checkpoint(repository: str) -> Path:
    """The folder of what `push_to_hub` published. Raises OSError, as `fetching`."""
    from huggingface_hub import snapshot_download

    with fetching(repository):
        return Path(snapshot_download(repository, allow_patterns=[WEIGHTS, CONFIG]))


def push_to_hub(
    model: Checkpointed, repository: str, private: bool = False, dtype: torch.dtype = torch.float32
) -> str:
    """Create or update a repository with the checkpoint of a model and its card; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, dtype)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"lincae: {model.name}")
    return str(address)


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
