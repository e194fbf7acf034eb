"""The bypass autoencoder: what it promises by construction, on networks with random weights."""

from dataclasses import replace

import pytest
import torch
from fakes import noise, relative
from hypothesis import given, settings
from hypothesis import strategies as st

import lincae
from lincae.bypass.config import BYPASS_PRESETS, BYPASS_VARIANTS, BypassConfig, BypassLossConfig
from lincae.bypass.model import BypassAutoencoder, mdct_bands
from lincae.data.crops import StemBank
from lincae.interface import AutoencoderLike
from lincae.interop.recipes import objective_of, recipe
from lincae.machine import generator
from lincae.training.loop import train

TEST = BYPASS_PRESETS["test"].autoencoder
LONG = replace(
    TEST.network,
    multipliers=(1, 1, 1, 2),
    attention=(False,) * 4,
    encoder_blocks=(1,) * 4,
    unet_blocks=(0, 1, 1, 1),
    downsampling=("frequency", "both", "both"),
    latent_channels=16,
)
KINDS = {
    "bands": TEST,
    "long frames": replace(TEST, network=LONG, code_bound=0.03, code_channels=2, kept_bins=3, haze=True),
    "learned": replace(TEST, learned=True),
    "code": replace(TEST, code_bound=0.03),
}


def random_model(config: BypassConfig) -> BypassAutoencoder:
    """A model without zeros: default initialisation hides what zeroed layers would add."""
    torch.manual_seed(0)
    model = BypassAutoencoder(config).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return model


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def model(request):
    return random_model(request.param)


def test_contract(model):
    assert isinstance(model, AutoencoderLike)
    audio = noise(2, 4001)
    z = model.encode(audio)
    assert z.shape == (2, model.config.network.latent_channels, model.latent_frames(4001))
    assert model.latent_rate * z.shape[1] == 16000 / model.compression
    decoded = model.decode(z, 4001, seed=1)
    assert torch.equal(decoded, model.decode(z, 4001, seed=1))
    assert not torch.allclose(decoded, model.decode(z, 4001, seed=2), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2000))
def test_every_length_comes_back(model, length):
    assert model.decode(model.encode(noise(1, length)), length).shape == (1, length)


def test_encoder_is_linear_up_to_the_code(model):
    u, v = noise(2, 3000, seed=1), 0.3 * noise(2, 3000, seed=2)
    z_sum = model.encode(u) - 2.5 * model.encode(v)
    error = relative(model.encode(u - 2.5 * v) - z_sum, z_sum)
    bound = model.config.code_bound
    assert error < (4 * bound if bound else 1e-5)
    # A code is as loud as its sound, so that positive gains act on it as well.
    for gain in (0.01, 3):
        assert relative(model.encode(gain * u) - gain * model.encode(u), gain * model.encode(u)) < 1e-4


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from([1, -1]))
def test_decoder_is_homogeneous(model, gain, sign):
    z = model.encode(noise(2, 3000))
    reference = sign * gain * model.decode(z, 3000)
    assert relative(model.decode(sign * gain * z, 3000) - reference, reference) < 1e-4


def test_decoder_adds_something_and_silence_is_silence(model):
    z = model.encode(noise(1, 3000))
    preview = model.network.preview(z)
    edge = max(192, model.config.aliased_samples)
    assert relative(model.decode(z) - preview[:, edge:-edge], preview) > 0.01
    assert model.decode(0 * z).abs().max() < 1e-6


def test_a_code_says_no_more_than_that_of_a_sound():
    """A difference of latents may leave a code that is far too large for what its bands hold: no burst."""
    model = random_model(KINDS["long frames"])
    z = model.encode(noise(1, 8000))
    bands = model.config.bands
    largest = torch.cat((z[:, :bands], 1e3 * z[:, bands:]), 1)
    beyond = torch.cat((z[:, :bands], 1e6 * z[:, bands:]), 1)
    assert torch.equal(model.decode(beyond), model.decode(largest))
    assert not torch.equal(model.decode(z), model.decode(largest))


def test_sounds_of_the_bands_pass_through_the_bypass():
    model = random_model(TEST)
    time_s = torch.arange(8000) / 16000
    tone = 0.1 * torch.sin(2 * torch.pi * 200 * time_s)[None]
    z = model.network.bands_of(tone)
    heard = model.network.preview(z)[:, :8000]
    assert relative((heard - tone)[:, 512:-512], tone) < 0.1
    basis = mdct_bands(8, 64)
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-5)


def test_what_the_bands_hold_comes_back_at_both_ends_and_is_kept_from_the_network():
    model = random_model(KINDS["long frames"])
    time_s = torch.arange(8000) / 16000
    tone = 0.1 * torch.sin(2 * torch.pi * 70 * time_s)[None]
    # A network that answers with noise alone is heard above the kept bins only.
    decoded = model.decode(model.encode(tone), 8000)
    low = torch.fft.rfft(decoded - tone)[:, : 8000 * 150 // 16000]
    assert low.norm() < 0.1 * torch.fft.rfft(tone).norm()
    bands = model.network.preview(model.network.bands_of(torch.nn.functional.pad(tone, (224, 512))))
    assert relative(bands[:, 224:8224] - tone, tone) < 0.05


def test_streams_and_checkpoints(model, tmp_path):
    audio = noise(1, 5000)
    z = model.encode(audio)
    parts = torch.cat(list(model.encode_stream(audio.split(777, 1))), -1)
    assert torch.equal(parts, z)
    assert torch.equal(torch.cat(list(model.decode_stream(z.split(5, -1))), -1), model.decode(z))

    model.save(tmp_path)
    loaded = lincae.load(tmp_path, "cpu")
    assert type(loaded) is BypassAutoencoder
    assert loaded.config == model.config
    assert torch.equal(loaded.decode(z), model.decode(z))
    assert loaded.fingerprint() == model.fingerprint()


def test_long_sounds_are_decoded_in_windows():
    """A loud second does not change how a quiet passage far away is decoded."""
    model = random_model(replace(TEST, window_frames=64, context_frames=16))
    quiet_then_loud = torch.cat((0.01 * noise(1, 16000, seed=1), noise(1, 16000, seed=2)), 1)
    z = model.encode(quiet_then_loud)
    whole = model.decode(z, 32000)
    alone = model.decode(z[..., :120], 8000)
    assert relative(whole[:, :8000] - alone, alone) < 0.05


@pytest.mark.parametrize("variant", BYPASS_VARIANTS)
def test_training_resumes_and_trains_all_but_what_is_fixed(variant, tmp_path):
    config = recipe("test", variant, steps=4, checkpoint_every=2, precision="32-true")
    data = StemBank([noise(2, 20000, seed=k) for k in range(3)], 16000, "noise")
    objective = objective_of(config)
    bands = objective.model.network.analysis.clone()
    whole = train(objective, data, tmp_path / "whole", device="cpu", progress=False)
    assert torch.equal(objective.model.network.analysis, bands) == (not config.autoencoder.learned)
    assert all(p.grad is not None for p in objective.model.network.parameters())

    train(objective_of(config), data, tmp_path / "parts", device="cpu", progress=False, stop_at=2)
    resumed = train(objective_of(config), data, tmp_path / "parts", device="cpu", progress=False)
    for key, value in resumed.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[key])


@pytest.mark.parametrize(("preset", "compression"), [("desk", 32), ("listen", 8)])
def test_presets_are_within_the_budget(preset, compression):
    for variant in BYPASS_VARIANTS:
        model = BypassAutoencoder(recipe(preset, variant).autoencoder)
        assert sum(p.numel() for p in model.network.parameters()) < 1_500_000
        assert model.compression == compression


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: replace(TEST, code_bound=1.0), "code_bound"),
        (lambda: replace(KINDS["code"], network=replace(TEST.network, latent_channels=1)), "bands"),
        (lambda: replace(TEST, kept_bins=128), "kept_bins"),
        (lambda: BypassLossConfig(waveform=0.0, frames=0.0), "phase"),
        (lambda: BypassLossConfig(mel_bins=(3,)), "mel_bins"),
        (lambda: recipe("paper", "lin-bypass"), "paper"),
        (lambda: random_model(TEST).decode(torch.zeros(1, 4, 9), steps=2), "one step"),
    ],
)
def test_refusals(call, named):
    with pytest.raises(ValueError, match=named):
        call()
