"""Figures: what is drawn where, and in which colour."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from lincae.evaluation import pictures, plots, tables

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("hz", [100.0, 440.0, 3000.0, 7000.0])
def test_a_full_scale_sine_is_0_db_at_its_octave(hz):
    rate = 16000
    sine = torch.sin(2 * torch.pi * hz * torch.arange(rate) / rate)
    image, (left, right, bottom, top) = pictures.spectrogram_db(sine, rate)
    assert image.shape[0] == pictures.N_ROWS
    assert (left, right, bottom) == (0, 1.0, 0)
    column = image[:, image.shape[1] // 2]
    octave = np.linspace(bottom, top, pictures.N_ROWS)[column.argmax()]
    assert pictures.LOWEST_HZ * 2**octave == pytest.approx(hz, rel=0.15)
    assert column.max() == pytest.approx(0, abs=1.5)


def test_one_colour_a_model_whatever_stands_beside_it():
    few = plots.model_colours(["desk/lin-cae", "desk/m2l"])
    many = plots.model_colours(["tanh", "desk/no-additivity", "runs/desk-m2l", "stft", "x", "desk/lin-cae"])
    assert few["desk/lin-cae"] == many["desk/lin-cae"]
    assert few["desk/m2l"] == many["runs/desk-m2l"]
    assert len(set(many.values())) == len(many)
    two = plots.model_colours(["desk/lin-cae", "lin-cae", "desk/lin-cae-2"])
    assert len(set(two.values())) == 3


@pytest.mark.parametrize(("first", "n_models"), [("| desk/m2l", 8), ("| study/m2l", 4)])
def test_rows_stand_in_the_order_of_the_readme(first, n_models):
    text = README.read_text()
    table = text[text.index(first) :].partition("\n\n")[0]
    models = [row.split("|")[1].strip() for row in table.splitlines()]
    assert len(models) == n_models
    assert plots.ordered([*reversed(models), "tanh"]) == [*models, "tanh"]


def test_no_colour_has_two_meanings():
    palettes = [plots.MODEL_COLOURS.values(), plots.FREE_COLOURS, plots.STEM_COLOURS.values(), [plots.GREY]]
    colours = [colour for palette in (*palettes, plots.CONDITION_COLOURS) for colour in palette]
    assert len(set(colours)) == len(colours)


def rows(model, values):
    """Two tracks a chunk each at x = 1 and x = 2."""
    frame = {"model": model, "dataset": "d", "track": ["a", "b"] * 2, "x": [1.0, 1.0, 2.0, 2.0]}
    return pd.DataFrame(frame | {"snr_db": values})


@pytest.mark.parametrize(("counts", "grey"), [((True, False), False), ((False, False), True)])
def test_lines_are_means_with_the_intervals_of_the_tables(counts, grey):
    """What does not count is a hollow dot; a model of which nothing counts is grey."""
    _, axis = plt.subplots()
    data = rows("m", [1.0, 3.0, 2.0, 6.0])
    judged = tables.summary(data, ["model", "x"], "snr_db").assign(counts=counts)
    plots.lines(axis, data, judged, "x", "snr_db")
    (line,) = axis.lines
    assert line.get_ydata().tolist() == [2.0, 4.0]
    band, *dots = axis.collections
    assert np.unique(band.get_paths()[0].vertices[:, 1]).tolist() == [1.0, 2.0, 3.0, 6.0]
    assert (line.get_color() == plots.GREY) == grey
    hollow = [dot for dot in dots if to_hex(dot.get_facecolor()[0]) == "#ffffff"]
    assert sum(len(dot.get_offsets()) for dot in hollow) == counts.count(False)


def test_dots_show_every_value_and_the_mean_of_tracks():
    _, axis = plt.subplots()
    table = pd.concat([rows("a", [1.0, 3.0, 1.0, 5.0]), rows("b", [7.0, np.nan, 7.0, np.nan])])
    table = table.assign(stem="bass", counts=table.model == "a")
    plots.dots(axis, table, "stem", "snr_db", title="t")
    axis.figure.canvas.draw()
    values = np.concatenate([points.get_offsets()[:, 1] for points in axis.collections])
    assert sorted(values) == [1.0, 1.0, 3.0, 5.0, 7.0, 7.0]
    means = {y: line.get_color() for line in axis.lines if line.get_marker() == "_" for y in line.get_ydata()}
    assert {y for y in means if not np.isnan(y)} == {2.5, 7.0}
    assert to_hex(means[7.0]) == plots.GREY != to_hex(means[2.5])
    assert axis.get_title() == "t"


def test_dots_of_nothing_say_so():
    _, axis = plt.subplots()
    plots.dots(axis, rows("a", [np.nan] * 4), "x", "snr_db")
    assert axis.texts[0].get_text().startswith("not measured")


def test_grids_take_rows_of_different_rates(tmp_path):
    panels = {"a": {"x": torch.randn(16000)}, "b": {"x": torch.randn(44100)}}
    figure = plots.spectrogram_grid(panels, {"a": 16000, "b": 44100}, {("b", "x"): "note"})
    plots.save(figure, pd.DataFrame({"v": [1 / 3]}), "grid", tmp_path / "new")
    assert (tmp_path / "new" / "grid.csv").read_text() == "v\n0.333333\n"
    assert (tmp_path / "new" / "grid.png").stat().st_size > 10_000
