"""Checkpoints: saving and loading both kinds of models, what is refused, and whose latents are whose."""

import dataclasses
import json
import math
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from fakes import randn
from fuzzing import fuzz, limited
from safetensors import safe_open
from safetensors.torch import save_file
from test_autoencoder import CONFIGS, TEST, random_model
from torch import nn

import lincae
from lincae.autoencoder import Autoencoder
from lincae.checkpoints import CARD, CONFIG, WEIGHTS, from_dict
from lincae.interop.bundled import check_hash
from lincae.interop.hub import push_to_hub
from lincae.vae.config import VaeLossConfig
from lincae.vae.model import SpectralVae

# Folders of latents and Re-Encoders of the released models are found by these.
RELEASED = {
    "desk/lin-cae": "47480364463704e8ede17bcbec6a9265837575cde3fd29289a108d6139cc39e2",
    "desk/vae": "d4a8515d0d811e242fffa02146d08ddc03bcc470921685b80390e25fcf5bd23d",
}


@pytest.fixture(params=CONFIGS)
def model(request):
    return random_model(CONFIGS[request.param])


@pytest.mark.parametrize("load", [lincae.load, None])
def test_save_and_load(model, tmp_path, load):
    model.save(tmp_path)
    again = (load or type(model).load)(tmp_path, device="cpu")
    assert type(again) is type(model)
    assert (again.name, again.metadata, again.config) == (model.name, model.metadata, model.config)
    audio = randn(2, 3000)
    assert torch.equal(again.encode(audio), model.encode(audio))
    assert json.loads((tmp_path / CONFIG).read_text())["autoencoder"]["sample_rate"] == 16000
    card = (tmp_path / CARD).read_text()
    assert "| compression | 16x |" in card
    check_hash(tmp_path / WEIGHTS)
    size, z = (tmp_path / WEIGHTS).stat().st_size, model.encode(audio)
    model.save(tmp_path, torch.float16)
    assert (tmp_path / WEIGHTS).stat().st_size < 0.6 * size
    assert (lincae.load(tmp_path, "cpu").encode(audio) - z).norm() / z.norm() < 2e-2


def in_one_process(network: nn.Module) -> nn.Module:
    """DistributedDataParallel needs a group of processes; one is enough."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(network)


@pytest.mark.parametrize(
    "wrap",
    [
        in_one_process,
        lambda network: nn.DataParallel(torch.compile(network)),
        lambda network: setattr(network, "encoder", torch.compile(network.encoder)) or network,
    ],
    ids=["DistributedDataParallel", "compiled DataParallel", "a part"],
)
def test_a_wrapped_network_is_saved_as_it_was(model, wrap, tmp_path):
    z = model.encode(randn(1, 2000))
    fingerprint = model.fingerprint()
    expected = model.network.state_dict()
    try:
        model.network = wrap(model.network)
        assert model.fingerprint() == fingerprint
        again = lincae.load(model.save(tmp_path), "cpu")
        decoded = model.decode(z)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert again.network.state_dict().keys() == expected.keys()
    assert again.fingerprint() == fingerprint
    assert torch.equal(again.decode(z), decoded)


def test_hub_round_trip(model, tmp_path, monkeypatch):
    """`push_to_hub` uploads what `load` of "hub:..." reads; the hub is a folder here."""

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            assert (private, exist_ok) == (True, True)
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id)

    def download(repo_id, allow_patterns):
        return str(tmp_path / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert push_to_hub(model, "me/toy", private=True) == "https://hub/me/toy"
    again = lincae.load("hub:me/toy", device="cpu")
    assert torch.equal(again.encode(randn(1, 500)), model.encode(randn(1, 500)))


def rewritten(folder, change):
    """The checkpoint in a folder whose description and tensors have gone through `change`."""
    path = folder / WEIGHTS
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    change(description, tensors)
    save_file(tensors, path, metadata={"config": json.dumps(description)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(format_version=99), "format version 99"),
        (lambda d, t: d.update(kind="spectral-vae"), "holds a spectral-vae model, not a consistency one"),
        (lambda d, t: d.pop("autoencoder"), "autoencoder must be an object of settings, got None"),
        (lambda d, t: d["autoencoder"].update(flavour="mint"), "unknown flavour"),
        (lambda d, t: d["autoencoder"]["network"].update(depth=3), "network: unknown depth"),
        (lambda d, t: t.pop("encoder.conv_in.bias"), "Missing .*encoder.conv_in.bias"),
        (lambda d, t: t.update({"encoder.conv_in.bias": torch.ones(3)}), "size mismatch .*conv_in.bias"),
        # What only the header states is not made: neither sizes nor numbers of blocks.
        (lambda d, t: d["autoencoder"]["network"].update(bottleneck_blocks=10**12), "more blocks than"),
        (lambda d, t: d["autoencoder"]["network"].update(base_channels=2**20), "does not fit"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_named(tmp_path, change, message):
    Autoencoder(TEST).save(tmp_path)
    rewritten(tmp_path, change)
    with limited(2**29), pytest.raises(ValueError, match=rf"{tmp_path / WEIGHTS}.*{message}"):
        Autoencoder.load(tmp_path)


def test_missing_files_and_files_of_others(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*a checkpoint is a folder"):
        Autoencoder.load(tmp_path / "nowhere")
    save_file({"x": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS} carries no lincae configuration"):
        SpectralVae.load(tmp_path)
    Autoencoder(TEST).save(tmp_path)
    rewritten(tmp_path, lambda description, _: description.update(kind=["gan"]))
    with pytest.raises(ValueError, match=rf"{WEIGHTS} holds a \['gan'\] model, not a consistency or"):
        lincae.load(tmp_path)


def test_damaged_weights(model, tmp_path):
    path = model.save(tmp_path) / WEIGHTS
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    fuzz(path, lambda damaged: lincae.load(damaged.parent, "cpu"), header_bytes)


@pytest.mark.parametrize(("name", "fingerprint"), RELEASED.items())
def test_fingerprints_of_released_models(name, fingerprint):
    assert lincae.load(name, "cpu").fingerprint() == fingerprint


def test_fingerprint_is_what_decides_latents(tmp_path):
    model = random_model()
    same = model.fingerprint()
    assert lincae.load(model.save(tmp_path), "cpu").fingerprint() == same

    model.name = "two"
    model.metadata = {}
    assert model.fingerprint() == same

    for changes, differs in (
        ({"window_frames": 100}, False),
        ({"latent_scale": 2.0}, True),
        ({"pad_edges": False}, True),
        ({"transform": replace(TEST.transform, beta=0.3)}, True),
    ):
        other = Autoencoder(replace(TEST, **changes), "one")
        other.load_state_dict(model.state_dict())
        assert (other.fingerprint() != same) == differs

    with torch.no_grad():
        next(model.network.parameters()).flatten()[0] += 1e-3
    assert model.fingerprint() != same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, sample_rate=1.6e4), "sample_rate of AutoencoderConfig .* int, got 16000.0"),
        (lambda c: replace(c, pad_edges=1), r"pad_edges .* bool, got 1 \(int\)"),
        (lambda c: replace(c, latent_scale=math.inf), "latent_scale .* float, got inf"),
        (lambda c: replace(c, transform={"hop": 64}), "transform .* TransformConfig, got {'hop': 64}"),
        (lambda c: replace(c.noise, rho=None), "rho of NoiseConfig .* float, got None"),
        (lambda c: VaeLossConfig(fft_sizes=[512, 0.5]), r"fft_sizes .* got \(512, 0.5\)"),
        (lambda c: lincae.recipe("test", steps="many"), "steps of TrainingConfig .* int, got 'many'"),
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
    with pytest.raises(ValueError, match=r"^here\.transform: hop"):
        from_dict(type(TEST), again, "here")
