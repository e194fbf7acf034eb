"""The exactly linear reference and the toy of known nonlinearity, against formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae.interface import AutoencoderLike
from lincae.interop.references import REFERENCES, StftAutoencoder, TanhToy
from lincae.machine import generator


def noise(*shape, seed=0, rms=0.1):
    return rms * torch.randn(shape, generator=generator(seed))


def relative(error, reference):
    return (error.double().norm() / reference.double().norm()).item()


# ---------------------------------------------------------------- the contract


@pytest.fixture(params=REFERENCES.values(), ids=list(REFERENCES))
def model(request):
    return request.param(16000, 8)


def test_contract(model):
    audio = noise(2, 1001)
    assert isinstance(model, AutoencoderLike)
    assert (model.sample_rate, model.latent_rate) == (16000, 2000)
    z = model.encode(audio)
    assert (z.dtype, z.shape[0], z.requires_grad) == (torch.float32, 2, False)
    decoded = model.decode(z, 1001)
    assert decoded.shape == audio.shape
    assert torch.equal(model.decode(z, length=1001, seed=7), decoded)
    assert torch.equal(model.decode(z)[:, :1001], decoded)


def test_input_is_checked(model):
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        model.encode(torch.zeros(9))
    z = model.encode(noise(1, 40))
    held = model.decode(z).shape[1]
    for length in (0, held + 1):
        with pytest.raises(ValueError, match=rf"1\.\.{held}.*got {length}"):
            model.decode(z, length)
    for wrong in (z[0], z[:, 1:], z[:0], z[..., :0]):
        with pytest.raises(ValueError, match=f"latents of {model.name}"):
            model.decode(wrong)
    z[0, 1, 2] = torch.inf
    with pytest.raises(ValueError, match="item 0, channel 1, frame 2"):
        model.decode(z)


def test_settings_are_the_fingerprint():
    models = [kind(**s) for kind in REFERENCES.values() for s in ({}, {"hop": 8}, {"sample_rate": 8000})]
    models.append(TanhToy(drive=2.0))
    assert len({model.fingerprint() for model in models}) == len(models)
    assert TanhToy().fingerprint() == TanhToy().fingerprint()


@pytest.mark.parametrize("wrong", [{"hop": 0}, {"sample_rate": -1}, {"drive": 0.0}, {"drive": float("inf")}])
def test_settings_must_be_positive(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be positive"):
        TanhToy(**wrong)


# ---------------------------------------------------------------- exactly linear


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 600))
def test_stft_reconstructs(length, hop):
    audio = noise(2, length, seed=length)
    model = StftAutoencoder(hop=hop)
    z = model.encode(audio)
    assert z.shape == (2, 2 * (2 * hop + 1), -(-length // hop) + 3)
    assert relative(model.decode(z, length) - audio, audio) < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3).filter(lambda gain: abs(gain) > 1e-3), st.integers(0, 99))
def test_stft_is_linear(gain, seed):
    model = StftAutoencoder()
    x, y = noise(2, 1, 3000, seed=seed)
    z, w = model.encode(x), model.encode(y)
    for mapped, a, b in ((model.encode, x, y), (model.decode, z, w)):
        expected = gain * mapped(a) + mapped(b)
        assert relative(mapped(gain * a + b) - expected, expected) < 1e-5
    assert relative(model.decode(z + w - w, 3000) - x, x) < 1e-5


def test_stft_latents_are_torch_stft():
    audio, hop = noise(1, 640), 16
    padded = torch.nn.functional.pad(audio, (48, 48))
    window = torch.hann_window(64)
    expected = torch.stft(padded, 64, hop, window=window, center=False, return_complex=True)
    real, imag = StftAutoencoder(hop=hop).encode(audio).chunk(2, 1)
    torch.testing.assert_close(torch.complex(real, imag), expected)


# ---------------------------------------------------------------- known nonlinearity


@pytest.mark.parametrize("drive", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("gain", [-2.0, 0.3, 3.0])
def test_tanh_errors_are_as_derived(drive, gain):
    model = TanhToy(hop=10, drive=drive)
    x, y = noise(2, 1, 1000, rms=0.5)

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


def test_tanh_frames_by_hand():
    z = TanhToy(hop=2).encode(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(z.atanh(), torch.tensor([[[1.0, 3.0], [2.0, 0.0]]]), rtol=1e-4, atol=0)
