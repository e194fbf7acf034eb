"""EnCodec and DAC through transformers, with the continuous latents that come before their quantisers.

    model = lincae.load("dac-44khz")              # from the hub
    model = lincae.load("downloads/encodec_24khz")  # a folder of `save_pretrained`

Nothing is quantised, so these are the autoencoders inside the codecs, not the codecs: codes cannot be added.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames. Audio is (B, T) mono float32.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lincae.interface import check_audio
from lincae.interop.references import STABLE_AUDIO, Oobleck, check_latents, checked_length
from lincae.machine import resolve_device

HUB = {
    "encodec-24khz": "facebook/encodec_24khz",
    "encodec-32khz": "facebook/encodec_32khz",
    "encodec-48khz": "facebook/encodec_48khz",
    "dac-16khz": "descript/dac_16khz",
    "dac-24khz": "descript/dac_24khz",
    "dac-44khz": "descript/dac_44khz",
}
KINDS = {"encodec": "EncodecModel", "dac": "DacModel"}  # model_type -> class of transformers
OOBLECK = "AutoencoderOobleck"


class Codec:
    """An EnCodec or DAC model of transformers between its encoder and its quantiser.

    - Length: silence fills the last hop (and one more, where the decoder gives a few samples less than whole
      hops, as DAC at 24 kHz does); the whole signal goes through the network at once, where EnCodec at 48 kHz
      was trained on seconds.
    - Channels: a stereo model (EnCodec at 48 kHz) hears mono audio in both, and the mean of both comes back.
    - Level: EnCodec at 48 kHz normalises the RMS of its input and sends the level beside its codes. Here it
      hears audio as it is, since a level outside of the latents could not be scaled with them.
    - `decode` takes a seed and draws nothing.
    """

    def __init__(self, codec: torch.nn.Module, name: str, device: str | torch.device = "auto"):
        """`codec`: an `EncodecModel` or `DacModel`. ValueError for others, and for more than two channels."""
        if getattr(codec.config, "model_type", None) not in KINDS:
            raise ValueError(f"{name} is a {type(codec).__name__}: needs one of {', '.join(KINDS.values())}")
        self.n_channels = getattr(codec.config, "audio_channels", 1)
        if self.n_channels not in (1, 2):
            raise ValueError(f"{name} must have 1 or 2 audio channels, has {self.n_channels}")
        self.name, self.codec, self.device = name, codec.eval(), resolve_device(device)
        self.codec.to(self.device)
        self.sample_rate, self.hop = codec.config.sampling_rate, codec.config.hop_length
        self.latent_rate, self.latent_channels = self.sample_rate / self.hop, codec.config.hidden_size
        with torch.no_grad():
            frames = torch.zeros(1, self.latent_channels, 8, device=self.device)
            self._lacking = max(0, 8 * self.hop - self.codec.decoder(frames).shape[-1])

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, ceil((T + lacking) / hop)), `lacking` being what the decoder gives
        less than whole hops. Raises as `check_audio`."""
        audio = check_audio(audio).to(self.device, torch.float32)
        padded = F.pad(audio, (0, self._lacking))
        padded = F.pad(padded, (0, -padded.shape[1] % self.hop))
        return self.codec.encoder(padded[:, None].expand(-1, self.n_channels, -1))

    @torch.no_grad()
    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length), all that they hold by default.

        Raises ValueError for another shape, non-finite latents, and a length that they do not hold.
        """
        check_latents(z, self.latent_channels, self.name)
        audio = self.codec.decoder(z.to(self.device, torch.float32)).mean(1)
        return audio[:, : checked_length(length, audio.shape[1], z.shape[2])]


def codec_kind(folder: str | Path) -> str | None:
    """What a local folder holds: "encodec", "dac", OOBLECK (itself or in its folder `vae`), or None."""
    for path in (Path(folder) / "config.json", Path(folder) / "vae" / "config.json"):
        if path.is_file():
            try:
                config = json.loads(path.read_text())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not JSON: {error}") from error
            kind = config.get("model_type", config.get("_class_name")) if isinstance(config, dict) else None
            if kind in KINDS or kind == OOBLECK:
                return kind
    return None


def load_codec(name_or_folder: str | Path, device: str | torch.device = "auto") -> "Codec | Oobleck":
    """One of HUB, or a local folder that `codec_kind` knows (Stable Audio's VAE is `Oobleck`'s).

    Raises ImportError without transformers (diffusers); OSError where files are missing, unreadable or not to
    be had; ValueError for another name or folder, and for tensors of encoder or decoder that are missing,
    unknown or misshapen.
    """
    name, device = str(name_or_folder), resolve_device(device)
    kind = name.split("-")[0] if name in HUB else codec_kind(name_or_folder)
    if kind is None:
        raise ValueError(
            f"{name} is no folder of {', '.join(KINDS)} or {OOBLECK}: choose from {', '.join(HUB)}"
        )
    if kind == OOBLECK:
        model = Oobleck.load(name_or_folder, device=device)
        model.name = Path(name).name or STABLE_AUDIO
        return model
    try:
        import transformers
    except ImportError as error:
        raise ImportError("EnCodec and DAC need transformers: pip install 'lincae[baselines]'") from error
    source = HUB.get(name, name)
    codec, report = getattr(transformers, KINDS[kind]).from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    check_report(source, KINDS[kind], report)
    return Codec(codec, name if name in HUB else Path(name).name, device)


def check_report(source: str, kind: str, report: dict[str, Any]) -> None:
    """ValueError for tensors of encoder or decoder that did not fit; the quantiser is not used."""
    problems = {"missing": "missing_keys", "unknown": "unexpected_keys", "misshapen": "mismatched_keys"}
    found = []
    for problem, key in problems.items():
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in report.get(key, ()))
        names = [name for name in names if not name.startswith("quantizer.")]
        found += [f"{problem} {', '.join(names[:3])}"] if names else []
    if found:
        raise ValueError(f"{source} does not fit {kind}: {'; '.join(found)}")
