"""The peers' own modules at any size, with nothing left at zero: default initialisation hides wiring errors.

Written from the peers' constructors and from the released trainer's order of operations, not from the
package, which the tests hold against it.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from lincae.autoencoder import Autoencoder, AutoencoderConfig
from lincae.interop.official import from_official
from lincae.network import FREQUENCY

pytest.importorskip("linear_cae", reason="needs pip install --no-deps linear-cae==0.1.4")
import linear_cae
from linear_cae.components import frontends


def arguments(config: AutoencoderConfig) -> dict[str, dict]:
    """Arguments of the official frontend, generator and diffusion."""
    net, noise = config.network, config.noise
    levels = {"sigma_min": noise.sigma_min, "sigma_max": noise.sigma_max, "sigma_data": noise.sigma_data}
    return {
        "frontend": {
            "hop_size": config.transform.hop,
            "n_fft_factor": 4,
            "alpha_rescale": config.transform.alpha,
            "beta_rescale": config.transform.beta,
            "sample_rate": config.sample_rate,
        },
        "generator": {
            "base_channels": net.base_channels,
            "layers_list": list(net.unet_blocks),
            "multipliers_list": list(net.multipliers),
            "attention_list": [int(a) for a in net.attention],
            "freq_downsample_list": [1 if kind == FREQUENCY else 0 for kind in net.downsampling],
            "layers_list_encoder": list(net.encoder_blocks),
            "attention_list_encoder": [int(a) for a in net.attention],
            "bottleneck_base_channels": net.bottleneck_channels,
            "bottleneck_channels": net.latent_channels,
            "num_bottleneck_layers": net.bottleneck_blocks,
            "hop": config.transform.hop,
            "cond_channels": net.noise_channels,
            "heads": net.heads,
            **levels,
        },
        "diffusion": {"start_exp": 1.0, "end_exp": 2.0, "rho": noise.rho, **levels},
    }


def build(config: AutoencoderConfig, std: float = 0.02, seed: int = 0) -> linear_cae.Autoencoder:
    """The official autoencoder, every parameter moved by `std` times a standard normal."""
    torch.manual_seed(seed)
    official = linear_cae.Autoencoder(**arguments(config), max_batch_size=8).eval()
    with torch.no_grad():
        for parameter in official.generator.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return official


def pair(config: AutoencoderConfig, std: float = 0.02) -> tuple[Autoencoder, linear_cae.Autoencoder]:
    """Our model and the official one with the same random weights."""
    official = build(config, std)
    ours = Autoencoder(config).eval()
    ours.network.load_state_dict(from_official(official.generator.state_dict(), config.network, "official"))
    return ours, official


def decode(
    official: linear_cae.Autoencoder, z: Tensor, noises: list[Tensor], length: int | None = None
) -> Tensor:
    """The official decode in `len(noises)` steps, given its noises instead of drawing them."""
    queue = iter([*noises, torch.zeros_like(noises[0])])  # it also draws one that it does not use
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, device: next(queue).expand(shape))
        patch.setattr(torch, "randn_like", lambda x: next(queue).expand(x.shape))
        return official.decode(z, length, diffusion_steps=len(noises))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def max_error(ours: Tensor, theirs: Tensor) -> float:
    """Greatest absolute difference; shapes must agree."""
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Greatest absolute difference as a share of the greatest magnitude."""
    return max_error(ours, theirs) / theirs.abs().max().item()


def spectrogram(frontend: nn.Module, audio: Tensor) -> Tensor:
    """The official transform without its casts to single precision."""
    bins = frontends.stft(audio, hop_size=frontend.hop_size, fac=frontend.fac, window=frontend.window)
    bins = bins[:, : 2 * frontend.hop_size]
    warped = frontend.beta_rescale * bins.abs() ** frontend.alpha_rescale * torch.exp(1j * torch.angle(bins))
    return torch.stack((warped.real, warped.imag), dim=-3)


def mixed(items: Tensor, w: Tensor, n: int) -> Tensor:
    return torch.stack([w[i] * items[i] + (1 - w[i]) * items[(i - 1) % n] for i in range(n)])


def training_step(
    official: linear_cae.Autoencoder,
    audio: Tensor,
    iteration: int,
    total: int,
    generator: torch.Generator,
    *,
    scales_latents: bool,
    mixes_latents: bool,
    scales_audio: bool = False,
    random_weights: bool = True,
    premixes: bool = False,
    anneals: bool = True,
) -> Tensor:
    """Loss of one step of the released trainer from its modules, drawing from `generator` in its order.

    `scales_audio` and `random_weights=False` are the paper's: gains as plain augmentation, equal mixtures.
    """
    frontend, unet, diffusion = official.frontend, official.generator, official.diffusion
    n = audio.shape[0]
    if premixes:
        partners = torch.randperm(n, generator=generator).tolist()
        chosen = (torch.rand(n, generator=generator) < 0.5).tolist()
        audio = torch.stack(
            [(audio[i] + audio[partners[i]]) / 2 if chosen[i] else audio[i] for i in range(n)]
        )
    w = (0.5 + 0.5 * torch.rand(n, generator=generator) if random_weights else torch.full((n,), 0.5)).to(
        audio
    )
    both = torch.cat((audio, mixed(audio, w, n)))
    low, high = 0.0, 3.0
    if anneals:
        phase = min(max(iteration / total - 0.2, 0) / 0.7, 1)
        c = 0.5 * (1 + math.cos(math.pi * phase))
        low, high = 1 - c, 1 + 2 * c
    chosen = torch.rand(2 * n, generator=generator) < 0.8
    gains = low + (high - low) * torch.rand(2 * n, generator=generator)
    gains[gains < 0.05] = 0
    gains[~chosen] = 1
    gains = torch.minimum(gains.to(audio), 1 / (both.abs().amax(-1) + 1e-7))

    scaled = gains[:, None] * both
    target = spectrogram(frontend, scaled if scales_latents or scales_audio else both)
    step = diffusion.get_step_schedule(iteration, total)
    index = torch.multinomial(
        diffusion.get_sampling_weights(10_000, "cpu"), 2 * n, replacement=True, generator=generator
    )
    t2 = ((index.float() + torch.rand(2 * n, generator=generator)) / 9999).to(audio)
    sigma2 = diffusion.get_sigma_continuous(t2)
    sigma1 = diffusion.get_sigma_continuous(diffusion.get_step_continuous(t2, step))
    eps = torch.randn(target.shape, generator=generator, dtype=audio.dtype)

    z = unet.encoder(spectrogram(frontend, scaled if scales_audio else both))
    if mixes_latents:
        z = torch.cat((z[:n], mixed(z[:n], w, n)))
    if scales_latents:
        z = gains[:, None, None] * z
    pyramid = unet.decoder(z)
    teacher = unet.forward_generator(z, diffusion.add_noise(target, eps, sigma1), sigma1, pyramid).detach()
    student = unet.forward_generator(z, diffusion.add_noise(target, eps, sigma2), sigma2, pyramid)
    c = 0.00054 * math.sqrt(target[0].numel())
    distance = (((teacher - student) ** 2).flatten(1).sum(-1) + c**2).sqrt() - c
    return (distance * diffusion.get_loss_weight(sigma2, sigma1)).mean()
