"""`lincae data`."""

import click

from lincae.commands.options import Command
from lincae.data.tracks import N_SONGS, SONG_S, write_synthetic


@click.group()
def data() -> None:
    """Fetch or make data sets."""


@data.command(cls=Command)
@click.argument("out")
@click.option("--train", "n_train", default=N_SONGS["train"], show_default=True, help="Songs to train on.")
@click.option("--test", "n_test", default=N_SONGS["test"], show_default=True, help="Songs to test on.")
@click.option("--seconds", default=SONG_S, show_default=True, help="Length of a song.")
@click.option("--sample-rate", default=44100, show_default=True, help="In Hz.")
@click.option("--seed", default=0, show_default=True)
def synthetic(out, **settings) -> None:
    """Render synthetic songs with their stems into OUT, shaped as MUSDB18-HQ.

    \b
        lincae data synthetic songs --train 0 --test 2
    """
    click.echo(write_synthetic(out, **settings))
