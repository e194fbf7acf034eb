"""The spectral VAE: what it is made of, lengths, windows, checkpoints and refusals."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lincae
from lincae.autoencoder import MODEL_PRESETS, Autoencoder
from lincae.checkpoints import WEIGHTS
from lincae.interface import AutoencoderLike
from lincae.interop import models as pretrained
from lincae.transform import TransformConfig
from lincae.vae.config import VAE_MODEL_PRESETS, SpectralVaeConfig, VaeNetworkConfig
from lincae.vae.model import LOG_VARIANCE_RANGE, SpectralVae, VaeEncoder, kl_divergence, reparameterised

TEST = VAE_MODEL_PRESETS["test"]


def random_model(config=TEST, seed: int = 0) -> SpectralVae:
    """A model whose zero-initialised tensors are random too, so that nothing is the identity by accident."""
    torch.manual_seed(seed)
    model = SpectralVae(config, "toy", {"step": 7}).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def noise(*shape, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return random_model()


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize(
    ("preset", "low", "high", "rate", "compression"),
    [("full", 225e6, 235e6, 44100 / 1024, 16), ("desk", 1e6, 1.5e6, 62.5, 8), ("test", 1e4, 1e5, 62.5, 16)],
)
def test_sizes_of_the_presets(preset, low, high, rate, compression):
    """The full one: about 230 M parameters, hop 1024, 64 channels, 43 Hz (Re-Encoder, section 3.1.1)."""
    config = VAE_MODEL_PRESETS[preset]
    with torch.device("meta"):
        model = SpectralVae(config)
    count = sum(p.numel() for p in model.parameters())
    assert low < count < high
    assert model.latent_rate == pytest.approx(rate)
    assert model.compression == compression
    net, n_bins = config.network, 2 * config.hop
    block = net.channels * (net.kernel + 1 + 2) + net.hidden * (2 * net.channels + 3) + net.channels
    ends = net.channels * (2 * (2 * n_bins) + 1) + 2 * n_bins
    latent = 2 * net.latent_channels * net.channels * net.kernel + net.latent_channels + net.channels
    latent += (net.channels + 1) * net.latent_channels + 2 * net.channels  # of the variance
    assert count == 2 * net.blocks * block + ends + latent


def test_the_full_preset_is_that_of_the_paper():
    config = VAE_MODEL_PRESETS["full"]
    assert (config.sample_rate, config.hop, config.network.latent_channels) == (44100, 1024, 64)
    with torch.device("meta"):
        model = SpectralVae(config)
        z = model.network.encoder(torch.empty(1, 2, 2048, 43))[0]
        assert z.shape == (1, 64, 43)
        assert model.network.decoder(z).shape == (1, 2, 2048, 43)


def test_desk_compresses_as_the_consistency_autoencoder_does():
    with torch.device("meta"):
        ours, other = SpectralVae(VAE_MODEL_PRESETS["desk"]), Autoencoder(MODEL_PRESETS["desk"])
    assert (ours.compression, ours.sample_rate) == (other.compression, other.sample_rate)


def test_is_autoencoder_like(model):
    assert isinstance(model, AutoencoderLike)


def test_without_blocks_it_is_linear_from_sound_to_sound():
    """Nothing outside the blocks bends: STFT, emphasis and projections, whose biases begin at zero."""
    bare = SpectralVae(dataclasses.replace(TEST, network=dataclasses.replace(TEST.network, blocks=0))).eval()
    x, y = noise(1, 9000), noise(1, 9000, seed=1)
    z_x, z_y = bare.encode(x), bare.encode(y)
    torch.testing.assert_close(bare.encode(0.3 * x - 2 * y), 0.3 * z_x - 2 * z_y, rtol=0, atol=1e-4)
    mixed = bare.decode(0.3 * z_x - 2 * z_y)
    torch.testing.assert_close(mixed, 0.3 * bare.decode(z_x) - 2 * bare.decode(z_y), rtol=0, atol=1e-5)
    assert mixed.abs().max() > 1e-3


def test_emphasis_is_undone_and_as_stated():
    model = SpectralVae(TEST)
    emphasis = model.network.encoder.emphasis[:, 0]
    at_1000_hz = 1000 * TEST.transform.window // TEST.sample_rate
    assert emphasis[0] == 1
    assert emphasis[at_1000_hz].item() == pytest.approx(math.sqrt(1 + 1000 / TEST.emphasis_hz))
    assert torch.equal(emphasis, model.network.decoder.emphasis[:, 0])
    assert not any("emphasis" in key for key in model.network.state_dict())


def test_silence_is_zero_before_training():
    model = SpectralVae(TEST)
    silence = torch.zeros(1, 5000)
    assert torch.equal(model.encode(silence), torch.zeros(1, 16, model.latent_frames(5000)))
    assert torch.equal(model.decode(model.encode(silence), length=5000), silence)


# ---------------------------------------------------------------- posterior


def test_kl_against_the_formula_of_torch():
    mean, log_variance = noise(3, 4, 5), noise(3, 4, 5, seed=1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, standard)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)
    # by hand: mu = 2, sigma^2 = e: (4 + e - 1 - 1) / 2
    by_hand = (4 + math.e - 2) / 2
    assert kl_divergence(torch.tensor([2.0]), torch.tensor([1.0])).item() == pytest.approx(by_hand)


def test_draws_have_the_moments_of_the_posterior():
    mean, log_variance = torch.full((40_000,), 3.0), torch.full((40_000,), math.log(0.25))
    draw = reparameterised(mean, log_variance, noise(40_000))
    assert draw.mean().item() == pytest.approx(3.0, abs=0.01)
    assert draw.std().item() == pytest.approx(0.5, abs=0.01)


def test_log_variance_is_bounded():
    encoder = VaeEncoder(TEST.network, torch.ones(TEST.transform.n_bins, 1))
    torch.nn.init.normal_(encoder.log_variance.weight, std=100)
    _, log_variance = encoder(noise(1, 2, TEST.transform.n_bins, 4))
    assert (log_variance.min(), log_variance.max()) == LOG_VARIANCE_RANGE


def test_encode_is_the_posterior_mean_and_deterministic(model):
    audio = noise(2, 8000)
    edge = 3 * TEST.transform.hop
    after = model._overlap + model.latent_frames(8000) * model.config.hop - 8000 - edge
    with torch.no_grad():
        mean, _ = model.network.encoder(model.transform(torch.nn.functional.pad(audio, (edge, after))))
    assert torch.equal(model.encode(audio), model.encode(audio))
    torch.testing.assert_close(model.encode(audio), mean)
    z = model.encode(audio)
    assert torch.equal(model.decode(z, seed=0), model.decode(z, seed=1))


# ---------------------------------------------------------------- lengths and windows


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6000), st.booleans())
def test_length_comes_back(n_samples, pad):
    model = LENGTHS.setdefault(pad, random_model(dataclasses.replace(TEST, pad_edges=pad)))
    z = model.encode(noise(1, n_samples))
    assert z.shape == (1, 16, model.latent_frames(n_samples))
    assert model.decode(z, length=n_samples).shape == (1, n_samples)


LENGTHS: dict[bool, SpectralVae] = {}


@pytest.mark.parametrize("n_samples", [20_000, 60_000])
def test_windows_leave_no_trace(model, n_samples):
    """What is dropped on both sides is all that a frame depends on: windows and whole signal agree."""
    whole = random_model(dataclasses.replace(TEST, window_frames=10_000))
    audio = noise(2, n_samples)
    z = whole.encode(audio)
    assert z.shape[-1] > TEST.network.norm_frames
    torch.testing.assert_close(model.encode(audio), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(z), whole.decode(z), rtol=1e-4, atol=1e-4)


def test_streams_are_the_whole(model):
    audio = noise(1, 50_000)
    z = model.encode(audio)
    assert torch.equal(torch.cat(list(model.encode_stream(audio.split(777, dim=1))), -1), z)
    decoded = torch.cat(list(model.decode_stream(z.split(11, dim=-1), length=50_000)), -1)
    assert torch.equal(decoded, model.decode(z, length=50_000))


def test_reach_is_all_that_a_frame_depends_on(model):
    spectrogram = noise(1, 2, TEST.transform.n_bins, 200)
    changed = spectrogram.clone()
    changed[..., 100:] += noise(1, 2, TEST.transform.n_bins, 100, seed=1)
    before, after = (model.network.encoder(s)[0][0] for s in (spectrogram, changed))
    reach = TEST.network.reach
    assert (before - after)[:, : 100 - reach].abs().max() < 1e-4
    assert (before - after)[:, 100 - reach // 2 :].abs().amax(0).min() > 1e-4


# ---------------------------------------------------------------- checkpoints


def test_saved_and_loaded_by_path_and_name(model, tmp_path, monkeypatch):
    model.save(tmp_path / "desk" / "vae")
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path)
    audio = noise(1, 5000)
    for source in ("desk/vae", tmp_path / "desk" / "vae"):
        loaded = lincae.load(source, "cpu")
        assert isinstance(loaded, SpectralVae)
        assert (loaded.name, loaded.metadata, loaded.config) == ("toy", {"step": 7}, model.config)
        assert torch.equal(loaded.encode(audio), model.encode(audio))
    assert "desk/vae" in pretrained.names()
    assert "SpectralVae.load" in (tmp_path / "desk/vae/README.md").read_text()


def test_half_precision_checkpoints_are_close(model, tmp_path):
    model.save(tmp_path, torch.float16)
    audio = noise(1, 5000)
    z = model.encode(audio)
    assert (lincae.load(tmp_path, "cpu").encode(audio) - z).norm() / z.norm() < 1e-2


def test_each_kind_refuses_files_of_the_other(model, tmp_path):
    model.save(tmp_path / "vae")
    Autoencoder(MODEL_PRESETS["test"]).save(tmp_path / "cae")
    with pytest.raises(ValueError, match=rf"vae/{WEIGHTS} holds a spectral-vae model, not a consistency one"):
        Autoencoder.load(tmp_path / "vae")
    with pytest.raises(ValueError, match=rf"cae/{WEIGHTS} holds a consistency model, not a spectral-vae one"):
        SpectralVae.load(tmp_path / "cae")
    assert isinstance(lincae.load(tmp_path / "cae", "cpu"), Autoencoder)


def test_bf16_is_close(model):
    audio = noise(1, 5000)
    exact = model.encode(audio)
    model.precision = "bf16"
    try:
        assert 0 < (model.encode(audio) - exact).norm() / exact.norm() < 0.05
    finally:
        model.precision = "fp32"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (torch.zeros(8000), ValueError, r"must have shape \(B, T\), got \(8000,\)"),
        (torch.zeros(1, 2, 8000), ValueError, r"must have shape \(B, T\), got \(1, 2, 8000\)"),
        (torch.zeros(1, 0), ValueError, "is empty"),
        (torch.full((1, 900), torch.nan), ValueError, "900 non-finite samples"),
        (torch.zeros(1, 900, dtype=torch.int16), TypeError, "floating point"),
    ],
)
def test_encode_refuses(model, audio, error, message):
    with pytest.raises(error, match=message):
        model.encode(audio)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        (torch.zeros(16, 4), {}, r"must be \(B, 16, L\), got \(16, 4\)"),
        (torch.zeros(1, 8, 4), {}, r"must be \(B, 16, L\), got \(1, 8, 4\)"),
        (torch.full((1, 16, 4), torch.inf), {}, "not finite, first at item 0, channel 0, frame 0"),
        (torch.zeros(1, 16, 9), {"length": 10**6}, "length must lie in"),
        (torch.zeros(1, 16, 9), {"steps": 2}, "toy decodes in one step, not 2"),
    ],
)
def test_decode_refuses(model, latents, options, message):
    with pytest.raises(ValueError, match=message):
        model.decode(latents, **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VaeNetworkConfig(kernel=6), "an odd kernel"),
        (lambda: VaeNetworkConfig(latent_channels=0), "positive sizes"),
        (lambda: SpectralVaeConfig(window_frames=100), "exceed the reach of the network, 458 frames"),
        (lambda: SpectralVaeConfig(emphasis_hz=0), "positive sample_rate"),
        (lambda: TransformConfig(0), "hop >= 1"),
    ],
)
def test_configurations_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
