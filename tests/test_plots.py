"""Figures: what is drawn where, and in which colour."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from lincae.evaluation import plots


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("hz", [100.0, 440.0, 3000.0, 7000.0])
def test_a_full_scale_sine_is_0_db_at_its_octave(hz):
    rate = 16000
    sine = torch.sin(2 * torch.pi * hz * torch.arange(rate) / rate)
    image, (left, right, bottom, top) = plots.spectrogram_db(sine, rate)
    assert image.shape[0] == plots.N_ROWS
    assert (left, right, bottom) == (0, 1.0, 0)
    column = image[:, image.shape[1] // 2]
    octave = np.linspace(bottom, top, plots.N_ROWS)[column.argmax()]
    assert plots.LOWEST_HZ * 2**octave == pytest.approx(hz, rel=0.15)
    assert column.max() == pytest.approx(0, abs=1.5)


def test_one_colour_a_model_whatever_stands_beside_it():
    few = plots.model_colours(["desk/lin-cae", "desk/m2l"])
    many = plots.model_colours(["tanh", "desk/no-additivity", "runs/desk-m2l", "stft", "x", "desk/lin-cae"])
    assert few["desk/lin-cae"] == many["desk/lin-cae"]
    assert few["desk/m2l"] == many["runs/desk-m2l"]
    assert len(set(many.values())) == len(many)
    two = plots.model_colours(["desk/lin-cae", "lin-cae", "desk/lin-cae-2"])
    assert len(set(two.values())) == 3


def judged(counts):
    rows = {"model": "m", "x": [1.0, 2.0], "mean": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]}
    return pd.DataFrame(rows | {"counts": counts})


def test_curves_of_a_model_that_does_not_count_are_grey():
    _, axes = plt.subplots(1, 2)
    plots.curves(axes[0], judged([True, False]), "x")
    plots.curves(axes[1], judged([False, False]), "x")
    line, whole, hollow = axes[0].lines
    assert line.get_color() == whole.get_markerfacecolor() != plots.GREY
    assert hollow.get_markerfacecolor() == "white"
    assert hollow.get_xdata().tolist() == [2.0]
    assert axes[1].lines[0].get_color() == plots.GREY


def test_strips_show_every_value_and_the_mean():
    _, axis = plt.subplots()
    table = pd.DataFrame({"model": ["a", "a", "b"], "stem": "bass", "si_sdr_db": [1.0, 3.0, np.nan]})
    plots.strips(axis, table.assign(counts=[True, True, False]), "stem", "si_sdr_db")
    assert axis.lines[0].get_ydata().tolist() == [1.0, 3.0]
    (mean,) = axis.collections
    assert mean.get_segments()[0][:, 1].tolist() == [2.0, 2.0]
    assert axis.lines[1].get_color() == plots.GREY


def test_grids_take_rows_of_different_rates(tmp_path):
    panels = {"a": {"x": torch.randn(16000)}, "b": {"x": torch.randn(44100)}}
    figure = plots.spectrogram_grid(panels, {"a": 16000, "b": 44100}, {("b", "x"): "note"})
    plots.save(figure, pd.DataFrame({"v": [1 / 3]}), "grid", tmp_path / "new")
    assert (tmp_path / "new" / "grid.csv").read_text() == "v\n0.333333\n"
    assert (tmp_path / "new" / "grid.png").stat().st_size > 10_000
