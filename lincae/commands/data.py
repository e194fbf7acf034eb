"""`lincae data` and `lincae shards`: music to work with."""

import click

from lincae.commands.options import Command, option
from lincae.data.corpora import Corpora, weighted_folders
from lincae.data.free_music import fetch
from lincae.data.shards import Shards, write_shards
from lincae.data.tracks import N_SONGS, SONG_S, write_synthetic


@click.group()
def data() -> None:
    """Fetch or make data sets."""


@data.command(cls=Command)
@click.argument("out")
@option("--train", "n_train", default=N_SONGS["train"], help="Songs to train on.")
@option("--test", "n_test", default=N_SONGS["test"], help="Songs to test on.")
@option("--seconds", default=SONG_S, help="Length of a song.")
@option("--sample-rate", default=44100, help="In Hz.")
@option("--seed", default=0)
@option("--sampled", is_flag=True, help="Played by a soundfont's instruments (the extra `sampled`).")
def synthetic(out, **settings) -> None:
    """Render synthetic songs with their stems into OUT, shaped as MUSDB18-HQ.

    \b
        lincae data synthetic songs --train 0 --test 2
    """
    click.echo(write_synthetic(out, **settings))


@data.command("free-music", cls=Command)
@option("--out", help="Default: data/free-music, or free-music in $LINCAE_DATA.")
@option("--unpacked", help="A folder with the unpacked packages, where there is no apt-get.")
def free_music(out, unpacked) -> None:
    """Fetch recordings from free packages of Debian with apt-get, split by album, each checked by its hash.

    \b
        lincae data free-music
        lincae train --data free-music
    """
    click.echo(fetch(out, unpacked))


@click.command(cls=Command)
@click.argument("corpora", nargs=-1, required=True, metavar="FOLDER=WEIGHT...")
@click.argument("out")
@option("--sample-rate", default=44100, help="In Hz: that of the model to be trained.")
@option("--workers", type=int, help="Threads; default: one a core.")
def shards(corpora, out, sample_rate, workers) -> None:
    """Write all files of some corpora as few large ones into OUT; an interrupted writing is continued.

    \b
        lincae shards data/jamendo=60 data/moisesdb=20 /mnt/shards
        lincae train --preset paper --data shards:/mnt/shards
    """
    write_shards(Corpora(weighted_folders(corpora), sample_rate), out, workers)
    click.echo(f"{out}: {Shards(out, sample_rate).description}")
