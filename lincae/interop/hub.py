"""The Hugging Face hub: models that are fetched from it and published on it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from lincae.checkpoints import CONFIG, WEIGHTS, Checkpointed


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
