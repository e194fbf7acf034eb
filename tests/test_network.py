"""Sizes, shapes and configuration of the network; that it computes the right thing is in test_parity."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fakes import randn
from torch import nn

from lincae.machine import kernels
from lincae.network import (
    BOTH,
    FREQUENCY,
    Neighbourhood,
    Network,
    NetworkConfig,
    Norm,
    Upsample,
    norm_silu_conv,
)
from lincae.training.config import MODEL_PRESETS

TEST = MODEL_PRESETS["test"]


def n_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def network(preset: str) -> Network:
    config = MODEL_PRESETS[preset]
    with torch.device("meta"):
        return Network(config.network, config.transform.n_bins)


def test_sizes_of_presets_whose_unused_projections_are_not_trained_and_can_be_left_out():
    assert n_parameters(network("paper")) == n_parameters(network("official")) == 58_185_026
    assert 1_500_000 < n_parameters(network("small")) < 5_000_000
    assert 100_000 < n_parameters(network("desk")) < 1_500_000
    paper = MODEL_PRESETS["paper"]
    frozen = {k: p for k, p in network("paper").named_parameters() if not p.requires_grad}
    assert len(frozen) == 8
    assert sum(p.numel() for p in frozen.values()) == 526_336
    with torch.device("meta"):
        lean = Network(replace(paper.network, unused_projections=False), paper.transform.n_bins)
    assert n_parameters(lean) == 58_185_026 - 526_336
    assert all(p.requires_grad for p in lean.parameters())


@pytest.mark.parametrize("n_frames", [1, 7, 8])
@torch.no_grad()
def test_shapes_for_odd_lengths(n_frames):
    net = Network(TEST.network, TEST.transform.n_bins)
    z = net.encoder(randn(3, 2, TEST.transform.n_bins, n_frames))
    n_latents = -(-n_frames // TEST.network.time_factor)
    assert z.shape == (3, TEST.network.latent_channels, n_latents)
    assert z.abs().max() < 1
    maps = net.pyramid(z)
    n_bins, n = TEST.transform.n_bins, n_latents * TEST.network.time_factor
    for level, m in enumerate(maps):
        assert m.shape == (3, TEST.network.channels[level], n_bins, n)
        if level < len(maps) - 1:
            kind = TEST.network.downsampling[level]
            n_bins, n = (n_bins // 4, n) if kind == FREQUENCY else (n_bins // 2, n // 2)
    x = randn(3, 2, TEST.transform.n_bins, n_latents * TEST.network.time_factor)
    assert net.denoiser(x, torch.tensor([0.1, 1.0, 10.0]), net.pyramid(z)).shape == x.shape


def randomised(seed: int = 0) -> Network:
    net = Network(TEST.network, TEST.transform.n_bins).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


@torch.no_grad()
def test_denoiser_depends_on_all_that_it_is_given_and_starts_from_its_skip():
    net = randomised()
    x, z = randn(1, 2, TEST.transform.n_bins, 8), randn(1, TEST.network.latent_channels, 4)
    out = net.denoiser(x, torch.tensor([1.0]), net.pyramid(z))
    others = [torch.cat((y, randn(*y.shape, seed=1))) for y in (x, z)]  # other items of a batch are not seen
    together = net.denoiser(others[0], torch.tensor([1.0, 5.0]), net.pyramid(others[1]))
    torch.testing.assert_close(together[:1], out)
    for signal, sigma, latent in ((-x, 1.0, z), (x, 2.0, z), (x, 1.0, -z)):
        other = net.denoiser(signal, torch.tensor([sigma]), net.pyramid(latent))
        assert (out - other).abs().max() > 1e-3
    # The last convolution starts at zero, as in the released code: f(x) = c_skip x.
    fresh = Network(TEST.network, TEST.transform.n_bins)
    assert not fresh.denoiser(x, torch.tensor([1.0]), fresh.pyramid(z)).any()


def test_every_trained_parameter_gets_a_gradient():
    net = randomised().train()
    x = randn(2, 2, TEST.transform.n_bins, 8)
    condition = net.pyramid(net.encoder(x))
    net.denoiser(x, torch.tensor([0.5, 5.0]), condition).square().sum().backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"multipliers": (1, 2)}, "need 2 entries per level and 1 for downsampling"),
        ({"downsampling": (BOTH, BOTH, BOTH, "time")}, r"'frequency' or 'both', got \['time'\]"),
        ({"base_channels": 35}, "35 channels do not split into 8 groups"),
        ({"heads": 3}, "256 channels at level 2 do not split into 3 heads"),
        ({"odd": True, "centred": True}, "choose one of centred and odd"),
        ({}, "100 bins do not divide by 32"),
    ],
)
def test_bad_configuration(changes, match):
    with pytest.raises(ValueError, match=match):
        Network(NetworkConfig(**changes), 100)


@pytest.mark.parametrize("n_cached", [1, 10**6])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_forms_of_training_are_the_plain_ones(monkeypatch, n_cached, kept):
    """Norm, SiLU and convolution of maps channels last, in parts or whole, kept or computed again; and those
    of maps in the usual order, as on accelerators."""
    monkeypatch.setattr(kernels, "CACHED_NUMBERS", n_cached)
    monkeypatch.setattr(kernels, "KEPT_BYTES", kept)
    norm, conv = Norm(8, Neighbourhood(None)).double(), nn.Conv2d(8, 6, 3, padding=1).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = (3 + randn(3, 8, 4, 5)).double().requires_grad_()
    last = x.contiguous(memory_format=torch.channels_last)
    settings = (norm.num_groups, norm.eps, [1, 1])
    of_accelerators = kernels.NormSiLUConv.apply(x, *norm.parameters(), *conv.parameters(), *settings)
    forms = {
        of_accelerators: conv(F.silu(norm(x))),
        norm(last): norm(x),
        norm(last, silu=True): F.silu(norm(x)),
        norm_silu_conv(norm, conv, last): conv(F.silu(norm(x))),
    }
    for form, plain in forms.items():
        assert form is of_accelerators or form.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(form, plain, rtol=1e-12, atol=1e-12)
        inputs = [x, *norm.parameters(), *(conv.parameters() if plain.shape[1] == 6 else ())]
        towards = randn(*plain.shape, seed=1).double()
        got, expected = (torch.autograd.grad((y * towards).sum(), inputs) for y in (form, plain))
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_a_norm_in_half_precision_has_statistics_in_full():
    """A large mean would be lost in their sums, and PyTorch's autocast computes all in fp32."""
    norm, x = nn.GroupNorm(2, 8), 100 + randn(2, 8, 3, 40)
    half = x.bfloat16()
    conv = nn.Conv1d(8, 8, 1, dtype=torch.bfloat16)
    nn.init.zeros_(conv.bias)
    conv.weight.data.copy_(torch.eye(8)[..., None])
    settings = (norm.num_groups, norm.eps, [0])
    maps = half.flatten(2)
    got = kernels.NormSiLUConv.apply(maps, *norm.parameters(), *conv.parameters(), *settings)
    torch.testing.assert_close(got.float(), F.silu(norm(maps.float())), rtol=0.01, atol=2e-3)
    for width in (7, 8):
        means = kernels.pooled_means(half, 2, width)[0]
        around = half.float().unflatten(1, (2, 4)).mean((2, 3)).unfold(-1, width, 1).mean(-1)
        torch.testing.assert_close(means[..., width // 2 : 41 - width + width // 2], around)
        assert means.dtype == torch.float32
        assert torch.equal(means[..., 0], means[..., width // 2])


@pytest.mark.slow
def test_the_network_compiles_as_one_graph():
    """Windows that are normalised frame by frame, too."""
    torch._dynamo.reset()
    net = Network(TEST.network, TEST.transform.n_bins, norm_frames=4).eval()
    x, z = randn(1, 2, TEST.transform.n_bins, 16), randn(1, TEST.network.latent_channels, 8)

    def decode(z: torch.Tensor) -> torch.Tensor:
        return net.denoiser(x, torch.ones(1), net.pyramid(z))

    with torch.no_grad():
        compiled = torch.compile(decode, backend="aot_eager", fullgraph=True)(z)
        torch.testing.assert_close(compiled, decode(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [FREQUENCY, BOTH])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 2)])
def test_enlargement_in_one_convolution_is_enlargement_then_convolution(kind, size):
    torch.manual_seed(0)
    layer = Upsample(4, 6, kind).double()
    x = randn(2, 4, *size).double().requires_grad_()
    plain = layer.conv(torch.nn.functional.interpolate(x, scale_factor=layer.factor, mode="nearest"))
    towards = randn(*plain.shape, seed=1).double()
    inputs = [x, *layer.conv.parameters()]
    torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad((y * towards).sum(), inputs) for y in (layer(x), plain))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def restless_encoder(**changes):
    """An encoder whose weights, biases included, are far from zero, and a spectrogram."""
    network = Network(replace(TEST.network, **changes), TEST.transform.n_bins)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return network.encoder, randn(3, 2, TEST.transform.n_bins, 16)


def test_a_centred_encoder_answers_silence_with_zero():
    encoder, x = restless_encoder(centred=True)
    assert torch.equal(encoder(torch.zeros_like(x)), torch.zeros(3, 8, 8))
    z = encoder(x)
    assert torch.allclose(z[1:2], encoder(x[1:2]), atol=1e-6)
    answer = encoder.raw(torch.zeros_like(x[:1]))
    assert answer.abs().max() > 0.1
    assert torch.allclose(z, torch.tanh(encoder.raw(x) - answer), atol=1e-6)


def test_an_odd_encoder_answers_the_negative_with_the_negative():
    encoder, x = restless_encoder(odd=True)
    assert torch.equal(encoder(torch.zeros_like(x)), torch.zeros(3, 8, 8))
    z = encoder(x)
    assert z.abs().max() > 0.01
    torch.testing.assert_close(encoder(-x), -z, atol=1e-6, rtol=0)
    torch.testing.assert_close(z, torch.tanh((encoder.raw(x) - encoder.raw(-x)) / 2), atol=1e-6, rtol=0)
    assert (encoder.raw(x) + encoder.raw(-x)).abs().max() > 0.1
