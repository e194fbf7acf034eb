"""`lincae reencoder`: train a Re-Encoder."""

import sys
from dataclasses import replace

import torch

from lincae.machine import keep_freed_memory, resolve_device
from lincae.reencoder.config import FACTORS, OBJECTIVES, PRESETS, recipe
from lincae.reencoder.module import SIZES, TASKS
from lincae.reencoder.pairs import LatentPairs, sources_of, write_pairs
from lincae.reencoder.training import _frozen, folders, train
from lincae.training.runs import (
    NonFiniteError,
    assignment,
)

# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Exits with 1 and a message for an error."""
    import argparse

    from lincae.interop.models import load

    parser = argparse.ArgumentParser("python -m lincae.commands.reencoder", description="Train a Re-Encoder.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--preset", default="desk", choices=PRESETS)
    parser.add_argument("--size", choices=SIZES, help="default: the preset's M")
    parser.add_argument("--objective", default="l1", choices=OBJECTIVES, help="of bandwidth extension")
    parser.add_argument("--layout", default="left_right", help="of mono-to-stereo: left_right or mid_side")
    parser.add_argument("--model", required=True, help="a name that lincae.load knows, or a checkpoint")
    parser.add_argument(
        "--data", nargs="+", default=["synthetic"], help="synthetic, or folders of audio files"
    )
    songs = "synthetic songs to encode for training, and a quarter as many for validation (default: all)"
    parser.add_argument("--songs", type=int, help=songs)
    keeps = "bandwidth: inputs keep 1 / FACTOR of the band (default: the preset's)"
    parser.add_argument("--factor", type=int, help=keeps)
    parser.add_argument("--pairs", help="folder for the encoded pairs (default: below runs/pairs)")
    parser.add_argument("--run-folder", "--run", dest="run", help="continued if it exists")
    parser.add_argument("--start", help="a module.safetensors to start from")
    parser.add_argument("--out", help="also write the trained module here, in half precision")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="e.g. steps=1000")
    options = parser.parse_args(arguments)
    try:
        changes = dict(assignment(text) for text in options.set)
        config = recipe(options.task, options.preset, options.size, options.objective, options.layout)
        config = replace(config, **changes)
        model = load(options.model, options.device)
        if resolve_device(options.device).type == "cpu":
            keep_freed_memory()
        factor = options.factor or FACTORS[options.preset]
        run, halves = folders(model, config, options.pairs, options.run, factor, options.data)
        for split, folder in halves.items():
            if split == "train" or options.data == ["synthetic"]:
                count = options.songs and options.songs // (4 if split == "test" else 1)
                sources = sources_of(options.task, options.data, split, count)
                write_pairs(model, sources, folder, options.task, factor)
        held_out = LatentPairs(halves["test"]) if options.data == ["synthetic"] else None
        pairs = LatentPairs(halves["train"])
        mel = model if options.objective == "l1+mel" else None
        start = {"start": options.start, "device": options.device}
        module = train(config, pairs, run, validation=held_out, model=_frozen(mel), **start)
        if options.out:
            print(module.save(options.out, torch.float16))
    except (ValueError, TypeError, OSError, ImportError, NonFiniteError) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))


if __name__ == "__main__":
    main()
