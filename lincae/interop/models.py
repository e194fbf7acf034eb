"""Models by name: own checkpoints, released weights of Lin-CAE and Music2Latent, codecs, references.

model = load("study/listen")       # bundled with the package
model = load("runs/desk-lin-cae")  # a folder of `Autoencoder.save`, or of the official training script
model = load("lin-cae")            # the authors' weights, from the hub
model = load("hub:OWNER/NAME")     # what `lincae.interop.hub.push_to_hub` published
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from lincae.autoencoder import Autoencoder
from lincae.bypass.model import BypassAutoencoder
from lincae.checkpoints import WEIGHTS, opened
from lincae.interface import AutoencoderLike
from lincae.interop.bundled import BUNDLED, check_hash
from lincae.interop.codecs import HUB, codec_kind, load_codec
from lincae.interop.hub import fetched_checkpoint, fetched_file
from lincae.interop.official import load_official, official_files
from lincae.interop.references import EXAMPLES, REFERENCES, reference
from lincae.machine import resolve_device
from lincae.vae.model import SpectralVae

OWN = {kind.kind: kind for kind in (Autoencoder, SpectralVae, BypassAutoencoder)}
LIN_CAE_HUB = "BernardoTorres/linear_consistency_autoencoders"
# Folder in the hub repository, and the factor that gives latents of MUSDB18 unit standard deviation.
LIN_CAE = {"lin-cae": ("0a3afbec", 33.0), "lin-cae-2": ("2f4c6d21", 40.0), "m2l": ("1511f18a", 15.0)}
HUB_ADDRESS = "https://huggingface.co"
ON_HUB = "hub:"
MUSIC2LATENT = "music2latent"
MUSIC2LATENT_HUB = "SonyCSLParis/music2latent"


def sources() -> dict[str, str]:
    """What `load` knows by name, and where each comes from: released models, references (those of EXAMPLES at
    other rates as well, with another number), codecs, then the bundled checkpoints."""
    places = dict.fromkeys(LIN_CAE, f"{HUB_ADDRESS}/{LIN_CAE_HUB}")
    places[MUSIC2LATENT] = f"{HUB_ADDRESS}/{MUSIC2LATENT_HUB}"
    places |= dict.fromkeys((*REFERENCES, *EXAMPLES), "computed, not trained")
    places |= {name: f"{HUB_ADDRESS}/{repository}" for name, repository in HUB.items()}
    return places | {name: str(BUNDLED / name) for name in listed("bundled")}


def names() -> list[str]:
    """What `load` knows by name."""
    return list(sources())


def listed(models: str | Sequence[str]) -> list[str]:
    """The models that a notebook's parameter names: a list, one name, or a JSON list as `papermill -p` passes
    it. "bundled" stands for all bundled checkpoints. Raises ValueError for none."""
    if isinstance(models, str):
        models = json.loads(models) if models.startswith("[") else [models]
    if not models:
        raise ValueError(f"models names none; choose from {', '.join(names())}, or give paths of checkpoints")
    bundled = sorted(path.parent.relative_to(BUNDLED).as_posix() for path in BUNDLED.rglob(WEIGHTS))
    return [name for model in models for name in (bundled if model == "bundled" else [model])]


def load(
    name_or_path: str | Path,
    device: str = "auto",
    checkpoint: str = "last",
    latent_scale: float | None = None,
) -> AutoencoderLike:
    """A model by one of `names()`, or from a folder or file, ready to use on `device`.

    "hub:OWNER/NAME" is a repository, as a folder, with what `save` of a model wrote. Folders may also hold
    what diffusers or transformers saved (AutoencoderOobleck, EncodecModel, DacModel), or the four official
    files, named as on the hub (`autoencoder_inference_model_{checkpoint}.pth`,
    `generator_kwargs_{checkpoint}.yaml`, ...) or as the official training script does (`autoencoder.pth`,
    `generator_kwargs.yaml`, ...). Files: `music2latent.pt`, or another state dict of such a network at 44.1
    kHz, also in a Lightning checkpoint (whose EMA weights are taken).

    `latent_scale`: factor of the public latents. None is the released models' own (33, 40, 15 and 1 / 0.06);
    official files do not hold it, so for a folder or file of Lin-CAE None is 1, as in the official code.

    Raises ValueError for an unknown name (listing the known ones), a bundled file that is not the one of its
    card, settings that this network does not have and tensors that do not fit; FileNotFoundError for missing
    files; OSError for what the hub does not give; ImportError without diffusers or transformers.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    device = resolve_device(device)
    if name in LIN_CAE or name == MUSIC2LATENT:
        return _released(name, checkpoint, latent_scale).to(device)

    if name.startswith(ON_HUB):
        path = fetched_checkpoint(name.removeprefix(ON_HUB))
    bundled = not (path / WEIGHTS).is_file() and (BUNDLED / name / WEIGHTS).is_file()
    folder = BUNDLED / name if bundled else path
    make = reference(name)
    if make is None and codec_kind(name):
        make = partial(load_codec, name, device)
    elif make is None and (folder / WEIGHTS).is_file():
        make = partial(_own, folder, bundled, device)
    if make is not None:
        if latent_scale is not None:
            raise ValueError(f"{name} takes no latent scale: the argument is for official files")
        return make()

    if path.is_file():
        return load_official(path.stem, name, [path], latent_scale).to(device)
    if path.is_dir():
        return load_official(path.name, name, _files_in(path, checkpoint), latent_scale).to(device)
    if not BUNDLED.is_dir():
        fix = "reinstall it or run from a clone of its repository"
        raise FileNotFoundError(f"this lincae has no bundled checkpoints, {BUNDLED} does not exist: {fix}")
    raise ValueError(
        f"unknown model {name!r}: choose from {', '.join(names())}, or give the path of a checkpoint"
        f" or {ON_HUB}OWNER/NAME"
    )


def kind_of(path: Path, kinds: Iterable[str]) -> str:
    """The one of `kinds` of models that a weights file holds. Raises as `opened`."""
    with opened(path, kinds) as (_, description):
        return description["kind"]


def _own(folder: Path, bundled: bool, device: torch.device) -> AutoencoderLike:
    if bundled:
        check_hash(folder / WEIGHTS)
    return OWN[kind_of(folder / WEIGHTS, OWN)].load(folder, device)


def _released(name: str, checkpoint: str, latent_scale: float | None) -> Autoencoder:
    if name == MUSIC2LATENT:
        files = [fetched_file(MUSIC2LATENT_HUB, "music2latent.pt")]
        return load_official(name, f"hub: {MUSIC2LATENT_HUB}", files, latent_scale)
    folder, scale = LIN_CAE[name]
    files = [fetched_file(LIN_CAE_HUB, f"{folder}_weights/{file}") for file in official_files(checkpoint)]
    source = f"hub: {LIN_CAE_HUB}, {folder}, checkpoint {checkpoint}"
    return load_official(name, source, files, scale if latent_scale is None else latent_scale)


def _files_in(folder: Path, checkpoint: str) -> list[Path]:
    on_hub, trained = official_files(checkpoint), official_files(None)
    for files in (on_hub, trained):
        if (folder / files[0]).is_file():
            missing = [file for file in files if not (folder / file).is_file()]
            if missing:
                raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
            return [folder / file for file in files]
    raise FileNotFoundError(f"{folder} holds neither {WEIGHTS}, {on_hub[0]} nor {trained[0]}")
