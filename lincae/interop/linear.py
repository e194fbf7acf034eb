"""Linear references: what an exactly linear autoencoder reaches at the rate of a model, by name.

    load("resample-32x")         # decimation to 500 Hz and back
    load("resample+noise-32x")   # the same, and one fixed noise of music's usual spectrum above the cut
    load("pca-32x")              # the best linear map of MDCT frames, fitted on recorded music

A learned model that does not beat these at its own rate has shown nothing. All work at 16 kHz; "32x" means 32
samples per latent number. Encoders are linear maps and so are decoders, but for the noise of
"resample+noise", which is added whatever the latent and depends on the seed alone.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames. Audio is (B, T) mono float32.
"""

import functools
import math
import re

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lincae.checkpoints import BUNDLED, content_fingerprint
from lincae.data.audio import resample
from lincae.interface import check_audio, check_latents
from lincae.interop.references import held_length
from lincae.machine import generator

SAMPLE_RATE = 16000
FITTED = BUNDLED / "linear_references.safetensors"
"""What `tools/fit_references.py` fitted: `basis` (BLOCK, n) and `noise_spectrum` (NOISE_FFT // 2 + 1,)."""

MDCT_BINS = 256
FRAMES_PER_BLOCK = 2
BLOCK = MDCT_BINS * FRAMES_PER_BLOCK
"""MDCT coefficients, and samples, that the PCA takes together."""

NOISE_FFT = 512
NAME = re.compile(r"(resample|resample\+noise|pca)-(\d+(?:\.\d+)?)x")
EXAMPLES = ("resample-32x", "resample+noise-32x", "pca-32x")


def is_linear_reference(name: str) -> bool:
    """Whether `load_linear_reference` knows names of this form; the rate may still be one that cannot be."""
    return NAME.fullmatch(name) is not None


def load_linear_reference(name: str) -> "Resampler | Pca":
    """A reference by a name such as those of EXAMPLES.

    Raises ValueError for a name of another form and for a rate that the reference cannot have, naming those
    that it can; FileNotFoundError where the fitted file is missing.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"unknown linear reference {name!r}: use a name such as {', '.join(EXAMPLES)}")

    kind, factor = match[1], float(match[2])
    if kind == "pca":
        return Pca(factor)
    return Resampler(factor, noise=kind == "resample+noise")


class Resampler:
    """Decimation and interpolation by soxr: latents (B, 1, L) are the waveform at `sample_rate / factor`."""

    def __init__(self, factor: float, noise: bool = False):
        """`factor`: samples per latent number, a divisor of the sample rate above 1. `noise`: add one fixed
        noise above the cut, with the mean spectrum of recorded music, as the cheapest haze."""
        if factor <= 1 or factor % 1 or SAMPLE_RATE % factor:
            wanted = f"a whole number above 1 that divides {SAMPLE_RATE}"
            raise ValueError(
                f"resampling at {SAMPLE_RATE} Hz has rates such as 8x or 32x, {wanted}, got {factor:g}x"
            )

        self.factor, self.noise = int(factor), noise
        self.name = f"resample{'+noise' if noise else ''}-{self.factor}x"
        self.sample_rate = SAMPLE_RATE
        self.latent_rate = SAMPLE_RATE / self.factor
        self._spectrum = fitted()["noise_spectrum"] if noise else None

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, 1, ceil(T / factor)). Raises as `check_audio`."""
        audio = check_audio(audio).detach().to("cpu", torch.float32)
        return resample(audio, SAMPLE_RATE, SAMPLE_RATE // self.factor)[:, None]

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, 1, L) to audio (B, length), L * factor by default.

        Raises ValueError for another shape, non-finite latents, and a length outside 1..L * factor.
        """
        check_latents(z, 1, name=f"latents of {self.name}")
        length = held_length(length, z.shape[2] * self.factor, z)
        low = z[:, 0].detach().to("cpu", torch.float32)
        audio = resample(low, SAMPLE_RATE // self.factor, SAMPLE_RATE)[:, :length]
        return audio + self._haze(length, seed) if self.noise else audio

    def _haze(self, length: int, seed: int) -> Tensor:
        """The noise (length,) above the cut."""
        white = torch.randn(length + 2 * NOISE_FFT, generator=generator(seed), dtype=torch.float32)
        window = torch.hann_window(NOISE_FFT, dtype=torch.float32)
        spectrum = torch.stft(white, NOISE_FFT, window=window, return_complex=True)

        frequencies_hz = torch.fft.rfftfreq(NOISE_FFT, 1 / SAMPLE_RATE)
        above_cut = frequencies_hz > self.latent_rate / 2
        shaped = spectrum * (self._spectrum * above_cut)[:, None]
        return torch.istft(shaped, NOISE_FFT, window=window)[NOISE_FFT : NOISE_FFT + length]

    def fingerprint(self) -> str:
        """A sha256 (hex) that changes with the rate and with the noise of the decoder."""
        settings = {"sample_rate": SAMPLE_RATE, "factor": self.factor}
        noise = {"noise_spectrum": self._spectrum} if self.noise else {}
        return content_fingerprint("Resampler", settings, noise)


class Pca:
    """The first principal components of blocks of two MDCT frames, (B, C, L) with C = BLOCK / factor.

    The MDCT is orthonormal, so that the components are those of the waveform in overlapping windows, and no
    linear map of such blocks to as many numbers has a smaller squared error on the music of the fit.
    """

    def __init__(self, factor: float):
        """`factor`: samples per latent number, so that a block has a whole number of components."""
        fitted_components = fitted()["basis"].shape[1]
        components = BLOCK / max(factor, 1e-9)
        if not components.is_integer() or not 1 <= components <= fitted_components:
            held = f"{BLOCK} / n, n = 1..{fitted_components}"
            raise ValueError(
                f"PCA of blocks of {BLOCK} samples has rates such as 8x or 32x, {held}, got {factor:g}x"
            )

        self.components = int(components)
        self.name = f"pca-{factor:g}x"
        self.sample_rate = SAMPLE_RATE
        self.latent_rate = SAMPLE_RATE / BLOCK
        self._basis = fitted()["basis"][:, : self.components]

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, ceil((T + MDCT_BINS) / BLOCK)). Raises as `check_audio`."""
        audio = check_audio(audio).detach().to("cpu", torch.float32)
        n_blocks = math.ceil((audio.shape[1] + MDCT_BINS) / BLOCK)
        padded = F.pad(audio, (MDCT_BINS, n_blocks * BLOCK - audio.shape[1]))
        frames = padded.unfold(1, 2 * MDCT_BINS, MDCT_BINS) @ mdct_basis().T
        return (frames.reshape(len(audio), n_blocks, BLOCK) @ self._basis).transpose(1, 2)

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length), L * BLOCK - MDCT_BINS by default.

        Raises ValueError for another shape, non-finite latents, and a length that they do not hold.
        """
        check_latents(z, self.components, name=f"latents of {self.name}")
        length = held_length(length, z.shape[2] * BLOCK - MDCT_BINS, z)
        blocks = z.detach().to("cpu", torch.float32).transpose(1, 2) @ self._basis.T
        windows = blocks.reshape(len(z), -1, MDCT_BINS) @ mdct_basis()

        first_halves = F.pad(windows[..., :MDCT_BINS].flatten(1), (0, MDCT_BINS))
        second_halves = F.pad(windows[..., MDCT_BINS:].flatten(1), (MDCT_BINS, 0))
        audio = first_halves + second_halves
        return audio[:, MDCT_BINS : MDCT_BINS + length]

    def fingerprint(self) -> str:
        """A sha256 (hex) that changes with the fitted components."""
        settings = {"sample_rate": SAMPLE_RATE, "components": self.components}
        return content_fingerprint("Pca", settings, {"basis": self._basis})


# ---------------------------------------------------------------- what they are made of


@functools.cache
def fitted() -> dict[str, Tensor]:
    """The tensors of FITTED in float32. Raises FileNotFoundError saying how it is made."""
    if not FITTED.is_file():
        raise FileNotFoundError(
            f"{FITTED} is missing: it comes with the repository; tools/fit_references.py makes it"
        )
    return {name: tensor.float() for name, tensor in load_file(FITTED).items()}


@functools.cache
def mdct_basis() -> Tensor:
    """Orthonormal MDCT with the sine window: (MDCT_BINS, 2 MDCT_BINS), a row for each frequency."""
    n = torch.arange(2 * MDCT_BINS, dtype=torch.float64)
    k = torch.arange(MDCT_BINS, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi * (n + 0.5) / (2 * MDCT_BINS))
    phase = math.pi / MDCT_BINS * (n + 0.5 + MDCT_BINS / 2) * (k + 0.5)
    return (math.sqrt(2 / MDCT_BINS) * window * torch.cos(phase)).float()
