"""The trainer: it learns, resumes to the bit, stops in order, and refuses with reasons."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from jobs import Noise, rows, small, state_of, trained

from lincae.autoencoder import Autoencoder
from lincae.cli import main
from lincae.data.crops import StemBank
from lincae.interop.recipes import recipe
from lincae.linearity import VARIANTS
from lincae.training.config import PRESETS, TrainingConfig
from lincae.training.objective import compiler_options, validate
from lincae.training.processes import NonFiniteError
from lincae.training.runs import states

LOG_COLUMNS = ("step", "loss", "lr", "step_size", "gain_min", "gain_max", "grad_norm", "items_per_s")


@pytest.fixture(scope="module")
def bank():
    return StemBank.from_synth(6, 4.0, 16000, split="train")


@pytest.fixture(scope="module")
def held_out():
    songs = StemBank.from_synth(4, 4.0, 16000, split="test")
    return songs.crops(range(16), PRESETS["test"].crop_samples, 0)


@pytest.mark.parametrize("variant", ["lin-cae", "m2l"])
def test_sixty_steps_lower_the_held_out_loss(variant, bank, held_out, tmp_path):
    config = recipe("test", variant)
    torch.manual_seed(config.seed)
    before = validate(Autoencoder(config.autoencoder).eval(), held_out)
    model = trained(config, bank, tmp_path, validation=held_out)
    after = validate(model, held_out)
    assert after["rec_rel_l2"] < before["rec_rel_l2"] - 0.01
    assert after["swap_rel_l2"] > after["rec_rel_l2"] + 0.01  # it listens to its latent
    z = model.encode(bank.crops(range(64), config.crop_samples, 99))
    assert 0.8 < z.std() < 1.25  # public latents have unit deviation
    assert model.config.latent_scale > 1
    last = rows(tmp_path / "validation.csv")[-1]
    assert last == pytest.approx({"step": 60, **after}, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("workers", "optimiser"), [(1, "radam"), (0, "muon")])
def test_resume_is_exact(bank, tmp_path, workers, optimiser):
    config = small(steps=20, optimiser=optimiser)
    whole = trained(config, bank, tmp_path / "whole")
    trained(config, bank, tmp_path / "parts", stop_at=10, workers=workers)
    parts = trained(config, bank, tmp_path / "parts", workers=workers)
    expected, got = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert whole.config == parts.config  # the latent scale included
    for column in set(LOG_COLUMNS) - {"items_per_s"}:
        assert [r[column] for r in rows(tmp_path / "whole/log.csv")] == [
            r[column] for r in rows(tmp_path / "parts/log.csv")
        ]


def test_compiled_training_is_training(bank, tmp_path):
    config = small(steps=3, log_every=1)
    for folder, compiler in (("plain", None), ("compiled", "aot_eager")):
        trained(config, bank, tmp_path / folder, compiler=compiler)
    plain, compiled = (rows(tmp_path / folder / "log.csv") for folder in ("plain", "compiled"))
    assert [r["loss"] for r in compiled] == pytest.approx([r["loss"] for r in plain], rel=1e-4)
    expected, got = (state_of(tmp_path / folder) for folder in ("plain", "compiled"))
    assert got.keys() == expected.keys()


def test_what_does_not_compile_trains_without_and_says_why(bank, tmp_path, caplog):
    def failing(graph, inputs):
        raise NotImplementedError("no such card")

    for unknown, message in (("nvcc", "inductor"), ("inductor:fast", "max-autotune")):
        with pytest.raises(ValueError, match=message):
            compiler_options(unknown)
    torch._dynamo.reset()
    torch._dynamo.register_backend(failing, name="failing")
    trained(small(steps=2, log_every=1), bank, tmp_path, compiler="failing")
    assert len(rows(tmp_path / "log.csv")) == 2
    assert "no such card" in caplog.text


def test_a_finished_run_describes_itself_and_is_loaded_not_repeated(bank, tmp_path):
    config = recipe("test", "m2l", steps=4)
    trained(config, bank, tmp_path / "mine")
    before = states(tmp_path / "mine")[0].stat().st_mtime_ns
    model = trained(config, bank, tmp_path / "mine")
    assert states(tmp_path / "mine")[0].stat().st_mtime_ns == before
    assert (model.name, model.metadata["step"], model.metadata["data"]) == ("mine", 4, bank.description)
    assert model.metadata["training"]["linearity"]["homogeneity"] is False
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", model.metadata["commit"])


class Poisoned(Noise):
    """Noise that is no number from item 40 on."""

    def crops(self, indices, n_samples, seed):
        return super().crops(indices, n_samples, seed) * (1 if indices[0] < 40 else float("nan"))


def test_non_finite_loss_stops_with_the_last_good_checkpoint(tmp_path):
    config = small(batch_size=4, checkpoint_every=4)
    with pytest.raises(NonFiniteError, match=rf"step 10 .*; last good checkpoint: {tmp_path} at step 8"):
        trained(config, Poisoned(), tmp_path)
    assert torch.load(states(tmp_path)[0], weights_only=True)["step"] == 8
    assert all(torch.isfinite(p).all() for p in Autoencoder.load(tmp_path, "cpu").parameters())


def test_a_run_folder_is_of_one_process_at_a_time(bank, tmp_path):
    hold = "import sys, time; from lincae.machine.files import locked\n"
    hold += "with locked(sys.argv[1] + '/lock', 'held'): print('held', flush=True); time.sleep(60)"
    config = small(steps=1)
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"another process trains in {tmp_path}"):
            trained(config, bank, tmp_path)
        other.kill()
    trained(config, bank, tmp_path)


def test_another_configuration_or_rate_is_refused_with_the_difference(bank, tmp_path):
    cd_songs = StemBank([torch.zeros(4, 48000)], 44100, "CD songs")
    with pytest.raises(ValueError, match=r"CD songs\) is at 44100 Hz, the model works at 16000 Hz"):
        trained(small(), cd_songs, tmp_path / "cd")
    trained(small(steps=4), bank, tmp_path)
    shown = r"configuration \(learning_rate: 0.01 -> 0.5; linearity.gain_max: 3.0 -> 2.0\)"
    with pytest.raises(ValueError, match=shown):
        trained(small(steps=4, learning_rate=0.5, **{"linearity.gain_max": 2.0}), bank, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'; choose from paper, official"),
        ({"variant": "lin"}, "unknown variant 'lin'; choose from lin-cae, lin-cae-2"),
        ({"stpes": 3}, "TrainingConfig has no 'stpes'; it has .*steps"),
        ({"batch_size": 1}, "batch_size 1 cannot be shared"),
        ({"preset": "paper", "crop_frames": 169}, "multiple of 8, got 169"),
    ],
)
def test_recipe_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe(**arguments)


def test_presets_and_variants_compose():
    for preset in PRESETS:
        for variant in VARIANTS:
            config = recipe(preset, variant)
            assert isinstance(config, TrainingConfig)
            assert config.crop_samples == (config.crop_frames + 3) * config.autoencoder.transform.hop
    base, odd, sub, wide, both = (
        recipe("desk", f"lin-cae{ending}") for ending in ("", "-odd", "-sub", "-wide", "-odd-sub")
    )
    network = replace(base.autoencoder.network, centred=False, odd=True)
    assert odd == replace(base, autoencoder=replace(base.autoencoder, network=network))
    assert sub.linearity == replace(base.linearity, subtraction_probability=0.5)
    assert wide.linearity == replace(base.linearity, gain_max=10.0, gain_probability=1.0)
    assert both == replace(odd, linearity=sub.linearity)


def test_command_line(tmp_path, monkeypatch, capsys):
    from lincae.data.audio import write_audio

    def tones(folder, pitches_hz):
        folder.mkdir(parents=True)
        for i, pitch_hz in enumerate(pitches_hz):
            tone = 0.3 * torch.sin(2 * torch.pi * pitch_hz * torch.arange(16000) / 16000)
            write_audio(folder / f"{i}.wav", tone, 16000)
        return folder

    corpus = tones(tmp_path / "corpus", (220, 440, 660))
    equally_named = tones(tmp_path / "other" / "corpus", (330, 500, 700))
    monkeypatch.chdir(tmp_path)
    common = ["--preset", "test", "--device", "cpu", "--set", "steps=6", "linearity.gain_max=2"]
    main(["train", "--variant", "m2l", "--data", f"{corpus}=1", *common])
    stored = Autoencoder.load(tmp_path / "runs" / "test-m2l", "cpu").metadata
    assert (stored["step"], stored["training"]["linearity"]["gain_max"]) == (6, 2)
    assert stored["command"].startswith("lincae train --variant m2l --data ")
    assert "thread" in stored["hardware"]
    assert [row["step"] for row in rows(tmp_path / "runs/test-m2l/validation.csv")] == [6]  # other crops
    validated = ["--validation", f"{corpus}=1", "--run", "validated"]
    main(["train", "--data", f"{corpus}=1", *validated, *common, "steps=2"])
    other_validation = ["--validation", f"{equally_named}=1", "--run", "validated"]
    assert Autoencoder.load(tmp_path / "validated" / "best", "cpu").metadata["step"] == 2
    for bad, message in (
        (["--data", "nowhere=1"], "nowhere"),
        (["--set", "colour=3"], "has no 'colour'"),
        (["--data", f"{corpus}=1", "--device", "tpu"], "unknown device 'tpu'"),
        (["--variant", "m2l", "--data", f"{equally_named}=1"], "but its crops sound otherwise"),
        (["--data", f"{corpus}=1", *other_validation, "--set", "steps=2"], "validation: 16 items of 2240"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["train", *common, *bad])
