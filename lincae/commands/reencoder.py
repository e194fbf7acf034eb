"""`lincae reencoder`."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from lightning.fabric.utilities import rank_zero_only

from lincae.commands import options
from lincae.commands.latents import loaded
from lincae.commands.options import (
    Command,
    batches,
    changes,
    choice,
    device,
    model,
    option,
    run_folder,
    several,
)
from lincae.data.crops import training_data
from lincae.latents.store import check_suffix, describe
from lincae.reencoder import linear_training, training
from lincae.reencoder.linear import DESIGNS
from lincae.reencoder.module import SIZES, TASKS
from lincae.reencoder.pairs import LatentPairs, folder_sources, synthetic_sources, write_pairs
from lincae.training import loop
from lincae.training.config import changed
from lincae.training.environment import launched_process


@click.group()
def reencoder() -> None:
    """Train Re-Encoders, modules that work on the latents of a frozen autoencoder."""


@reencoder.command(cls=Command)
@click.argument("task", type=click.Choice(TASKS))
@model
@choice("--preset", training.PRESETS, default="desk")
@choice("--size", SIZES, help="Default: the preset's M.")
@choice("--objective", training.OBJECTIVES, default="l1")
@option("--layout", default="left_right", help="Stereo: left_right or mid_side.")
@several("--data", "sources", default=["synthetic"], help="synthetic, or folders of audio files.")
@option("--songs", type=int, help="Synthetic songs to encode; default: all.")
@option("--factor", type=int, help="Bandwidth: inputs keep 1 / FACTOR of the band; default: the preset's.")
@option("--pairs", "pairs_folder", help="Folder of the encoded pairs; default: below runs/pairs.")
@run_folder
@option("--start", help="A module.safetensors to start from.")
@option("--out", help="Also write the trained module here, in half precision.")
@batches
@device
@changes
@click.pass_context
def train(
    context, task, model, preset, size, objective, layout, sources, songs, factor, pairs_folder, run, start,
    out, device, changes, **settings,
) -> None:  # fmt: skip
    """Encode pairs of latents, and train a module of TASK on them.

    \b
        lincae reencoder train bandwidth --model desk/lin-cae
        lincae reencoder train stereo --model lin-cae --preset full --data musdb18hq/train
    """
    config = training.recipe(task, preset, size, objective, layout)
    for name, value in changes.items():
        config = changed(config, name.split("."), value)
    autoencoder = loaded(model, device, rank=launched_process()[2])
    if "chunk_s" not in changes:
        config = training.fitted(config, autoencoder.latent_rate)
    training.check_chunks(config, autoencoder.latent_rate)
    if objective == "l1+mel":
        training.check_decoder(autoencoder, config)
    factor = factor or training.FACTORS[preset]
    run, halves = training.folders(autoencoder, config, pairs_folder, run, factor, sources)
    held_out = None
    if list(sources) == ["synthetic"]:
        audio = synthetic_sources(task, "train", songs)
        tests = synthetic_sources(task, "test", songs and songs // 4)
        held_out = LatentPairs(write_pairs(autoencoder, tests, halves["test"], task, factor))
    else:
        audio = folder_sources(task, sources)
    data = LatentPairs(write_pairs(autoencoder, audio, halves["train"], task, factor))
    goal = training.ReEncoderObjective.build(config, data, autoencoder, start)
    command = shlex.join(["lincae", "reencoder", "train", *context.meta[options.WORDS]])
    module = loop.train(goal, data, run, validation=held_out, device=device, command=command, **settings)
    if out and rank_zero_only.rank == 0:
        click.echo(module.save(out, torch.float16))


@reencoder.command(cls=Command)
@model
@several("--data", "sources", required=True, help="FOLDER ..., FOLDER=WEIGHT, shards:FOLDER or synthetic.")
@several("--validation", metavar="FOLDER", help="Held-out audio, likewise; default: other draws of --data.")
@choice("--design", DESIGNS, default="coupling")
@option("--odd", is_flag=True, help="Maps that are exactly odd: phi(-z) = -phi(z).")
@run_folder
@option("--out", required=True, help="Write the trained pair here, in half precision.")
@batches
@device
@changes
@click.pass_context
def linear(context, model, sources, validation, design, odd, run, out, device, changes, **settings) -> None:
    """Train two small maps that make the latents of a frozen autoencoder linear.

    \b
        lincae reencoder linear --model desk/m2l --data music --out m2l-linear.safetensors
        lincae process song.safetensors linear.safetensors --module m2l-linear.safetensors
    """
    config = linear_training.LinearTraining(pair=linear_training.LinearConfig(design, odd))
    for name, value in changes.items():
        config = changed(config, name.split("."), value)
    autoencoder = loaded(model, device, rank=launched_process()[2])
    linear_training.check_encoder(autoencoder)
    target = check_suffix(out)
    owner = f"{autoencoder.name.replace('/', '-')}-{describe(autoencoder)['fingerprint'][:8]}"
    folder = Path(run or f"runs/linear/{owner}-{design}{'-odd' if odd else ''}")

    data = training_data(folders_with_weights(sources), autoencoder.sample_rate)
    held_out = data
    if validation:
        held_out = training_data(folders_with_weights(validation), autoencoder.sample_rate)
    other_draws = replace(config, seed=config.seed + 1)
    held_out = linear_training.encode_batches(
        autoencoder, held_out, other_draws, folder / "validation", linear_training.VALIDATION_BATCHES
    )
    if config.encoded_batches:
        data = linear_training.encode_batches(
            autoencoder, data, config, folder / "batches", config.encoded_batches
        )
    goal = linear_training.LinearObjective.build(config, autoencoder, data)
    command = shlex.join(["lincae", "reencoder", "linear", *context.meta[options.WORDS]])
    pair = loop.train(goal, data, folder, validation=held_out, device=device, command=command, **settings)
    if rank_zero_only.rank == 0:
        click.echo(pair.save(target, torch.float16))


def folders_with_weights(sources: Sequence[str]) -> list[str]:
    """Names for `training_data`, where a folder without a weight counts as one with weight 1."""
    return [f"{name}=1" if Path(name).is_dir() else name for name in sources]
