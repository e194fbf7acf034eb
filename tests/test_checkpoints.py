"""Checkpoints: what they say of a model, what is refused, and whose latents are whose."""

import dataclasses

import pytest
import torch

import lincae

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
