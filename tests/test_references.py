"""References against formulas: exactly linear ones, also at any rate, and the toy of known nonlinearity."""

import pytest
import torch
from fakes import noise, relative
from hypothesis import given, settings
from hypothesis import strategies as st

import lincae
from lincae.bypass.model import mdct_bands
from lincae.interface import AutoencoderLike
from lincae.interop import references
from lincae.interop.references import EXAMPLES, REFERENCES, Pca, StftAutoencoder, TanhToy

NAMES = (*REFERENCES, *EXAMPLES, "resample-2x", "resample+noise-8x", "pca-8x", "pca-512x")


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    model = REFERENCES[name](16000, 8) if name in REFERENCES else lincae.load(name, "cpu")
    assert isinstance(model, AutoencoderLike)
    assert (model.name, model.sample_rate) == (name, 16000)

    z = model.encode(noise(2, 16000))
    assert (z.dtype, z.shape[0], z.requires_grad) == (torch.float32, 2, False)
    if name in REFERENCES:
        assert model.latent_rate == 2000
        assert torch.equal(model.decode(z, seed=3), model.decode(z, seed=7))
    else:
        numbers_per_s = z.shape[1] * model.latent_rate
        assert numbers_per_s == 16000 / float(name.split("-")[1].removesuffix("x"))

    decoded = model.decode(z, 15_001, seed=3)
    assert decoded.shape == (2, 15_001)
    assert torch.equal(decoded, model.decode(z, seed=3)[:, :15_001])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*NAMES, "pca-128x"]), st.integers(1, 3000))
def test_every_length_comes_back(name, length):
    model = lincae.load(name, "cpu")
    assert model.decode(model.encode(noise(1, length)), length).shape == (1, length)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["stft", "resample-32x", "pca-32x", "pca-4x"]), st.floats(-10, 10), st.integers(100, 5000)
)
def test_encoder_and_decoder_are_linear(name, gain, length):
    model = lincae.load(name, "cpu")
    u, v = noise(1, length, seed=1), noise(1, length, seed=2)
    z_u, z_v = model.encode(u), model.encode(v)
    for mapped, a, b in ((model.encode, u, v), (model.decode, z_u, z_v)):
        expected = gain * mapped(a) + mapped(b)
        assert relative(mapped(gain * a + b) - expected, mapped(b)) < 1e-4


def test_settings_are_the_fingerprint():
    models = [kind(**s) for kind in REFERENCES.values() for s in ({}, {"hop": 8}, {"sample_rate": 8000})]
    models += [TanhToy(drive=2.0), *(lincae.load(name, "cpu") for name in NAMES[2:])]
    assert len({model.fingerprint() for model in models}) == len(models)
    assert TanhToy().fingerprint() == TanhToy().fingerprint()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 600))
def test_stft_is_that_of_torch_and_reconstructs(length, hop):
    audio = noise(2, length, seed=length)
    model = StftAutoencoder(hop=hop)
    z = model.encode(audio)
    assert z.shape == (2, 2 * (2 * hop + 1), -(-length // hop) + 3)
    assert relative(model.decode(z, length) - audio, audio) < 1e-6
    padded = torch.nn.functional.pad(audio, (3 * hop, 3 * hop + -length % hop))
    window = torch.hann_window(4 * hop)
    expected = torch.stft(padded, 4 * hop, hop, window=window, center=False, return_complex=True)
    torch.testing.assert_close(torch.complex(*z.chunk(2, 1)), expected, rtol=1e-4, atol=1e-5)


def test_noise_is_one_fixed_sound_above_the_cut():
    model, plain = lincae.load("resample+noise-32x", "cpu"), lincae.load("resample-32x", "cpu")
    z = model.encode(noise(1, 8000))
    haze = model.decode(z, 8000, seed=1) - plain.decode(z, 8000)
    assert torch.allclose(haze, model.decode(0 * z, 8000, seed=1), atol=1e-6)
    assert not torch.allclose(haze, model.decode(0 * z, 8000, seed=2), atol=1e-3)

    power = torch.fft.rfft(haze[0]).abs().square()
    below_cut = power[: 200 * 8000 // 16000].sum() / power.sum()
    assert below_cut < 0.01
    assert 1e-3 < haze.square().mean().sqrt() < 0.1


def test_pca_is_orthonormal_and_keeps_the_low_end_of_music():
    for basis in (mdct_bands(256, 256).T, references.fitted()["basis"]):
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=2e-3)
    tone = 0.1 * torch.sin(2 * torch.pi * 110 * torch.arange(16000) / 16000)[None]
    model = Pca(32)
    assert relative(model.decode(model.encode(tone), 16000) - tone, tone) < 0.3


def test_missing_fit_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(references, "FITTED", tmp_path / "gone.safetensors")
    references.fitted.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors is missing"):
        Pca(32)
    references.fitted.cache_clear()


@pytest.mark.parametrize(("drive", "gain"), [(0.5, -2.0), (4.0, 0.3)])
def test_tanh_errors_are_as_derived(drive, gain):
    model = TanhToy(hop=10, drive=drive)
    x, y = noise(2, 1, 1000, rms=0.5)

    frames = TanhToy(hop=2).encode(torch.tensor([[1.0, 2.0, 3.0]])).atanh()
    torch.testing.assert_close(frames, torch.tensor([[[1.0, 3.0], [2.0, 0.0]]]), rtol=1e-4, atol=0)

    def encode(audio):
        return model.encode(audio).transpose(1, 2).flatten(1)

    def decode(audio):
        return model.decode(audio.unflatten(1, (-1, 10)).transpose(1, 2))

    tx, ty = torch.tanh(drive * x), torch.tanh(drive * y)
    for mapped in (encode, decode):
        torch.testing.assert_close(mapped(x), tx)
        error = mapped(gain * x) - gain * mapped(x)
        torch.testing.assert_close(error, torch.tanh(gain * drive * x) - gain * tx, rtol=1e-5, atol=1e-6)
        error = mapped(x + y) - mapped(x) - mapped(y)
        torch.testing.assert_close(error, -tx * ty * torch.tanh(drive * (x + y)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["stft", "tanh", "resample-32x", "pca-32x"])
def test_input_is_checked(name):
    model = lincae.load(name, "cpu")
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        model.encode(torch.zeros(9))
    z = model.encode(noise(1, 2000))
    held = model.decode(z).shape[1]
    for length in (0, held + 1):
        with pytest.raises(ValueError, match=rf"1\.\.{held}.*got {length}"):
            model.decode(z, length)
    for wrong in (z[0], torch.cat((z, z), 1), z[:0], z[..., :0]):
        with pytest.raises(ValueError, match=f"latents of {name}"):
            model.decode(wrong)
    z[0, 0, 2] = torch.inf
    with pytest.raises(ValueError, match="item 0, channel 0, frame 2"):
        model.decode(z)


@pytest.mark.parametrize(
    ("call", "allowed", "given"),
    [
        (lambda: TanhToy(hop=0), "hop must be positive", "0"),
        (lambda: TanhToy(drive=0.0), "drive must be positive", "0.0"),
        (lambda: lincae.load("pca-2.5x", "cpu"), "512 / n", "2.5x"),
        (lambda: lincae.load("resample-2.5x", "cpu"), "divide 16000", "2.5x"),
        (lambda: lincae.load("resampled-32x", "cpu"), "unknown model .* resample-32x", "resampled-32x"),
    ],
)
def test_refusals_name_what_is_wrong_and_what_is_allowed(call, allowed, given):
    with pytest.raises(ValueError, match=allowed) as caught:
        call()
    assert given in str(caught.value)
