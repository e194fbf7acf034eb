"""`lincae train`."""

import shlex

import click

from lincae.commands.options import (
    WORDS,
    Command,
    batches,
    changes,
    choice,
    device,
    option,
    run_folder,
    several,
)
from lincae.data.crops import training_data
from lincae.interop.recipes import PRESET_NAMES, VARIANT_NAMES, objective_of, recipe
from lincae.training import loop

SOURCES = "synthetic, free-music, FOLDER=WEIGHT ... or shards:FOLDER."
HELD_OUT = {("synthetic",): "test", ("free-music",): "valid"}
"""The split that validates, of the data that have one."""


@click.command(cls=Command)
@choice("--preset", PRESET_NAMES, default="desk")
@choice("--variant", VARIANT_NAMES, default="lin-cae")
@several("--data", "sources", default=["synthetic"], help=SOURCES)
@several("--validation", metavar="FOLDER=WEIGHT", help="Default: synthetic test songs, or crops of --data.")
@run_folder
@device
@batches
@option("--keep", default=2, help="Training states to keep.")
@option("--regroup", is_flag=True, help="Continue a run of another number of micro-batches.")
@option("--other-data", is_flag=True, help="Continue a run on other data or with other validation.")
@option("--compiler", metavar="BACKEND[:MODE]", help="Compile with torch, e.g. inductor:max-autotune.")
@changes
@click.pass_context
def train(context, preset, variant, sources, validation, run, changes, **settings) -> None:
    """Train an autoencoder in a folder, by default runs/PRESET-VARIANT, that is continued if it exists.

    \b
        lincae train --preset desk --variant lin-cae
        lincae train --preset paper --data jamendo=60 moisesdb=20 --workers 8 --set batch_size=16
    """
    config = recipe(preset, variant, **changes)
    data = training_data(sources, config.sample_rate, split="train")

    # Validation crops come from other songs where there are some, else from other draws of the same files.
    held_out = data
    validation_seed = config.seed + 2
    if validation:
        held_out = training_data(validation, config.sample_rate)
    elif sources in HELD_OUT:
        held_out = training_data(sources, config.sample_rate, HELD_OUT[sources])
        validation_seed = 0

    loop.train(
        objective_of(config),
        data,
        run or f"runs/{preset}-{variant}",
        validation=held_out.crops(range(16), config.crop_samples, validation_seed),
        command=shlex.join(["lincae", "train", *context.meta[WORDS]]),
        **settings,
    )
