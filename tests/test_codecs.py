"""EnCodec, DAC and Stable Audio's VAE as their own libraries build, save and load them, in small."""

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lincae
from lincae.interface import AutoencoderLike
from lincae.interop.codecs import HUB, Codec, codec_kind, load_codec
from lincae.interop.models import names
from lincae.interop.references import Oobleck
from lincae.machine import generator

transformers = pytest.importorskip("transformers")
TINY_ENCODEC = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16}
TINY_ENCODEC |= {"num_lstm_layers": 1, "sampling_rate": 16000, "target_bandwidths": [16.0]}
TINY_DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 2, "codebook_size": 16}


def noise(*shape, seed=0):
    return 0.1 * torch.randn(shape, generator=generator(seed))


def encodec(**other):
    torch.manual_seed(0)
    return transformers.EncodecModel(transformers.EncodecConfig(**TINY_ENCODEC | other)).eval()


def dac(ratios, rate):
    torch.manual_seed(0)
    config = transformers.DacConfig(**TINY_DAC, downsampling_ratios=ratios, sampling_rate=rate)
    model = transformers.DacModel(config).eval()
    for parameter in model.parameters():  # DAC's own initialisation decodes to all but silence
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved by transformers: mono and causal, stereo, DAC of even and of odd strides."""
    root = tmp_path_factory.mktemp("codecs")
    stereo = {
        "audio_channels": 2,
        "normalize": True,
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
    }
    models = {
        "encodec": encodec(),
        "encodec-stereo": encodec(**stereo, chunk_length_s=1.0, overlap=0.01),
        "dac": dac([2, 4], 16000),
        "dac-odd": dac([2, 5], 24000),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: (root / name, model) for name, model in models.items()}


@pytest.fixture(scope="module", params=["encodec", "encodec-stereo", "dac", "dac-odd"])
def loaded(request, folders):
    path, original = folders[request.param]
    return lincae.load(path, "cpu"), original


def test_contract(loaded):
    model, original = loaded
    assert isinstance(model, AutoencoderLike)
    assert (model.sample_rate, model.hop) == (original.config.sampling_rate, original.config.hop_length)
    assert model.latent_rate == model.sample_rate / model.hop
    audio = noise(2, 1001)
    z = model.encode(audio)
    assert (z.dtype, z.shape[:2], z.requires_grad) == (torch.float32, (2, model.latent_channels), False)
    decoded = model.decode(z, 1001)
    assert decoded.shape == audio.shape
    assert torch.equal(model.decode(z, length=1001, seed=7), decoded)
    assert decoded.std() > 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300))
def test_every_length_comes_back(folders, length):
    for name, (_, original) in folders.items():
        model = Codec(original, name, "cpu")
        audio = noise(1, length, seed=length)
        assert model.decode(model.encode(audio), length).shape == audio.shape


def test_latents_are_what_comes_before_the_quantiser(loaded):
    """Quantising our latents gives the codes that the library gives, and its decoder is ours."""
    model, original = loaded
    audio, channels = noise(1, 40 * model.hop), model.n_channels
    given = audio[:, None].expand(-1, channels, -1)
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
        else:  # level is not taken out: latents of the library are those of audio at RMS 1
            rms = audio.square().mean().sqrt()
            torch.testing.assert_close(model.encode(audio / rms)[..., :40], original.encoder(given / rms))


def test_mono_in_both_channels_of_a_stereo_model(folders):
    path, original = folders["encodec-stereo"]
    model, audio = lincae.load(path, "cpu"), noise(2, 160)
    z = model.encode(audio)
    with torch.no_grad():
        torch.testing.assert_close(z, original.encoder(audio[:, None].repeat(1, 2, 1)))
        torch.testing.assert_close(model.decode(z), original.decoder(z).mean(1))


def test_odd_strides_need_a_frame_more(folders):
    model = lincae.load(folders["dac-odd"][0], "cpu")
    z = model.encode(noise(1, 100))  # ten hops
    held = model.decode(z).shape[1]
    assert z.shape[-1] == 11
    assert 100 <= held < 110
    even = lincae.load(folders["dac"][0], "cpu")
    assert even.encode(noise(1, 80)).shape[-1] == 10


def test_input_is_checked(loaded):
    model, _ = loaded
    with pytest.raises(ValueError, match=r"shape \(B, T\)"):
        model.encode(torch.zeros(9))
    z = model.encode(noise(1, 80))
    held = model.decode(z).shape[1]
    with pytest.raises(ValueError, match=rf"1\.\.{held}"):
        model.decode(z, held + 1)
    with pytest.raises(ValueError, match=rf"\(B, {model.latent_channels}, L\)"):
        model.decode(z[:, 1:])
    z[0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite, first at item 0, channel 1, frame 2"):
        model.decode(z)


def test_names():
    assert set(HUB) <= set(names())
    with pytest.raises(ValueError, match=r"is no folder of encodec, dac.*choose from encodec-24khz"):
        load_codec("encodec", "cpu")
    with pytest.raises(ValueError, match="no scale"):
        lincae.load("dac-44khz", "cpu", latent_scale=2.0)


def test_oobleck_folders_load_by_path(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    tiny = {"encoder_hidden_size": 8, "decoder_channels": 8, "decoder_input_channels": 4}
    tiny |= {"downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "sampling_rate": 16000}
    vae = diffusers.AutoencoderOobleck(**tiny, audio_channels=2)
    vae.save_pretrained(tmp_path / "mine" / "vae")
    for path in (tmp_path / "mine", tmp_path / "mine" / "vae"):
        model = lincae.load(path, "cpu")
        assert isinstance(model, Oobleck)
        assert model.name == path.name
        assert model.encode(noise(1, 80)).shape == (1, 4, 10)


def test_folders_that_do_not_fit(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    path, _ = folders["dac"]
    state, config = load_file(path / "model.safetensors"), (path / "config.json").read_text()
    key = "encoder.conv1.bias"
    for changed, match in (
        ({k: v for k, v in state.items() if k != key}, f"missing {key}"),
        (state | {"decoder.extra": torch.zeros(1)}, "unknown decoder.extra"),
        (state | {key: torch.zeros(7)}, key),
    ):
        (tmp_path / "config.json").write_text(config)
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=rf"(?s){tmp_path} does not fit DacModel: .*{match}"):
            lincae.load(tmp_path, "cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        lincae.load(tmp_path, "cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        codec_kind(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert codec_kind(tmp_path) is None


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="needs one of EncodecModel, DacModel"):
        Codec(transformers.ClapAudioModel(transformers.ClapAudioConfig(
            spec_size=256, num_mel_bins=64, patch_embeds_hidden_size=8, depths=[1] * 4,
            num_attention_heads=[1, 2, 2, 2], hidden_size=64,
        )), "clap", "cpu")  # fmt: skip
    with pytest.raises(ValueError, match="must have 1 or 2 audio channels, has 4"):
        Codec(encodec(audio_channels=4), "four", "cpu")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'lincae\[baselines\]'"):
        lincae.load("dac-44khz", "cpu")
