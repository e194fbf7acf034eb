"""`lincae encode`, `decode`, `mix`, `process` and `info`: latents of audio files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch

from lincae.commands.options import Command, choice, device, model, option, several
from lincae.data.audio import write_blocks
from lincae.data.folders import read_skipped
from lincae.data.streams import encode_file
from lincae.interop.models import kind_of, load
from lincae.latents import algebra, store
from lincae.machine import PRECISIONS, check_precision, resolve_device
from lincae.reencoder.linear import KIND as LINEAR
from lincae.reencoder.linear import LinearPair
from lincae.reencoder.module import KIND, ReEncoder
from lincae.training.environment import keep_freed_memory, launched_process

SOME_SKIPPED = 3

FASTER = "bf16 and tf32 are faster, where a GPU lacks them fp16."
precision = choice("--precision", PRECISIONS, default="fp32", help=FASTER)


def budget(_context, _option, text: str | None) -> float | str | None:
    """The value of --memory-gb: 10^9 bytes, or "free"."""
    return text if text in (None, "free") else click.FLOAT(text)


memory_gb = option(
    "--memory-gb",
    callback=budget,
    metavar="GB",
    help="What encoding or decoding may take beyond the weights, or free: windows are shorter where needed.",
)
dtype = choice("--dtype", store.DTYPES, default="float32", help="What latents are stored as.")


def loaded(
    name: str, device: str, precision: str = "fp32", rank: int = 0, memory_gb: float | str | None = None
):
    """A model for the whole of this process, which is the `rank`-th of those that share a machine. Raises
    ValueError for a precision or a budget of memory that it does not know."""
    place = resolve_device(device)
    check_precision(precision, place)
    if place.type == "cpu":
        keep_freed_memory()
    elif place.index is None:  # the processes of one machine share its devices
        place = torch.device(place.type, rank % torch.accelerator.device_count())

    model = load(name, str(place))
    if precision != getattr(model, "precision", "fp32"):
        if not hasattr(model, "precision"):
            raise ValueError(f"{model.name} works in fp32 only, got --precision {precision}")
        model.precision = precision
    if memory_gb is not None:
        if not hasattr(model, "memory_gb"):
            raise ValueError(f"{model.name} takes a signal at once, got --memory-gb {memory_gb}")
        model.memory_gb = memory_gb
    return model


@click.command(cls=Command)
@click.argument("audio", nargs=-1, required=True)
@click.argument("out")
@model
@choice("--channels", store.CHANNELS, default="mean", help="mean: of the channels; all: each of them.")
@dtype
@precision
@memory_gb
@device
def encode(audio, out, model, channels, dtype, precision, memory_gb, device) -> int:
    """Encode folders of AUDIO, at any depth, into the folder OUT, which is continued if it exists.

    One audio file goes into one .safetensors file. Files that cannot be read are listed in OUT, and tried
    again by the next call; the exit status is then 3 (under torchrun and srun 0: another would end them all).

    \b
        lincae encode data/jamendo data/moisesdb latents --model desk/lin-cae --dtype float16
        lincae encode song.wav song.safetensors --model study/listen
        torchrun --nproc-per-node 8 -m lincae encode data/jamendo latents --model desk/lin-cae
        srun --ntasks 8 lincae encode data/jamendo latents --model desk/lin-cae
    """
    source = Path(audio[0])
    target = Path(out)
    single = len(audio) == 1 and source.is_file()
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if single:
        store.check_suffix(target)
    elif target.suffix == store.SUFFIX:
        raise ValueError(f"{out} takes one audio file, got {' '.join(audio)}: give OUT as a folder")

    rank, world, local_rank = launched_process()
    autoencoder = loaded(model, device, precision, local_rank, memory_gb)
    if single:
        n_samples, latents = encode_file(autoencoder, source, channels)
        store.write_latents(target, store.describe(autoencoder), source.name, latents, n_samples, dtype)
        return 0

    done = store.encode_corpus(autoencoder, audio, target, dtype, channels, rank, world)
    which = f"process {rank} of {world}: " if world > 1 else ""
    where = f", see {target / store.SKIPPED}" if done.skipped else ""
    counts = f"{done.present} were encoded before, {len(done.skipped)} skipped{where}"
    click.echo(f"{which}{done.encoded} files encoded ({done.seconds / 3600:.2f} h), {counts}")
    return SOME_SKIPPED if done.skipped and world == 1 else 0


@click.command(cls=Command)
@click.argument("latents")
@click.argument("out")
@model
@option("--file", help="Which of several, named as `lincae info` lists it.")
@option("--start-s", default=0.0, help="Where to begin, in seconds.")
@option("--seconds", type=float, help="How much to decode; default: to the end.")
@option("--seed", default=0, help="Seed of the decoder's noise.")
@option("--steps", default=1, help="Steps of the decoder.")
@precision
@memory_gb
@device
def decode(latents, out, model, file, start_s, seconds, seed, steps, precision, memory_gb, device) -> None:
    """Decode LATENTS, a .safetensors file or a folder, into OUT, a .wav, .flac or .mp3.

    \b
        lincae decode song.safetensors song.wav --model desk/lin-cae --start-s 30 --seconds 10
    """
    dataset = store.LatentDataset(latents)
    autoencoder = loaded(model, device, precision, memory_gb=memory_gb)
    file = file or dataset.only_file()
    blocks = dataset.decode(autoencoder, file, start_s, seconds, seed, steps)
    write_blocks(out, blocks, autoencoder.sample_rate, dataset.entry(file).n_samples)


@click.command(cls=Command)
@click.argument("latents", nargs=-1, required=True)
@click.argument("out")
@several("--gains-db", type=float, help="One for each file, -inf: silence; default: 0.")
@several("--offsets-s", type=float, help="One for each file, rounded to frames; default: 0.")
@option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@dtype
def mix(latents, out, gains_db, offsets_s, overwrite, dtype) -> None:
    """Add LATENTS, .safetensors files of one model, into OUT, a new one.

    \b
        lincae mix vocals.safetensors drums.safetensors mix.safetensors --gains-db 0 -6 --offsets-s 0 1.5
    """
    target = store.check_suffix(out)
    if target.exists() and not overwrite:  # with OUT forgotten, the last input would be taken for it
        raise ValueError(f"{out} exists: is OUT missing, the last argument? --overwrite replaces it")
    for level_db in gains_db:
        if not level_db <= algebra.LOUDEST_DB:
            raise ValueError(f"--gains-db must be {algebra.LOUDEST_DB:g} dB at most, got {level_db:g}")

    sets = [store.LatentDataset(path) for path in latents]
    model = sets[0].model
    for other in sets[1:]:
        store.check_same_model(other.model, model, other.source)
    frames = [dataset.frames(dataset.only_file()) for dataset in sets]
    gains = [10 ** (level_db / 20) for level_db in gains_db] or None
    mixed, starts_s = algebra.mix(frames, model["latent_rate"], offsets_s or None, gains)

    ends = []
    for dataset, start_s in zip(sets, starts_s, strict=True):
        ends.append(round(start_s * model["sample_rate"]) + dataset.entry(dataset.only_file()).n_samples)
    store.write_latents(target, model, target.stem, [mixed], max(ends), dtype)
    click.echo(f"{out}: {len(sets)} files from {', '.join(f'{start_s:.6f} s' for start_s in starts_s)} on")


@click.command(cls=Command)
@click.argument("latents")
@click.argument("out")
@option("--module", required=True, help="A .safetensors file of `lincae reencoder train` or `linear`.")
@option("--inverse", is_flag=True, help="Linear latents: back to those of the autoencoder.")
@option("--like", help="Mono to stereo: stereo latents, whose image to take.")
@option("--seed", default=0, help="Mono to stereo: seed of an image from the prior.")
@dtype
@device
def process(latents, out, module, inverse, like, seed, dtype, device) -> None:
    """Send LATENTS, the .safetensors of one file, through a Re-Encoder into OUT, or into a linear space.

    \b
        lincae process mono.safetensors stereo.safetensors --module stereo-left_right.safetensors
        lincae process song.safetensors linear.safetensors --module m2l-linear.safetensors
        lincae process linear.safetensors song.safetensors --module m2l-linear.safetensors --inverse
    """
    target = store.check_suffix(out)
    linear = kind_of(Path(module), (KIND, LINEAR)) == LINEAR
    if linear and like is not None:
        raise ValueError(f"{module} makes latents linear: --like is for mono to stereo")
    if inverse and not linear:
        raise ValueError(f"{module} is a Re-Encoder, which has no inverse: --inverse is for linear pairs")

    def opened(path: str, owner: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        dataset = store.LatentDataset(path)
        store.check_same_model(dataset.model, owner, path)
        file = dataset.only_file()
        return dataset.frames(file), dataset.entry(file).n_samples

    if linear:
        pair = LinearPair.load(module, device)
        owners = (pair.autoencoder, pair.linear_description())
        z, n_samples = opened(latents, owners[inverse])
        result_of = owners[not inverse]
        processed = pair.process(z, inverse)
    else:
        reencoder = ReEncoder.load(module, device)
        result_of = reencoder.autoencoder
        z, n_samples = opened(latents, result_of)
        if reencoder.stereo and len(z) != 1:
            raise ValueError(f"{latents} has {len(z)} channels, mono to stereo takes one")
        condition = reencoder.oracle(opened(like, result_of)[0][None]) if like else None
        processed = reencoder.process(z, condition, seed)
        processed = processed[0] if reencoder.stereo else processed
    store.write_latents(target, result_of, target.stem, [processed], n_samples, dtype)


@click.command(cls=Command)
@click.argument("latents")
def info(latents) -> None:
    """Show what LATENTS, a file or folder, holds: the model, then length, shape and name of each file.

    \b
        lincae info latents
    """
    dataset = store.LatentDataset(latents)
    sample_rate = dataset.model["sample_rate"]
    entries = [dataset.entry(file) for file in dataset.files]
    hours = sum(entry.n_samples for entry in entries) / sample_rate / 3600
    facts = {"model": dataset.model, "dtype": dataset.dtype, "files": len(entries), "hours": hours}
    if dataset.source.is_dir():
        facts["skipped"] = len(read_skipped(dataset.source / store.SKIPPED))
    click.echo(json.dumps(facts, indent=2))

    for entry in entries:
        shape = f"({entry.channels}, {entry.latent_channels}, {entry.n_frames})"
        click.echo(f"{entry.n_samples / sample_rate:10.3f} s  {shape:>16}  {entry.file}")
