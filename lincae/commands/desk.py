"""`lincae desk`, apart from the other commands: what these import would be waited for."""

import os
import tempfile
from importlib.resources import files
from pathlib import Path

import click

from lincae.commands.options import Command, heard, models_and_music, option
from lincae.data import data_folder

DESK = """\
import os

from lincae.data.tracks import tracks
from lincae.listening.desk import Desk

os.chdir({folder!r})
Desk({models!r}, tracks({dataset!r}, n_tracks={n_tracks!r}), seconds={seconds!r}, device={device!r})"""


@click.command(cls=Command)
@models_and_music
@heard
@option("--port", default=8866)
@option("--browser/--no-browser", default=True, help="Open the page in a browser.")
def desk(models, port, browser, **settings) -> None:
    """Serve the latent mixing desk, with each MODEL to choose from, as a page on this machine, by Voila.

    \b
        lincae desk study/listen desk/m2l --data "my songs"
    """
    import nbformat
    from voila.app import Voila

    # What is wrong with the words is said here, rather than on the page, and songs are rendered here. Where
    # neither can be, nobody waits until this process has imported PyTorch, too.
    names = list(models or ("study/listen", "desk/m2l"))
    if "bundled" in names:
        from lincae.interop.models import listed

        names = listed(names)
    if settings["dataset"] != "embedded" or not data_folder("synthetic").is_dir():
        from lincae.data.tracks import tracks

        tracks(settings["dataset"], n_tracks=settings["n_tracks"])
    cell = nbformat.v4.new_code_cell(DESK.format(folder=os.getcwd(), models=names, **settings))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata.title = "Latent mixing desk"
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}

    # Voila reads these, and so does the kernel that it starts. What the user has set comes first.
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        places = [*filter(None, [os.environ.get(name)]), str(files("lincae.listening") / "web")]
        os.environ[name] = os.pathsep.join(places)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "desk.ipynb")
        nbformat.write(notebook, path)
        Voila.launch_instance([str(path), f"--port={port}", *([] if browser else ["--no-browser"])])
