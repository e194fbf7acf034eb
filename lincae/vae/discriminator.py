"""A multi-band discriminator on complex spectrograms (Kumar et al., NeurIPS 2023, section 3.3: DAC), with the
least-squares adversarial loss (Mao et al., ICCV 2017) and feature matching.

Generator and discriminator learn in one backward pass: the generator's terms see the discriminator with its
weights held fixed, the discriminator's own term sees the generator's output detached.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Edges of the bands as shares of the bins. Each band has convolutions of its own."""
SLOPE = 0.1


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """What a generator minimises of the scores that its outputs are given: their distance from 1."""
    return (1 - fake_scores).square().mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """What a discriminator minimises: real scores are to be 1, those of a generator (cut off from it) 0."""
    return (1 - real_scores).square().mean() + fake_scores.square().mean()


def with_fixed_weights(network: nn.Module, *inputs: Tensor) -> Any:
    """The output of a network, with gradients for its inputs and none for its weights."""
    weights = {name: p.detach() for name, p in network.named_parameters()}
    return functional_call(network, weights, inputs)


class MultiBandDiscriminator(nn.Module):
    """Audio `(V, T)` to a list of maps for every resolution and band, the last of which are its scores.

    Raises ValueError for FFT sizes below 64, whose bands would be empty.
    """

    def __init__(self, fft_sizes: tuple[int, ...] = (512, 1024, 2048), channels: int = 32):
        super().__init__()
        if not fft_sizes or min(fft_sizes) < 64 or channels < 1:
            raise ValueError(f"need FFT sizes >= 64 and channels >= 1, got {fft_sizes}, {channels}")
        self.fft_sizes = fft_sizes
        self.resolutions = nn.ModuleList(nn.ModuleList(Band(channels) for _ in BANDS[1:]) for _ in fft_sizes)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        maps = []
        for size, bands in zip(self.fft_sizes, self.resolutions, strict=True):
            window = torch.hann_window(size, device=audio.device, dtype=audio.dtype)
            bins = torch.stft(audio, size, size // 4, window=window, return_complex=True)
            spectrogram = torch.stack((bins.real, bins.imag), 1).transpose(2, 3)  # (V, 2, frames, bins)
            edges = [round(share * spectrogram.shape[-1]) for share in BANDS]
            for band, low, high in zip(bands, edges, edges[1:], strict=False):
                maps.append(band(spectrogram[..., low:high]))
        return maps

    def terms(self, audio: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses of generated `audio` `(V, T)` against `target`; means over items, maps and resolutions.

        "adversarial" and "feature_matching" have gradients for the generator alone, "discriminator" for the
        discriminator alone.
        """
        with torch.no_grad():
            wanted = self(target)
        seen = with_fixed_weights(self, audio)

        terms = {"adversarial": [], "feature_matching": [], "discriminator": []}
        for maps, references in zip(seen, wanted, strict=True):
            terms["adversarial"].append(adversarial_loss(maps[-1]))
            for ours, theirs in zip(maps[:-1], references[:-1], strict=True):
                terms["feature_matching"].append(F.l1_loss(ours, theirs))
        for maps, references in zip(self(audio.detach()), self(target), strict=True):
            terms["discriminator"].append(discriminator_loss(references[-1], maps[-1]))
        return {name: torch.stack(values).mean() for name, values in terms.items()}


class Band(nn.Module):
    """The bins of a band to its maps `(V, channels, frames, bins)`, the last of which are its scores."""

    def __init__(self, channels: int):
        super().__init__()
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4)) for _ in range(3)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 1, 3, padding=1)]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
            maps.append(x)
        return [*maps, self.layers[-1](x)]
