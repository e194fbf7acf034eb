"""`lincae evaluate` and `lincae report`: models and music in, tables and a page out."""

from pathlib import Path

import click
import pandas as pd

from lincae.commands.options import Command, dataset, device, models, n_tracks, option
from lincae.data.tracks import tracks
from lincae.evaluation import report as reports
from lincae.evaluation import tables
from lincae.evaluation.evaluate import evaluate as measured
from lincae.evaluation.protocols import EvaluationConfig
from lincae.interop.models import listed, load

seconds = option("--seconds", type=float, help="Take so many seconds of each track; default: all.")
seed = option("--seed", default=0, help="Seed of gains and noise.")
out = option("--out", required=True, help="A folder; what it holds already is not measured again.")


@click.command(cls=Command)
@models
@dataset
@n_tracks
@seconds
@seed
@device
@out
def evaluate(models, dataset, n_tracks, seconds, seed, device, out) -> None:
    """Measure each MODEL as the paper's tables do; "bundled" stands for all that come with lincae.

    OUT gets chunks.csv, a row for each measurement, and tables.csv, means over tracks and their intervals.

    \b
        lincae evaluate desk/lin-cae desk/m2l --data synthetic --n-tracks 4 --out runs/study
    """
    music = tracks(dataset, n_tracks=n_tracks)
    config = EvaluationConfig(seconds=seconds, seed=seed)
    folder = Path(out)
    frames = []
    for name in listed(models):
        frames.append(measured(load(name, device), music, config=config, store=folder / "store"))
    chunks = pd.concat(frames, ignore_index=True)
    cells = tables.cells(chunks)

    chunks.to_csv(folder / "chunks.csv", index=False)
    cells.to_csv(folder / "tables.csv", index=False)
    shown = cells.pivot_table(index="column", columns="model", values="value", sort=False)
    click.echo(f"{shown.round(3).to_string()}\n{folder / 'tables.csv'}")


@click.command(cls=Command)
@models
@dataset
@n_tracks
@seconds
@seed
@device
@out
def report(models, dataset, n_tracks, seconds, seed, device, out) -> None:
    """Report how linear each MODEL is; "bundled" stands for all that come with lincae.

    OUT gets report.html, a page that needs nothing beside it, and report.csv with its numbers.

    \b
        lincae report desk/lin-cae encodec-24khz --data musdb --n-tracks 6 --seconds 20 --out runs/report
    """
    music = tracks(dataset, n_tracks=n_tracks)
    config = EvaluationConfig(seconds=seconds, seed=seed)
    folder = Path(out)
    found = []
    for name in listed(models):
        found.append(reports.linearity_report(load(name, device), music, config, folder / "store"))
    joined = reports.Report.join(found)

    page = joined.html(folder / "report.html")
    joined.table().to_csv(folder / "report.csv", index=False)
    click.echo(f"{joined.linearity().round(2).to_string(index=False)}\n{page}")
