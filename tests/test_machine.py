"""Seeds: the noise of decoding is one function of (seed, step, frame) on every device. Precisions."""

import math

import pytest
import torch

from lincae.machine import computing_in, frame_noise, philox
from lincae.training.environment import launched_process
from lincae.training.processes import training_precision

ALL_ONES = 2**32 - 1


@pytest.mark.parametrize(
    ("counter", "key", "known"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, known):
    words = philox([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in words) == known


def test_an_excerpt_of_the_noise_is_that_of_the_whole():
    whole = frame_noise(range(2**32 - 40, 2**32 + 40), 37, seed=5, step=2)
    excerpt = frame_noise(range(2**32 - 3, 2**32 + 9), 37, seed=5, step=2)
    assert torch.equal(excerpt, whole[37:49])
    assert torch.equal(frame_noise(range(2**32 - 3, 2**32 + 9), 6, seed=5, step=2), excerpt[:, :6])


def test_the_noise_is_standard_normal_and_uncorrelated():
    drawn = frame_noise(range(400), 1000, seed=1).double()
    n = drawn.numel()
    assert abs(drawn.mean()) < 5 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / n)
    for lag in (1, 2, 3, 4):
        assert abs((drawn[:, lag:] * drawn[:, :-lag]).mean()) < 5 / math.sqrt(n)
        assert abs((drawn[lag:] * drawn[:-lag]).mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("other", [{"seed": 4}, {"seed": 3 + 2**32}, {"step": 1}, {"first": 1}])
def test_other_seeds_steps_and_frames_have_other_noise(other):
    def drawn(seed=3, step=0, first=0):
        return frame_noise(range(first, first + 8), 500, seed, step)

    correlation = (drawn() * drawn(**other)).mean()
    assert abs(correlation) < 5 / math.sqrt(4000)


def test_a_seed_outside_64_bits_is_named():
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=str(seed)):
            frame_noise(range(3), 4, seed)
    with pytest.raises(TypeError, match=r"2\.5"):
        frame_noise(range(3), 4, 2.5)


CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("asked", "device", "capability", "found"),
    [
        ("auto", CPU, None, "fp32"),
        ("auto", GPU, (8, 6), "bf16"),
        ("tf32", GPU, (9, 0), "tf32"),
        ("bf16", GPU, (7, 0), r"bf16 is not for device 'cuda:1': use fp32 or fp16"),
        ("16-mixed", GPU, (7, 0), "fp16 is not for training, .*scaling.*fp32"),
        ("fp8", GPU, (9, 0), "precision must be one of .* got 'fp8'"),
    ],
)
def test_training_asks_the_device_for_its_precision(monkeypatch, asked, device, capability, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", {GPU: capability}.__getitem__)
    if " " not in found:
        assert training_precision(asked, device) == found
    else:
        with pytest.raises(ValueError, match=found):
            training_precision(asked, device)


def test_tf32_is_for_the_time_of_a_computation(monkeypatch):
    def switches():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    before = switches()
    with computing_in("tf32", GPU):
        assert switches() == (True, True)
    assert switches() == before != (True, True)


SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (3, 4, 2)),
        (SLURM | {"SLURM_STEP_ID": "0"}, (5, 8, 1)),
        (SLURM, (0, 1, 0)),  # a batch script, without srun
        (SLURM | {"SLURM_STEP_ID": "0"} | TORCHRUN, (3, 4, 2)),
    ],
)
def test_launchers_number_their_processes(monkeypatch, environment, process):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_process() == process
