"""Tracks and models that tests can reason about."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lincae.audio import generator
from lincae.baselines import StftAutoencoder

RATE = 16000
STEMS = ("drums", "bass", "other", "vocals")


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
