"""`lincae encode`, `decode`, `mix`, `process` and `info`: latents of audio files."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from lincae.latents.algebra import LOUDEST_DB, mix

# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Exits with 1 and a message for an error; with 3, having done the rest, where files were skipped.

    Under torchrun skipped files leave the status 0: another would end the other processes.
    """
    options = _parser().parse_args(arguments)
    try:
        sys.exit(COMMANDS[options.command](options))
    except (ValueError, OSError, ImportError) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))


def _parser():
    import argparse

    from lincae.latents.files import DTYPES
    from lincae.latents.sets import CHANNELS

    parser = argparse.ArgumentParser(
        "python -m lincae.commands.latents", description="Latents of audio files."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    models = argparse.ArgumentParser(add_help=False)
    models.add_argument("--model", required=True, help="a name that lincae.load knows, or a checkpoint")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    models.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is faster")
    dtypes = argparse.ArgumentParser(add_help=False)
    dtypes.add_argument("--dtype", default="float32", choices=DTYPES)

    encode = commands.add_parser("encode", parents=[models, dtypes], help="audio to latents")
    encode.add_argument("audio", nargs="+", help="folders (searched at any depth), or one file")
    encode.add_argument("out", help="a folder, continued if it exists; for one file, its .safetensors")
    encode.add_argument("--channels", default="mean", choices=CHANNELS, help="mean: mono; all: an item each")

    decode = commands.add_parser("decode", parents=[models], help="latents to audio")
    decode.add_argument("latents", help="a .safetensors file, or a folder")
    decode.add_argument("out", help=".wav, .flac or .mp3")
    decode.add_argument("--file", help="of several: its name, as `info` lists it")
    decode.add_argument("--start-s", type=float, default=0.0)
    decode.add_argument("--seconds", type=float, help="default: to the end")
    decode.add_argument("--seed", type=int, default=0)
    decode.add_argument("--steps", type=int, default=1)

    mixing = commands.add_parser("mix", parents=[dtypes], help="add the latents of files")
    mixing.add_argument("latents", nargs="+", help=".safetensors files of one model")
    mixing.add_argument("out", help=".safetensors, a new file")
    mixing.add_argument("--gains-db", nargs="+", type=float, help="one a file (default: 0)")
    mixing.add_argument(
        "--offsets-s", nargs="+", type=float, help="one a file (default: 0), rounded to frames"
    )
    mixing.add_argument("--exact", action="store_true", help="offsets between frames are errors")
    mixing.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    process = commands.add_parser("process", parents=[dtypes], help="latents through a Re-Encoder")
    process.add_argument("latents", help=".safetensors of one file")
    process.add_argument("out", help=".safetensors")
    process.add_argument("--module", required=True, help="a .safetensors file of lincae.reencoder")
    process.add_argument("--like", help="mono to stereo: stereo latents, whose image to take")
    process.add_argument("--seed", type=int, default=0, help="mono to stereo: of an image from the prior")
    process.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")

    info = commands.add_parser("info", help="what a file or folder of latents holds")
    info.add_argument("latents")
    return parser


def _model(options, rank: int = 0):
    from lincae.interop.models import load
    from lincae.machine import keep_freed_memory, resolve_device

    device = resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type != "cpu" and device.index is None:  # the processes of one machine share its devices
        device = torch.device(device.type, rank % torch.accelerator.device_count())
    model = load(options.model, str(device))
    if options.precision != getattr(model, "precision", "fp32"):
        if not hasattr(model, "precision"):
            raise ValueError(f"{model.name} works in fp32 only, got --precision {options.precision}")
        model.precision = options.precision
    return model


def _encode(options) -> int:
    from lincae.latents.files import SUFFIX, check_suffix, describe, write_latents
    from lincae.latents.sets import SKIPPED, encode_corpus, encode_file

    out, source = Path(options.out), Path(options.audio[0])
    if single := len(options.audio) == 1 and source.is_file():
        check_suffix(out)
    elif out.suffix == SUFFIX:
        raise ValueError(f"{out} takes one audio file, got {' '.join(options.audio)}: give OUT as a folder")
    model = _model(options, int(os.environ.get("LOCAL_RANK", 0)))
    if single:
        n_samples, latents = encode_file(model, source, options.channels)
        write_latents(out, describe(model), source.name, latents, n_samples, options.dtype)
        return 0
    rank, world = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    done = encode_corpus(model, options.audio, out, options.dtype, options.channels, rank, world)
    which = f"process {rank} of {world}: " if world > 1 else ""
    where = f", see {out / SKIPPED}" if done.skipped else ""
    counts = f"{done.present} were encoded before, {len(done.skipped)} skipped{where}"
    print(f"{which}{done.encoded} files encoded ({done.seconds / 3600:.2f} h), {counts}")
    return 3 if done.skipped and world == 1 else 0


def _decode(options) -> None:
    from lincae.data.streams import write_blocks
    from lincae.latents.sets import LatentDataset

    dataset, model = LatentDataset(options.latents), _model(options)
    file = options.file or dataset.only_file()
    blocks = dataset.decode(model, file, options.start_s, options.seconds, options.seed, options.steps)
    write_blocks(options.out, blocks, model.sample_rate, dataset.entry(file).n_samples)


def _mix(options) -> None:
    from lincae.latents.files import check_same_model, check_suffix, write_latents
    from lincae.latents.sets import LatentDataset

    out = check_suffix(options.out)
    if out.exists() and not options.overwrite:  # with OUT forgotten, the last input would be taken for it
        raise ValueError(f"{out} exists: is OUT missing, the last argument? --overwrite replaces it")
    for level in options.gains_db or []:
        if not level <= LOUDEST_DB:
            raise ValueError(f"--gains-db must be {LOUDEST_DB:g} dB at most, got {level:g}")
    sets = [LatentDataset(path) for path in options.latents]
    for other in sets:
        check_same_model(other.model, sets[0].model, other.source)
    rate, sample_rate = sets[0].model["latent_rate"], sets[0].model["sample_rate"]
    gains = [10 ** (level / 20) for level in options.gains_db or [0.0] * len(sets)]
    latents = [dataset.frames(dataset.only_file()) for dataset in sets]
    mixed, placed_s = mix(latents, rate, options.offsets_s, gains, options.exact)
    n_samples = max(
        round(start_s * sample_rate) + dataset.entry(dataset.only_file()).n_samples
        for start_s, dataset in zip(placed_s, sets, strict=True)
    )
    write_latents(out, sets[0].model, out.stem, [mixed], n_samples, options.dtype)
    print(f"{out}: {len(sets)} files from {', '.join(f'{start_s:.6f} s' for start_s in placed_s)} on")


def _process(options) -> None:
    from lincae.latents.files import check_same_model, check_suffix, write_latents
    from lincae.latents.sets import LatentDataset
    from lincae.reencoder.module import ReEncoder

    out = check_suffix(options.out)
    module = ReEncoder.load(options.module, options.device)

    def latents(path: str) -> tuple[Tensor, int]:
        dataset = LatentDataset(path)
        check_same_model(dataset.model, module.autoencoder, path)
        return dataset.frames(dataset.only_file()), dataset.entry(dataset.only_file()).n_samples

    z, n_samples = latents(options.latents)
    if module.stereo and len(z) != 1:
        raise ValueError(f"{options.latents} has {len(z)} channels, mono to stereo takes one")
    condition = module.oracle(latents(options.like)[0][None]) if options.like else None
    processed = module.process(z, condition, options.seed)
    whole = [processed[0] if module.stereo else processed]
    write_latents(out, module.autoencoder, out.stem, whole, n_samples, options.dtype)


def _info(options) -> None:
    from lincae.latents.sets import LatentDataset, read_skipped

    dataset = LatentDataset(options.latents)
    entries = [dataset.entry(file) for file in dataset.files]
    seconds = sum(entry.n_samples for entry in entries) / dataset.model["sample_rate"]
    facts = {"model": dataset.model, "dtype": dataset.dtype, "files": len(entries), "hours": seconds / 3600}
    facts |= {"skipped": len(read_skipped(options.latents))} if dataset.source.is_dir() else {}
    print(json.dumps(facts, indent=2))
    for entry in entries:
        shape = f"({entry.channels}, {entry.latent_channels}, {entry.n_frames})"
        name = entry.file.encode(errors="backslashreplace").decode()  # names need not be UTF-8
        print(f"{entry.n_samples / dataset.model['sample_rate']:10.3f} s  {shape:>16}  {name}")


COMMANDS = {"encode": _encode, "decode": _decode, "mix": _mix, "process": _process, "info": _info}


if __name__ == "__main__":
    main()
