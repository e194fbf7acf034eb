"""Schedules of the trainer at the numbers of the specification, preset `paper`."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lincae.interop.recipes import recipe
from lincae.training.config import PRESETS, TrainingConfig
from lincae.training.objective import learning_rate, update_ema

PAPER = TrainingConfig()


def test_learning_rate_anchors():
    rates = [learning_rate(step, PAPER) for step in (0, 1, 5_000, 10_000, 405_000, 800_000)]
    assert rates == pytest.approx([0, 1e-8, 5e-5, 1e-4, 5.05e-5, 1e-6], rel=1e-9, abs=1e-15)
    assert learning_rate(0, replace(PAPER, warmup_steps=0)) == 1e-4
    short = replace(PAPER, steps=100, warmup_steps=10)
    assert learning_rate(55, short) == pytest.approx(5.05e-5)


def scalar(value: float) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    return module


@pytest.mark.parametrize(("n", "decay"), [(1, 2 / 11), (10, 11 / 20), (89_991, 0.9999), (10**6, 0.9999)])
def test_ema_decay(n, decay):
    """(1 + n) / (10 + n), which reaches 0.9999 at n = 89,990: after the 80,000 updates of a training."""
    ema = scalar(0.0)
    update_ema(ema, scalar(1.0), n, 0.9999)
    assert ema.weight.item() == pytest.approx(1 - decay, rel=1e-12)
    assert (1 + 89_989) / (10 + 89_989) < 0.9999 <= (1 + 89_990) / (10 + 89_990)


def test_ema_is_a_power_law_average():
    """Weights of update k grow as k ** 8: the mean age is a tenth of the run, the start is forgotten."""
    ema, n = scalar(1.0), 4000
    for k in range(1, n + 1):
        update_ema(ema, scalar(0.0), k, 0.9999)
    assert 0 <= ema.weight.item() < 1e-20
    ema = scalar(0.0)
    for k in range(1, n + 1):
        update_ema(ema, scalar(k / n), k, 0.9999)
    assert ema.weight.item() == pytest.approx(0.9, abs=1e-3)


def test_ema_updates_every_parameter_and_no_other():
    model = nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2))
    ema = copy.deepcopy(model).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = copy.deepcopy(model.state_dict())
    update_ema(ema, model, 1, 0.9999)
    for key, value in ema.state_dict().items():
        torch.testing.assert_close(value, before[key] + 9 / 11)
        assert torch.equal(model.state_dict()[key], after[key])


def test_paper_and_released_code_differ_where_the_docstring_says():
    paper, official = PRESETS["paper"], PRESETS["official"]
    assert (paper.crop_frames, official.crop_frames) == (168, 64)
    assert paper.crop_samples / 44100 == pytest.approx(2, abs=0.02)
    assert official.crop_samples == 34304
    assert (paper.linearity.mixture_weights, official.linearity.mixture_weights) == ("equal", "random")
    assert replace(official, crop_frames=168, linearity=paper.linearity) == paper
    assert recipe("official", "m2l").linearity.premix_probability == 0.5
    assert recipe("paper", "m2l").linearity.premix_probability == 0


def test_paper_training():
    assert (PAPER.batch_size, PAPER.steps, PAPER.ema_every) == (20, 800_000, 10)
    linearity, consistency = PAPER.linearity, PAPER.consistency
    assert (linearity.gain_min, linearity.gain_max, linearity.gain_probability) == (0, 3, 0.8)
    assert (linearity.zero_below, linearity.peak) == (0.05, 1)
    assert (consistency.step_start, consistency.step_end, consistency.huber_c) == (0.1, 0.01, 5.4e-4)
