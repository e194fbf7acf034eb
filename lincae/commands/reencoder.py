"""`lincae reencoder`."""

from dataclasses import replace

import click
import torch

from lincae.commands.options import Command, device, model
from lincae.data.tracks import SPLITS
from lincae.interop.models import load
from lincae.machine import keep_freed_memory, resolve_device
from lincae.reencoder import training
from lincae.reencoder.config import FACTORS, OBJECTIVES, PRESETS, recipe
from lincae.reencoder.module import SIZES, TASKS
from lincae.reencoder.pairs import LatentPairs, sources_of, write_pairs
from lincae.training.runs import assignment

task = click.argument("task", type=click.Choice(TASKS))


@click.group()
def reencoder() -> None:
    """Train Re-Encoders, modules that work on the latents of a frozen autoencoder."""


def _loaded(name: str, device: str):
    if resolve_device(device).type == "cpu":
        keep_freed_memory()
    return load(name, device)


@reencoder.command(cls=Command)
@task
@model
@click.option("--preset", default="desk", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--size", type=click.Choice(list(SIZES)), help="Default: the preset's M.")
@click.option("--objective", default="l1", show_default=True, type=click.Choice(OBJECTIVES))
@click.option("--layout", default="left_right", show_default=True, help="Stereo: left_right or mid_side.")
@click.option(
    "--data",
    "sources",
    multiple=True,
    default=["synthetic"],
    show_default=True,
    help="synthetic, or folders of audio files.",
)
@click.option(
    "--songs", type=int, help="Synthetic songs to encode, and a quarter to validate on; default: all."
)
@click.option(
    "--factor", type=int, help="Bandwidth: inputs keep 1 / FACTOR of the band; default: the preset's."
)
@click.option("--pairs", "pairs_folder", help="Folder of the encoded pairs; default: below runs/pairs.")
@click.option("--run-folder", "--run", "run", help="Continued if it exists.")
@click.option("--start", help="A module.safetensors to start from.")
@click.option("--out", help="Also write the trained module here, in half precision.")
@device
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="E.g. steps=1000.")
def train(
    task, model, preset, size, objective, layout, sources, songs, factor, pairs_folder, run, start, out,
    device, changes,
) -> None:  # fmt: skip
    """Encode pairs of latents, and train a module of TASK on them.

    \b
        lincae reencoder train bandwidth --model desk/lin-cae
        lincae reencoder train stereo --model lin-cae --preset full --data musdb18hq/train
    """
    config = recipe(task, preset, size, objective, layout)
    config = replace(config, **dict(map(assignment, changes)))
    autoencoder = _loaded(model, device)
    factor = factor or FACTORS[preset]
    sources = list(sources)
    run, halves = training.folders(autoencoder, config, pairs_folder, run, factor, sources)

    synthetic = sources == ["synthetic"]
    for split, folder in halves.items():
        if split == "train" or synthetic:
            count = songs and songs // (4 if split == "test" else 1)
            write_pairs(autoencoder, sources_of(task, sources, split, count), folder, task, factor)

    through = None
    if objective == "l1+mel":  # its loss is heard through the decoder, which stays as it is
        through = autoencoder
        if hasattr(through, "requires_grad_"):
            through.requires_grad_(False)

    module = training.train(
        config,
        LatentPairs(halves["train"]),
        run,
        validation=LatentPairs(halves["test"]) if synthetic else None,
        model=through,
        start=start,
        device=device,
    )
    if out:
        click.echo(module.save(out, torch.float16))


@reencoder.command(cls=Command)
@task
@click.argument("audio", nargs=-1, required=True)
@click.argument("out")
@model
@click.option("--factor", default=2, show_default=True, help="Bandwidth: inputs keep 1 / FACTOR of the band.")
@click.option("--split", default="train", show_default=True, type=click.Choice(SPLITS["synthetic"]))
@click.option("--songs", type=int, help="The first so many synthetic songs; default: all.")
@click.option("--rank", default=0, help="Which of the processes this is, from 0.")
@click.option("--world", default=1, help="How many processes share the work.")
@device
def pairs(task, audio, out, model, factor, split, songs, rank, world, device) -> None:
    """Encode pairs of latents of AUDIO, "synthetic" or folders, into the folder OUT, which is continued.

    \b
        lincae reencoder pairs stereo data/musdb18hq/train runs/pairs --model desk/lin-cae
    """
    autoencoder = _loaded(model, device)
    sources = sources_of(task, audio, split, songs)
    write_pairs(autoencoder, sources, out, task, factor, "float32", rank, world)
    if world == 1:
        click.echo(f"{out}: {len(LatentPairs(out).names)} pairs")
