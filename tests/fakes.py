"""Tracks and models that tests can reason about."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lincae.interop.references import StftAutoencoder
from lincae.latents.store import describe
from lincae.machine import generator
from lincae.reencoder.module import ReEncoder, ReEncoderConfig

RATE = 16000
STEMS = ("drums", "bass", "other", "vocals")


def noise(*shape: int, seed: int = 0, rms: float = 0.1) -> Tensor:
    return rms * torch.randn(shape, generator=generator(seed))


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(error: Tensor, reference: Tensor) -> float:
    """Relative L2, in double precision."""
    return (error.double().norm() / reference.double().norm()).item()


@dataclass
class FakeTrack:
    """Stems of noise in memory; `levels` in amplitude."""

    name: str = "track"
    seconds: float = 2.0
    stem_names: tuple[str, ...] = STEMS
    levels: tuple[float, ...] = (0.1, 0.1, 0.1, 0.1)
    sample_rate: int = RATE
    dataset: str = "fake"
    seed: int = 0

    @property
    def duration_s(self) -> float:
        return self.seconds

    def stems(self, sample_rate: int, start_s: float, seconds: float) -> Tensor:
        noise = torch.randn(
            len(self.stem_names), round(self.seconds * sample_rate), generator=generator(self.seed)
        )
        start = round(start_s * sample_rate)
        levels = torch.tensor(self.levels[: len(self.stem_names)])[:, None]
        return (levels * noise)[:, start : start + round(seconds * sample_rate)]


def two_tracks(**kwargs) -> list[FakeTrack]:
    return [FakeTrack("one", seed=1, **kwargs), FakeTrack("two", seed=2, **kwargs)]


class Linear(StftAutoencoder):
    """The exactly linear reference at 16 kHz, which counts what it is asked for."""

    def __init__(self):
        super().__init__(RATE, hop=128)
        self.encoded, self.decoded = 0, 0

    def encode(self, audio):
        self.encoded += len(audio)
        return super().encode(audio)

    def decode(self, z, length=None, seed=0):
        self.decoded += len(z)
        return super().decode(z, length, seed)


class Reworked(Linear):
    """The linear reference whose decodes (B, T) go through a function."""

    def __init__(self, rework, name="stft"):
        super().__init__()
        self.rework, self.name = rework, name

    def decode(self, z, length=None, seed=0):
        return self.rework(super().decode(z, length, seed))


class LouderWhenLoud(Linear):
    """A known gain error: windows and latents that are loud come out louder by the factor 1 + `error`."""

    name = "louder"

    def __init__(self, encoder_error=0.0, decoder_error=0.0, threshold=0.15):
        super().__init__()
        self.encoder_error, self.decoder_error, self.threshold = encoder_error, decoder_error, threshold

    def encode(self, audio):
        loud = audio.square().mean(1).sqrt() > self.threshold
        return super().encode(audio) * (1 + self.encoder_error * loud[:, None, None])

    def decode(self, z, length=None, seed=0):
        audio = super().decode(z, length, seed)
        loud = audio.square().mean(1).sqrt() > self.threshold
        return audio * (1 + self.decoder_error * loud[:, None])


class DeafDecoder(Linear):
    """Decodes every latent to the same noise."""

    name = "deaf"

    def decode(self, z, length=None, seed=0):
        return 0.2 * torch.randn(length, generator=generator(7)).expand(len(z), -1)


class NoisyDecoder(Linear):
    """Adds noise that is a function of the seed, at `level`."""

    name = "noisy"
    level = 0.02

    def decode(self, z, length=None, seed=0):
        noise = torch.randn(length, generator=generator(seed))
        return super().decode(z, length) + self.level * noise


class Streams(Linear):
    """The linear reference block by block, in constant memory; `longest`: of the blocks it was given."""

    longest = 0

    def encode_stream(self, blocks):
        window, total, frames, held = 4 * self.hop, 0, 0, None
        for block in blocks:
            self.longest, total = max(self.longest, block.shape[1]), total + block.shape[1]
            before = block.new_zeros(len(block), 3 * self.hop) if held is None else held
            held = torch.cat([before, block], 1)
            if held.shape[1] >= window:
                z = self._frames(held)
                frames, held = frames + z.shape[-1], held[:, z.shape[-1] * self.hop :]
                yield z
        left = -(-total // self.hop) + 3 - frames
        yield self._frames(torch.nn.functional.pad(held, (0, (left + 3) * self.hop - held.shape[1])))

    def _frames(self, padded):
        frames = padded.unfold(1, 4 * self.hop, self.hop) * torch.hann_window(4 * self.hop)
        spectrum = torch.fft.rfft(frames).transpose(1, 2)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def decode_stream(self, latents, length=None, seed=0, steps=1, first_frame=0):
        position, held = -3 * self.hop, None  # frames of silence stand before the first
        for z in latents:
            before = z.new_zeros(*z.shape[:2], 3) if held is None else held
            joined = torch.cat([before, z], -1)
            held = joined[..., -3:]
            audio = super().decode(joined)  # as many hops as `z` has frames
            start, stop = max(-position, 0), None if length is None else max(length - position, 0)
            position += audio.shape[1]
            if audio[:, start:stop].numel():
                yield audio[:, start:stop]


class Placer(ReEncoder):
    """A mono-to-stereo module that is a gain: left (1 + p) z and right (1 - p) z, p between -`width` and
    `width` by the first number of its condition. Counts its runs."""

    def __init__(self, model, width=1.0, task="stereo", kernel=1):
        channels = model.encode(torch.zeros(1, RATE)).shape[1]
        sizes = {"hidden": channels, "blocks": 1, "expansion": 1, "kernel": kernel}
        sizes |= {"condition": 2, "condition_blocks": 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            super().__init__(ReEncoderConfig(task, channels, **sizes), describe(model))
        self.width, self.runs = width, 0

    def place(self, index, image):
        return self.width * torch.tanh(self.prior(index + 1, image)[index, 0]).item()

    def forward(self, z, condition=None):
        super().forward(z, condition)  # refuses what a module refuses
        self.runs += 1
        place = self.width * torch.tanh(condition[:, :1, None])
        return torch.stack([(1 + place) * z, (1 - place) * z], 1)
