"""What the parts of this package know of each other: an autoencoder, and the tensors that it takes and gives.

Axis legend of the whole package: `B` batch, `S` source (stem), `T` samples, `C` latent channels, `L` latent
frames, `F` frequency bins, `N` spectrogram frames. Audio is `(B, T)`, mono, floating point with full scale 1,
at the model's `sample_rate`; stems are `(S, T)`, latents `(B, C, L)`, spectrograms `(B, 2, F, N)` (Re, Im).
Stereo is two items of a batch. Audio is never clamped or normalised.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

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
    """Return `audio` as it is, if it is a finite, non-empty, floating-point (B, T) tensor. Raises TypeError
    for another type or dtype, ValueError for another shape and for NaN or inf."""
    check_floating(audio, name, ", full scale 1: 16-bit audio / 32768")
    if audio.ndim != 2:
        fixes = {1: f": use {name}[None]", 3: f": use {name}.flatten(0, 1) or {name}.mean(1)"}
        fix = fixes.get(audio.ndim, "")
        raise ValueError(f"{name} must have shape (B, T), got {tuple(audio.shape)}{fix}")
    if audio.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(audio.shape)}")
    return check_finite(audio, name, ("item", "sample"))


def check_latents(
    latents: Tensor, channels: int | None = None, *, items: int | None = None, name: str = "latents"
) -> Tensor:
    """Return `latents` as they are, if they are a finite, non-empty, floating-point (B, C, L) tensor with C
    `channels` and B `items`, any by default. Raises as `check_audio`."""
    check_floating(latents, name)
    fits = latents.ndim == 3 and latents.numel() > 0
    fits = fits and channels in (None, latents.shape[1]) and items in (None, latents.shape[0])
    if not fits:
        raise ValueError(f"{name} must be ({items or 'B'}, {channels or 'C'}, L), got {tuple(latents.shape)}")
    return check_finite(latents, name, ("item", "channel", "frame"))


def check_floating(values: Tensor, name: str, hint: str = "") -> None:
    """Raises TypeError for what is no floating-point tensor."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(values).__name__}: use torch.as_tensor")
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {values.dtype}{hint}")


def check_finite(values: Tensor, name: str, axes: Sequence[str]) -> Tensor:
    """Return `values` as they are, if all are finite. Otherwise a ValueError says where the first is that is
    not, on axes of these names."""
    first = first_non_finite(values)
    if first is not None:
        place = ", ".join(f"{axis} {index}" for axis, index in zip(axes, first, strict=True))
        raise ValueError(f"values of {name} are not finite, first at {place} ({values[first].item()})")
    return values


def first_non_finite(values: Tensor) -> tuple[int, ...] | None:
    """The index of the first value that is NaN or infinite, or None where all are finite."""
    # A finite sum shows it in constant memory; a sum that overflows is looked at value by value.
    if torch.isfinite(values.sum()):
        return None
    bad = (~torch.isfinite(values)).nonzero()
    return tuple(bad[0].tolist()) if len(bad) else None


# ---------------------------------------------------------------- configurations


def check_fields(config: Any) -> None:
    """For the `__post_init__` of a frozen config dataclass: every field holds what its annotation says.
    A list becomes a tuple, a float is finite and may be an int. Else a ValueError names field and value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list) and typing.get_origin(field.type) is tuple:
            value = tuple(value)
            object.__setattr__(config, field.name, value)
        if not _fits(value, field.type):
            wanted = field.type.__name__ if isinstance(field.type, type) else field.type
            got = f"{value!r} ({type(value).__name__})"
            raise ValueError(f"{field.name} of {type(config).__name__} must be {wanted}, got {got}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says: a class, a union, or a tuple of these."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if isinstance(value, tuple) and inner[-1] is Ellipsis:
            inner = inner[:1] * len(value)
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, hint)
