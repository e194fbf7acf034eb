"""Checkpoints: saving and loading models, and what tells one model from another.

A checkpoint is a folder with `model.safetensors`, `config.json` and a card, `README.md`. The weights file
carries the configuration in its header as well, and is all that is read: it is replaced as a whole.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from lincae.machine import resolve_device
from lincae.machine.files import atomic_write, json_object, tensors_in

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
HASH_ROW = "sha256 of {}"  # in a card's table, with the name of the file

WRAPPERS = ("_orig_mod", "module")
"""What torch.compile, DataParallel and DistributedDataParallel call the module that they wrap."""
CUTTING = ("window_frames", "context_frames", "norm_frames")  # how a long signal is cut for the network


class Checkpointed(nn.Module):
    """A model that can be saved and loaded: a configuration and a network with weights.

    `metadata` is a JSON-able dict that travels in the checkpoint: step, data, training configuration, commit.
    """

    kind: ClassVar[str]
    """As the header of a checkpoint says it."""
    config_class: ClassVar[type]

    def __init__(self, config: Any, network: nn.Module, name: str, metadata: dict | None):
        super().__init__()
        self.config = config
        self.name = name
        self.metadata = metadata or {}
        self.network = network

    def fingerprint(self) -> str:
        """A sha256 (hex) of the weights and of every setting that decides latents."""
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate}
        settings |= changed_settings(self.config)
        kind = type(unwrapped(self.network)).__name__
        return content_fingerprint(kind, settings, weights_of(self.network))

    def save(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> Path:
        """Write a checkpoint into `folder`, each file atomically, weights as `dtype`; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "name": self.name,
            "autoencoder": dataclasses.asdict(self.config),
            "metadata": self.metadata,
        }
        text = json.dumps(description, indent=2) + "\n"
        sha256 = write_weights(folder / WEIGHTS, text, self.network, dtype)
        for name, content in ((CONFIG, text), (CARD, self._card(sha256))):
            with atomic_write(folder / name) as file:
                file.write(content.encode())
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike, device: str = "auto") -> Self:
        """The model in a checkpoint folder.

        Raises FileNotFoundError for a missing file; ValueError, naming it, for a damaged one, another kind of
        model or format version, unknown or wrong settings, and tensors that do not fit.
        """
        path = Path(folder) / WEIGHTS
        description, tensors = read_checkpoint(path, cls.kind)
        config = from_dict(cls.config_class, description.get("autoencoder"), f"{path}: autoencoder")
        name = description.get("name")
        metadata = description.get("metadata")
        if not isinstance(name, str) or not isinstance(metadata, dict):
            raise ValueError(f"{path}: name and metadata must be text and an object, got {name!r:.80}")
        if n_blocks(config.network) > len(tensors):
            raise ValueError(f"{path} states more blocks than it holds tensors ({len(tensors)})")

        with torch.device("meta"):
            load_strictly(cls(config).network, tensors, str(path))
        model = cls(config, name, metadata)
        model.network.load_state_dict(tensors)
        return model.eval().to(resolve_device(device))

    def _card(self, sha256: str) -> str:
        """Markdown: what the checkpoint says of itself, and the hash of its weights file."""
        rows = {
            "sample rate": f"{self.sample_rate} Hz",
            "latents": f"{self.config.network.latent_channels} channels at {self.latent_rate:.2f} Hz",
            "compression": f"{self.compression:g}x",
            "parameters": f"{sum(p.numel() for p in self.network.parameters()):,}",
            HASH_ROW.format(WEIGHTS): sha256,
        }
        rows |= {key: json.dumps(value) for key, value in self.metadata.items()}
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        usage = 'import lincae\n\nmodel = lincae.load("...")  # this folder, or hub:OWNER/NAME'
        return f"# {self.name}\n\n| | |\n|---|---|\n{table}\n\n```python\n{usage}\n```\n"


# ---------------------------------------------------------------- files of weights


def write_weights(path: Path, description: str, module: nn.Module, dtype: torch.dtype) -> str:
    """Write the weights of `module` as `dtype`, atomically, with a JSON text in the file's header. Returns
    the sha256 (hex) of the file; raises OSError."""
    tensors = {key: value.to("cpu", dtype).contiguous() for key, value in weights_of(module).items()}
    content = to_safetensors(tensors, metadata={"config": description})
    with atomic_write(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile, DataParallel or DistributedDataParallel may have wrapped."""
    children = dict(module.named_children())
    for name in WRAPPERS:
        if name in children:
            return unwrapped(children[name])
    return module


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module as it was before it, or a part of it, was wrapped."""
    state = {}
    for key, value in module.state_dict().items():
        names = [name for name in key.split(".") if name not in WRAPPERS]
        state[".".join(names)] = value
    return state


def read_checkpoint(path: Path, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """The description in the header of a weights file, and its tensors in fp32. Raises as `opened`."""
    with opened(path, [kind]) as (file, description):
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
    return description, tensors


@contextlib.contextmanager
def opened(path: Path, kinds: Iterable[str] = ()) -> Iterator[tuple[safe_open, dict]]:
    """A weights file, and the description in its header. Raises FileNotFoundError; ValueError for a damaged
    file, one without a description, another version, and a model of none of these `kinds`, if any."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint is a folder with {WEIGHTS} and {CONFIG}")
    try:
        with tensors_in(path) as file:
            header = file.metadata() or {}
            if "config" not in header:
                raise ValueError(f"{path} carries no lincae configuration; lincae.load reads other files")
            description = json_object(header["config"], path)
            version = description.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"{path}: format version {version}, this lincae reads {FORMAT_VERSION}")
            held = description.setdefault("kind", "consistency")  # the first files do not say
            if kinds and held not in list(kinds):
                wanted = " or ".join(kinds)
                raise ValueError(f"{path} holds a {held!s:.80} model, not a {wanted} one: use lincae.load")
            yield file, description
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def from_dict(kind: type, values: Any, where: str) -> Any:
    """A (nested) config dataclass of this `kind` from its `dataclasses.asdict`. Raises ValueError, which says
    `where` the values stand, for unknown keys and for what the class refuses."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object of settings, got {values!r:.80}")
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - types)
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; {kind.__name__} has {', '.join(types)}")

    settings = {}
    for name, value in values.items():
        is_nested = dataclasses.is_dataclass(types[name])
        settings[name] = from_dict(types[name], value, f"{where}.{name}") if is_nested else value
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """`load_state_dict`; raises ValueError that says `where` tensors are missing, unknown or misshapen. A
    module on the meta device tells it before memory is taken for sizes that only a header states."""
    on_meta = any(parameter.is_meta for parameter in module.parameters())
    try:
        module.load_state_dict(tensors, assign=on_meta)
    except RuntimeError as error:
        problems = " ".join(str(error).split())
        raise ValueError(f"{where} does not fit the network: {problems:.500}") from error


def n_blocks(config: Any) -> int:
    """The blocks that a network's configuration asks for, counted before any is made."""
    counts = [value for key, value in flat(plain(config)).items() if key.endswith("blocks")]
    return sum(sum(count) if isinstance(count, list) else count for count in counts)


# ---------------------------------------------------------------- identity


def content_fingerprint(kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of what decides a model's latents: its kind, its JSON-able settings, and its weights
    as float32. The `fingerprint` method of every kind of model is this function."""
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def changed_settings(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass, as {"a.b": value}, that differ from its defaults and decide latents:
    a later version with more settings gives a model the same fingerprint."""
    defaults = flat(plain(type(config)()))
    changed = {}
    for key, value in flat(plain(config)).items():
        if key not in CUTTING and value != defaults.get(key):
            changed[key] = value
    return changed


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as it comes back from JSON, where a tuple is a list."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    pairs = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = value
    return pairs
