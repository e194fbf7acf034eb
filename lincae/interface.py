"""What the parts of this package know of each other: an autoencoder, and audio that may be given to one."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class AutoencoderLike(Protocol):
    """All that evaluation, baselines, mixer and Re-Encoder know of an autoencoder."""

    name: str
    sample_rate: int
    latent_rate: float
    """Latent frames per second."""

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, L)."""

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, T), T = `length` where given; equal seeds, equal noise."""

    def fingerprint(self) -> str:
        """A sha256 (hex) that changes when anything changes that decides the model's latents."""


def check_audio(audio: Tensor, *, name: str = "audio") -> Tensor:
    """Return `audio` as it is, if it is a finite, non-empty, floating-point (B, T) tensor.

    Raises TypeError for another type or dtype, ValueError for another shape and for NaN or inf.
    """
    if not isinstance(audio, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(audio).__name__}: use torch.as_tensor({name})"
        )
    if audio.ndim != 2:
        fix = {1: f"{name}[None]", 3: f"{name}.flatten(0, 1) (a channel is a batch item) or {name}.mean(1)"}
        hint = f": use {fix[audio.ndim]}" if audio.ndim in fix else ""
        raise ValueError(f"{name} must have shape (B, T), got {tuple(audio.shape)}{hint}")
    if not audio.is_floating_point():
        raise TypeError(
            f"{name} must be floating point, full scale 1, got {audio.dtype}: 16-bit audio is {name} / 32768"
        )
    if audio.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(audio.shape)}")
    # a sum shows in constant memory that all is finite; what overflows it is looked at sample by sample
    if not torch.isfinite(audio.sum()) and (bad := ~torch.isfinite(audio)).any():
        item, sample = bad.nonzero()[0].tolist()
        value = audio[item, sample].item()
        raise ValueError(
            f"{name} has {int(bad.sum())} non-finite samples, first {value} at item {item}, sample {sample}"
        )
    return audio
