"""Audio and music: files, streams, tracks with stems, synthetic songs, crops to train on."""

import os
from pathlib import Path


def data_folder(name: str) -> Path:
    """Where a data set lies by default: `$LINCAE_DATA/NAME`, else `data/NAME` of the repository, without one
    of the working directory."""
    repository = Path(__file__).resolve().parents[2] / "data"
    here = repository if repository.is_dir() else "data"
    return Path(os.environ.get("LINCAE_DATA", here)) / name
