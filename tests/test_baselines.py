"""Baselines against formulas and against diffusers called directly."""

import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae.interface import AutoencoderLike
from lincae.interop.references import BASELINES, Oobleck, StftAutoencoder, TanhToy, load_baseline
from lincae.machine import generator


def noise(*shape, seed=0, rms=0.1):
    return rms * torch.randn(shape, generator=generator(seed))


def relative(error, reference):
    return (error.double().norm() / reference.double().norm()).item()


@pytest.fixture(scope="module")
def vaes():
    """Random VAEs of diffusers with hops of 8 samples, by number of audio channels."""
    diffusers = pytest.importorskip("diffusers")
    tiny = {"encoder_hidden_size": 8, "decoder_channels": 8, "decoder_input_channels": 4}
    tiny |= {"downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "sampling_rate": 16000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weight_norm
        return {n: diffusers.AutoencoderOobleck(**tiny, audio_channels=n).eval() for n in (1, 2, 4)}


@pytest.fixture
def every(vaes):
    return [Oobleck(vaes[2], device="cpu"), StftAutoencoder(16000, 8), TanhToy(16000, 8)]


# ---------------------------------------------------------------- the contract


def test_contract(every):
    audio = noise(2, 1001)
    for model in every:
        assert isinstance(model, AutoencoderLike)
        assert model.name in BASELINES
        assert (model.sample_rate, model.latent_rate) == (16000, 2000)
        z = model.encode(audio)
        assert (z.dtype, z.shape[0], z.requires_grad) == (torch.float32, 2, False)
        decoded = model.decode(z, 1001)
        assert decoded.shape == audio.shape
        assert torch.equal(model.decode(z, length=1001, seed=7), decoded)
        assert torch.equal(model.decode(z)[:, :1001], decoded)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200))
def test_every_length_comes_back(vaes, length):
    for model in (Oobleck(vaes[2], device="cpu"), StftAutoencoder(16000, 8), TanhToy(16000, 8)):
        audio = noise(1, length, seed=length)
        assert model.decode(model.encode(audio), length).shape == audio.shape


def test_input_is_checked(every):
    for model in every:
        with pytest.raises(ValueError, match=r"shape \(B, T\)"):
            model.encode(torch.zeros(9))
        with pytest.raises(ValueError, match="non-finite samples, first nan at item 1, sample 3"):
            model.encode(
                torch.zeros(2, 9).index_put((torch.tensor(1), torch.tensor(3)), torch.tensor(torch.nan))
            )
        z = model.encode(noise(1, 40))
        held = model.decode(z).shape[1]
        for length in (0, held + 1):
            with pytest.raises(
                ValueError, match=rf"1\.\.{held}, what {z.shape[2]} latent frames hold, got {length}"
            ):
                model.decode(z, length)
        for wrong in (z[0], z[:, 1:], z[:0], z[..., :0]):
            with pytest.raises(ValueError, match=rf"latents of {model.name} are \(B, {z.shape[1]}, L\)"):
                model.decode(wrong)
        z[0, 1, 2] = torch.inf
        with pytest.raises(ValueError, match="not finite, first at item 0, channel 1, frame 2"):
            model.decode(z)


def test_by_name():
    assert isinstance(load_baseline("stft", "cpu"), StftAutoencoder)
    assert isinstance(load_baseline("tanh", "cpu"), TanhToy)
    with pytest.raises(ValueError, match="unknown baseline 'sftf': choose from stable-audio-vae, stft, tanh"):
        load_baseline("sftf", "cpu")
    with pytest.raises(ValueError, match="unknown device"):
        load_baseline("stft", "abacus")


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
    model, (x, y) = StftAutoencoder(), noise(2, 1, 3000, seed=seed)
    assert relative(model.encode(gain * x) - gain * model.encode(x), gain * model.encode(x)) < 1e-5
    assert relative(model.encode(x + y) - model.encode(x) - model.encode(y), model.encode(x + y)) < 1e-5
    z, w = model.encode(x), model.encode(y)
    assert relative(model.decode(gain * z) - gain * model.decode(z), gain * model.decode(z)) < 1e-5
    assert relative(model.decode(z + w) - model.decode(z) - model.decode(w), model.decode(z + w)) < 1e-5
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


@pytest.mark.parametrize(
    "settings", [{"hop": 0}, {"sample_rate": -1}, {"drive": 0.0}, {"drive": float("inf")}]
)
def test_settings_must_be_positive(settings):
    with pytest.raises(ValueError, match=rf"{next(iter(settings))} must be positive"):
        TanhToy(**settings)


# ---------------------------------------------------------------- Stable Audio


@pytest.mark.parametrize("n_channels", [1, 2])
def test_oobleck_is_what_diffusers_computes(vaes, tmp_path, n_channels):
    vae = vaes[n_channels]
    vae.save_pretrained(tmp_path / "model" / "vae")
    audio = noise(3, 803, seed=1)
    for source in (tmp_path / "model", str(tmp_path / "model" / "vae")):
        model = Oobleck.load(source, device="cpu")
        assert (model.name, model.sample_rate, model.hop) == ("stable-audio-vae", 16000, 8)
        padded = torch.nn.functional.pad(audio, (0, 5))[:, None].repeat(1, n_channels, 1)
        with torch.no_grad():
            expected = vae.encode(padded).latent_dist.mode()
            decoded = vae.decode(expected).sample
        z = model.encode(audio)
        assert z.shape == (3, 4, 101)
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close(model.decode(z, 803), decoded.mean(1)[:, :803])


def test_oobleck_refuses_more_channels(vaes):
    with pytest.raises(ValueError, match="must have 1 or 2 audio channels, has 4"):
        Oobleck(vaes[4], device="cpu")


def test_oobleck_folders_that_do_not_fit(vaes, tmp_path):
    from safetensors.torch import load_file, save_file

    vaes[2].save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    key = "decoder.conv2.weight_v"
    for changed, match in (
        ({k: v for k, v in state.items() if k != key}, rf"missing {key}"),
        (state | {"extra": torch.zeros(1)}, "unknown extra"),
        (state | {key: torch.zeros(2, 2, 7)}, f"does not fit AutoencoderOobleck: .*{key}"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"(?s){tmp_path}.*{match}"):
            Oobleck.load(tmp_path, device="cpu")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.safetensors"):
        Oobleck.load(tmp_path, device="cpu")
    file.unlink()
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.safetensors"):
        Oobleck.load(tmp_path, device="cpu")


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'lincae\[baselines\]'"):
        load_baseline("stable-audio-vae", "cpu")
