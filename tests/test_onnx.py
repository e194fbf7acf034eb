"""The ONNX export agrees with PyTorch at lengths that it was not traced with, and says what it is."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from browser import required
from fakes import noise, relative
from test_bypass import KINDS

from lincae.autoencoder import Autoencoder
from lincae.bypass.model import BypassAutoencoder
from lincae.commands import main
from lincae.interop import onnx
from lincae.interop.references import StftAutoencoder
from lincae.machine import generator
from lincae.training.config import MODEL_PRESETS

MODELS = {
    "consistency, no edges": (
        Autoencoder,
        replace(MODEL_PRESETS["test"], pad_edges=False, latent_scale=2.0),
    ),
    "bands": (BypassAutoencoder, KINDS["bands"]),
    "code and haze": (BypassAutoencoder, replace(KINDS["long frames"], correction=False)),
}


def random_model(kind, config):
    """A model of few frames a window, without zeros, which would hide what zeroed layers add."""
    model = kind(replace(config, window_frames=40, context_frames=8, norm_frames=12), name="tiny").eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return model


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def pair(request, tmp_path_factory):
    """A random model, and the folder of its export."""
    for package in ("onnx", "onnxruntime"):
        required(find_spec(package), package, "pip install 'lincae[export]'")
    model = random_model(*request.param)
    folder = tmp_path_factory.mktemp("exported")
    assert min(onnx.export(model, folder).values()) >= onnx.LEAST_SNR_DB
    return model, folder


def test_agrees_at_every_length(pair):
    model, folder = pair
    exported = onnx.Exported(folder)
    for n_frames in (2, 5, 12, 13, 40):
        audio = noise(1, model.decoded_samples(n_frames) - 3, seed=n_frames)
        latents = model.encode(audio)
        assert latents.shape[-1] == n_frames
        assert relative(exported.encode(audio) - latents, latents) < 1e-3
        decoded = exported.decode(latents, model.noise(0, n_frames, seed=5))
        own = model.decode(latents, seed=5)
        assert relative(decoded - own, own) < 1e-3


def test_more_frames_than_a_window_are_refused(pair):
    model, folder = pair
    exported = onnx.Exported(folder)
    with pytest.raises(ValueError, match="takes 40 latent frames, got 41"):
        exported.decode(torch.zeros(1, model.config.network.latent_channels, 41), model.noise(0, 41, 0))
    with pytest.raises(ValueError, match="takes 40 latent frames"):
        exported.encode(noise(1, 50 * model.config.hop))


def test_files_say_what_they_are(pair):
    model, folder = pair
    facts = onnx.Exported(folder).facts
    told = (facts["name"], facts["fingerprint"], facts["sample_rate"], facts["hop"], facts["most_frames"])
    assert told == ("tiny", model.fingerprint(), "16000", str(model.config.hop), "40")
    assert float(facts["compression"]) == model.compression
    assert int(facts["latent_channels"]) == model.config.network.latent_channels


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="StftAutoencoder"):
        onnx.export(StftAutoencoder(), tmp_path)
    model = random_model(*MODELS["bands"])
    monkeypatch.setattr(onnx, "LEAST_SNR_DB", 400.0)
    model.save(tmp_path / "model")
    with pytest.raises(SystemExit) as refused:
        main(["export", str(tmp_path / "model"), "--onnx", str(tmp_path / "out")])
    assert "nothing was written" in str(refused.value)
    assert not (tmp_path / "out").exists()
