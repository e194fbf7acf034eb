"""Names and layouts of released checkpoints, made here with random weights; see also test_parity."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from official import arguments, build, randn

from lincae.autoencoder import Autoencoder, AutoencoderConfig
from lincae.interop import models as pretrained
from lincae.interop.bundled import check_hash
from lincae.interop.codecs import HUB
from lincae.interop.models import listed, load, names
from lincae.interop.official import export_official, key_map, network_config, official_files
from lincae.interop.references import EXAMPLES, StftAutoencoder, TanhToy
from lincae.network import BOTH, FREQUENCY, NetworkConfig
from lincae.training.config import MODEL_PRESETS
from lincae.transform import TransformConfig
from tools.bundle import bundle, bundle_study, main

CONFIG = AutoencoderConfig(
    transform=TransformConfig(hop=16),
    network=NetworkConfig(
        base_channels=8,
        multipliers=(1, 2, 3),
        attention=(False, True, True),
        encoder_blocks=(1, 2, 1),
        unet_blocks=(2, 1, 1),
        downsampling=(FREQUENCY, BOTH),
        bottleneck_channels=16,
        bottleneck_blocks=2,
        latent_channels=4,
        noise_channels=8,
    ),
)


@pytest.fixture(scope="module")
def official():
    return build(CONFIG)


def write(folder: Path, state: dict, checkpoint: str | None = "last", **changes: dict) -> Path:
    """The four official files; `changes` are keys to change in the arguments of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, *texts = official_files(checkpoint)
    torch.save(state, folder / weights)
    for name, (kind, values) in zip(texts, arguments(CONFIG).items(), strict=True):
        (folder / name).write_text(yaml.safe_dump(values | changes.get(kind, {})))
    return folder


def assert_same_weights(model: Autoencoder, official) -> None:
    theirs = official.generator.state_dict()
    for ours, key in key_map(model.config.network).items():
        assert torch.equal(model.network.state_dict()[ours], theirs[key]), ours


@pytest.mark.parametrize("checkpoint", ["last", "best", None])
def test_folder_in_every_naming(official, tmp_path, checkpoint):
    ignored = {"generator": {"init_as_zero": False}, "diffusion": {"p_mean": 0.0}}
    folder = write(tmp_path, official.state_dict(), checkpoint, **ignored)
    model = load(str(folder), "cpu", checkpoint=checkpoint or "last")
    assert_same_weights(model, official)
    assert model.config == replace(CONFIG, latent_scale=1.0)
    assert not model.training
    assert not model.config.pad_edges
    assert str(folder) in json.dumps(model.metadata)


def test_state_dict_after_an_encode_carries_aliases(tmp_path):
    official = build(CONFIG)
    n_before = len(official.state_dict())
    official.encode(randn(1, 4000, seed=0))
    state = official.state_dict()
    assert any(key.startswith("encoder.") for key in state)
    assert len(state) > n_before
    assert_same_weights(load(write(tmp_path, state), "cpu"), official)
    state |= {key: torch.zeros_like(value) for key, value in state.items() if key.startswith("encoder.")}
    assert_same_weights(load(write(tmp_path, state), "cpu"), official)


def test_lightning_checkpoint_gives_its_ema_weights(official, tmp_path):
    wrapped = official.state_dict()
    twice = wrapped | {f"autoencoder_inference_model.{key}": value for key, value in wrapped.items()}
    raw = {key: torch.zeros_like(v) if "generator." in key else v for key, v in twice.items()}
    shadow = list(official.generator.parameters())
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": shadow, "collected_params": None}
    file = tmp_path / "last.ckpt"
    for content in ({"state_dict": raw, "ema_state_dict": ema, "global_step": 30}, {"state_dict": twice}):
        torch.save(content, file)
        assert_same_weights(load(file, "cpu"), official)
    torch.save({"state_dict": raw, "ema_state_dict": ema | {"shadow_params": shadow[1:]}}, file)
    with pytest.raises(ValueError, match=r"last\.ckpt: \d+ EMA tensors for"):
        load(file, "cpu")


def test_file_of_music2latent(official, tmp_path):
    torch.save({"gen_state_dict": official.generator.state_dict()}, tmp_path / "music2latent.pt")
    model = load(tmp_path / "music2latent.pt", "cpu")
    assert_same_weights(model, official)
    assert model.config.latent_scale == pytest.approx(1 / 0.06)
    assert load(tmp_path / "music2latent.pt", "cpu", latent_scale=2.0).config.latent_scale == 2.0


@pytest.mark.parametrize(
    ("name", "source", "scale"),
    [
        ("lin-cae", "BernardoTorres/linear_consistency_autoencoders/0a3afbec_weights", 33.0),
        ("lin-cae-2", "BernardoTorres/linear_consistency_autoencoders/2f4c6d21_weights", 40.0),
        ("m2l", "BernardoTorres/linear_consistency_autoencoders/1511f18a_weights", 15.0),
        ("music2latent", "SonyCSLParis/music2latent", 1 / 0.06),
    ],
)
def test_hub_names(official, tmp_path, monkeypatch, name, source, scale):
    fetch = lambda repo_id, filename: str(tmp_path / repo_id / filename)  # noqa: E731
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    write(tmp_path / source, official.state_dict())
    torch.save({"gen_state_dict": official.generator.state_dict()}, tmp_path / source / "music2latent.pt")
    model = load(name, "cpu")
    assert_same_weights(model, official)
    assert (model.name, model.config.latent_scale) == (name, pytest.approx(scale))
    repository, part = source.rsplit("/", 1)
    stated = model.metadata["source"]
    assert source in stated or (repository in stated and part.removesuffix("_weights") in stated)


def test_own_checkpoints_by_path_and_bundled_name(tmp_path, monkeypatch):
    model = Autoencoder(MODEL_PRESETS["test"], "mine", {"step": 3})
    model.save(tmp_path / "desk" / "lin-cae")
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path)
    released = ["lin-cae", "lin-cae-2", "m2l", "music2latent"]
    assert names() == [*released, "stft", "tanh", *EXAMPLES, *HUB, "desk/lin-cae"]
    assert listed("bundled") == ["desk/lin-cae"]
    assert listed(["stft", "bundled"]) == ["stft", "desk/lin-cae"]
    assert listed("runs/x") == ["runs/x"]
    for models in (["a/b", "c"], ("a/b", "c"), '["a/b", "c"]'):
        assert listed(models) == ["a/b", "c"]
    assert isinstance(load("stft"), StftAutoencoder)
    assert isinstance(load("tanh"), TanhToy)
    for source in ("desk/lin-cae", tmp_path / "desk" / "lin-cae"):
        loaded = load(source, "cpu")
        assert loaded.metadata == {"step": 3}
        for key, value in loaded.network.state_dict().items():
            assert torch.equal(value, model.network.state_dict()[key])
    for name in ("desk/lin-cae", "stft", "pca-8x", "dac-44khz", "stable-audio-vae"):
        with pytest.raises(ValueError, match=f"{name} takes no latent scale"):
            load(name, "cpu", latent_scale=2.0)


def test_bundled_weights_are_those_of_their_card(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path)
    folder = Autoencoder(MODEL_PRESETS["test"], "mine").save(tmp_path / "desk" / "mine")
    load("desk/mine", "cpu")
    weights, card = folder / "model.safetensors", (folder / "README.md").read_text()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model.safetensors has sha256 \w{64}, its card .* \w{64}: the f"):
        load("desk/mine", "cpu")
    assert load(folder, "cpu").name == "mine", "by its path it is loaded as it is"
    weights.write_bytes(whole)
    (folder / "README.md").write_text(card.replace("sha256", "md5"))
    with pytest.raises(ValueError, match="states none"):
        load("desk/mine", "cpu")


def test_finished_runs_are_bundled_and_others_refused(tmp_path, capsys):
    run = tmp_path / "run"
    unfinished = Autoencoder(MODEL_PRESETS["test"], "run", {"step": 3, "training": {"steps": 4}})
    unfinished.save(run)
    with pytest.raises(ValueError, match="run stands at step 3 of 4: finish it first"):
        bundle(run, "desk/mine", tmp_path)
    unfinished.metadata["step"] = 4
    unfinished.save(run)
    (run / "log.csv").write_text("step,loss\n3,1.0\n")
    folder = bundle(run, "desk/mine", tmp_path, hardware="an abacus")
    assert (folder / "log.csv").read_text() == "step,loss\n3,1.0\n"
    assert "an abacus" in (folder / "README.md").read_text()
    check_hash(folder / "model.safetensors")
    model = load(folder, "cpu")
    assert (model.name, model.metadata["hardware"]) == ("desk/mine", "an abacus")
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, unfinished.network.state_dict()[key].half().float())
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        main([str(tmp_path / "nowhere"), "desk/x"])

    for name, step in (("one", 4), ("two", 3)):  # of a study, the finished runs are bundled
        unfinished.metadata["step"] = step
        unfinished.save(tmp_path / f"study-{name}")
    (tmp_path / "study-queue.log").write_text("no run")
    assert bundle_study(tmp_path / "study", tmp_path / "out") == [tmp_path / "out" / "study" / "one"]
    assert "study-two stands at step 3 of 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lin-cae", "dac-16khz", "stable-audio-vae", "hub:someone/model"])
def test_what_is_not_cached_is_said_offline(tmp_path, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not in the cache of the hub, and HF_HUB_OFFLINE forbids"):
        load(name, "cpu")


def test_export_is_what_the_official_class_loads(tmp_path):
    """Networks without the unused projections get zeros there, which changes nothing."""
    import linear_cae

    two_headed = Autoencoder(replace(CONFIG, network=replace(CONFIG.network, heads=2)), "two-headed")
    with pytest.raises(ValueError, match="4 attention heads, two-headed has 2"):
        export_official(two_headed, tmp_path)
    assert not any(tmp_path.iterdir())
    lean = replace(CONFIG, network=replace(CONFIG.network, unused_projections=False))
    model = Autoencoder(lean).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    export_official(model, tmp_path, "best")
    weights, *texts = [tmp_path / name for name in official_files("best")]
    official = linear_cae.Autoencoder(*(yaml.safe_load(text.read_text()) for text in texts)).eval()
    official.load_state_dict(torch.load(weights, weights_only=True))  # strict
    audio = randn(1, model.transform.n_samples(12), seed=1)
    with torch.no_grad():
        torch.testing.assert_close(official.encode(audio), model.encode(audio), rtol=0, atol=1e-6)

    back = load(tmp_path, "cpu", checkpoint="best")
    assert back.config == CONFIG
    for key, value in model.network.state_dict().items():
        assert torch.equal(back.network.state_dict()[key], value)
    unused = set(back.network.state_dict()) - set(model.network.state_dict())
    assert unused
    assert all(not back.network.state_dict()[key].any() for key in unused)


def test_export_of_loaded_weights_is_the_file_again_or_as_it_was(official, tmp_path, monkeypatch):
    write(tmp_path / "a", official.state_dict())
    model = load(tmp_path / "a", "cpu")
    export_official(model, tmp_path / "b")
    first, second = (torch.load(tmp_path / k / official_files("last")[0]) for k in "ab")
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)

    def full(*_):
        raise OSError(28, "No space left on device")

    before = {file: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_official(model, tmp_path / "b")
    assert {file: file.read_bytes() for file in (tmp_path / "b").iterdir()} == before


def test_configuration_from_shapes(official):
    assert network_config(official.generator.state_dict(), 8) == CONFIG.network
    # What multiplies what cannot be seen: the channels are the same.
    wide = replace(CONFIG.network, base_channels=4, multipliers=(2, 4, 6))
    state = build(replace(CONFIG, network=wide)).generator.state_dict()
    assert network_config(state) == CONFIG.network
    assert network_config(state, 4) == wide


def test_bundled_names_load_and_others_are_named(tmp_path, monkeypatch):
    for name in names():
        if "/" in name:
            assert load(name, "cpu").name == name
    with pytest.raises(ValueError, match="'lin-ae': choose from lin-cae, lin-cae-2, m2l, music2latent"):
        load("lin-ae", "cpu")
    with pytest.raises(ValueError, match="models names none; choose from lin-cae"):
        listed([])
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        load("stft", "abacus")
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no bundled checkpoints"):
        load("desk/lin-cae", "cpu")


def test_missing_files(official, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_last\.pth nor autoencoder\.pth"):
        load(tmp_path, "cpu")
    write(tmp_path, official.state_dict())
    (tmp_path / "diffusion_kwargs_last.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks diffusion_kwargs_last\.yaml"):
        load(tmp_path, "cpu")
    with pytest.raises(FileNotFoundError, match=r"autoencoder_inference_model_best\.pth"):
        load(tmp_path, "cpu", checkpoint="best")


@pytest.mark.parametrize(
    ("kind", "key", "value", "needed"),
    [
        ("generator", "dropout_rate", 0.1, "needs 0.0"),
        ("generator", "data_channels", 1, "needs 2"),
        ("generator", "layers_list", [1, 1, 1], r"needs \[2, 1, 1\]"),
        ("generator", "sigma_max", 40.0, "needs 80.0"),
        ("generator", "flash", True, "is not known"),
        ("frontend", "hop_size", 32, "needs 16"),
    ],
)
def test_unsupported_settings_are_named(official, tmp_path, kind, key, value, needed):
    write(tmp_path, official.state_dict(), **{kind: {key: value}})
    with pytest.raises(ValueError, match=rf"{kind}_kwargs_last\.yaml: {key} is .*{needed}"):
        load(tmp_path, "cpu")


def test_arguments_that_are_not_arguments(official, tmp_path):
    write(tmp_path, official.state_dict())
    file = tmp_path / "generator_kwargs_last.yaml"
    for text, match in (("- 1\n- 2\n", "list"), ("a: [", "YAML"), ("a: !!python/name:os.system", "YAML")):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"generator_kwargs_last\.yaml.*{match}"):
            load(tmp_path, "cpu")
    write(tmp_path, official.state_dict())
    (tmp_path / "frontend_kwargs_last.yaml").write_text("hop_size: 16\n")
    with pytest.raises(ValueError, match="'alpha_rescale'"):
        load(tmp_path, "cpu")


def test_tensors_that_do_not_fit(official, tmp_path):
    state = official.state_dict()
    key = "generator.encoder.conv_out.weight"
    for changed, match in (
        ({k: v for k, v in state.items() if k != key}, "1 missing .encoder.conv_out.weight"),
        (state | {"generator.extra.weight": torch.zeros(1)}, "1 unknown .extra.weight"),
        (state | {key: torch.zeros(5, 16, 1)}, "size mismatch for encoder.conv_out.weight"),
        (state | {"frontend.window": torch.ones(64)}, "not the Hann window of 64"),
        ({"weights": torch.zeros(3)}, "does not describe a network"),
    ):
        write(tmp_path, changed)
        with pytest.raises(ValueError, match=match):
            load(tmp_path, "cpu")


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_damaged_files_and_pickles_that_run_code(official, tmp_path):
    file, touched = tmp_path / "music2latent.pt", tmp_path / "touched"
    weights = {"gen_state_dict": official.generator.state_dict()}
    contents = [b"", b"hello world"]
    for content in (weights, [torch.zeros(3)], weights | {"x": Trap(touched)}):
        torch.save(content, file)
        contents.append(file.read_bytes())
    contents[2] = contents[2][: len(contents[2]) // 2]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"music2latent\.pt") as caught:
            load(file, "cpu")
    assert "files with such objects can run code" in str(caught.value)
    assert not touched.exists()
