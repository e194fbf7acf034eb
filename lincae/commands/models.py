"""`lincae models` and `export`, and what takes models and music: `evaluate`, `report` and `demo`."""

from pathlib import Path

import click

from lincae.commands.options import Command, heard, models_and_music, option, together
from lincae.data.tracks import tracks
from lincae.evaluation import plots, tables
from lincae.evaluation import report as reports
from lincae.evaluation.evaluate import evaluate_models
from lincae.evaluation.protocols import EvaluationConfig
from lincae.interop import models as known
from lincae.interop import onnx
from lincae.listening.demo import write_demo

evaluation = together(
    models_and_music,
    option("--seconds", type=float, help="Take so many seconds of each track; default: all."),
    option("--seed", default=0, help="Seed of gains and noise."),
    option("--out", required=True, help="A folder; what it holds already is not measured again."),
)


@click.command()
def models() -> None:
    """List the models that commands and `lincae.load` take by name, and where each comes from.

    Commands also take folders of checkpoints: our own, the official training script's, or those of diffusers
    and transformers.

    \b
        lincae models
        lincae encode song.wav song.safetensors --model study/listen
    """
    for name, place in known.sources().items():
        click.echo(f"{name:24} {place}")


@click.command(cls=Command)
@evaluation
def evaluate(models, dataset, n_tracks, device, out, **config) -> None:
    """Measure each MODEL as the paper's tables do; "bundled" stands for all that come with lincae.

    OUT gets chunks.csv, a row for each measurement, and tables.csv, means over tracks and their intervals.

    \b
        lincae evaluate desk/lin-cae desk/m2l --data synthetic --n-tracks 4 --out runs/study
    """
    songs = tracks(dataset, n_tracks=n_tracks)
    folder = Path(out)
    config = EvaluationConfig(**config)
    chunks = evaluate_models(models, songs, config=config, store=folder / "store", device=device)
    cells = tables.cells(chunks)

    chunks.to_csv(folder / "chunks.csv", index=False, errors="backslashreplace")
    cells.to_csv(folder / "tables.csv", index=False, errors="backslashreplace")
    shown = cells.pivot_table(index="column", columns="model", values="value", sort=False)
    click.echo(f"{shown.round(3).to_string()}\n{folder / 'tables.csv'}")


@click.command(cls=Command)
@evaluation
def report(models, dataset, n_tracks, device, out, **config) -> None:
    """Report how linear each MODEL is; "bundled" stands for all that come with lincae.

    OUT gets report.html, a page that needs nothing beside it, and its figure and numbers as report.png and
    report.csv.

    \b
        lincae report desk/lin-cae encodec-24khz --data musdb --n-tracks 6 --seconds 20 --out runs/report
    """
    songs = tracks(dataset, n_tracks=n_tracks)
    folder = Path(out)
    config = EvaluationConfig(**config)
    chunks = evaluate_models(models, songs, reports.PROTOCOLS, config, folder / "store", device)
    joined = reports.Report(chunks, config)

    page = joined.html(folder / "report.html")
    plots.save(joined.figure(), joined.table(), "report", folder)
    click.echo(f"{joined.linearity().round(2).to_string(index=False)}\n{page}")


@click.command(cls=Command)
@models_and_music
@heard
@option("--out", required=True, help="A folder for the page alone.")
@option(
    "--url", default="", help="Where the folder will be: previews of links need the address of their card."
)
@option("--live", is_flag=True, help="Stems are mixed as latents in the browser, decoded by the first MODEL.")
def demo(models, dataset, n_tracks, device, seconds, out, url, live) -> None:
    """Write a page on which the sums, differences and multiples of latents of each MODEL are heard.

    The folder is for any static host: index.html with its sounds as files, and a card for previews of links.
    In it demo.html is the same page as one file that opens from disk, and demo.csv has its numbers. The real
    clip and MUSDB18 may not be published: choose other data. --live fetches onnxruntime-web with npm, and
    adds it.

    \b
        lincae demo study/listen desk/m2l pca-8x --data synthetic --n-tracks 2 --out runs/demo
    """
    loaded = [known.load(name, device) for name in known.listed(models or ("study/listen", "pca-8x"))]
    songs = tracks(dataset, n_tracks=n_tracks)
    click.echo(write_demo(loaded, songs, out, seconds, hosted=True, url=url, live=live))


@click.command(cls=Command)
@click.argument("model")
@option("--onnx", "out", required=True, help="A folder for encoder.onnx and decoder.onnx.")
def export(model, out) -> None:
    """Write encoder and decoder of MODEL as ONNX files, for programs without PyTorch.

    Both take sounds of any length within one window of the model. They are compared with the model by
    onnxruntime first: below 60 dB SNR nothing is written.

    \b
        lincae export study/listen --onnx runs/exported
    """
    for name, agreement_db in onnx.export(known.load(model, "cpu"), out).items():
        click.echo(f"{Path(out, name)}: {agreement_db:.0f} dB SNR against the model")
