"""Losses in the latent space (Re-Encoder, section 2), and the latent discriminator.

Equation 5 and the KL divergence stand in `lincae.vae.model`. What the paper leaves open: docs/reencoder.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lincae.metrics import mss

EPS = 1e-8


def latent_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 1, of latents of equal shape."""
    if prediction.shape != target.shape:
        raise ValueError(f"latents must agree, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    return (prediction - target).abs().mean()


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """Equation 2: what a generator minimises of the scores of its outputs (Mao et al., ICCV 2017)."""
    return (1 - fake_scores).square().mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Equation 4: real scores are to be 1, those of a generator, which is cut off, 0."""
    return (1 - real_scores).square().mean() + fake_scores.square().mean()


def with_fixed_weights(network: nn.Module, *inputs: Tensor) -> Any:
    """The output of a network, with gradients for its inputs and none for its weights."""
    weights = {name: p.detach() for name, p in network.named_parameters()}
    return functional_call(network, weights, inputs)


def feature_matching(real_maps: Sequence[Tensor], fake_maps: Sequence[Tensor]) -> Tensor:
    """Equation 3 over hidden maps `(B, ...)` of real and made latents. The real ones are constants; the
    denominator is not, as the equation is written."""
    terms = [
        (real.detach() - fake).abs().flatten(1).sum(1) / (fake.abs().flatten(1).sum(1) + EPS)
        for real, fake in zip(real_maps, fake_maps, strict=True)
    ]
    return torch.stack(terms).sum(0).mean()


def decoded_mel_loss(model: Any, prediction: Tensor, target: Tensor, seed: int = 0) -> Tensor:
    """Table 1, row 7: the multi-scale mel distance of decoded latents `(B, C, L)`, through the decoder.

    The reference is the decode of the target latents with the same noise: the best that latents can give,
    and no waveform is needed. Items whose reference is silent do not count. `model`: an autoencoder with
    `decode_with_gradient`, its parameters frozen.
    """
    with torch.no_grad():
        reference = model.decode_with_gradient(target, seed)
    distances = mss(model.decode_with_gradient(prediction, seed), reference, model.sample_rate)
    heard = distances[torch.isfinite(distances)]
    return heard.mean() if len(heard) else 0 * prediction.sum()


class LatentDiscriminator(nn.Module):
    """D of section 3.1.2: six 2-D convolutions over `(B, 1, C, L)`, kernels (3, 7) five times, then (3, 3).

    Padding is 1 on both sides of both axes, stride 1, so a map loses 4 frames in each of the first five
    layers: 21 frames are the fewest. Returns the score `(B, 1, C, L - 20)` and the five hidden maps.
    """

    KERNELS = ((3, 7),) * 5 + ((3, 3),)
    FEWEST_FRAMES = 21

    def __init__(self, channels: int = 256):
        super().__init__()
        widths = [1, *[channels] * 5, 1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(widths[i], widths[i + 1], kernel, padding=1))
            for i, kernel in enumerate(self.KERNELS)
        )

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents `(B, C, L)`. Raises ValueError for another shape and for fewer than 21 frames."""
        if z.ndim != 3 or z.shape[-1] < self.FEWEST_FRAMES:
            needs = f"latents (B, C, L) of {self.FEWEST_FRAMES} frames or more"
            raise ValueError(f"the discriminator needs {needs}, got {tuple(z.shape)}")
        x = z[:, None]
        maps = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.1)
            maps.append(x)
        return self.layers[-1](x), maps
