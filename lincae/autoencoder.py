"""The consistency autoencoder: latents that add and scale like sound, decoded from noise.

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames, `F` frequency bins, `N`
spectrogram frames. Audio is `(B, T)` mono at `sample_rate`, latents are `(B, C, L)`; stereo is two items
of a batch.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lincae.audio import generator
from lincae.consistency import precondition, sample
from lincae.framewise import FramewiseAutoencoder
from lincae.network import Network
from lincae.presets import AutoencoderConfig
from lincae.windows import SlidingNorm


class Autoencoder(FramewiseAutoencoder):
    """`encode` audio to latents that add and scale like it, `decode` them; an `AutoencoderLike`.

    `metadata` and `precision`: see `FramewiseAutoencoder`, which holds all that is not of this network.
    """

    kind, config_class = "consistency", AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, name: str = "autoencoder", metadata: dict | None = None):
        super().__init__(config, Network(config.network, config.transform.n_bins), name, metadata)

    def denoise(self, latents: Tensor, noises: Iterable[Tensor], steps: int = 1) -> Tensor:
        """Unscaled latents `(B, C, L)` and one noise `(B, 2, F, N)` per step -> `(B, 2, F, N)`."""
        f = precondition(self.network.denoiser, self.config.noise)
        with self._inference(latents.shape[-1]):
            return sample(f, self.network.condition(latents, steps), noises, steps, self.config.noise)

    @contextlib.contextmanager
    def _inference(self, n_latents: int) -> Iterator[None]:
        """How the network runs on a window of `n_latents`. Raises ValueError for an unknown precision."""
        with self._precise(), SlidingNorm(n_latents, self.config.norm_frames):
            yield

    def _latents_of(self, audio: Tensor) -> Tensor:
        spectrogram = self.transform(audio)
        with self._inference(-(-spectrogram.shape[-1] // self.config.network.time_factor)):
            return self.network.encoder(spectrogram)

    def _frames_of(self, latents: Tensor, start: int, seed: int, steps: int) -> Tensor:
        spans = [(start, start + latents.shape[-1], seed, step) for step in range(steps)]
        noises = (self._noise(*span).expand(len(latents), -1, -1, -1) for span in spans)
        return self.denoise(latents, noises, steps)

    def _noise(self, start: int, stop: int, seed: int, step: int) -> Tensor:
        """Standard normal `(1, 2, F, N)` of latent frames start..stop, drawn on the CPU for any device."""
        shape = (2, self.config.transform.n_bins, self.config.network.time_factor)
        frames = [torch.randn(shape, generator=generator(seed, step, frame)) for frame in range(start, stop)]
        return torch.cat(frames, dim=-1)[None].to(self.device)
