"""EnCodec, DAC and Stable Audio's VAE as their own libraries build, save and load them, in small."""

import json
import sys
import warnings

import pytest
import torch
from fakes import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import lincae
from lincae.interface import AutoencoderLike
from lincae.interop.codecs import Codec, Oobleck, codec_kind, load_codec
from lincae.interop.references import REFERENCES

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
TINY_ENCODEC = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16}
TINY_ENCODEC |= {"num_lstm_layers": 1, "sampling_rate": 16000, "target_bandwidths": [16.0]}
TINY_DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 2, "codebook_size": 16}
TINY_OOBLECK = {"encoder_hidden_size": 8, "decoder_channels": 8, "decoder_input_channels": 4}
TINY_OOBLECK |= {"downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "sampling_rate": 16000}


def encodec(seed=0, **other):
    torch.manual_seed(seed)
    return transformers.EncodecModel(transformers.EncodecConfig(**TINY_ENCODEC | other)).eval()


def dac(ratios, rate, seed=0):
    torch.manual_seed(seed)
    config = transformers.DacConfig(**TINY_DAC, downsampling_ratios=ratios, sampling_rate=rate)
    model = transformers.DacModel(config).eval()
    for parameter in model.parameters():  # DAC's own initialisation decodes to all but silence
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def oobleck(n_channels=2, seed=0):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses an old weight_norm
        return diffusers.AutoencoderOobleck(**TINY_OOBLECK, audio_channels=n_channels).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved by their libraries: mono and causal, stereo, DAC of even and of odd strides, a VAE."""
    root = tmp_path_factory.mktemp("codecs")
    stereo = {"audio_channels": 2, "normalize": True, "norm_type": "time_group_norm"}
    stereo |= {"use_causal_conv": False, "chunk_length_s": 1.0, "overlap": 0.01}
    models = {
        "encodec": encodec(),
        "encodec-stereo": encodec(**stereo),
        "dac": dac([2, 4], 16000),
        "dac-odd": dac([2, 5], 24000),
        "oobleck": oobleck(),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: (root / name, model) for name, model in models.items()}


@pytest.fixture(scope="module", params=["encodec", "encodec-stereo", "dac", "dac-odd", "oobleck"])
def loaded(request, folders):
    path, original = folders[request.param]
    return lincae.load(path, "cpu"), original


def test_contract(loaded):
    model, original = loaded
    assert isinstance(model, AutoencoderLike)
    assert model.sample_rate == original.config.sampling_rate
    assert model.latent_rate == model.sample_rate / model.hop
    audio = noise(2, 1001)
    z = model.encode(audio)
    assert (z.dtype, len(z), z.requires_grad) == (torch.float32, 2, False)
    decoded = model.decode(z, 1001)
    assert decoded.shape == audio.shape
    assert torch.equal(model.decode(z, length=1001, seed=7), decoded)
    assert decoded.std() > 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300))
def test_every_length_comes_back(folders, length):
    for name, (_, original) in folders.items():
        kind = Oobleck if name == "oobleck" else Codec
        model = kind(original, name, "cpu")
        audio = noise(1, length, seed=length)
        assert model.decode(model.encode(audio), length).shape == audio.shape


def test_input_is_checked(loaded):
    model, _ = loaded
    z = model.encode(noise(1, 80))
    held = model.decode(z).shape[1]
    broken = z.clone()
    broken[0, 1, 2] = torch.nan
    for call, named in (
        (lambda: model.encode(torch.zeros(9)), r"\(B, T\)"),
        (lambda: model.decode(z, 0), rf"1\.\.{held}"),
        (lambda: model.decode(z, held + 1), rf"1\.\.{held}"),
        (lambda: model.decode(z[:, 1:]), f"latents of {model.name}"),
        (lambda: model.decode(broken), "item 0, channel 1, frame 2"),
    ):
        with pytest.raises(ValueError, match=named):
            call()


@pytest.mark.parametrize(
    ("dtype", "default"), [(torch.bfloat16, torch.float64), (torch.float64, torch.float32)]
)
def test_other_number_types_take_and_give_float32(dtype, default):
    torch.set_default_dtype(default)
    try:
        models = [Codec(dac([2, 4], 16000), "d", "cpu"), Oobleck(oobleck(), "o", "cpu")]
        models += [kind() for kind in REFERENCES.values()]
        models += [lincae.load(name, "cpu") for name in ("resample+noise-32x", "pca-32x")]
        for model in models:
            expected = model.encode(noise(1, 1000).float())
            getattr(model, "network", torch.nn.Identity()).to(dtype)
            z = model.encode(noise(1, 1000).to(dtype))
            decoded = model.decode(z.to(dtype), 1000)
            assert z.dtype == decoded.dtype == expected.dtype == torch.float32, model.name
            assert (z - expected).norm() < 0.05 * expected.norm()
    finally:
        torch.set_default_dtype(torch.float32)


def test_fingerprints_tell_weights_and_settings_apart(folders, tmp_path):
    """Not names and folders: what is loaded twice, from different places, is one model."""
    path, original = folders["encodec"]
    same = lincae.load(path, "cpu").fingerprint()
    original.save_pretrained(tmp_path / "elsewhere")
    assert lincae.load(tmp_path / "elsewhere", "cpu").fingerprint() == same
    assert Codec(original, "another name", "cpu").fingerprint() == same
    quantiser = encodec()
    quantiser.quantizer.layers[0].codebook.embed.add_(1)
    assert Codec(quantiser, "codec", "cpu").fingerprint() == same, "the quantiser decides no latents"
    others = [
        Codec(encodec(seed=1), "codec", "cpu"),
        Codec(encodec(sampling_rate=24000), "codec", "cpu"),
        Codec(dac([2, 4], 16000), "codec", "cpu"),
        Oobleck(oobleck(), "codec", "cpu"),
    ]
    assert len({same, *(model.fingerprint() for model in others)}) == 1 + len(others)


def test_latents_are_what_comes_before_the_quantiser(loaded):
    """Quantising our latents gives the codes that the library gives, and its decoder is ours."""
    model, original = loaded
    if isinstance(model, Oobleck):
        pytest.skip("has no quantiser")
    audio = noise(1, 40 * model.hop)
    given = audio[:, None].expand(-1, model.n_channels, -1)
    z = model.encode(audio)[..., :40]
    with torch.no_grad():
        if original.config.model_type == "dac":
            codes = original.quantizer(z)[1]
            expected = original.encode(given).audio_codes
            sound = original.decode(quantized_representation=z).audio_values
            # where a frame of silence follows, the last frames hear it
            torch.testing.assert_close(z[..., :30], original.encoder(given)[..., :30])
            assert torch.equal(codes[..., :30], expected[..., :30])
            torch.testing.assert_close(model.decode(z), sound)
        elif not original.config.normalize:
            codes = original.quantizer.encode(z, 16.0).transpose(0, 1)
            assert torch.equal(codes, original.encode(given, bandwidth=16.0).audio_codes[0])
            torch.testing.assert_close(model.decode(z), original.decoder(z)[:, 0])
        else:  # level is not taken out; a stereo model hears mono in both channels, and their mean comes back
            torch.testing.assert_close(z, original.encoder(given))
            torch.testing.assert_close(model.decode(z), original.decoder(z).mean(1))


@pytest.mark.parametrize("n_channels", [1, 2])
def test_oobleck_is_what_diffusers_computes(tmp_path, n_channels):
    vae = oobleck(n_channels)
    vae.save_pretrained(tmp_path / "model" / "vae")
    audio = noise(3, 803, seed=1)
    padded = torch.nn.functional.pad(audio, (0, 5))[:, None].repeat(1, n_channels, 1)
    with torch.no_grad():
        expected = vae.encode(padded).latent_dist.mode()
        decoded = vae.decode(expected).sample
    for path in (tmp_path / "model", tmp_path / "model" / "vae"):
        model = lincae.load(path, "cpu")
        assert (model.name, model.sample_rate, model.hop) == (path.name, 16000, 8)
        z = model.encode(audio)
        assert z.shape == (3, 4, 101)
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close(model.decode(z, 803), decoded.mean(1)[:, :803])


@pytest.mark.parametrize("kind", ["dac", "oobleck"])
def test_folders_that_do_not_fit(folders, tmp_path, kind):
    path, _ = folders[kind]
    (file,) = path.glob("*.safetensors")
    state = load_file(file)
    key = next(key for key in state if key.startswith("encoder."))
    written = tmp_path / file.name
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    for changed, match in (
        ({k: v for k, v in state.items() if k != key}, f"missing {key}"),
        (state | {"decoder.extra": torch.zeros(1)}, "unknown decoder.extra"),
        (state | {key: torch.zeros(7, 7)}, key),
    ):
        save_file(changed, written, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"(?s){tmp_path} does not fit .*{match}"):
            lincae.load(tmp_path, "cpu")
    written.write_bytes(written.read_bytes()[:1000])
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        lincae.load(tmp_path, "cpu")
    written.unlink()
    with pytest.raises(OSError, match="safetensors"):
        lincae.load(tmp_path, "cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        codec_kind(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert codec_kind(tmp_path) is None


@pytest.mark.parametrize(
    ("package", "name"), [("transformers", "dac-44khz"), ("diffusers", "stable-audio-vae")]
)
def test_other_models_and_missing_packages_are_named(monkeypatch, package, name):
    with pytest.raises(ValueError, match="needs one of EncodecModel, DacModel"):
        Codec(oobleck(), "other", "cpu")
    with pytest.raises(ValueError, match="must have 1 or 2 audio channels, has 4"):
        Oobleck(oobleck(4), "four", "cpu")
    with pytest.raises(ValueError, match=r"encodec is no folder.*encodec-24khz"):
        load_codec("encodec", "cpu")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'lincae\[baselines\]'"):
        lincae.load(name, "cpu")
