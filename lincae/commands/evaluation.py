"""`lincae evaluate` and `lincae report`: models and music in, tables and a page out."""

from pathlib import Path

import click

from lincae.commands.options import Command, dataset, device, models, n_tracks, option
from lincae.data.tracks import tracks
from lincae.evaluation import plots, tables
from lincae.evaluation import report as reports
from lincae.evaluation.evaluate import evaluate_models
from lincae.evaluation.protocols import EvaluationConfig

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
    chunks = evaluate_models(models, music, config=config, store=folder / "store", device=device)
    cells = tables.cells(chunks)

    chunks.to_csv(folder / "chunks.csv", index=False, errors="backslashreplace")
    cells.to_csv(folder / "tables.csv", index=False, errors="backslashreplace")
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

    OUT gets report.html, a page that needs nothing beside it, and its figure and numbers as report.png and
    report.csv.

    \b
        lincae report desk/lin-cae encodec-24khz --data musdb --n-tracks 6 --seconds 20 --out runs/report
    """
    music = tracks(dataset, n_tracks=n_tracks)
    config = EvaluationConfig(seconds=seconds, seed=seed)
    folder = Path(out)
    chunks = evaluate_models(models, music, reports.PROTOCOLS, config, folder / "store", device)
    joined = reports.Report(chunks, config)

    page = joined.html(folder / "report.html")
    plots.save(joined.figure(), joined.table(), "report", folder)
    click.echo(f"{joined.linearity().round(2).to_string(index=False)}\n{page}")
