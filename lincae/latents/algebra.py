"""Mixing on latents: what a mixing desk does to waveforms, done to the latents of a linear autoencoder.

Each function names the waveform operation that it stands for. For an exactly linear autoencoder both agree,
for others up to their linearity error. Frame i stands at the time i / latent_rate; silence is the latent 0.
The axis legend is that of `lincae.interface`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lincae.data.stereo import constant_power
from lincae.interface import check_latents

LOUDEST_DB = 200.0  # a gain on the command line is no more
LONGEST_S = 1e9  # nor an offset
MIX_VALUES = 2**31  # in a mix at most: 8 GiB in float32


def gain(z: Tensor, amplitude: float | Tensor) -> Tensor:
    """Latents (B, C, L) times an amplitude, or a curve (L,) or (B, L) at the latent rate: g(t) * x(t).

    Raises ValueError for another shape and non-finite values.
    """
    curve = torch.as_tensor(amplitude, dtype=z.dtype, device=z.device)
    if curve.ndim and tuple(curve.shape) not in ((z.shape[-1],), (len(z), z.shape[-1])):
        raise ValueError(f"a gain is a number, (L,) or (B, L), got {tuple(curve.shape)} for {tuple(z.shape)}")
    if not torch.isfinite(curve).all():
        raise ValueError("a gain must be finite")
    return check_latents(z) * (curve[..., None, :] if curve.ndim else curve)


def automation(points: Sequence[tuple[float, float]], n_frames: int, latent_rate: float) -> Tensor:
    """Breakpoints (seconds, dB) as amplitudes (n_frames,), for `gain`: linear in dB between them, constant
    before the first and after the last.

    Raises ValueError for no points, times that do not increase, and values that are not finite (-inf dB has
    no slope: `fade` reaches silence).
    """
    times, levels_db = np.array([*points], dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(times).all() and np.isfinite(levels_db).all()
    if len(times) == 0 or not finite or (np.diff(times) <= 0).any():
        raise ValueError(f"points are (seconds, dB), finite, with times that increase, got {list(points)}")
    level_db = np.interp(np.arange(n_frames) / latent_rate, times, levels_db)
    return torch.from_numpy(10 ** (level_db / 20))


def fade(
    z: Tensor, latent_rate: float, in_s: float = 0.0, out_s: float = 0.0, length_s: float | None = None
) -> Tensor:
    """Fade in over the first `in_s` seconds and out over the last `out_s`, linearly in amplitude:
    min(1, t / in_s, (length_s - t) / out_s) * x(t).

    `length_s`: of the signal, whose latents may go on for a few frames (default: all of them). Raises
    ValueError for fades that are negative or longer than the signal together.
    """
    length_s = z.shape[-1] / latent_rate if length_s is None else length_s
    if min(in_s, out_s) < 0 or not in_s + out_s <= length_s:  # `not` catches NaN as well
        raise ValueError(f"fades must be >= 0 and fit into {length_s:g} s, got {in_s} s and {out_s} s")
    curve = torch.ones(z.shape[-1], dtype=torch.float64)
    t = torch.arange(z.shape[-1], dtype=torch.float64) / latent_rate
    if in_s:
        curve = curve.minimum(t / in_s)
    if out_s:
        curve = curve.minimum(((length_s - t) / out_s).clamp(min=0))
    return gain(z, curve)


def mix(
    latents: Sequence[Tensor],
    latent_rate: float,
    offsets_s: Sequence[float] | None = None,
    gains: Sequence[float] | None = None,
) -> tuple[Tensor, list[float]]:
    """Add latents (B, C, L_i), each delayed by its offset and times its gain: sum_i g_i x_i(t - offset_i).

    An offset is rounded to the nearest latent frame. Returns the mix (B, C, max(offset_i + L_i)) and the
    offsets in seconds that were taken. Raises ValueError for latents that differ in B or C or are not finite,
    negative offsets, other than one offset and gain for each, and a mix of more than MIX_VALUES.
    """
    offsets_s = [0.0] * len(latents) if offsets_s is None else list(offsets_s)
    gains = [1.0] * len(latents) if gains is None else list(gains)
    if not len(latents) == len(offsets_s) == len(gains) or not latents:
        counts = f"{len(latents)} latents, {len(offsets_s)} offsets and {len(gains)} gains"
        raise ValueError(f"need at least one latent, and an offset and a gain for each, got {counts}")
    shapes = {tuple(z.shape[:2]) for z in latents}
    if len(shapes) > 1:
        raise ValueError(f"latents to mix must agree in items and channels (B, C), got {sorted(shapes)}")
    for offset_s in offsets_s:
        if not 0 <= offset_s <= LONGEST_S:
            raise ValueError(f"an offset must be finite and >= 0 s, got {offset_s} (at most {LONGEST_S:g} s)")
    frames = [round(offset_s * latent_rate) for offset_s in offsets_s]
    total = max(frame + z.shape[-1] for frame, z in zip(frames, latents, strict=True))
    size = (*latents[0].shape[:2], total)
    if math.prod(size) > MIX_VALUES:
        limit = f"at most {MIX_VALUES} values (8 GiB in float32)"
        raise ValueError(f"a mix can have {limit}, got {size} with offsets up to {max(offsets_s):g} s")
    mixed = latents[0].new_zeros(size)
    for k, (z, frame, amplitude) in enumerate(zip(latents, frames, gains, strict=True)):
        mixed[..., frame : frame + z.shape[-1]] += gain(check_latents(z, name=f"latents {k}"), amplitude)
    return mixed, [frame / latent_rate for frame in frames]


def pan(z: Tensor, position: float | Tensor = 0.0) -> Tensor:
    """A mono latent (1, C, L) to a stereo one (2, C, L), left and right: cos(a) x(t) and sin(a) x(t).

    `position` from -1 (left, a = 0) to 1 (right, a = pi / 2), a number or a curve (L,): the power is the same
    anywhere, and the centre is -3 dB in each. Raises ValueError for another shape or position.
    """
    position = torch.as_tensor(position, dtype=z.dtype, device=z.device)
    if not (position.abs() <= 1).all():
        raise ValueError("a position must lie between -1 (left) and 1 (right)")
    check_latents(z, items=1, name="latents to pan")
    left, right = constant_power(position)
    return torch.cat([gain(z, left), gain(z, right)])


def mid_side(z: Tensor) -> Tensor:
    """Left and right (2, C, L) to mid and side: (l + r) / 2 and (l - r) / 2. ValueError for another shape."""
    left, right = check_latents(z, items=2, name="latents of left and right")
    return torch.stack([left + right, left - right]) / 2


def left_right(z: Tensor) -> Tensor:
    """Mid and side (2, C, L) to left and right: m + s and m - s. ValueError for another shape."""
    mid, side = check_latents(z, items=2, name="latents of mid and side")
    return torch.stack([mid + side, mid - side])
