"""EnCodec and DAC through transformers, Stable Audio's VAE through diffusers: their continuous latents.

Nothing is quantised, so these are the autoencoders inside the codecs, not the codecs: codes cannot be added.
Nothing is sampled either: latents of the VAE are the mode of its posterior. Axis legend: see
`lincae.interface`.
"""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lincae.checkpoints import CONFIG, content_fingerprint
from lincae.interop.checked import Checked
from lincae.interop.hub import fetching
from lincae.machine import resolve_device
from lincae.machine.files import json_object

STABLE_AUDIO = "stable-audio-vae"
HUB = {
    STABLE_AUDIO: "stabilityai/stable-audio-open-1.0",
    "encodec-24khz": "facebook/encodec_24khz",
    "encodec-32khz": "facebook/encodec_32khz",
    "encodec-48khz": "facebook/encodec_48khz",
    "dac-16khz": "descript/dac_16khz",
    "dac-24khz": "descript/dac_24khz",
    "dac-44khz": "descript/dac_44khz",
}
OOBLECK = "AutoencoderOobleck"
CLASSES = {
    "encodec": ("transformers", "EncodecModel"),
    "dac": ("transformers", "DacModel"),
    OOBLECK: ("diffusers", OOBLECK),
}
"""What a folder calls its kind of model, and the library and the class that reads it."""


class HubCodec(Checked):
    """An autoencoder of one of these libraries. A stereo model hears mono audio in both channels, and the
    mean of both comes back. The whole signal goes through the network at once."""

    def __init__(
        self, network: nn.Module, name: str, n_channels: int, hop: int, latent_channels: int, device: Any
    ):
        """Raises ValueError for other than one or two channels."""
        if n_channels not in (1, 2):
            raise ValueError(f"{name} must have 1 or 2 audio channels, has {n_channels}")
        super().__init__(network.config.sampling_rate, hop, latent_channels)
        self.name = name
        self.n_channels = n_channels
        self.network = network.eval().to(resolve_device(device))

    def _heard(self, audio: Tensor, more: int = 0) -> Tensor:
        """Audio (B, T) in every channel, (B, n_channels, T'): T + `more` samples, filled to whole hops."""
        n_samples = -(-(audio.shape[1] + more) // self.hop) * self.hop
        padded = F.pad(audio, (0, n_samples - audio.shape[1]))
        on_device = padded.to(self.network.device, self.network.dtype)
        return on_device[:, None].expand(-1, self.n_channels, -1)

    @torch.no_grad()
    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        return self.network.decoder(z.to(self.network.device, self.network.dtype)).float().mean(1)


class Codec(HubCodec):
    """An EnCodec or DAC model of transformers between its encoder and its quantiser.

    EnCodec at 48 kHz hears audio as it is, without its normalisation, whose level lies outside of the
    latents. Where a decoder gives a few samples less than whole hops (DAC at 24 kHz), there is a frame more.
    """

    def __init__(self, codec: nn.Module, name: str, device: str | torch.device = "auto"):
        """`codec`: an `EncodecModel` or `DacModel`. ValueError for others, and for more than two channels."""
        config = codec.config
        if getattr(config, "model_type", None) not in CLASSES:
            raise ValueError(f"{name} is a {type(codec).__name__}: needs one of EncodecModel, DacModel")
        n_channels = getattr(config, "audio_channels", 1)
        super().__init__(codec, name, n_channels, config.hop_length, config.hidden_size, device)
        frames = torch.zeros(1, self.latent_channels, 8, device=codec.device, dtype=codec.dtype)
        with torch.no_grad():
            self._lacking = max(0, 8 * self.hop - codec.decoder(frames).shape[-1])

    @torch.no_grad()
    def _latents_of(self, audio: Tensor) -> Tensor:
        return self.network.encoder(self._heard(audio, self._lacking)).float()

    def fingerprint(self) -> str:
        """A sha256 (hex) of the encoder's and decoder's weights and of the settings they were built with."""
        # What differs from the defaults of transformers: new settings of later versions change nothing.
        settings = self.network.config.to_diff_dict()
        for key in ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"):
            settings.pop(key, None)
        settings |= {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate}
        state = self.network.state_dict()
        used = {key: value for key, value in state.items() if key.startswith(("encoder.", "decoder."))}
        return content_fingerprint(type(self.network).__name__, settings, used)


class Oobleck(HubCodec):
    """Stable Audio Open's VAE, a diffusers `AutoencoderOobleck`. The paper kept its first channel alone."""

    def __init__(self, vae: nn.Module, name: str = STABLE_AUDIO, device: str | torch.device = "auto"):
        config = vae.config
        sizes = (config.audio_channels, vae.hop_length, config.decoder_input_channels)
        super().__init__(vae, name, *sizes, device)

    @torch.no_grad()
    def _latents_of(self, audio: Tensor) -> Tensor:
        return self.network.encode(self._heard(audio)).latent_dist.mode().float()

    def fingerprint(self) -> str:
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate, "hop": self.hop}
        return content_fingerprint(type(self.network).__name__, settings, self.network.state_dict())


# ---------------------------------------------------------------- files


def codec_kind(name_or_folder: str | Path) -> str | None:
    """The one of CLASSES that a name of HUB stands for, or that a local folder holds, itself or in its folder
    `vae`; else None. Raises ValueError for a damaged configuration."""
    name = str(name_or_folder)
    if name in HUB:
        return OOBLECK if name == STABLE_AUDIO else name.split("-")[0]
    for path in (Path(name) / CONFIG, Path(name) / "vae" / CONFIG):
        if path.is_file():
            config = json_object(path.read_bytes(), path)
            kind = config.get("model_type", config.get("_class_name"))
            if kind in CLASSES:
                return kind
    return None


def load_codec(name_or_folder: str | Path, device: str | torch.device = "auto") -> HubCodec:
    """One of HUB (Stable Audio's asks for a login and the licence's acceptance), or a local folder that
    `codec_kind` knows. Raises ImportError without transformers or diffusers; OSError where files are missing
    or not to be had; ValueError for another name or folder, a damaged file, and tensors that do not fit."""
    name = str(name_or_folder)
    source = HUB.get(name, name)
    kind = codec_kind(name)
    if kind is None:
        raise ValueError(f"{name} is no folder of {', '.join(CLASSES)}: choose from {', '.join(HUB)}")
    device = resolve_device(device)

    library, class_name = CLASSES[kind]
    try:
        model_class = getattr(importlib.import_module(library), class_name)
    except ImportError as error:
        raise ImportError(f"{name} needs {library}: pip install 'lincae[baselines]'") from error
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": True}
    if kind == OOBLECK:
        in_subfolder = name in HUB or (Path(name) / "vae").is_dir()
        options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "use_safetensors": True}
        options["subfolder"] = "vae" if in_subfolder else None
    try:
        with fetching(source), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers uses torch's old weight_norm
            network, report = model_class.from_pretrained(source, output_loading_info=True, **options)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {class_name}: {error}") from error
    check_report(source, class_name, report)
    wrapper = Oobleck if kind == OOBLECK else Codec
    return wrapper(network, name if name in HUB else Path(name).name, device)


def check_report(source: str, class_name: str, report: Mapping[str, Any]) -> None:
    """ValueError for tensors of encoder or decoder that did not fit; the quantiser is not used."""
    problems = {"missing": "missing_keys", "unknown": "unexpected_keys", "misshapen": "mismatched_keys"}
    found = []
    for problem, key in problems.items():
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in report.get(key, ()))
        names = [name for name in names if not name.startswith("quantizer.")]
        if names:
            found.append(f"{problem} {', '.join(names[:3])}")
    if found:
        raise ValueError(f"{source} does not fit {class_name}: {'; '.join(found)}")
