"""`lincae shards`."""

import click

from lincae.commands.options import Command
from lincae.data.corpora import Corpora, weighted_folders
from lincae.data.shards import Shards, write_shards


@click.group()
def shards() -> None:
    """Write corpora as few large files, for disks and networks that are slow with many small ones."""


@shards.command(cls=Command)
@click.argument("corpora", nargs=-1, required=True, metavar="FOLDER=WEIGHT...")
@click.argument("out")
@click.option(
    "--sample-rate", default=44100, show_default=True, help="That of the model to be trained, in Hz."
)
@click.option("--workers", type=int, help="Threads; default: one a core.")
def write(corpora: tuple[str, ...], out: str, sample_rate: int, workers: int | None) -> None:
    """Write shards of all files of CORPORA into the folder OUT; an interrupted writing is continued.

    \b
        lincae shards write data/jamendo=60 data/moisesdb=20 /mnt/shards
        lincae train --preset paper --data shards:/mnt/shards
    """
    write_shards(Corpora(weighted_folders(corpora), sample_rate), out, workers)
    click.echo(f"{out}: {Shards(out, sample_rate).description}")
