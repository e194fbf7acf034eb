"""Autoencoders to compare with: exactly linear ones, also at the rate of a model, and a known nonlinearity.

A learned model that does not beat the linear ones at its own rate has shown nothing: `load("resample-32x")`,
`load("resample+noise-32x")` and `load("pca-32x")` have 32 samples per latent number, at 16 kHz.

Axis legend: see `lincae.interface`.
"""

import functools
import math
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lincae.bypass.model import mdct_bands
from lincae.checkpoints import content_fingerprint
from lincae.data.audio import resample
from lincae.interop.bundled import BUNDLED
from lincae.interop.checked import Checked
from lincae.machine import generator

SAMPLE_RATE = 16000
FITTED = BUNDLED / "linear_references.safetensors"
"""What `tools/fit_references.py` fitted: `basis` (BLOCK, n) and `noise_spectrum` (NOISE_FFT // 2 + 1,)."""

MDCT_BINS = 256
BLOCK = 2 * MDCT_BINS
"""MDCT coefficients, and samples, that the PCA takes together: those of two frames."""

NOISE_FFT = 512
EXAMPLES = ("resample-32x", "resample+noise-32x", "pca-32x")


class StftAutoencoder(Checked):
    """The exactly linear reference: Enc is a Hann STFT, windows of 4 hops, Dec its inverse by overlap-add.
    Latents (B, 2F, L), F = 2 hop + 1: the real parts, then the imaginary ones. Silence at both ends puts
    every sample under four windows."""

    name = "stft"

    def __init__(self, sample_rate: int = 44100, hop: int = 512):
        super().__init__(sample_rate, hop, 4 * hop + 2)

    def _latents_of(self, audio: Tensor) -> Tensor:
        n_latents = math.ceil(audio.shape[1] / self.hop) + 3
        padded = F.pad(audio.float(), (3 * self.hop, n_latents * self.hop - audio.shape[1]))
        frames = padded.unfold(1, 4 * self.hop, self.hop) * self._window(audio)
        spectrum = torch.fft.rfft(frames).transpose(1, 2)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        real, imag = z.float().transpose(1, 2).chunk(2, 2)
        frames = torch.fft.irfft(torch.complex(real, imag), 4 * self.hop) * self._window(z)
        n_samples = (z.shape[2] + 3) * self.hop
        added = F.fold(frames.transpose(1, 2), (1, n_samples), (1, 4 * self.hop), stride=(1, self.hop))
        # The squares of Hann windows a quarter apart sum to 1.5.
        return added[:, 0, 0, 3 * self.hop : n_samples - 3 * self.hop] / 1.5

    def fingerprint(self) -> str:
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate, "hop": self.hop}
        return content_fingerprint(self.name, settings, {})

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(4 * self.hop, device=like.device, dtype=torch.float32)


class TanhToy(Checked):
    """A nonlinear toy whose errors are known: Enc(x) = tanh(g x), Dec(z) = tanh(g z), g = `drive`, sample by
    sample. Latents (B, hop, L) are frames of `hop` samples. Of Enc, and of Dec as well:

    Enc(a x) - a Enc(x) = tanh(a g x) - a tanh(g x);
    Enc(x + y) - Enc(x) - Enc(y) = -tanh(g x) tanh(g y) tanh(g (x + y)).
    """

    name = "tanh"

    def __init__(self, sample_rate: int = 44100, hop: int = 64, drive: float = 1.0):
        super().__init__(sample_rate, hop, hop)
        if not 0 < drive < math.inf:
            raise ValueError(f"drive must be positive, got {drive}")
        self.drive = drive

    def _latents_of(self, audio: Tensor) -> Tensor:
        padded = F.pad(audio.float(), (0, -audio.shape[1] % self.hop))
        return torch.tanh(self.drive * padded).unflatten(1, (-1, self.hop)).transpose(1, 2)

    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        return torch.tanh(self.drive * z.float()).transpose(1, 2).flatten(1)

    def fingerprint(self) -> str:
        settings = {"sample_rate": self.sample_rate, "latent_rate": self.latent_rate}
        settings |= {"hop": self.hop, "drive": self.drive}
        return content_fingerprint(self.name, settings, {})


# ---------------------------------------------------------------- linear, at any rate


class Resampler(Checked):
    """Decimation and interpolation by soxr: latents (B, 1, L) are the waveform at `sample_rate / factor`."""

    def __init__(self, factor: float, noise: bool = False):
        """`factor`: samples per latent number, a divisor of the sample rate above 1. `noise`: the decoder
        adds, whatever the latent, one noise above the cut with the mean spectrum of recorded music."""
        if factor <= 1 or factor % 1 or SAMPLE_RATE % factor:
            rates = f"resampling has rates such as 8x, whole numbers above 1 that divide {SAMPLE_RATE}"
            raise ValueError(f"{rates}, got {factor:g}x")
        super().__init__(SAMPLE_RATE, int(factor), 1)
        self.name = f"resample{'+noise' if noise else ''}-{self.hop}x"
        self.noise_spectrum = fitted()["noise_spectrum"] if noise else None

    def _latents_of(self, audio: Tensor) -> Tensor:
        audio = audio.detach().to("cpu", torch.float32)
        return resample(audio, SAMPLE_RATE, SAMPLE_RATE // self.hop)[:, None]

    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        low = z[:, 0].detach().to("cpu", torch.float32)
        audio = resample(low, SAMPLE_RATE // self.hop, SAMPLE_RATE)[:, : z.shape[2] * self.hop]
        return audio if self.noise_spectrum is None else audio + self._haze(audio.shape[1], seed)

    def _haze(self, length: int, seed: int) -> Tensor:
        """Noise (length,) above the cut."""
        white = torch.randn(length + 2 * NOISE_FFT, generator=generator(seed), dtype=torch.float32)
        window = torch.hann_window(NOISE_FFT, dtype=torch.float32)
        bins = torch.stft(white, NOISE_FFT, window=window, return_complex=True)
        above_cut = torch.fft.rfftfreq(NOISE_FFT, 1 / SAMPLE_RATE) > self.latent_rate / 2
        shaped = bins * (self.noise_spectrum * above_cut)[:, None]
        return torch.istft(shaped, NOISE_FFT, window=window)[NOISE_FFT : NOISE_FFT + length]

    def fingerprint(self) -> str:
        noise = {} if self.noise_spectrum is None else {"noise_spectrum": self.noise_spectrum}
        return content_fingerprint("Resampler", {"sample_rate": SAMPLE_RATE, "factor": self.hop}, noise)


class Pca(Checked):
    """The first principal components of blocks of two MDCT frames, (B, C, L) with C = BLOCK / factor: no
    linear map of such blocks to as many numbers has a smaller squared error on the music of the fit."""

    def __init__(self, factor: float):
        """`factor`: samples per latent number, so that a block has a whole number of components."""
        n_fitted = fitted()["basis"].shape[1]
        n_components = BLOCK / max(factor, 1e-9)
        if not n_components.is_integer() or not 1 <= n_components <= n_fitted:
            rates = f"PCA has rates such as 8x, {BLOCK} / n, n = 1..{n_fitted}"
            raise ValueError(f"{rates}, got {factor:g}x")
        super().__init__(SAMPLE_RATE, BLOCK, int(n_components))
        self.name = f"pca-{factor:g}x"
        self.basis = fitted()["basis"][:, : self.latent_channels]
        self._mdct = mdct_bands(MDCT_BINS, MDCT_BINS)

    def _latents_of(self, audio: Tensor) -> Tensor:
        audio = audio.detach().to("cpu", torch.float32)
        n_blocks = math.ceil((audio.shape[1] + MDCT_BINS) / BLOCK)
        padded = F.pad(audio, (MDCT_BINS, n_blocks * BLOCK - audio.shape[1]))
        frames = padded.unfold(1, 2 * MDCT_BINS, MDCT_BINS) @ self._mdct.T
        return (frames.reshape(len(audio), n_blocks, BLOCK) @ self.basis).transpose(1, 2)

    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        blocks = z.detach().to("cpu", torch.float32).transpose(1, 2) @ self.basis.T
        windows = blocks.reshape(len(z), -1, MDCT_BINS) @ self._mdct
        first_halves = F.pad(windows[..., :MDCT_BINS].flatten(1), (0, MDCT_BINS))
        second_halves = F.pad(windows[..., MDCT_BINS:].flatten(1), (MDCT_BINS, 0))
        return (first_halves + second_halves)[:, MDCT_BINS:-MDCT_BINS]

    def fingerprint(self) -> str:
        settings = {"sample_rate": SAMPLE_RATE, "components": self.latent_channels}
        return content_fingerprint("Pca", settings, {"basis": self.basis})


@functools.cache
def fitted() -> dict[str, Tensor]:
    """The tensors of FITTED in float32. Raises FileNotFoundError saying how it is made."""
    if not FITTED.is_file():
        made = "it comes with the repository; tools/fit_references.py makes it"
        raise FileNotFoundError(f"{FITTED} is missing: {made}")
    return {name: tensor.float() for name, tensor in load_file(FITTED).items()}


# ---------------------------------------------------------------- by name


REFERENCES = {kind.name: kind for kind in (StftAutoencoder, TanhToy)}
"""By name, as `lincae.load` knows them, with default settings."""
RATED = {"resample": Resampler, "resample+noise": functools.partial(Resampler, noise=True), "pca": Pca}


def reference(name: str) -> Callable[[], Checked] | None:
    """What makes the reference of this name, None for a name of no reference. It raises ValueError for a rate
    that the reference cannot have, naming those that it can; FileNotFoundError without the fitted file."""
    if name in REFERENCES:
        return REFERENCES[name]
    rated = re.fullmatch(r"(.+)-(\d+(?:\.\d+)?)x", name)
    if rated is None or rated[1] not in RATED:
        return None
    return functools.partial(RATED[rated[1]], float(rated[2]))
