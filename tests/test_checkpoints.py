"""Checkpoints: what they say of a model, what is refused, and whose latents are whose."""

import dataclasses
import json
import math
from dataclasses import replace as replaced

import pytest
import torch

import lincae
from lincae.checkpoints import from_dict
from lincae.linearity import LinearityConfig
from lincae.vae.config import VaeLossConfig

TEST = lincae.recipe("test").autoencoder

# Folders of latents and Re-Encoders of the released models are found by these.
RELEASED = {
    "desk/lin-cae": "47480364463704e8ede17bcbec6a9265837575cde3fd29289a108d6139cc39e2",
    "desk/vae": "d4a8515d0d811e242fffa02146d08ddc03bcc470921685b80390e25fcf5bd23d",
}


@pytest.mark.parametrize(("name", "fingerprint"), RELEASED.items())
def test_fingerprints_of_released_models(name, fingerprint):
    assert lincae.load(name, "cpu").fingerprint() == fingerprint


def test_fingerprint_is_what_decides_latents(tmp_path):
    model = lincae.Autoencoder(TEST, "one", {"step": 1})
    same = model.fingerprint()
    assert lincae.load(model.save(tmp_path), "cpu").fingerprint() == same

    model.name, model.metadata = "two", {}
    assert model.fingerprint() == same

    for changes, differs in (
        ({"window_frames": 100}, False),
        ({"latent_scale": 2.0}, True),
        ({"pad_edges": False}, True),
        ({"transform": dataclasses.replace(TEST.transform, beta=0.3)}, True),
    ):
        other = lincae.Autoencoder(dataclasses.replace(TEST, **changes), "one")
        other.load_state_dict(model.state_dict())
        assert (other.fingerprint() != same) == differs

    with torch.no_grad():
        next(model.network.parameters()).flatten()[0] += 1e-3
    assert model.fingerprint() != same


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: replaced(c, sample_rate=16000.0),
            r"sample_rate of AutoencoderConfig .* int, got 16000.0 \(f",
        ),
        (lambda c: replaced(c, pad_edges=1), r"pad_edges .* bool, got 1 \(int\)"),
        (lambda c: replaced(c, latent_scale="1"), r"latent_scale .* float, got '1' \(str\)"),
        (lambda c: replaced(c, latent_scale=math.inf), "latent_scale .* float, got inf"),
        (lambda c: replaced(c, latent_scale=True), "latent_scale .* float, got True"),
        (lambda c: replaced(c, transform={"hop": 64}), "transform .* TransformConfig, got {'hop': 64}"),
        (lambda c: replaced(c.transform, hop="64"), "hop of TransformConfig .* int, got '64'"),
        (lambda c: replaced(c.noise, rho=None), r"rho of NoiseConfig .* float, got None \(NoneType\)"),
        (lambda c: VaeLossConfig(fft_sizes=512), "fft_sizes .* tuple.*, got 512"),
        (lambda c: VaeLossConfig(fft_sizes=[512, 0.5]), r"fft_sizes .* got \(512, 0.5\)"),
        (lambda c: LinearityConfig(gain_max="3"), "gain_max must be float, got '3'"),
        (lambda c: LinearityConfig(anneal=1), "anneal must be bool, got 1"),
        (lambda c: LinearityConfig(peak=math.nan), "peak must be float, got nan"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_value(change, message):
    with pytest.raises(ValueError, match=message):
        change(TEST)


def test_fields_may_come_as_json_has_them():
    assert VaeLossConfig(fft_sizes=[512], stft=1) == VaeLossConfig(fft_sizes=(512,), stft=1.0)
    again = json.loads(json.dumps(dataclasses.asdict(TEST)))
    assert from_dict(type(TEST), again, "here") == TEST
    again["transform"]["hop"] = "64"
    with pytest.raises(ValueError, match=r"^here\.transform: hop of TransformConfig must be int, got '64'"):
        from_dict(type(TEST), again, "here")
