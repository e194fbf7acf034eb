"""`lincae train`."""

import shlex
from pathlib import Path

import click

from lincae.commands.options import WORDS, Command, device
from lincae.data.crops import training_data
from lincae.interop.recipes import objective_of, recipe
from lincae.linearity import VARIANTS
from lincae.training import loop
from lincae.training.config import OWN_VARIANTS, PRESETS
from lincae.training.runs import assignment, noted
from lincae.vae.config import VAE_PRESETS, VAE_VARIANTS


@click.command(cls=Command)
@click.option("--preset", default="desk", show_default=True, type=click.Choice(list(PRESETS | VAE_PRESETS)))
@click.option(
    "--variant",
    default="lin-cae",
    show_default=True,
    type=click.Choice(list(VARIANTS | OWN_VARIANTS | VAE_VARIANTS)),
)
@click.option(
    "--data",
    "sources",
    multiple=True,
    default=["synthetic"],
    show_default=True,
    help="synthetic, FOLDER=WEIGHT ... or shards:FOLDER.",
)
@click.option(
    "--validation",
    multiple=True,
    metavar="FOLDER=WEIGHT",
    help="What to validate on; default: synthetic test songs, or other crops of --data.",
)
# torchrun on Python 3.11 takes --run for an abbreviation of its own --run-path.
@click.option(
    "--run-folder",
    "--run",
    "run",
    metavar="FOLDER",
    help="Continued if it exists; default: runs/PRESET-VARIANT. Under torchrun use the long name.",
)
@device
@click.option("--devices", type=int, help="Processes per node; default: those of torchrun or SLURM, or 1.")
@click.option("--nodes", type=int, help="Machines that share the run folder; default: likewise.")
@click.option("--workers", default=0, show_default=True, help="Processes that load data, for each device.")
@click.option("--keep", default=2, show_default=True, help="Training states to keep.")
@click.option("--regroup", is_flag=True, help="Continue a run of another number of devices x nodes.")
@click.option("--compiler", metavar="BACKEND", help="Compile the network with torch, e.g. inductor.")
@click.option(
    "--set", "changes", multiple=True, metavar="FIELD=VALUE", help="E.g. steps=1000 linearity.gain_max=2."
)
@click.pass_context
def train(context, preset, variant, sources, validation, run, changes, **settings) -> None:
    """Train a consistency autoencoder, or a spectral VAE, in a folder that is continued if it exists.

    \b
        lincae train --preset desk --variant lin-cae
        lincae train --preset paper --data jamendo=60 moisesdb=20 --workers 8 --set batch_size=16
    """
    config = recipe(preset, variant, **dict(map(assignment, changes)))
    data = training_data(sources, config.sample_rate, split="train")

    # Validation crops come from other songs where there are some, else from other draws of the same files.
    held_out = data
    validation_seed = config.seed + 2
    if validation:
        held_out = training_data(validation, config.sample_rate)
    elif sources == ("synthetic",):
        held_out = training_data(sources, config.sample_rate, split="test")
        validation_seed = 0

    folder = Path(run or f"runs/{preset}-{variant}")
    with noted(folder, loop.LOG):
        loop.train(
            objective_of(config),
            data,
            folder,
            validation=held_out.crops(range(16), config.crop_samples, validation_seed),
            command=shlex.join(["lincae", "train", *context.meta[WORDS]]),
            **settings,
        )
