"""The autoencoder: configuration, presets, encode, decode, save and load.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames, `F` frequency bins, `N`
spectrogram frames. Audio is `(B, T)` mono at `sample_rate`, latents are `(B, C, L)`; stereo is two items
of a batch.
"""

import dataclasses
import json
import os
import tempfile
import typing
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from .audio import atomic_write, check_audio, generator, resolve_device
from .consistency import NoiseConfig, precondition, sample
from .network import BOTH, FREQUENCY, Network, NetworkConfig
from .transform import Transform, TransformConfig

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True)
class AutoencoderConfig:
    """All that defines a model but its weights.

    `pad_edges`: surround the signal with three hops of silence, so that its ends are covered by as many
    windows as its middle and come back unattenuated; the released models were used without (35 ms fades
    at both ends).
    `latent_scale`: public latents are the network's times this, to have unit standard deviation on the data.
    `window_frames`, `context_frames`: longer signals go through the network in windows of so many latent
    frames, of which so many on each side are context and dropped.
    """

    sample_rate: int = 44100
    transform: TransformConfig = field(default_factory=TransformConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    pad_edges: bool = False
    latent_scale: float = 1.0
    window_frames: int = 64
    context_frames: int = 4

    def __post_init__(self):
        if self.sample_rate < 1 or self.latent_scale <= 0:
            raise ValueError(f"need a positive sample_rate and latent_scale, got {self}")
        if not 0 <= 2 * self.context_frames < self.window_frames:
            raise ValueError(f"context_frames on both sides must leave room within window_frames, got {self}")

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.transform.hop * self.network.time_factor


# ---------------------------------------------------------------- presets

PAPER = AutoencoderConfig()
SMALL = AutoencoderConfig(
    network=NetworkConfig(
        base_channels=16,
        bottleneck_channels=160,
        noise_channels=64,
        unused_projections=False,
        unit_variance_init=True,
    ),
    pad_edges=True,
)
# Short windows, a fast latent (125 Hz, 8x) and a U-Net without blocks on its finest grid, where they cost
# most, are what a CPU can train: benchmarks/desk_trials.csv.
DESK = AutoencoderConfig(
    sample_rate=16000,
    transform=TransformConfig(hop=64),
    network=NetworkConfig(
        base_channels=16,
        multipliers=(1, 2, 4),
        attention=(False, False, False),
        encoder_blocks=(1, 1, 1),
        unet_blocks=(0, 1, 1),
        downsampling=(FREQUENCY, BOTH),
        bottleneck_channels=128,
        bottleneck_blocks=1,
        latent_channels=16,
        noise_channels=64,
        unused_projections=False,
        unit_variance_init=True,
        centred=True,
    ),
    noise=NoiseConfig(sigma_max=20.0, sigma_data=0.25),
    pad_edges=True,
    window_frames=512,
    context_frames=32,
)
TEST = AutoencoderConfig(
    sample_rate=16000,
    transform=TransformConfig(hop=64),
    network=NetworkConfig(
        base_channels=8,
        multipliers=(1, 1, 2),
        attention=(False, False, True),
        encoder_blocks=(1, 1, 1),
        unet_blocks=(1, 1, 1),
        downsampling=(FREQUENCY, BOTH),
        bottleneck_channels=32,
        bottleneck_blocks=1,
        latent_channels=8,
        noise_channels=16,
        heads=2,
        unused_projections=False,
        unit_variance_init=True,
    ),
    pad_edges=True,
    window_frames=256,
    context_frames=16,
)
MODEL_PRESETS = {"paper": PAPER, "official": PAPER, "small": SMALL, "desk": DESK, "test": TEST}


# ---------------------------------------------------------------- configuration as JSON


def from_dict(kind: type, values: dict, where: str):
    """A (nested) config dataclass from its `dataclasses.asdict`; an unknown key is an error that names it."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; {kind.__name__} has {', '.join(fields)}")
    types = typing.get_type_hints(kind)
    nested = {
        name: from_dict(types[name], value, f"{where}.{name}")
        if dataclasses.is_dataclass(types[name])
        else value
        for name, value in values.items()
    }
    return kind(**nested)


# ---------------------------------------------------------------- the model


class Autoencoder(nn.Module):
    """`encode` audio to latents that add and scale like it, `decode` them; an `AutoencoderLike`.

    `metadata` is a JSON-able dict that travels in the checkpoint: step, data, training configuration, commit.
    """

    def __init__(self, config: AutoencoderConfig, name: str = "autoencoder", metadata: dict | None = None):
        super().__init__()
        self.config, self.name, self.metadata = config, name, metadata or {}
        self.transform = Transform(config.transform)
        self.network = Network(config.network, config.transform.n_bins)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def latent_rate(self) -> float:
        """Latent frames per second."""
        return self.config.sample_rate / self.config.hop

    @property
    def compression(self) -> float:
        """Samples per latent number."""
        return self.config.hop / self.config.network.latent_channels

    # -------- lengths

    @property
    def _edge(self) -> int:
        """Samples of silence around the signal."""
        return 3 * self.config.transform.hop if self.config.pad_edges else 0

    def latent_frames(self, n_samples: int) -> int:
        """Latent frames of a signal of `n_samples`: enough to decode every one of its samples."""
        factor = self.config.network.time_factor
        padded = max(n_samples + 2 * self._edge, self.config.transform.window)
        frames = -(-self.transform.n_frames(padded) // factor)
        # Trailing samples that fill no frame are lost exactly when the frames fill the last latent frame.
        return frames + (self.transform.n_samples(frames * factor) < padded)

    def decoded_samples(self, n_latent_frames: int) -> int:
        """Samples that `n_latent_frames` hold."""
        return self.transform.n_samples(n_latent_frames * self.config.network.time_factor) - 2 * self._edge

    # -------- encode and decode

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `(B, T)`, T >= 1, to latents `(B, C, latent_frames(T))` on the model's device.

        One continuous sequence whatever the length. Raises ValueError for another rank, empty or non-finite
        audio (naming item and sample), TypeError for a dtype that is not floating.
        """
        audio = check_audio(audio).to(self.device, torch.float32)
        n_latents = self.latent_frames(audio.shape[-1])
        factor, hop, window = (
            self.config.network.time_factor,
            self.config.transform.hop,
            self.config.transform.window,
        )
        padded = F.pad(audio, (self._edge, self._edge))
        missing = max((n_latents - 1) * factor * hop + window, window) - padded.shape[-1]
        padded = F.pad(padded, (0, max(missing, 0)))
        parts = []
        for start, stop, keep_from, keep_to in self._windows(n_latents):
            piece = padded[:, start * factor * hop : (stop * factor - 1) * hop + window]
            z = self.network.encoder(self.transform(piece))
            parts.append(z[..., keep_from - start : keep_to - start])
        return torch.cat(parts, dim=-1) * self.config.latent_scale

    @torch.no_grad()
    def decode(self, latents: Tensor, length: int | None = None, seed: int = 0, steps: int = 1) -> Tensor:
        """Latents `(B, C, L)` to audio `(B, length)`; all that they hold by default.

        Deterministic given `seed`: the noise of a latent frame depends on the seed and the frame's index
        alone, so items of one batch, and decodes that are compared, share it. `steps` > 1 refines the
        first decode. Nothing is clamped or normalised. Raises ValueError for another shape, non-finite
        latents, or a length outside 1..decoded_samples(L).
        """
        self._check_latents(latents)
        held = self.decoded_samples(latents.shape[-1])
        length = held if length is None else length
        if not 1 <= length <= held:
            raise ValueError(
                f"length must lie in 1..{held}, what {latents.shape[-1]} latent frames hold, got {length}"
            )
        z = latents.to(self.device, torch.float32) / self.config.latent_scale
        factor, hop = self.config.network.time_factor, self.config.transform.hop
        audio = z.new_zeros(z.shape[0], self.transform.n_samples(z.shape[-1] * factor))
        for start, stop, keep_from, keep_to in self._windows(z.shape[-1]):
            noises = (self._noise(start, stop, seed, k).expand(z.shape[0], -1, -1, -1) for k in range(steps))
            frames = self.denoise(z[..., start:stop], noises, steps)
            part = self.transform.inverse(
                frames[..., (keep_from - start) * factor : (keep_to - start) * factor]
            )
            audio[:, keep_from * factor * hop :][:, : part.shape[-1]] += part
        return audio[:, self._edge : self._edge + length]

    def denoise(self, latents: Tensor, noises: typing.Iterable[Tensor], steps: int = 1) -> Tensor:
        """Unscaled latents `(B, C, L)` and one noise `(B, 2, F, N)` per step -> `(B, 2, F, N)`."""
        f = precondition(self.network.denoiser, self.config.noise)
        return sample(f, self.network.condition(latents), noises, steps, self.config.noise)

    def _windows(self, n_latents: int) -> typing.Iterator[tuple[int, int, int, int]]:
        """(start, stop, keep_from, keep_to) in latent frames: what goes through the network, what stays."""
        window, context = self.config.window_frames, self.config.context_frames
        if n_latents <= window:
            yield 0, n_latents, 0, n_latents
            return
        keep_from = 0
        while keep_from < n_latents:
            start = min(max(keep_from - context, 0), n_latents - window)
            stop = start + window
            keep_to = n_latents if stop == n_latents else stop - context
            yield start, stop, keep_from, keep_to
            keep_from = keep_to

    def _noise(self, start: int, stop: int, seed: int, step: int) -> Tensor:
        """Standard normal `(1, 2, F, N)` of latent frames start..stop, drawn on the CPU for any device."""
        shape = (2, self.config.transform.n_bins, self.config.network.time_factor)
        frames = [torch.randn(shape, generator=generator(seed, step, frame)) for frame in range(start, stop)]
        return torch.cat(frames, dim=-1)[None].to(self.device)

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.network.latent_channels
        if latents.dim() != 3 or latents.shape[1] != channels or 0 in latents.shape:
            raise ValueError(f"latents of {self.name} are (B, {channels}, L), got {tuple(latents.shape)}")
        if not torch.isfinite(latents).all():
            item, channel, frame = (~torch.isfinite(latents)).nonzero()[0].tolist()
            raise ValueError(
                f"latents are not finite, first at item {item}, channel {channel}, frame {frame}"
            )

    # -------- checkpoints

    def save(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> Path:
        """Write `model.safetensors`, `config.json` and a model card into `folder`; returns the folder.

        The configuration also stands in the header of the weights file, which is what `load` reads: one file,
        replaced atomically, so that a crash or a full disk leaves the previous checkpoint whole. Raises
        OSError.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "autoencoder": dataclasses.asdict(self.config),
            "metadata": self.metadata,
        }
        text = json.dumps(description, indent=2) + "\n"
        tensors = {
            key: value.to("cpu", dtype).contiguous() for key, value in self.network.state_dict().items()
        }
        with atomic_write(folder / WEIGHTS) as file:
            file.write(to_safetensors(tensors, metadata={"config": text}))
        for name, content in ((CONFIG, text), (CARD, self.card())):
            with atomic_write(folder / name) as file:
                file.write(content.encode())
        return folder

    @classmethod
    def load(
        cls, source: str | os.PathLike, device: str = "auto", revision: str | None = None
    ) -> "Autoencoder":
        """A checkpoint folder, or the id of a hub repository that `push_to_hub` made.

        Raises FileNotFoundError where neither exists, ValueError (naming the file) for a damaged file,
        another format version, unknown configuration keys, and missing, extra or misshapen tensors.
        """
        folder = Path(source)
        if not folder.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/")):
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=[WEIGHTS, CONFIG]))
        path = folder / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; a checkpoint is a folder with {WEIGHTS} and {CONFIG}"
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        if "config" not in header:
            raise ValueError(
                f"{path} carries no lincae configuration in its header; lincae.pretrained reads others"
            )
        description = json.loads(header["config"])
        if description["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{path}: format version {description['format_version']}, this lincae reads {FORMAT_VERSION}"
            )
        config = from_dict(AutoencoderConfig, description["autoencoder"], f"{path}: autoencoder")
        model = cls(config, description["name"], description["metadata"])
        load_strictly(model.network, tensors, str(path))
        return model.eval().to(resolve_device(device))

    def push_to_hub(self, repo_id: str, private: bool = False, dtype: torch.dtype = torch.float32) -> str:
        """Create or update a hub repository with the checkpoint and a model card; returns its address."""
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder, dtype)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"lincae: {self.name}")
        return str(address)

    def card(self) -> str:
        """Model card in Markdown: what the checkpoint says of itself."""
        n_parameters = sum(p.numel() for p in self.network.parameters())
        rows = {
            "sample rate": f"{self.sample_rate} Hz",
            "latents": f"{self.config.network.latent_channels} channels at {self.latent_rate:.2f} Hz",
            "compression": f"{self.compression:g}x",
            "parameters": f"{n_parameters:,}",
            **{key: json.dumps(value) for key, value in self.metadata.items()},
        }
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        usage = 'model = lincae.Autoencoder.load("...")  # this folder, or the id of its repository'
        return f"# {self.name}\n\n| | |\n|---|---|\n{table}\n\n```python\nimport lincae\n\n{usage}\n```\n"


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """`load_state_dict` that names what is missing, extra or misshapen. Raises ValueError."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = {
        "missing": sorted(expected.keys() - got.keys()),
        "unknown": sorted(got.keys() - expected.keys()),
        "misshapen": [
            f"{key} {got[key]} instead of {expected[key]}"
            for key in sorted(expected.keys() & got.keys())
            if expected[key] != got[key]
        ],
    }
    found = [f"{len(keys)} {kind} ({', '.join(keys[:3])})" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{where} does not fit the network: {'; '.join(found)}")
    module.load_state_dict(tensors)
