"""Checkpoints: what they say of a model, what is refused, and whose latents are whose."""

import dataclasses
import json
import math
from dataclasses import replace as replaced

import pytest
import torch
from fuzzing import fuzz, limited
from safetensors import safe_open
from safetensors.torch import save_file

import lincae
from lincae.checkpoints import CARD, WEIGHTS, check_hash, from_dict
from lincae.interop.recipes import objective_of
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


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("variant", ["lin-cae", "vae"])
def test_damaged_weights(variant, tmp_path):
    model = objective_of(lincae.recipe("test", variant)).model
    path = model.save(tmp_path) / WEIGHTS
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    fuzz(path, lambda damaged: lincae.load(damaged.parent, "cpu"), header_bytes)


def test_damaged_card(tmp_path):
    lincae.Autoencoder(TEST).save(tmp_path)
    # What is damaged is the card, what the error has to name is the file that can no longer be trusted.
    fuzz(tmp_path / CARD, lambda card: check_hash(card.parent / WEIGHTS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": {"bottleneck_blocks": 10**12}}, "more blocks than it holds tensors"),
        ({"network": {"base_channels": 2**20}}, "does not fit the network"),
        ({"transform": {"hop": 2**40}}, "does not fit the network"),
    ],
)
def test_no_memory_is_taken_for_sizes_that_only_the_header_states(settings, message, tmp_path):
    path = lincae.Autoencoder(TEST).save(tmp_path) / WEIGHTS
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    for part, changes in settings.items():
        description["autoencoder"][part] |= changes
    save_file(tensors, path, metadata={"config": json.dumps(description)})
    with limited(2**29), pytest.raises(ValueError, match=rf"{path}.*{message}"):
        lincae.load(tmp_path, "cpu")
