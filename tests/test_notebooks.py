"""The committed notebooks, executed with small values: the same cells as `make reproduce` runs."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
COMMON = ("models", "dataset", "n_tracks", "seconds", "seed", "device", "out_dir")


def execute(name: str, folder: Path, **parameters) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    known = papermill.inspect_notebook(str(path))
    assert set(parameters) <= set(known), "papermill only warns of parameters that do not exist"
    papermill.execute_notebook(
        str(path),
        str(folder / path.name),
        parameters={"device": "cpu", "out_dir": str(folder), **parameters},
        kernel_name="python3",
        execution_timeout=300,
        progress_bar=False,
        cwd=str(path.parent),
    )


def code_cells(path: Path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_house_rules(path):
    cells = code_cells(path)
    sources = [cell.source for cell in cells]
    assert tuple(papermill.inspect_notebook(str(path)))[:7] == COMMON
    assert cells[0].metadata.tags == ["parameters"]
    assert sum(len(source.splitlines()) for source in sources) <= 150
    assert max(len(source.splitlines()) for source in sources) < 26
    assert not any(word in source for source in sources for word in ("class ", "try:", ".backward("))
    assert path.stat().st_size < 600_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_are_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = path.read_text()
    assert '"output_type": "error"' not in text
    assert "base64,SUQz" not in text
    assert "data:audio" not in text
    metadata = json.loads(text)["metadata"]
    assert "papermill" not in metadata
    assert "widgets" not in metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_has_its_numbers(path):
    number = path.stem[:2]
    figures = sorted((ROOT / "figures").glob(f"{number}_*.png"))
    assert figures
    for figure in figures:
        assert not pd.read_csv(figure.with_suffix(".csv")).empty
        assert imread(figure).std() > 0.01, f"{figure.name} is blank"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_decibels_in_the_text_are_measured(path):
    """Every "x.y dB" of the prose is a number of the notebook's CSVs, to the digits given."""
    tables = [pd.read_csv(csv) for csv in (ROOT / "figures").glob(f"{path.stem[:2]}_*.csv")]
    measured = {f"{value:.1f}" for t in tables for value in t.select_dtypes("number").to_numpy().ravel()}
    prose = " ".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    claimed = re.findall(r"(-?\d+\.\d) dB", prose)
    assert claimed
    assert set(claimed) <= measured


def test_quickstart(tmp_path):
    """Trains for a moment where no checkpoint is, then does the four operations on the real clip."""
    execute("00_quickstart", tmp_path, models=[str(tmp_path / "model")], seconds=2.0, train_steps=20)
    table = pd.read_csv(tmp_path / "00_quickstart.csv")
    assert set(table.comparison) == {"linearity", "waveform", "floor", "swap"}
    # After so few steps decodes are silent, and comparisons with them undefined.
    assert table[table.comparison == "waveform"][["snr_db", "mss"]].notna().all(axis=None)
    encoder = pd.read_csv(tmp_path / "00_quickstart_encoder.csv")
    assert (encoder.rel_l2 > 0).all()
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_training(tmp_path):
    execute(
        "01_training", tmp_path, models=[str(tmp_path / "run")], preset="test", variant="m2l", steps=20,
        validate_every=10, n_tracks=2, seconds=2.0,
    )  # fmt: skip
    curves = pd.read_csv(tmp_path / "01_curves.csv")
    assert curves.step.tolist() == [10, 20]
    schedules = pd.read_csv(tmp_path / "01_schedules.csv")
    assert set(schedules.recipe) == {"paper", "this run"}
    assert len(pd.read_csv(tmp_path / "01_training_data.csv")) == 8
