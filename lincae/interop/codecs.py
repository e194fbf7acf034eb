"""EnCodec and DAC through transformers, Stable Audio's VAE through diffusers: their continuous latents.

    model = lincae.load("dac-44khz")              # from the hub
    model = lincae.load("downloads/encodec_24khz")  # a folder of `save_pretrained`

Nothing is quantised, so these are the autoencoders inside the codecs, not the codecs: codes cannot be added.
Nothing is sampled either. `decode` accepts a seed and draws nothing.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames. Audio is (B, T) mono float32.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lincae.checkpoints import content_fingerprint, fetching
from lincae.interface import check_audio, check_latents
from lincae.interop.references import held_length
from lincae.machine import resolve_device

HUB = {
    "encodec-24khz": "facebook/encodec_24khz",
    "encodec-32khz": "facebook/encodec_32khz",
    "encodec-48khz": "facebook/encodec_48khz",
    "dac-16khz": "descript/dac_16khz",
    "dac-24khz": "descript/dac_24khz",
    "dac-44khz": "descript/dac_44khz",
}
STABLE_AUDIO = "stable-audio-vae"
STABLE_AUDIO_HUB = "stabilityai/stable-audio-open-1.0"
KINDS = {"encodec": "EncodecModel", "dac": "DacModel"}
"""The model_type that a folder states, and its class of transformers."""
OOBLECK = "AutoencoderOobleck"


class Codec:
    """An EnCodec or DAC model of transformers between its encoder and its quantiser.

    - Length: silence fills the last hop (and one more, where the decoder gives a few samples less than whole
      hops, as DAC at 24 kHz does); the whole signal goes through the network at once, where EnCodec at 48 kHz
      was trained on seconds.
    - Channels: a stereo model (EnCodec at 48 kHz) hears mono audio in both, and the mean of both comes back.
    - Level: EnCodec at 48 kHz normalises the RMS of its input and sends the level beside its codes. Here it
      hears audio as it is, since a level outside of the latents could not be scaled with them.
    """

    def __init__(self, codec: torch.nn.Module, name: str, device: str | torch.device = "auto"):
        """`codec`: an `EncodecModel` or `DacModel`. ValueError for others, and for more than two channels."""
        if getattr(codec.config, "model_type", None) not in KINDS:
            raise ValueError(f"{name} is a {type(codec).__name__}: needs one of {', '.join(KINDS.values())}")
        self.n_channels = _mono_or_stereo(getattr(codec.config, "audio_channels", 1), name)
        self.name = name
        self.device = resolve_device(device)
        self.codec = codec.eval().to(self.device)
        self.sample_rate = codec.config.sampling_rate
        self.hop = codec.config.hop_length
        self.latent_rate = self.sample_rate / self.hop
        self.latent_channels = codec.config.hidden_size
        with torch.no_grad():
            frames = torch.zeros(1, self.latent_channels, 8, device=self.device, dtype=codec.dtype)
            self._lacking = max(0, 8 * self.hop - self.codec.decoder(frames).shape[-1])

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, ceil((T + lacking) / hop)), `lacking` being what the decoder gives
        less than whole hops. Raises as `check_audio`."""
        audio = check_audio(audio).to(self.device, self.codec.dtype)
        padded = F.pad(audio, (0, self._lacking))
        return self.codec.encoder(_whole_hops(padded, self.hop, self.n_channels)).float()

    @torch.no_grad()
    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length), all that they hold by default.

        Raises ValueError for another shape, non-finite latents, and a length that they do not hold.
        """
        check_latents(z, self.latent_channels, name=f"latents of {self.name}")
        audio = self.codec.decoder(z.to(self.device, self.codec.dtype)).float().mean(1)
        return audio[:, : held_length(length, audio.shape[1], z)]

    def fingerprint(self) -> str:
        """A sha256 (hex) of the encoder's and decoder's weights and of the settings they were built with."""
        # What differs from the defaults of transformers: new settings of later versions change nothing.
        settings = self.codec.config.to_diff_dict()
        for key in ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"):
            settings.pop(key, None)
        settings |= {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate}
        state = self.codec.state_dict()
        used = {key: value for key, value in state.items() if key.startswith(("encoder.", "decoder."))}
        return content_fingerprint(type(self.codec).__name__, settings, used)


class Oobleck:
    """Stable Audio Open's VAE, through diffusers: latents are the mode of the posterior.

    A stereo model hears mono audio in both channels. The whole signal goes through the network at once.
    """

    def __init__(self, vae: torch.nn.Module, name: str = STABLE_AUDIO, device: str | torch.device = "auto"):
        """`vae`: a diffusers `AutoencoderOobleck`. Raises ValueError for other than one or two channels."""
        self.n_channels = _mono_or_stereo(vae.config.audio_channels, name)
        self.name = name
        self.vae = vae.eval().to(resolve_device(device))
        self.sample_rate = vae.config.sampling_rate
        self.hop = vae.hop_length
        self.latent_rate = self.sample_rate / self.hop

    @classmethod
    def load(
        cls,
        source: str | Path = STABLE_AUDIO_HUB,
        subfolder: str = "vae",
        device: str | torch.device = "auto",
    ) -> "Oobleck":
        """From the hub (which asks for a login and the licence's acceptance), or from a local folder that
        holds the VAE itself or has it in `subfolder`.

        Raises ImportError without diffusers; OSError where files are missing, unreadable or not to be had;
        ValueError for tensors that are missing, unknown or misshapen.
        """
        try:
            from diffusers import AutoencoderOobleck
        except ImportError as error:
            message = "Stable Audio's VAE needs diffusers: pip install 'lincae[baselines]'"
            raise ImportError(message) from error
        device = resolve_device(device)
        folder = Path(source)
        is_vae = folder.is_dir() and not (folder / subfolder).is_dir()
        options = {"output_loading_info": True, "low_cpu_mem_usage": False, "torch_dtype": torch.float32}
        try:
            with fetching(source), warnings.catch_warnings():
                # diffusers uses torch's old weight_norm.
                warnings.simplefilter("ignore", FutureWarning)
                vae, report = AutoencoderOobleck.from_pretrained(
                    str(source), subfolder=None if is_vae else subfolder, use_safetensors=True, **options
                )
        except RuntimeError as error:
            raise ValueError(f"{source} does not fit {OOBLECK}: {error}") from error
        check_report(str(source), OOBLECK, report)
        return cls(vae, device=device)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, ceil(T / hop)) on the model's device; silence fills the last hop.

        Raises as `check_audio`.
        """
        audio = check_audio(audio).to(self.vae.device, self.vae.dtype)
        return self.vae.encode(_whole_hops(audio, self.hop, self.n_channels)).latent_dist.mode().float()

    @torch.no_grad()
    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length), L * hop by default: the mean of the two channels (the paper
        of Lin-CAE kept the first alone).

        Raises ValueError for another shape, non-finite latents, and a length outside 1..L * hop.
        """
        check_latents(z, self.vae.config.decoder_input_channels, name=f"latents of {self.name}")
        length = held_length(length, z.shape[2] * self.hop, z)
        audio = self.vae.decode(z.to(self.vae.device, self.vae.dtype)).sample
        return audio.float().mean(1)[:, :length]

    def fingerprint(self) -> str:
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate, "hop": self.hop}
        return content_fingerprint(type(self.vae).__name__, settings, self.vae.state_dict())


def _mono_or_stereo(n_channels: int, name: str) -> int:
    if n_channels not in (1, 2):
        raise ValueError(f"{name} must have 1 or 2 audio channels, has {n_channels}")
    return n_channels


def _whole_hops(audio: Tensor, hop: int, n_channels: int) -> Tensor:
    """Mono audio (B, T), filled with silence to whole hops, in every channel: (B, n_channels, T')."""
    padded = F.pad(audio, (0, -audio.shape[1] % hop))
    return padded[:, None].expand(-1, n_channels, -1)


# ---------------------------------------------------------------- files


def codec_kind(folder: str | Path) -> str | None:
    """What a local folder holds: "encodec", "dac", OOBLECK (itself or in its folder `vae`), or None."""
    for path in (Path(folder) / "config.json", Path(folder) / "vae" / "config.json"):
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        kind = config.get("model_type", config.get("_class_name")) if isinstance(config, dict) else None
        if kind in KINDS or kind == OOBLECK:
            return kind
    return None


def load_codec(name_or_folder: str | Path, device: str | torch.device = "auto") -> Codec | Oobleck:
    """One of HUB, STABLE_AUDIO, or a local folder that `codec_kind` knows.

    Raises ImportError without transformers (diffusers); OSError where files are missing or not to be had;
    ValueError for another name or folder, a damaged file, and for tensors of encoder or decoder that are
    missing, unknown or misshapen.
    """
    name = str(name_or_folder)
    device = resolve_device(device)
    if name == STABLE_AUDIO:
        return Oobleck.load(device=device)
    kind = name.split("-")[0] if name in HUB else codec_kind(name_or_folder)
    if kind is None:
        raise ValueError(
            f"{name} is no folder of {', '.join(KINDS)} or {OOBLECK}: choose from {', '.join(HUB)}"
        )
    if kind == OOBLECK:
        model = Oobleck.load(name_or_folder, device=device)
        model.name = Path(name).name
        return model

    try:
        import transformers
    except ImportError as error:
        raise ImportError("EnCodec and DAC need transformers: pip install 'lincae[baselines]'") from error
    source = HUB.get(name, name)
    with fetching(source):
        codec, report = getattr(transformers, KINDS[kind]).from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    check_report(source, KINDS[kind], report)
    return Codec(codec, name if name in HUB else Path(name).name, device)


def check_report(source: str, kind: str, report: Mapping[str, Any]) -> None:
    """ValueError for tensors of encoder or decoder that did not fit; the quantiser is not used."""
    problems = {"missing": "missing_keys", "unknown": "unexpected_keys", "misshapen": "mismatched_keys"}
    found = []
    for problem, key in problems.items():
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in report.get(key, ()))
        names = [name for name in names if not name.startswith("quantizer.")]
        if names:
            found.append(f"{problem} {', '.join(names[:3])}")
    if found:
        raise ValueError(f"{source} does not fit {kind}: {'; '.join(found)}")
