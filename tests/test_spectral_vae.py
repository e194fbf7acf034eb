"""The spectral VAE: what it is made of, its posterior, and windows that leave no trace."""

import dataclasses
import math

import pytest
import torch
from fakes import randn
from test_autoencoder import random_model

from lincae.autoencoder import Autoencoder
from lincae.training.config import MODEL_PRESETS
from lincae.transform import TransformConfig
from lincae.vae.config import VAE_MODEL_PRESETS, SpectralVaeConfig, VaeNetworkConfig
from lincae.vae.model import LOG_VARIANCE_RANGE, SpectralVae, VaeEncoder, kl_divergence, reparameterised

TEST = VAE_MODEL_PRESETS["test"]


@pytest.fixture(scope="module")
def model():
    return random_model(TEST)


@pytest.mark.parametrize(
    ("preset", "low", "high", "rate", "compression"),
    [("full", 225e6, 235e6, 44100 / 1024, 16), ("desk", 1e6, 1.5e6, 62.5, 8), ("test", 1e4, 1e5, 62.5, 16)],
)
def test_sizes_of_the_presets(preset, low, high, rate, compression):
    """The full one: about 230 M parameters, hop 1024, 64 channels, 43 Hz (Re-Encoder, section 3.1.1)."""
    config = VAE_MODEL_PRESETS[preset]
    with torch.device("meta"):
        model = SpectralVae(config)
        z = model.network.encoder(torch.empty(1, 2, config.hop * 2, 43))[0]
        assert z.shape == (1, config.network.latent_channels, 43)
        assert model.network.decoder(z).shape == (1, 2, config.hop * 2, 43)
    assert low < sum(p.numel() for p in model.parameters()) < high
    assert model.latent_rate == pytest.approx(rate)
    assert model.compression == compression
    if preset == "full":
        assert (config.sample_rate, config.hop, config.network.latent_channels) == (44100, 1024, 64)
    if preset == "desk":
        assert model.compression == Autoencoder(MODEL_PRESETS["desk-8x"]).compression


def test_without_blocks_it_is_linear_from_sound_to_sound():
    """Nothing outside the blocks bends: STFT, emphasis and projections, whose biases begin at zero."""
    bare = SpectralVae(dataclasses.replace(TEST, network=dataclasses.replace(TEST.network, blocks=0))).eval()
    x, y = randn(1, 9000), randn(1, 9000, seed=1)
    z_x, z_y = bare.encode(x), bare.encode(y)
    torch.testing.assert_close(bare.encode(0.3 * x - 2 * y), 0.3 * z_x - 2 * z_y, rtol=0, atol=1e-4)
    mixed = bare.decode(0.3 * z_x - 2 * z_y)
    torch.testing.assert_close(mixed, 0.3 * bare.decode(z_x) - 2 * bare.decode(z_y), rtol=0, atol=1e-5)
    assert mixed.abs().max() > 1e-3
    assert not bare.encode(torch.zeros(1, 5000)).any()
    assert not bare.decode(torch.zeros_like(z_x)).any()


def test_emphasis_is_undone_and_as_stated():
    model = SpectralVae(TEST)
    emphasis = model.network.encoder.emphasis[:, 0]
    at_1000_hz = 1000 * TEST.transform.window // TEST.sample_rate
    assert emphasis[0] == 1
    assert emphasis[at_1000_hz].item() == pytest.approx(math.sqrt(1 + 1000 / TEST.emphasis_hz))
    assert torch.equal(emphasis, model.network.decoder.emphasis[:, 0])
    assert not any("emphasis" in key for key in model.network.state_dict())


def test_draws_and_divergence_are_those_of_torch():
    mean, log_variance, standard = (randn(3, 4, 5, seed=seed) for seed in range(3))
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)
    draw = reparameterised(mean, log_variance, standard)
    torch.testing.assert_close(draw, mean + posterior.stddev * standard)


def test_log_variance_is_bounded():
    encoder = VaeEncoder(TEST.network, torch.ones(TEST.transform.n_bins, 1))
    torch.nn.init.normal_(encoder.log_variance.weight, std=100)
    _, log_variance = encoder(randn(1, 2, TEST.transform.n_bins, 4))
    assert (log_variance.min(), log_variance.max()) == LOG_VARIANCE_RANGE


def test_encode_is_the_posterior_mean_and_deterministic(model):
    audio = randn(2, 8000)
    edge = 3 * TEST.transform.hop
    n_needed = model.latent_frames(8000) * TEST.hop + TEST.transform.window - TEST.transform.hop
    padded = torch.nn.functional.pad(audio, (edge, n_needed - 8000 - edge))
    with torch.no_grad():
        mean, _ = model.network.encoder(model.transform(padded))
    z = model.encode(audio)
    torch.testing.assert_close(z, mean)
    assert torch.equal(model.encode(audio), z)
    assert torch.equal(model.decode(z, seed=0), model.decode(z, seed=1))


def test_windows_and_streams_leave_no_trace(model):
    """What is dropped on both sides is all that a frame depends on: windows and whole signal agree."""
    whole = random_model(dataclasses.replace(TEST, window_frames=10_000))
    audio = randn(2, 60_000)
    z = model.encode(audio)
    assert z.shape[-1] > TEST.window_frames > TEST.network.norm_frames
    torch.testing.assert_close(z, whole.encode(audio), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(z), whole.decode(z), rtol=1e-4, atol=1e-4)

    assert torch.equal(torch.cat(list(model.encode_stream(audio.split(777, dim=1))), -1), z)
    decoded = torch.cat(list(model.decode_stream(z.split(11, dim=-1), length=50_000)), -1)
    assert torch.equal(decoded, model.decode(z, length=50_000))


def test_reach_is_all_that_a_frame_depends_on(model):
    spectrogram = randn(1, 2, TEST.transform.n_bins, 200)
    changed = spectrogram.clone()
    changed[..., 100:] += randn(1, 2, TEST.transform.n_bins, 100, seed=1)
    before, after = (model.network.encoder(s)[0][0] for s in (spectrogram, changed))
    reach = TEST.network.reach
    assert (before - after)[:, : 100 - reach].abs().max() < 1e-4
    assert (before - after)[:, 100 - reach // 2 :].abs().amax(0).min() > 1e-4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VaeNetworkConfig(kernel=6), "an odd kernel"),
        (lambda: SpectralVaeConfig(window_frames=100), "exceed the reach of the network, 458 frames"),
        (lambda: SpectralVaeConfig(emphasis_hz=0), "positive sample_rate"),
        (lambda: TransformConfig(0), "hop >= 1"),
    ],
)
def test_configurations_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
