"""Synthetic stereo: mono stems panned, widened and reverberated, a pure function of (stems, seed) and linear
in the stems. `S` source (stem), `T` samples; stereo is left and right, `(2, T)`."""

import math

import torch
from torch import Tensor

from lincae.interface import check_audio
from lincae.machine import generator

WIDENER_S = (0.003, 0.012)  # delays of the taps that decorrelate
TAPS = 12
ROOM_S = (0.15, 0.9)  # reverberation times
SEND_DB = (-30.0, -10.0)
PREDELAY_S = 0.01


def upmix(stems: Tensor, sample_rate: int, seed: int) -> Tensor:
    """Stems `(S, T)` to a stereo mixture `(2, T)`: each at a place and a width of its own, in one room.
    Places are uniform over a stage of random width. Widths are shares of a decorrelated copy of opposite sign
    left and right, which vanishes in mono. Raises as `check_audio`."""
    check_audio(stems, name="stems")
    draw = generator(seed, 0)
    length = stems.shape[-1]
    stage, centre = torch.rand(2, generator=draw)
    spots = (2 * centre - 1) * (1 - stage) + stage * (2 * torch.rand(len(stems), generator=draw) - 1)
    widths = 0.5 * torch.rand(len(stems), generator=draw)
    sends = 10 ** (_uniform(draw, *SEND_DB, len(stems)) / 20)
    out = stems.new_zeros(2, length)
    for k, stem in enumerate(stems):
        left, right = constant_power(spots[k])
        side = widths[k] * filtered(stem, widener(sample_rate, generator(seed, 1, k)))
        out += torch.stack([left * stem + side, right * stem - side])
    room_s = _uniform(draw, *ROOM_S, 1).item()
    dry = (sends[:, None] * stems).sum(0)
    tails = [room(sample_rate, room_s, generator(seed, 2, channel)) for channel in range(2)]
    return out + torch.stack([filtered(dry, tail) for tail in tails])


def constant_power(position: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes of left and right, cos(a) and sin(a), at a position from -1 (left, a = 0) to 1 (right,
    a = pi / 2): their squares sum to 1 anywhere, and the centre is -3 dB in each."""
    angle = (position + 1) * (math.pi / 4)
    return angle.cos(), angle.sin()


def widener(sample_rate: int, draw: torch.Generator) -> Tensor:
    """A short impulse response of unit energy with taps of random sign: flat on average, another phase."""
    first, last = (round(s * sample_rate) for s in WIDENER_S)
    response = torch.zeros(last + 1)
    places = torch.randint(first, last + 1, (TAPS,), generator=draw)
    signs = 2.0 * torch.randint(2, (TAPS,), generator=draw) - 1
    response.index_add_(0, places, signs)
    return response / response.norm().clamp_min(1)


def room(sample_rate: int, seconds: float, draw: torch.Generator) -> Tensor:
    """Noise that decays by 60 dB in `seconds`, after a predelay, of unit energy."""
    t = torch.arange(round(seconds * sample_rate)) / sample_rate
    tail = torch.randn(len(t), generator=draw) * 10 ** (-3 * t / seconds)
    return torch.cat([torch.zeros(round(PREDELAY_S * sample_rate)), tail / tail.norm()])


def filtered(audio: Tensor, response: Tensor) -> Tensor:
    """Causal convolution of `(T,)`, of the same length."""
    size = len(audio) + len(response) - 1
    return torch.fft.irfft(torch.fft.rfft(audio, size) * torch.fft.rfft(response, size), size)[: len(audio)]


def _uniform(draw: torch.Generator, low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draw)
