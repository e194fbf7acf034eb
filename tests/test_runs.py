"""Run folders: killed, cut and full ones lose nothing; and one run of several processes."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fuzzing import fuzz
from jobs import Noise, rows, small

from lincae.autoencoder import Autoencoder
from lincae.interop.recipes import objective_of
from lincae.linearity import augment
from lincae.machine import generator
from lincae.training import objective
from lincae.training.loop import StepBatches, train
from lincae.training.objective import Objective, learning_rate
from lincae.training.processes import OutOfMemoryError, launched
from lincae.training.runs import Log, Meter, Origin, newest, restore, source, states, store

JOBS = Path(__file__).parent / "jobs.py"
SMALL = {"batch_size": 4, "steps": 12, "log_every": 2, "validate_every": 3, "checkpoint_every": 4}


def run(folder, config=None, data=None, **options):
    config = config or small(**SMALL)
    held_out = Noise().crops(range(4), config.crop_samples, 7)
    options = {"validation": held_out, "device": "cpu", "progress": False, "name": "job"} | options
    return train(objective_of(config), data or Noise(), folder, **options)


def start(*arguments, torchrun=0, **options) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
    words = [sys.executable, *(launcher if torchrun else []), JOBS, *arguments]
    texts = [word if isinstance(word, str | Path) else json.dumps(word) for word in words]
    environment = {**os.environ, "PYTHONPATH": str(JOBS.parent.parent), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(texts, env=environment, **pipes, **options)


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def leaves(tree, prefix=""):
    """All numbers and texts of a training state, tensors as bytes."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in pairs for leaf in leaves(value, f"{prefix}.{key}")]
    return [(prefix, tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else tree)]


def contents(folder: Path) -> dict:
    """Everything in a run folder but the speeds, which differ."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        value = path.read_bytes()
        if path.suffix == ".ckpt":
            value = leaves(torch.load(path, weights_only=True))
        elif path.name == "log.csv":
            value = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        files[str(path.relative_to(folder))] = value
    return files


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """What is in the folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_a_fault_at_any_write_changes_nothing(tmp_path, fault):
    changes = {"batch_size": 2, "steps": 2, "warmup_steps": 1, "learning_rate": 0.03}
    changes |= dict.fromkeys(("checkpoint_every", "validate_every", "log_every"), 1)
    count = int(finish(start("faults", tmp_path, fault, changes)))
    assert count >= 15
    undisturbed = contents(tmp_path / "0")
    names = {"log.csv", "validation.csv", "state-00000001.ckpt", "state-00000002.ckpt", "best/config.json"}
    assert names < undisturbed.keys()
    first, second = (row["rec_snr_db"] for row in rows(tmp_path / "0" / "validation.csv"))
    assert second > first, "the second validation writes best/, also after a fault"
    for number in range(1, count + 1):
        assert contents(tmp_path / str(number)) == undisturbed


def test_a_damaged_state_falls_back_to_the_one_before(alone, tmp_path, caplog):
    run(tmp_path, stop_at=8)
    path = tmp_path / "state-00000008.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        run(tmp_path)
    assert "state-00000008.ckpt is damaged" in caplog.text
    aside = tmp_path / "state-00000008.ckpt.damaged"
    assert aside.name in caplog.text
    aside.unlink()
    assert contents(tmp_path) == alone


def test_damage_to_all_states_is_an_error_again_and_again(tmp_path):
    run(tmp_path, stop_at=8)
    for path in states(tmp_path):
        path.write_bytes(b"")
    for _ in range(2):  # not a silent start from step 0
        with pytest.raises(ValueError, match=r"all training states are damaged .*another run folder"):
            run(tmp_path)
    assert Autoencoder.load(tmp_path, "cpu").metadata["step"] == 8


def test_a_damaged_state_is_named(tmp_path):
    def parts():
        model = torch.nn.Linear(3, 2)
        return {"model": model, "optimizer": torch.optim.RAdam(model.parameters()), "meter": Meter()}

    def read(path):
        assert restore(parts(), origin, newest(path.parent)) == 7

    origin = Origin({"steps": 9}, 1, {"data": source("noise", torch.ones(2, 8)), "validation": None})
    store(parts(), origin, 7, tmp_path, keep=1)
    fuzz(states(tmp_path)[0], read)
    torch.save({"config": "{}"}, tmp_path / "state-00000008.ckpt")
    with pytest.raises(ValueError, match=r"state-00000008.ckpt is no training state"):
        read(tmp_path / "state-00000008.ckpt")


def test_full_disk_leaves_the_states_before_and_names_them(tmp_path):
    run(tmp_path, stop_at=6)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))  # the state fails half-way; weights fit
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"last good checkpoint: {tmp_path} at step 6" in caught.value.__notes__[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")} == before


def test_the_newest_states_stay(alone, tmp_path):
    assert {name for name in alone if name.endswith(".ckpt")} == {
        "state-00000012.ckpt",
        "state-00000008.ckpt",
    }
    run(tmp_path, keep=1)
    assert [path.name for path in states(tmp_path)] == ["state-00000012.ckpt"]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        run(tmp_path, keep=0)


class Quieter(Noise):
    """An equal description, and another sound."""

    def crops(self, indices, n_samples, seed):
        return 0.2 * super().crops(indices, n_samples, seed)


class OtherNoise(Noise):
    description = "other noise"


def test_a_run_is_continued_on_its_own_data(tmp_path):
    run(tmp_path, stop_at=2)
    held_out = Noise().crops(range(4), small().crop_samples, 8)
    for options, shown in (
        ({"data": OtherNoise()}, "data: noise -> other noise"),
        ({"data": Quieter()}, "data: noise then and now, but its crops sound otherwise"),
        ({"validation": held_out}, "validation: 4 items of 2240 samples then and now"),
        ({"validation": None}, "validation: 4 items of 2240 samples -> none"),
    ):
        with pytest.raises(ValueError, match=rf"{shown}.*; continue it with its own.*--other-data"):
            run(tmp_path, **options)
    run(tmp_path, data=OtherNoise(), other_data=True, stop_at=6)
    for _ in range(2):
        model = run(tmp_path, data=OtherNoise())
        assert model.metadata["data"] == "noise until step 2, then other noise"


def test_state_of_an_earlier_version_continues(alone, tmp_path):
    run(tmp_path, stop_at=6, keep=1)
    stored = torch.load(tmp_path / "state-00000006.ckpt", weights_only=True)
    for key in ("meter", "processes", "sources"):
        del stored[key]
    torch.save(stored, tmp_path / "last.ckpt")
    (tmp_path / "state-00000006.ckpt").unlink()
    run(tmp_path)
    assert contents(tmp_path) == alone


def test_best_checkpoint_is_that_of_the_best_validation(tmp_path, monkeypatch):
    scores = {3: -1.0, 6: 2.0, 9: 1.0, 12: 1.5}
    steps = iter(scores)
    monkeypatch.setattr(objective, "validate", lambda *_: {"rec_snr_db": scores[next(steps)]})
    run(tmp_path, stop_at=3)
    assert Autoencoder.load(tmp_path / "best", "cpu").metadata["step"] == 3
    run(tmp_path, stop_at=6)
    run(tmp_path)
    assert Autoencoder.load(tmp_path / "best", "cpu").metadata["step"] == 6
    assert Autoencoder.load(tmp_path, "cpu").metadata["step"] == 12


def test_log_gains_columns_and_loses_what_was_cut(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text("step,a\n1,0.5\n2,0.25\n3,0.125\n")
    log = Log(path, 2)
    log.write({"step": 3, "a": 1, "b": 7})
    log.write({"step": 4, "b": 8})
    assert path.read_text().split() == ["step,a,b", "1,0.5,", "2,0.25,", "3,1,7", "4,,8"]
    assert (log.best("a"), log.best("b"), log.best("c")) == (1, 8, -torch.inf)
    for text in ("", "step,a", "step,a\n1"):  # cut at its beginning
        path.write_text(text)
        Log(path, 5).write({"step": 1, "a": 2})
        assert path.read_text().split() == ["step,a", "1,2"]


def test_decoder_linearity_is_measured():
    class Toy:
        def __init__(self, decode):
            self.decode = lambda z, length: decode(z)[:, 0, :length]

        encode = staticmethod(lambda audio: audio[:, None])
        transform = staticmethod(lambda audio: audio)

    audio = Noise().crops(range(4), 1000, 0)
    linear = objective.validate(Toy(lambda z: 3 * z), audio)
    bent = objective.validate(Toy(lambda z: torch.tanh(20 * z)), audio)
    # The encoder of both adds: both sides of additivity decode the same latent.
    assert min(linear["dec_homogeneity_snr_db"], bent["dec_additivity_snr_db"]) > 80
    assert bent["dec_homogeneity_snr_db"] < 20


def test_out_of_memory_names_what_to_lower(tmp_path, monkeypatch):
    def full(audio, progress, *_):
        if progress > 0.5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return augment(audio, progress, *_)

    monkeypatch.setattr(objective, "augment", full)
    settings = r"batch_size \(4\), crop_frames \(32\), precision \(auto\).*--accumulate 2 --regroup.*Tried"
    with pytest.raises(OutOfMemoryError, match=rf"at step 7 .*{tmp_path} at step 4\. Lower {settings}"):
        run(tmp_path)


def test_processes_share_the_crops_of_a_batch():
    config = small(batch_size=8)
    for step in (0, 3):
        [whole] = StepBatches(config, Noise(), 999, 0, 1)[step]
        for world, accumulate in ((1, 2), (2, 2), (2, 4), (3, 4), (4, None)):
            parts = []
            for rank in range(world):
                parts += StepBatches(config, Noise(), 999, rank, world, accumulate)[step]
            assert len(parts) == (accumulate or world)
            assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, StepBatches(config, Noise(), 999, 0, 1)[1][0])


@pytest.mark.parametrize(
    ("batch_size", "processes", "accumulate", "shares", "fix"),
    [
        (20, 3, 10, [3, 3, 4], None),
        (32, 16, 16, [1] * 16, None),
        (20, 3, None, None, "3 processes in 3 .*accumulate 4 or 5 or 10 would do"),
        (20, 16, None, None, "16 processes in 16 .*batch_size 32 can"),
        (20, 1, 0, None, "in 0 .*accumulate 1 or 2 or 4 or 5 or 10"),
        (8, 8, None, None, "batch_size 8 .* 8 processes .*batch_size 16 can"),
    ],
)
def test_what_fits_a_batch_is_named(tmp_path, batch_size, processes, accumulate, shares, fix):
    config = small(batch_size=batch_size)
    if fix is None:
        loaded = [StepBatches(config, Noise(), 9, rank, processes, accumulate) for rank in range(processes)]
        assert [len(part.numbers) for part in loaded] == shares
    else:
        with pytest.raises(ValueError, match=fix):
            run(tmp_path, config, devices=processes, accumulate=accumulate)


def test_devices_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(module, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"devices=4 .* sees 2 of cuda"):
        run(tmp_path, device="cuda", devices=4)
    with pytest.raises(ValueError, match="'cuda:1' is a single one, devices=2"):
        run(tmp_path, device="cuda:1", devices=2)


def shared_gradients(config, world: int) -> tuple[list[torch.Tensor], Autoencoder]:
    """Gradients of step 0 and the model after all steps, of `world` processes as the rule states them."""
    torch.manual_seed(config.seed)
    model = Autoencoder(config.autoencoder)
    objective, first = Objective(model, config), []
    optimizer = torch.optim.RAdam(model.parameters(), lr=config.learning_rate)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        optimizer.zero_grad()
        for rank in range(world):
            generate = generator(config.seed, step, rank, 1)
            [audio] = StepBatches(config, Noise(), config.crop_samples, rank, world)[step]
            batch = augment(audio, step / config.steps, config.linearity, generate)
            (objective(batch, step, generate)["loss"] / world).backward()
        first = first or [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return first, model


def relative(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    got, expected = (torch.cat([x.flatten() for x in part]) for part in (got, expected))
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.slow
def test_processes_have_the_gradients_of_one(tmp_path, caplog):
    """Four micro-batches on three processes: one of them takes two."""
    changes = SMALL | {"batch_size": 8, "steps": 3, "checkpoint_every": 1}
    finish(start("train", tmp_path, {"keep": 3, "accumulate": 4}, changes, torchrun=3))
    config = small(**changes)
    gradients, model = shared_gradients(config, 4)
    state = torch.load(tmp_path / "state-00000001.ckpt", weights_only=True)
    momenta = state["optimizer"]["state"]  # after one step, a tenth of the gradient
    got = [10 * momenta[i]["exp_avg"] for i in range(len(momenta))]
    assert relative(got, gradients) < 1e-5
    assert relative(got, shared_gradients(config, 1)[0]) > 0.01  # other mixtures, gains and noise
    state = torch.load(tmp_path / "state-00000003.ckpt", weights_only=True)
    assert relative(list(state["model"].values()), list(model.network.state_dict().values())) < 1e-5

    run(tmp_path / "one", config, accumulate=4, keep=3)  # the same micro-batches in one process
    alone = torch.load(tmp_path / "one/state-00000003.ckpt", weights_only=True)
    assert relative(list(alone["model"].values()), list(state["model"].values())) < 1e-5
    assert alone["meter"]["totals"] == pytest.approx(state["meter"]["totals"], rel=1e-4)

    run(tmp_path, config, accumulate=4)  # which may go on with it
    with pytest.raises(ValueError, match=r"number of micro-batches \(--accumulate: 4 -> 1\).*--regroup"):
        run(tmp_path, config)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, config, regroup=True)
    assert "from step 3 on of another number of micro-batches (--accumulate: 4 -> 1)" in caplog.text


@pytest.mark.parametrize(
    ("number", "options", "status"),
    [(signal.SIGTERM, {"devices": 2}, 143), (signal.SIGINT, {"workers": 1}, 1)],
)
def test_signals_write_a_checkpoint_first(tmp_path, number, options, status):
    """SIGTERM reaches one of the processes that Fabric starts; Ctrl-C all of the group, data workers too."""
    process = start("train", tmp_path, options, SMALL | {"steps": 100_000}, start_new_session=True)
    while not (tmp_path / "log.csv").exists() and process.poll() is None:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (status, -number), errors
    stored = torch.load(states(tmp_path)[0], weights_only=True)
    assert stored["processes"] == options.get("devices", 1)
    assert Autoencoder.load(tmp_path, "cpu").metadata["step"] == stored["step"]
    assert ("a checkpoint was written" in errors) == (number == signal.SIGINT)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(("launcher", "environment"), [("torchrun", TORCHRUN), ("SLURM", SLURM)])
def test_launchers_are_recognised(monkeypatch, launcher, environment):
    assert launched(None, None) == (1, 1)
    assert launched(2, 3) == (2, 3)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert launched(None, None) == launched(4, None) == launched(4, 2) == (4, 2)
    with pytest.raises(ValueError, match=rf"{launcher} started 4 processes on each of 2 nodes.*devices=1"):
        launched(1, None)
