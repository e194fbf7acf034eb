"""Autoencoders to compare with: Stable Audio's VAE, an exactly linear one, and one of known nonlinearity.

All are `AutoencoderLike` and deterministic: `seed` is accepted and changes nothing.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames, `F` frequency bins. Audio is
(B, T) mono float32, latents are (B, C, L).
"""

import math
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lincae.interface import AutoencoderLike, check_audio
from lincae.machine import resolve_device

STABLE_AUDIO, STFT, TANH = "stable-audio-vae", "stft", "tanh"
BASELINES = (STABLE_AUDIO, STFT, TANH)


def load_baseline(name: str, device: str | torch.device = "auto") -> AutoencoderLike:
    """One of BASELINES with its default settings. Raises ValueError for another name, else as `Oobleck.load`.

    "stft" and "tanh" have no weights: they compute where their input is.
    """
    device = resolve_device(device)
    if name == STABLE_AUDIO:
        return Oobleck.load(device=device)
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}: choose from {', '.join(BASELINES)}")
    return StftAutoencoder() if name == STFT else TanhToy()


class Oobleck:
    """Stable Audio Open's VAE, through diffusers: latents are the mode of the posterior, nothing is sampled.

    A stereo model hears mono audio in both channels. The whole signal goes through the network at once.
    """

    def __init__(self, vae: torch.nn.Module, name: str = STABLE_AUDIO, device: str | torch.device = "auto"):
        """`vae`: a diffusers `AutoencoderOobleck`. Raises ValueError for other than one or two channels."""
        if vae.config.audio_channels not in (1, 2):
            raise ValueError(f"{name} must have 1 or 2 audio channels, has {vae.config.audio_channels}")
        self.name, self.vae = name, vae.eval().to(resolve_device(device))
        self.sample_rate, self.hop = vae.config.sampling_rate, vae.hop_length
        self.latent_rate = self.sample_rate / self.hop

    @classmethod
    def load(
        cls,
        source: str | Path = "stabilityai/stable-audio-open-1.0",
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
        device, folder = resolve_device(device), Path(source)
        is_vae = folder.is_dir() and not (folder / subfolder).is_dir()
        options = {"output_loading_info": True, "low_cpu_mem_usage": False, "torch_dtype": torch.float32}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of weight_norm, which diffusers uses
                vae, report = AutoencoderOobleck.from_pretrained(
                    str(source), subfolder=None if is_vae else subfolder, use_safetensors=True, **options
                )
        except RuntimeError as error:
            raise ValueError(f"{source} does not fit AutoencoderOobleck: {error}") from error
        problems = {"missing": report["missing_keys"], "unknown": report["unexpected_keys"]}
        if found := [f"{kind} {', '.join(sorted(keys)[:3])}" for kind, keys in problems.items() if keys]:
            raise ValueError(f"{source} does not fit AutoencoderOobleck: {'; '.join(found)}")
        return cls(vae, device=device)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, ceil(T / hop)) on the model's device; silence fills the last hop.

        Raises as `check_audio`.
        """
        audio = check_audio(audio).to(self.vae.device, torch.float32)
        padded = F.pad(audio, (0, -audio.shape[1] % self.hop))
        channels = padded[:, None].expand(-1, self.vae.config.audio_channels, -1)
        return self.vae.encode(channels).latent_dist.mode()

    @torch.no_grad()
    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length), L * hop by default: the mean of the two channels (the paper
        of Lin-CAE kept the first alone).

        Raises ValueError for another shape, non-finite latents, and a length outside 1..L * hop.
        """
        check_latents(z, self.vae.config.decoder_input_channels, self.name)
        length = checked_length(length, z.shape[2] * self.hop, z.shape[2])
        return self.vae.decode(z.to(self.vae.device, torch.float32)).sample.mean(1)[:, :length]


class StftAutoencoder:
    """The exactly linear reference: Enc is a Hann STFT, windows of 4 hops, Dec its inverse by overlap-add.

    Latents (B, 2F, L), F = 2 hop + 1: the real parts, then the imaginary ones. Three hops of silence before
    the signal and as much as needed behind it put every sample under four windows.
    """

    name = STFT

    def __init__(self, sample_rate: int = 44100, hop: int = 512):
        _check_positive(sample_rate=sample_rate, hop=hop)
        self.sample_rate, self.hop, self.latent_rate = sample_rate, hop, sample_rate / hop

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, 2F, ceil(T / hop) + 3). Raises as `check_audio`."""
        audio, window = check_audio(audio).float(), 4 * self.hop
        n_latents = math.ceil(audio.shape[1] / self.hop) + 3
        padded = F.pad(audio, (3 * self.hop, n_latents * self.hop - audio.shape[1]))
        frames = padded.unfold(1, window, self.hop) * torch.hann_window(window, device=audio.device)
        spectrum = torch.fft.rfft(frames).transpose(1, 2)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, 2F, L) to audio (B, length), (L - 3) * hop by default.

        Raises ValueError for another shape, non-finite latents, and a length outside 1..(L - 3) * hop.
        """
        window = 4 * self.hop
        check_latents(z, window + 2, self.name)
        length = checked_length(length, (z.shape[2] - 3) * self.hop, z.shape[2])
        real, imag = z.float().transpose(1, 2).chunk(2, 2)
        frames = torch.fft.irfft(torch.complex(real, imag), window) * torch.hann_window(
            window, device=z.device
        )
        n_samples = (z.shape[2] + 3) * self.hop
        added = F.fold(frames.transpose(1, 2), (1, n_samples), (1, window), stride=(1, self.hop))
        # squares of Hann windows a quarter apart sum to 1.5
        return added[:, 0, 0, 3 * self.hop : 3 * self.hop + length] / 1.5


class TanhToy:
    """A nonlinear toy whose errors are known: Enc(x) = tanh(g x), Dec(z) = tanh(g z), g = `drive`, sample by
    sample. Latents (B, hop, L) are frames of `hop` samples.

    Homogeneity error: Enc(a x) - a Enc(x) = tanh(a g x) - a tanh(g x).
    Additivity error: Enc(x + y) - Enc(x) - Enc(y) = -tanh(g x) tanh(g y) tanh(g (x + y)).
    Both hold for Dec as well.
    """

    name = TANH

    def __init__(self, sample_rate: int = 44100, hop: int = 64, drive: float = 1.0):
        _check_positive(sample_rate=sample_rate, hop=hop, drive=drive)
        self.sample_rate, self.hop, self.drive = sample_rate, hop, drive
        self.latent_rate = sample_rate / hop

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, hop, ceil(T / hop)); silence fills the last frame."""
        audio = check_audio(audio).float()
        padded = F.pad(audio, (0, -audio.shape[1] % self.hop))
        return torch.tanh(self.drive * padded).unflatten(1, (-1, self.hop)).transpose(1, 2)

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, hop, L) to audio (B, length), L * hop by default.

        Raises ValueError for another shape, non-finite latents, and a length outside 1..L * hop.
        """
        check_latents(z, self.hop, self.name)
        length = checked_length(length, z.shape[2] * self.hop, z.shape[2])
        return torch.tanh(self.drive * z.float()).transpose(1, 2).flatten(1)[:, :length]


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")


def check_latents(z: Tensor, channels: int, name: str) -> None:
    """ValueError for latents that are not (B, channels, L), finite and not empty."""
    if z.ndim != 3 or z.shape[1] != channels or z.numel() == 0:
        raise ValueError(f"latents of {name} are (B, {channels}, L), got {tuple(z.shape)}")
    if not torch.isfinite(z).all():
        item, channel, frame = (~torch.isfinite(z)).nonzero()[0].tolist()
        raise ValueError(f"latents are not finite, first at item {item}, channel {channel}, frame {frame}")


def checked_length(length: int | None, held: int, n_latents: int) -> int:
    """`length`, or all that the latents hold (`held` samples). ValueError for what they do not hold."""
    length = held if length is None else length
    if not 1 <= length <= held:
        raise ValueError(f"length must lie in 1..{held}, what {n_latents} latent frames hold, got {length}")
    return length
