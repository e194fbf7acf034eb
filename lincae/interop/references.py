"""Autoencoders to compare with: an exactly linear one, and one whose nonlinearity is known.

All are `AutoencoderLike`, compute where their input is, and are deterministic: `seed` is accepted and changes
nothing.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames, `F` frequency bins. Audio is
(B, T) mono float32, latents are (B, C, L).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lincae.checkpoints import content_fingerprint
from lincae.interface import check_audio, check_latents


class StftAutoencoder:
    """The exactly linear reference: Enc is a Hann STFT, windows of 4 hops, Dec its inverse by overlap-add.

    Latents (B, 2F, L), F = 2 hop + 1: the real parts, then the imaginary ones. Three hops of silence before
    the signal and as much as needed behind it put every sample under four windows.
    """

    name = "stft"

    def __init__(self, sample_rate: int = 44100, hop: int = 512):
        check_positive(sample_rate=sample_rate, hop=hop)
        self.sample_rate = sample_rate
        self.hop = hop
        self.latent_rate = sample_rate / hop

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, 2F, ceil(T / hop) + 3). Raises as `check_audio`."""
        audio = check_audio(audio).float()
        n_latents = math.ceil(audio.shape[1] / self.hop) + 3
        padded = F.pad(audio, (3 * self.hop, n_latents * self.hop - audio.shape[1]))

        frames = padded.unfold(1, 4 * self.hop, self.hop) * self._window(audio)
        spectrum = torch.fft.rfft(frames).transpose(1, 2)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, 2F, L) to audio (B, length), (L - 3) * hop by default.

        Raises ValueError for another shape, non-finite latents, and a length outside 1..(L - 3) * hop.
        """
        check_latents(z, 4 * self.hop + 2, name=f"latents of {self.name}")
        length = held_length(length, (z.shape[2] - 3) * self.hop, z)

        real, imag = z.float().transpose(1, 2).chunk(2, 2)
        frames = torch.fft.irfft(torch.complex(real, imag), 4 * self.hop) * self._window(z)
        n_samples = (z.shape[2] + 3) * self.hop
        added = F.fold(frames.transpose(1, 2), (1, n_samples), (1, 4 * self.hop), stride=(1, self.hop))
        # The squares of Hann windows a quarter apart sum to 1.5.
        return added[:, 0, 0, 3 * self.hop : 3 * self.hop + length] / 1.5

    def fingerprint(self) -> str:
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate, "hop": self.hop}
        return content_fingerprint(self.name, settings, {})

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(4 * self.hop, device=like.device, dtype=torch.float32)


class TanhToy:
    """A nonlinear toy whose errors are known: Enc(x) = tanh(g x), Dec(z) = tanh(g z), g = `drive`, sample by
    sample. Latents (B, hop, L) are frames of `hop` samples.

    Homogeneity error: Enc(a x) - a Enc(x) = tanh(a g x) - a tanh(g x).
    Additivity error: Enc(x + y) - Enc(x) - Enc(y) = -tanh(g x) tanh(g y) tanh(g (x + y)).
    Both hold for Dec as well.
    """

    name = "tanh"

    def __init__(self, sample_rate: int = 44100, hop: int = 64, drive: float = 1.0):
        check_positive(sample_rate=sample_rate, hop=hop, drive=drive)
        self.sample_rate = sample_rate
        self.hop = hop
        self.drive = drive
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
        check_latents(z, self.hop, name=f"latents of {self.name}")
        length = held_length(length, z.shape[2] * self.hop, z)
        return torch.tanh(self.drive * z.float()).transpose(1, 2).flatten(1)[:, :length]

    def fingerprint(self) -> str:
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate}
        settings |= {"hop": self.hop, "drive": self.drive}
        return content_fingerprint(self.name, settings, {})


REFERENCES = {kind.name: kind for kind in (StftAutoencoder, TanhToy)}
"""By name, as `lincae.load` knows them, with default settings."""


def check_positive(**settings: float) -> None:
    """ValueError that names the first setting that is not a positive, finite number."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")


def held_length(length: int | None, held: int, z: Tensor) -> int:
    """`length`, or the `held` samples of all latents (B, C, L). ValueError for what they do not hold."""
    length = held if length is None else length
    if not 1 <= length <= held:
        frames = f"what {z.shape[2]} latent frames hold"
        raise ValueError(f"length must lie in 1..{held}, {frames}, got {length}")
    return length
