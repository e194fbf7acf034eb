"""T and its inverse: the representation in which the network works (paper section 3.1).

STFT with a periodic Hann window of four hops, the Nyquist bin dropped, and the invertible amplitude warp
`Amp(c) = beta |c|**alpha exp(i angle(c))`, which lifts quiet components. Axis legend: see `lincae.interface`;
here F = 2 hop.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lincae.interface import check_fields

OVERLAP = 4  # windows that cover a sample: a window is so many hops long
TINY_MODULUS = 1e-12
"""The smallest modulus that the warp divides by, far from audible: its derivative at silence is finite."""


@dataclass(frozen=True)
class TransformConfig:
    """`hop` in samples, and the exponent `alpha` and factor `beta` of the amplitude warp (paper 3.1)."""

    hop: int = 512
    alpha: float = 0.65
    beta: float = 0.34

    def __post_init__(self):
        check_fields(self)
        if self.hop < 1 or not 0 < self.alpha <= 1 or self.beta <= 0:
            raise ValueError(f"need hop >= 1, 0 < alpha <= 1 and beta > 0, got {self}")

    @property
    def n_bins(self) -> int:
        return 2 * self.hop

    @property
    def window(self) -> int:
        """In samples, equal to the FFT length."""
        return OVERLAP * self.hop


class Transform(nn.Module):
    """`T(x)` by calling it, `T^-1` by `inverse`. Positively homogeneous: T(a x) = sign(a) |a|**alpha T(x)."""

    def __init__(self, config: TransformConfig):
        super().__init__()
        self.config = config
        window = torch.hann_window(config.window, dtype=torch.float32)
        # Sum of the squared windows over any sample covered by OVERLAP windows: 1.5 for Hann and four hops.
        coverage = window.square().reshape(OVERLAP, config.hop).sum(0).repeat(OVERLAP)
        self.register_buffer("analysis_window", window, persistent=False)
        self.register_buffer("synthesis_window", window / coverage, persistent=False)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a signal of `n_samples`; trailing samples that do not fill a frame are dropped."""
        return max(0, (n_samples - self.config.window) // self.config.hop + 1)

    def n_samples(self, n_frames: int) -> int:
        """Samples of the inverse of `n_frames` frames."""
        return (n_frames - 1) * self.config.hop + self.config.window

    def forward(self, audio: Tensor) -> Tensor:
        """`(B, T)` -> `(B, 2, F, N)`. Raises ValueError for fewer samples than one window."""
        if audio.shape[-1] < self.config.window:
            needed = f"at least one window of {self.config.window} samples"
            raise ValueError(f"T needs {needed}, got {tuple(audio.shape)}")
        bins = self._bins(audio)
        modulus = bins.abs().clamp_min(TINY_MODULUS)
        warped = bins * (self.config.beta * modulus ** (self.config.alpha - 1))
        return torch.stack((warped.real, warped.imag), dim=-3)

    def stft(self, audio: Tensor) -> Tensor:
        """As calling it, without the warp."""
        bins = self._bins(audio)
        return torch.stack((bins.real, bins.imag), dim=-3)

    def _bins(self, audio: Tensor) -> Tensor:
        """`(B, T)` to the STFT as complex numbers `(B, F, N)`."""
        frames = audio.unfold(-1, self.config.window, self.config.hop) * self.analysis_window
        return torch.fft.rfft(frames)[..., : self.config.n_bins].transpose(-1, -2)

    def inverse(self, spectrogram: Tensor) -> Tensor:
        """`(B, 2, F, N)` -> `(B, hop (N - 1) + window)`.

        The first and last three hops are covered by fewer than four windows and come out attenuated, never
        amplified; nothing is clamped.
        """
        real, imag = spectrogram.unbind(-3)
        warped = torch.complex(real, imag) / self.config.beta
        bins = warped * warped.abs().clamp_min(TINY_MODULUS) ** (1 / self.config.alpha - 1)
        bins = F.pad(bins, (0, 0, 0, 1))  # the Nyquist bin back, as zero
        frames = torch.fft.irfft(bins.transpose(-1, -2)) * self.synthesis_window

        # Windows overlap by whole hops: hop k of every window is added k hops after the window's start.
        n_frames = frames.shape[-2]
        parts = frames.unflatten(-1, (OVERLAP, self.config.hop))
        audio = frames.new_zeros(*frames.shape[:-2], n_frames + OVERLAP - 1, self.config.hop)
        for k in range(OVERLAP):
            audio[..., k : k + n_frames, :] += parts[..., k, :]
        return audio.flatten(-2)
