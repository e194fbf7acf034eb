"""Both kinds of autoencoders over frames: lengths, determinism, precision and refusals."""

import dataclasses
import functools

import pytest
import torch
from fakes import randn
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae.autoencoder import Autoencoder, FramewiseAutoencoder
from lincae.interface import AutoencoderLike
from lincae.training.config import MODEL_PRESETS
from lincae.vae.config import VAE_MODEL_PRESETS
from lincae.vae.model import SpectralVae

TEST = MODEL_PRESETS["test"]
CONFIGS = {"consistency": TEST, "vae": VAE_MODEL_PRESETS["test"]}


def random_model(config=TEST, seed: int = 0) -> FramewiseAutoencoder:
    """A model whose zero-initialised tensors are random too, so that nothing is the identity by accident."""
    torch.manual_seed(seed)
    kind = Autoencoder if type(config) is type(TEST) else SpectralVae
    model = kind(config, "toy", {"step": 7, "data": "none"}).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@functools.cache
def shared_model(kind: str, pad_edges: bool = True) -> FramewiseAutoencoder:
    """A model that tests leave as it is."""
    return random_model(dataclasses.replace(CONFIGS[kind], pad_edges=pad_edges))


@pytest.fixture(params=CONFIGS)
def model(request):
    return shared_model(request.param)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.booleans(), st.sampled_from(sorted(CONFIGS)))
def test_length_comes_back(n_samples, pad_edges, kind):
    model = shared_model(kind, pad_edges)
    z = model.encode(randn(1, n_samples))
    assert z.shape == (1, model.config.network.latent_channels, model.latent_frames(n_samples))
    assert model.decode(z, length=n_samples).shape == (1, n_samples)


@pytest.mark.parametrize(
    ("n_samples", "frames", "held"),
    [(2048, 1, 5632), (34304, 8, 34304), (34816, 9, 38400), (88200, 22, 91648), (441000, 108, 443904)],
)
def test_lengths_of_the_paper_model(n_samples, frames, held):
    with torch.device("meta"):
        model = Autoencoder(MODEL_PRESETS["paper"])
    assert model.latent_frames(n_samples) == frames
    assert model.decoded_samples(frames) == held
    # The released code decodes 34304 of 34500 samples.
    assert model.decoded_samples(model.latent_frames(34500)) >= 34500


def test_padded_edges_are_whole():
    """With an exact network in the middle, silence around the signal makes T^-1 T exact at its ends."""
    model = shared_model("consistency")
    audio = randn(1, 3000)
    edge = 3 * model.config.transform.hop
    padded = torch.nn.functional.pad(audio, (edge, edge + 64))
    back = model.transform.inverse(model.transform(padded))[:, edge : edge + 3000]
    assert (back - audio)[:, :edge].norm() / audio[:, :edge].norm() < 0.1  # the Nyquist bin alone is lost


def test_latents_of_long_audio_are_one_sequence():
    """Windowed and whole encodings agree up to what GroupNorm sees of the window."""
    model = shared_model("consistency")
    whole = random_model(dataclasses.replace(TEST, window_frames=10_000))
    audio = randn(1, 60_000) * 0.1
    expected = whole.encode(audio)
    assert expected.shape[-1] > TEST.window_frames
    error = (model.encode(audio) - expected).norm() / expected.norm()
    other = (model.encode(audio) - whole.encode(audio.roll(30_000, -1))).norm() / expected.norm()
    assert error < 0.1 < other


def test_decode_is_deterministic_and_shares_noise_between_items():
    model = shared_model("consistency")
    z = randn(3, 8, 20)
    first = model.decode(z)
    assert torch.equal(first, model.decode(z))
    assert not torch.allclose(first, model.decode(z, seed=1))
    torch.testing.assert_close(model.decode(z[1:2]), first[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.decode(z, steps=2), first)


def test_latent_scale_multiplies_public_latents_which_others_can_train_on(model):
    scaled = random_model(dataclasses.replace(model.config, latent_scale=4.0))
    audio = randn(2, 4000)
    z = model.encode(audio)
    assert isinstance(model, AutoencoderLike)
    assert model.latent_rate == 16000 / model.config.hop
    torch.testing.assert_close(scaled.encode(audio), 4 * z)
    torch.testing.assert_close(scaled.decode(4 * z), model.decode(z))
    weight = torch.ones(1, requires_grad=True)  # others train on latents: inference tensors would refuse
    (weight * z).sum().backward()
    assert weight.grad is not None


def test_bf16_is_close(model):
    audio = randn(1, 5000)
    exact = model.encode(audio)
    decoded = model.decode(exact)
    try:
        model.precision = "bf16"
        assert model.encode(audio).dtype == torch.float32
        assert 0 < (model.encode(audio) - exact).norm() / exact.norm() < 0.1
        assert 0 < (model.decode(exact) - decoded).norm() / decoded.norm() < 0.1
        for precision, message in (
            ("fp64", r"precision must be one of .*, got 'fp64'"),
            ("fp16", r"fp16 is not for device 'cpu': use fp32 or bf16"),
            ("tf32", r"tf32 is not for device 'cpu'"),
        ):
            model.precision = precision
            with pytest.raises(ValueError, match=message):
                model.encode(audio)
    finally:
        model.precision = "fp32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_audio_and_latents_may_have_any_precision(model, dtype):
    audio = randn(1, 2000).to(dtype)
    z = model.encode(audio)
    assert torch.equal(z, model.encode(audio.float()))
    assert torch.equal(model.decode(z.to(dtype)), model.decode(z.to(dtype).float()))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_default_dtype_of_torch_changes_nothing(kind, tmp_path):
    random_model(CONFIGS[kind]).save(tmp_path)
    audio = randn(1, 3000)
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            model = type(shared_model(kind)).load(tmp_path, "cpu")
            z = model.encode(audio)
            results.append((z, model.decode(z), next(model.encode_stream([audio]))))
        finally:
            torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m, z: m.encode(z[0, 0]), ValueError, r"\(B, T\), got \(4,\)"),
        (lambda m, z: m.encode(z[0].numpy()), TypeError, "ndarray"),
        (lambda m, z: m.encode(torch.tensor([[0, 1.0], [0, torch.nan]])), ValueError, "item 1, sample 1"),
        (lambda m, z: m.decode(z[0]), ValueError, r"of toy must be \(B, \d+, L\), got \(\d+, 4\)"),
        (lambda m, z: m.decode(z[:, 1:]), ValueError, r"of toy must be \(B, \d+, L\)"),
        (lambda m, z: m.decode(z / 0), ValueError, r"item 0, channel 0, frame 0 \((nan|-?inf)\)"),
        (lambda m, z: m.decode(z.numpy()), TypeError, "latents of toy .* ndarray"),
        (lambda m, z: m.decode(z, length=10_000), ValueError, r"1\.\.\d+, .*4 latent frames, got 10000"),
        (lambda m, z: m.decode(z, length=100.0), ValueError, "length must be a whole number, .* got 100.0"),
        (lambda m, z: m.decode(z, steps=0), ValueError, "steps must be a whole number, at least 1, got 0"),
        (lambda m, z: m.decode(z, first_frame=-1), ValueError, "first_frame must be a whole number"),
    ],
)
def test_bad_input_is_refused(model, call, kind, message):
    with pytest.raises(kind, match=message):
        call(model, randn(1, model.config.network.latent_channels, 4))
    with pytest.raises(TypeError, match="must be an integer"):
        shared_model("consistency").decode(randn(1, 8, 4), seed=1.5)
    with pytest.raises(ValueError, match="toy decodes in one step, not 2"):
        shared_model("vae").decode(randn(1, 16, 4), steps=2)


@pytest.mark.parametrize(("kind", "cast"), [("consistency", "half"), ("vae", "double")])
def test_weights_in_another_precision_are_refused(kind, cast):
    model = getattr(random_model(CONFIGS[kind]), cast)()
    z = randn(1, model.config.network.latent_channels, 4)
    for use in (
        lambda: model.encode(randn(1, 900)),
        lambda: model.decode(z),
        lambda: list(model.encode_stream([randn(1, 900)])),
        lambda: list(model.decode_stream([z])),
    ):
        with pytest.raises(ValueError, match=r'toy has weights in torch.*precision = "bf16"'):
            use()
    assert model.float().encode(randn(1, 900)).isfinite().all()
