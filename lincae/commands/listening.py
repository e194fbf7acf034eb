"""`lincae demo` and `lincae desk`: pages to listen with."""

import os
import tempfile
from importlib.resources import files
from pathlib import Path

import click
import nbformat
from voila.app import Voila

from lincae.commands.options import Command, dataset, device, models, n_tracks, option
from lincae.data.tracks import tracks
from lincae.interop.models import listed, load
from lincae.listening.demo import write_demo

seconds = option("--seconds", default=6.0, help="How much of each track is heard.")
DESK = """\
import os

from lincae.data.tracks import tracks
from lincae.listening.desk import Desk

os.chdir({folder!r})
Desk({models!r}, tracks({dataset!r}, n_tracks={n_tracks!r}), seconds={seconds!r}, device={device!r})"""


@click.command(cls=Command)
@models
@dataset
@n_tracks
@seconds
@device
@option("--out", required=True, help="A folder for index.html and demo.csv, its numbers.")
def demo(models, dataset, n_tracks, seconds, device, out) -> None:
    """Write a page on which the sums, differences and multiples of latents of each MODEL are heard.

    It is one file that opens from disk. The real clip may not be published: choose other data.

    \b
        lincae demo desk/lin-cae desk/m2l --data synthetic --n-tracks 2 --out runs/demo
    """
    loaded = [load(name, device) for name in listed(models or ("desk/lin-cae",))]
    click.echo(write_demo(loaded, tracks(dataset, n_tracks=n_tracks), out, seconds))


@click.command(cls=Command)
@models
@dataset
@n_tracks
@seconds
@device
@option("--port", default=8866)
@option("--browser/--no-browser", default=True, help="Open the page in a browser.")
def desk(models, dataset, n_tracks, seconds, device, port, browser) -> None:
    """Serve the latent mixing desk, with each MODEL to choose from, as a page on this machine, by Voila.

    \b
        lincae desk desk/lin-cae desk/m2l --data "my songs"
    """
    # What is wrong with the words is said here, rather than on the page.
    names = listed(models or ("desk/lin-cae", "desk/m2l"))
    tracks(dataset, n_tracks=n_tracks)
    settings = {"models": names, "dataset": dataset, "n_tracks": n_tracks, "seconds": seconds}
    cell = nbformat.v4.new_code_cell(DESK.format(folder=os.getcwd(), device=device, **settings))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}

    # Voila reads these, and so does the kernel that it starts. What the user has set comes first.
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        places = [*filter(None, [os.environ.get(name)]), str(files("lincae.listening") / "web")]
        os.environ[name] = os.pathsep.join(places)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "desk.ipynb")
        nbformat.write(notebook, path)
        Voila.launch_instance([str(path), f"--port={port}", *([] if browser else ["--no-browser"])])
