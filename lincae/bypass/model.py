"""An autoencoder that is linear by construction where it can be, and learns the rest.

    z = W x                     W: the lowest bands of an MDCT, a strictly linear encoder
    x' = V z + what a network adds, from V z and from noise times V z

Decoding is homogeneous to the rounding, also for negative gains: the network meets latents divided by their
level, its answer is scaled back, and the half of it that does not change sign with the latent is dropped.
Additivity of the decoder is learned, and helped by the noise that it starts from, white noise times V z: the
haze of a sum is the sum of hazes. Axis legend: see `lincae.interface`.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lincae.autoencoder import FramewiseAutoencoder
from lincae.bypass.config import BypassConfig
from lincae.machine import frame_noise
from lincae.machine.kernels import means_nearby
from lincae.network import Encoder, Network, zeroed

REFERENCE_RMS = 0.1
"""Level at which the network meets every sound: that of music, which the noise levels are made for."""

SILENCE = 1e-9
"""Smallest level that is divided by, so that the latent zero decodes to silence."""


class BypassNetwork(Network):
    """The consistency autoencoder's network with the bypass beside it: the denoiser has two more input
    channels, for the frames of V z, and the encoder says the code, where there is one."""

    def __init__(self, config: BypassConfig):
        super().__init__(config.network, config.transform.n_bins, config.norm_frames)
        self.hop = config.hop
        self.overlap = config.transform.window - config.transform.hop
        self.code_bound = config.code_bound
        self.bands = config.bands
        for name in ("analysis", "synthesis"):
            basis = mdct_bands(config.bands, config.hop)[:, None]
            if config.learned:
                self.register_parameter(name, nn.Parameter(basis))
            else:
                self.register_buffer(name, basis, persistent=False)

        # The network meets bands at about unit deviation, and the code within (-1, 1).
        deviation = torch.full((config.bands,), config.bands**-0.5)
        if config.code_bound:
            of_code = replace(config.network, latent_channels=config.code_channels)
            self.encoder = Encoder(of_code, config.transform.n_bins, config.norm_frames)
            deviation = torch.cat((deviation, torch.full((config.code_channels,), config.code_bound)))
        else:
            self.encoder = nn.Identity()
        scale = math.sqrt(config.hop) * REFERENCE_RMS * deviation
        self.register_buffer("scale", scale[:, None], persistent=False)

        old = self.denoiser.conv_in
        signals = 4 if config.correction else 2
        self.denoiser.conv_in = nn.Conv2d(signals, old.out_channels, 3, padding=1)
        with torch.no_grad():
            nn.init.normal_(self.denoiser.conv_in.weight, std=(9 * signals) ** -0.5)
            if config.correction:
                self.denoiser.conv_in.weight[:, :2] = old.weight
            nn.init.zeros_(self.denoiser.conv_in.bias)

        # The denoiser's answer is a correction of the preview, and behind it how loud the haze is.
        answers = 2 * config.correction + config.haze
        self.denoiser.conv_out = zeroed(nn.Conv2d(self.denoiser.conv_out.in_channels, answers, 3, padding=1))
        if config.haze:
            self.haze_gain = nn.Parameter(usual_haze(config))

    @property
    def _offset(self) -> int:
        """Samples from a latent frame's first to that of its MDCT window: both have one middle."""
        return (self.hop + self.overlap - self.analysis.shape[-1]) // 2

    def bands_of(self, audio: Tensor) -> Tensor:
        """W x: audio `(B, T)` to `(B, bands, L)`, L = ceil((T - overlap) / hop), always in fp32."""
        n_frames = (audio.shape[-1] - self.overlap + self.hop - 1) // self.hop
        n_samples = (n_frames - 1) * self.hop + self.analysis.shape[-1]
        end = self._offset + n_samples - audio.shape[-1]
        from_first = F.pad(audio[:, None], (-self._offset, end))
        with torch.autocast(audio.device.type, enabled=False):
            return F.conv1d(from_first.float(), self.analysis, stride=self.hop)

    def preview(self, latents: Tensor) -> Tensor:
        """V z: latents `(B, C, L)` to audio `(B, L hop + overlap)`, always in fp32."""
        bands = latents[:, : self.bands].float()
        with torch.autocast(latents.device.type, enabled=False):
            audio = F.conv_transpose1d(bands, self.synthesis, stride=self.hop)[:, 0]
        n_samples = latents.shape[-1] * self.hop + self.overlap
        return F.pad(audio, (self._offset, n_samples - self._offset - audio.shape[-1]))

    def level(self, latents: Tensor, width: int) -> Tensor:
        """RMS of V z over `width` latent frames around each, over REFERENCE_RMS: `(B, 1, L)`, no gradient."""
        power = latents.detach()[:, : self.bands].float().square().sum(1, keepdim=True) / self.hop
        mean = means_nearby(power, width).clamp_min(0).float()
        return (mean.sqrt() + SILENCE) / REFERENCE_RMS


class BypassAutoencoder(FramewiseAutoencoder):
    """`encode` and `decode` as `FramewiseAutoencoder` has them, in one step: to decode, the network answers
    to the latent and to its negative."""

    kind = "bypass"
    config_class = BypassConfig

    def __init__(self, config: BypassConfig, name: str = "bypass", metadata: dict | None = None):
        super().__init__(config, BypassNetwork(config), name, metadata)
        if config.pad_edges:
            self._edge = max(self._edge, config.aliased_samples)

    def latents(self, audio: Tensor) -> Tensor:
        """Audio `(B, T)` of one window to unscaled latents `(B, C, L)`."""
        network = self.network
        bands = network.bands_of(audio)
        if not network.code_bound:
            return bands
        level = network.level(bands, self.config.level_frames)
        of_samples = level[:, 0].repeat_interleave(network.hop, 1)
        of_samples = F.pad(of_samples, (0, network.overlap), mode="replicate")[:, : audio.shape[-1]]
        with torch.no_grad():
            spectrogram = self.transform(audio / of_samples)
        code = torch.tanh(network.encoder.raw(spectrogram).float())
        if not self.config.correction:
            code = (1 + code) / 2  # the decoder's network hears no signs
        full_scale = network.code_bound * REFERENCE_RMS * math.sqrt(network.hop)
        return torch.cat((bands, full_scale * level * code), 1)

    def _latents_of(self, audio: Tensor) -> Tensor:
        with self._precise():
            return self.latents(audio)

    def answer(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Frames `(B, 2, F, N)` of level-free latents and white noise `(B or 1, L hop + overlap)`."""
        audio = self.network.preview(latents)
        preview = self.transform(audio)
        start = noise_frames(audio * noise, self.transform)
        config = self.config
        sigma_data = config.noise.sigma_data
        top = torch.full((len(latents),), config.noise.sigma_max, device=latents.device)
        heard, z = [start, preview / sigma_data], latents / self.network.scale

        # A difference of latents may leave a code that is far too large for its bands.
        z = torch.cat((z[:, : config.bands], z[:, config.bands :].clamp(-1, 1)), 1)
        if not config.correction:
            heard, z = [frames.norm(dim=1, keepdim=True) for frames in heard], z.abs()
        answer = self.network.denoiser(torch.cat(heard, 1), top, self.network.pyramid(z))

        added = sigma_data * answer[:, :2] if config.correction else 0.0
        if config.haze:
            gain = (self.network.haze_gain + answer[:, 2 * config.correction :].float()).exp()
            added = added + gain * self.transform(audio * noise)
        return preview + F.pad(added[:, :, config.kept_bins :], (0, 0, config.kept_bins, 0))

    def _frames_of(self, latents: Tensor, start: int, seed: int, steps: int) -> Tensor:
        if steps != 1:
            raise ValueError(f"{self.name} decodes in one step, not {steps}: it is no consistency model")
        return self.denoise(latents, [self.noise(start, start + latents.shape[-1], seed)])

    def denoise(self, latents: Tensor, noises: Iterable[Tensor]) -> Tensor:
        """Unscaled latents `(B, C, L)` and one white noise `(B or 1, L hop + overlap)` to a spectrogram."""
        (noise,) = noises
        level = self.network.level(latents, self.config.level_frames)
        level_free = latents / level
        with self._precise():
            frames = self.answer(level_free, noise).float()
            if self.config.correction:
                frames = (frames - self.answer(-level_free, noise).float()) / 2
        return frames * frame_gains(level, self.config.network.time_factor, self.transform)

    def noise(self, start: int, stop: int, seed: int) -> Tensor:
        """White noise `(1, L hop + overlap)` of the L latent frames start..stop."""
        hop = self.network.hop
        n_samples = (stop - start) * hop + self.network.overlap
        frames = range(start, start + -(-n_samples // hop))
        return frame_noise(frames, hop, seed, device=self.device).reshape(1, -1)[:, :n_samples]


# ---------------------------------------------------------------- parts


def mdct_bands(n_bands: int, hop: int) -> Tensor:
    """The lowest bands of an orthonormal MDCT of `hop` bands with the sine window, `(n_bands, 2 hop)`."""
    n = torch.arange(2 * hop, dtype=torch.float64)
    k = torch.arange(n_bands, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi * (n + 0.5) / (2 * hop))
    phase = math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5)
    return (math.sqrt(2 / hop) * window * torch.cos(phase)).float()


def usual_haze(config: BypassConfig) -> Tensor:
    """Where the gain of haze starts, as logarithms of factors of frames `(F, 1)`.

    What music has above the bands, over noise times the bands, falls by 11 dB an octave from -2 dB at 1 kHz;
    nearest the bands, where most of the energy is, haze starts lower (medians of the study's training music).
    """
    n_bins = config.transform.n_bins
    frequency_khz = (torch.arange(n_bins) + 0.5) * config.sample_rate / 2000 / n_bins
    gain_db = (-2 - 11 * frequency_khz.log2()).clamp_max(-4)
    return (gain_db * config.transform.alpha * math.log(10) / 20)[:, None]


def noise_frames(audio: Tensor, transform: nn.Module) -> Tensor:
    """STFT `(B, 2, F, N)` of noise of REFERENCE_RMS `(B, T)`, not warped, scaled to unit deviation."""
    deviation = REFERENCE_RMS * transform.analysis_window.norm() / math.sqrt(2)
    return transform.stft(audio.float()) / deviation


def frame_gains(level: Tensor, time_factor: int, transform: nn.Module) -> Tensor:
    """What frames are multiplied by so that sound is multiplied by `level` `(B, 1, L)`: `(B, 1, 1, N)`."""
    return level.repeat_interleave(time_factor, 2)[:, :, None] ** transform.config.alpha
