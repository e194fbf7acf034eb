"""The modules: sizes of the paper, start as the identity, files, and what they refuse."""

import copy
import dataclasses
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lincae
from lincae.checkpoints import read_checkpoint
from lincae.cli import main
from lincae.commands import reencoder as command
from lincae.interop import models as pretrained
from lincae.interop.models import BUNDLED
from lincae.interop.references import StftAutoencoder, TanhToy
from lincae.latents.store import LatentDataset, LatentFileError, describe, write_latents
from lincae.reencoder import module as reencoder
from lincae.reencoder.module import KIND, SIZES, START_LOG_VARIANCE, ReEncoder, ReEncoderConfig, modules_in
from lincae.reencoder.training import recipe
from tests.fuzzing import fuzz
from tools.bundle import main as bundle_main
from tools.bundle import reencoder_card, training_command

ROOT = Path(__file__).parent.parent

OWNER = {"name": "owner", "fingerprint": "0" * 64, "sample_rate": 44100, "latent_rate": 44100 / 1024}


def small(task="bandwidth", **changes):
    config = ReEncoderConfig(task, 6, hidden=12, blocks=2, condition=4, condition_blocks=1)
    return ReEncoder(dataclasses.replace(config, **changes), OWNER, latent_std=2.0)


def latents(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def trained(module):
    """Every parameter away from its start, where zeros hide wiring errors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    ("task", "size", "millions"), [("bandwidth", "s", 4.3), ("bandwidth", "m", 19.1), ("stereo", "m", 24.8)]
)
def test_parameters_of_the_paper(task, size, millions):
    """Section 3.1.2: S 4.3 M, M 19.1 M, M2S 24.8 M at 64 latent channels and H = 64."""
    with torch.device("meta"):
        module = ReEncoder(ReEncoderConfig(task, latent_channels=64, condition=64, **SIZES[size]), OWNER)
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize("layout", ["left_right", "mid_side"])
def test_a_new_module_is_the_identity_or_copies_mono_to_both_channels(layout):
    z = latents(2, 6, 20)
    module = small("stereo", layout=layout)
    torch.testing.assert_close(module.process(z, condition=latents(2, 4)), torch.stack([z, z], 1))
    torch.testing.assert_close(small().process(z), z)
    stereo = trained(module).process(z, seed=3)
    assert not torch.allclose(stereo[:, 0], stereo[:, 1])
    assert torch.allclose(stereo.mean(1), z, atol=1e-5) == (layout == "mid_side")  # which keeps the mid


def test_gains_of_the_condition_place_the_input():
    """In a linear latent space these are gains of the sound."""
    z, module = latents(1, 6, 20), small("stereo")
    with torch.no_grad():
        module.gains.weight[:6, 0], module.gains.weight[6:, 0] = 0.5, -0.75
    stereo = module.process(z, torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(stereo[:, 0], 1.5 * z)
    torch.testing.assert_close(stereo[:, 1], 0.25 * z)
    side = small("stereo", layout="mid_side")
    with torch.no_grad():
        side.gains.weight[:, 0] = 0.5
    stereo = side.process(z, torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(stereo, torch.stack([1.5 * z, 0.5 * z], 1))


def test_condition_encoder_starts_with_a_mean_that_tells_items_apart_and_pools_over_time():
    """Spread of the mean over items against the noise of equation 5."""
    module = ReEncoder(ReEncoderConfig("stereo", 6, hidden=48, blocks=1, condition=8), OWNER)
    gains = torch.linspace(-1.5, 1.5, 16).exp()[:, None, None]
    z = latents(16, 6, 50)
    mean, log_variance = module.posterior(torch.stack([z * gains, z / gains], 1))
    assert mean.shape == log_variance.shape == (16, 8)
    assert (log_variance == START_LOG_VARIANCE).all()
    assert mean.std(0).mean() > 0.5 * (0.5 * log_variance).exp().mean()
    module = small("stereo")
    z = latents(1, 2, 6, 9)
    twice = trained(module).posterior(torch.cat([z, z.flip(-1), z], -1))[0]
    assert twice.shape == (1, 4)
    assert twice.any()


def test_condition_decides_and_the_prior_is_drawn_by_seed_and_item():
    module, z = trained(small("stereo")), latents(1, 6, 20)
    again = module.process(z, seed=5)
    torch.testing.assert_close(module.process(z, seed=5), again)
    assert not torch.allclose(module.process(z, seed=6), again)
    torch.testing.assert_close(module.prior(3, 7)[:2], module.prior(2, 7))
    own = module.process(z, module.prior(1, 5))
    torch.testing.assert_close(own, again)
    oracle = module.oracle(again)
    torch.testing.assert_close(oracle, module.posterior(again)[0])


@pytest.mark.parametrize("task", ["bandwidth", "stereo"])
def test_a_module_comes_back_from_its_file_and_its_latents_are_scaled_by_one_number(tmp_path, task):
    module, z = trained(small(task)), latents(2, 6, 20)
    path = module.save(tmp_path / "deep" / "module.safetensors")
    loaded = ReEncoder.load(path, "cpu")
    assert (loaded.config, loaded.autoencoder, loaded.latent_std) == (module.config, OWNER, 2.0)
    torch.testing.assert_close(loaded.process(z), module.process(z))
    half = ReEncoder.load(module.save(tmp_path / "half.safetensors", torch.float16), "cpu")
    torch.testing.assert_close(half.process(z), module.process(z), rtol=0.05, atol=0.05)
    louder = ReEncoder(module.config, OWNER, latent_std=2 * module.latent_std)
    louder.load_state_dict(module.state_dict())
    torch.testing.assert_close(louder.process(2 * z, seed=0), 2 * module.process(z, seed=0))


@pytest.mark.parametrize(
    ("task", "dtype"), [("bandwidth", torch.float16), ("stereo", torch.bfloat16), ("stereo", torch.float64)]
)
def test_weights_and_latents_of_any_precision(task, dtype):
    module, z = trained(small(task)), latents(1, 6, 20)
    expected = module.process(z)
    torch.testing.assert_close(module.process(z.double()), expected)
    made = module.to(dtype).process(z)
    assert made.dtype == torch.float32
    assert (made - expected).norm() < 0.05 * expected.norm()
    if task == "stereo":
        assert module.oracle(made).dtype == torch.float32


def test_modules_of_another_default_and_compiled(tmp_path):
    module, z = trained(small()), latents(1, 6, 20)
    expected = module.process(z)
    drawn = small("stereo").prior(2, seed=3)
    wrapped = copy.deepcopy(module)
    wrapped.trunk = torch.nn.DataParallel(wrapped.trunk)
    path = wrapped.save(tmp_path / "module.safetensors")
    torch.testing.assert_close(ReEncoder.load(path, "cpu").process(z), expected)
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(ReEncoder.load(path, "cpu").process(z), expected)
        torch.testing.assert_close(small("stereo").prior(2, seed=3), drawn)
    finally:
        torch.set_default_dtype(torch.float32)


def test_latents_of_another_autoencoder():
    toy, stft = TanhToy(16000, hop=64), StftAutoencoder(16000, hop=8)
    module = ReEncoder(ReEncoderConfig(latent_channels=64, hidden=64, blocks=1), describe(toy))
    module.check_model(toy)
    with pytest.raises(LatentFileError, match=r"another model: tanh .*, not of stft"):
        module.check_model(stft)
    with pytest.raises(LatentFileError, match="another model"):
        module.check_model(TanhToy(16000, hop=64, drive=2.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b, s: b.process(latents(1, 6, 6)), "6 latent frames are fewer .* 7: give 0.163 s"),
        (lambda b, s: s.process(latents(1, 6, 9), torch.zeros(0)), r"\(B, H\) = \(1, 4\), got \(0,\)"),
        (lambda b, s: s.process(latents(1, 6, 9), torch.zeros(1, 5)), r"\(B, H\) = \(1, 4\), got \(1, 5\)"),
        (lambda b, s: s(latents(1, 6, 9)), "got none"),
        (lambda b, s: b.process(latents(1, 6, 9), torch.zeros(1, 4)), "takes no condition"),
        (lambda b, s: b.oracle(latents(1, 2, 6, 9)), "has no condition"),
        (lambda b, s: s.oracle(latents(1, 1, 6, 9)), r"\(B, 2, 6, L\), got \(1, 1, 6, 9\)"),
        (lambda b, s: b.process(latents(1, 5, 9)), r"latents must be \(B, 6, L\)"),
        (lambda b, s: b.process(with_nan(1, 6, 9)), "latents .* item 0, channel 5, frame 8"),
        (lambda b, s: s.oracle(with_nan(1, 2, 6, 9)), "stereo latents .* item 0, side 1"),
    ],
)
def test_latents_and_conditions_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call(small(), small("stereo"))


def with_nan(*shape):
    values = latents(*shape)
    values.flatten()[-1] = float("nan")
    return values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reencoder": {"task": "denoising"}}, "task must be one of .*, got 'denoising'"),
        ({"reencoder": {"hidden": 32}}, "hidden must be at least latent_channels, 64, got 32"),
        ({"reencoder": {"hidden": 10**9}}, r"hidden must lie in 1\.\.65536, got 1000000000"),
        ({"reencoder": None}, "reencoder must be an object of settings, got None"),
        ({"reencoder": {"hidden": 65536, "blocks": 128}}, "does not fit the network"),
        ({"reencoder": {"hidden": "64"}}, "hidden of ReEncoderConfig must be int, got '64'"),
        ({"reencoder": {"width": 3}}, "unknown width"),
        ({"autoencoder": {**OWNER, "latent_rate": 0}}, "latent_rate of the model"),
        ({"latent_std": float("nan")}, "latent_std must be a number > 0, got nan"),
        ({"format_version": 9}, "format version 9, this lincae reads 1"),
    ],
)
def test_files_that_cannot_be(tmp_path, changes, words):
    """No memory is taken for what a header states and the tensors do not have."""
    path = small().save(tmp_path / "module.safetensors")
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["config"])
    save_file(load_file(path), path, {"config": json.dumps(description | changes)})
    with pytest.raises(ValueError, match=rf"module\.safetensors.*{words}"):
        ReEncoder.load(path)


def test_files_that_are_no_modules(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors"):
        ReEncoder.load(tmp_path / "nothing.safetensors")
    folder = lincae.Autoencoder(lincae.recipe("test").autoencoder).save(tmp_path / "autoencoder")
    with pytest.raises(ValueError, match="holds a consistency model, not a reencoder one"):
        ReEncoder.load(folder / "model.safetensors")


def test_damaged_files(tmp_path):
    path = small("stereo").save(tmp_path / "module.safetensors")
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    fuzz(path, lambda damaged: ReEncoder.load(damaged, "cpu"), header_bytes)


def test_modules_in_a_folder(tmp_path):
    for name in ("bandwidth-m-gan", "bandwidth-s-l1"):
        small().save(tmp_path / f"{name}.safetensors")
    small("stereo").save(tmp_path / "stereo-left_right.safetensors")
    assert list(modules_in(tmp_path, "bandwidth", "cpu")) == ["m-gan", "s-l1"]
    assert modules_in(tmp_path, "stereo", "cpu")["left_right"].stereo
    with pytest.raises(FileNotFoundError, match="`make reencoder` trains them"):
        modules_in(tmp_path / "nothing", "stereo")
    with pytest.raises(ValueError, match="task must be one of"):
        modules_in(tmp_path, "denoising")


def test_command_line_takes_and_writes_latents(tmp_path):
    """`process`: mono to stereo by seed, or in the image of another file."""
    model = StftAutoencoder(16000, hop=8)
    owner = describe(model)
    config = ReEncoderConfig("stereo", 34, hidden=34, blocks=1, condition=4, condition_blocks=1)
    module = trained(ReEncoder(config, owner))
    module.save(tmp_path / "module.safetensors")
    z = {"mono": latents(1, 34, 20), "image": latents(2, 34, 15)}
    for name, values in z.items():
        write_latents(tmp_path / f"{name}.safetensors", owner, name, [values], 100)

    def process(source, *options):
        arguments = ["process", str(tmp_path / f"{source}.safetensors"), str(tmp_path / "out.safetensors")]
        try:
            main([*arguments, "--module", str(tmp_path / "module.safetensors"), "--device", "cpu", *options])
        except SystemExit as ended:
            return ended.code
        return 0

    def result():
        return LatentDataset(tmp_path / "out.safetensors").frames("out")

    assert not process("mono", "--seed", "3")
    torch.testing.assert_close(result(), module.process(z["mono"], seed=3)[0])
    assert not process("mono", "--like", str(tmp_path / "image.safetensors"))
    torch.testing.assert_close(result(), module.process(z["mono"], module.oracle(z["image"][None]))[0])
    assert "has 2 channels, mono to stereo takes one" in process("image")
    ReEncoder(config, describe(TanhToy(16000))).save(tmp_path / "module.safetensors")
    assert "holds latents of another model: stft" in process("mono")


def finished(task="bandwidth", size="desk-s", preset="desk", step=None, factor=16, **changes):
    """A module with the metadata that training gives it."""
    config = recipe(
        task, preset, size, **{k: changes.pop(k) for k in ("objective", "layout") if k in changes}
    )
    config = dataclasses.replace(
        config, module=dataclasses.replace(config.module, latent_channels=6), **changes
    )
    metadata = {"training": dataclasses.asdict(config), "factor": factor, "pairs": 24, "commit": "0" * 40}
    step = config.steps if step is None else step
    return ReEncoder(config.module, OWNER, metadata=metadata | {"step": step})


@pytest.mark.parametrize("folder", sorted((BUNDLED / "reencoder").iterdir()), ids=lambda folder: folder.name)
def test_bundled_modules_load_and_their_cards_name_them(folder, monkeypatch):
    card = (folder / "README.md").read_text()
    names = {path.name for path in folder.glob("*.safetensors")}
    assert set(re.findall(r"^## (.+)$", card, re.MULTILINE)) == names
    hashes = dict(re.findall(r"^\| sha256 of (\S+) \| ([0-9a-f]{64}) \|$", card, re.MULTILINE))
    assert hashes == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    for row in ("task", "objective", "parameters", "autoencoder", "step", "data", "hardware", "command"):
        assert len(re.findall(rf"^\| {row} \| .+ \|$", card, re.MULTILINE)) == len(names), row
    assert sum(path.stat().st_size for path in folder.parent.rglob("*.safetensors")) < 6 * 2**20
    for name in names:
        path = folder.relative_to(ROOT) / name
        module = ReEncoder.load(ROOT / path, "cpu")
        assert module.config.task == name.split("-")[0]
        assert module.process(latents(1, module.config.latent_channels, 20)).isfinite().all()
        description, _ = read_checkpoint(ROOT / path, KIND)
        command = description["metadata"].get("command") or training_command(path, description)
        assert f"| command | `{command}` |" in card
    owner = pretrained.load(description["autoencoder"]["name"], "cpu")
    said = f"| {owner.name}, {describe(owner)['fingerprint']} ("
    assert card.count(said) == len(names), "trained on the autoencoder that ships"
    monkeypatch.chdir(ROOT)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})


def test_a_bundled_module_is_the_one_of_its_card(tmp_path, monkeypatch):
    monkeypatch.setattr(reencoder, "BUNDLED", tmp_path)
    folder = tmp_path / "reencoder" / "mine"
    path = finished().save(folder / "bandwidth-s-l1.safetensors", torch.float16)
    with pytest.raises(
        ValueError, match=r"s-l1.safetensors has sha256 \w{64}, its card README.md states none"
    ):
        ReEncoder.load(path, "cpu")
    reencoder_card(folder)
    assert list(modules_in(folder, "bandwidth", "cpu")) == ["s-l1"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    says = r"s-l1.safetensors has sha256 \w{64}, its card README.md states \w{64}: the file was changed .*"
    with pytest.raises(ValueError, match=says + r"git checkout\), or `python tools/bundle.py --reencoder "):
        ReEncoder.load(path, "cpu")
    with pytest.raises(ValueError, match=says):
        modules_in(folder, "bandwidth", "cpu")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-copy.safetensors"
    elsewhere.write_bytes(path.read_bytes())
    ReEncoder.load(elsewhere, "cpu")
    reencoder_card(folder, hardware="an abacus")
    ReEncoder.load(path, "cpu")
    assert "| hardware | an abacus |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({}, "bandwidth --preset desk --size desk-s --objective l1"),
        ({"task": "stereo", "layout": "mid_side", "factor": 1}, "--layout mid_side"),
        ({"steps": 7, "precision": "bf16"}, "--set steps=7 'precision=\"bf16\"'"),
        (
            {"factor": 3, "objective": "l1+gan", "size": "desk-m", "preset": "test"},
            "--factor 3 --start FOLDER/bandwidth-m-l1.safetensors",
        ),
    ],
)
def test_the_command_of_a_card_trains_what_the_module_says(tmp_path, monkeypatch, made, words):
    module = finished(**made)
    module.save(tmp_path / "module.safetensors")
    card = reencoder_card(tmp_path).read_text()
    words_of_card = re.search(r"\| command \| `lincae reencoder train (.*)` \|", card)[1]
    assert words.replace("FOLDER", str(tmp_path)) in words_of_card
    asked = {}

    def build(config, pairs, model, start):
        asked["training"] = dataclasses.asdict(config)

    def write_pairs(model, sources, folder, task, factor):
        asked.setdefault("factor", factor)

    monkeypatch.setattr(command, "loaded", lambda name, device, rank: TanhToy(16000, hop=64))
    monkeypatch.setattr(command, "synthetic_sources", lambda task, split, count: [])
    monkeypatch.setattr(command, "write_pairs", write_pairs)
    monkeypatch.setattr(command, "LatentPairs", lambda folder: None)
    monkeypatch.setattr(command.training.ReEncoderObjective, "build", build)
    monkeypatch.setattr(command.loop, "train", lambda *arguments, **options: module)
    main(["reencoder", "train", *shlex.split(words_of_card)])
    # known only from the pairs
    asked["training"]["module"]["latent_channels"] = module.config.latent_channels
    assert asked["training"] == module.metadata["training"]
    assert made.get("task") == "stereo" or asked["factor"] == module.metadata["factor"]


def test_folders_that_get_no_card(tmp_path):
    def refused(*arguments):
        with pytest.raises(SystemExit) as ended:
            bundle_main([*map(str, arguments)])
        return ended.value.code

    assert "holds no modules" in refused("--reencoder", tmp_path)
    other_size = finished()
    other_size.metadata["training"]["module"]["hidden"] = 33
    for module, said in (
        (finished(step=3), "bandwidth-s-l1.safetensors stands at step 3 of 600: finish it"),
        (small(), "does not say how it was trained"),
        (other_size, "has none of the sizes s, m, desk-s, desk-m"),
    ):
        module.save(tmp_path / "bandwidth-s-l1.safetensors")
        assert said in refused("--reencoder", tmp_path)
    assert refused("run", "--reencoder", tmp_path) == refused("run") == 2
