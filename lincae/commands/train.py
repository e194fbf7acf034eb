"""`lincae train`: train a consistency autoencoder, or a spectral VAE."""

import shlex
import sys
from pathlib import Path

from lincae.interop.recipes import objective_of, recipe
from lincae.linearity import VARIANTS
from lincae.training.config import OWN_VARIANTS, PRESETS
from lincae.training.loop import LOG, train
from lincae.training.runs import NonFiniteError, OutOfMemoryError, assignment, noted
from lincae.vae.config import VAE_PRESETS, VAE_VARIANTS

# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    import argparse

    from lincae.data.crops import training_data

    parser = argparse.ArgumentParser(
        "python -m lincae.training", description="Train a consistency autoencoder, or a spectral VAE."
    )
    parser.add_argument("--preset", default="desk", choices=list(PRESETS | VAE_PRESETS))
    parser.add_argument("--variant", default="lin-cae", choices=list(VARIANTS | OWN_VARIANTS | VAE_VARIANTS))
    sources = "synthetic, FOLDER=WEIGHT ... or shards:FOLDER"
    parser.add_argument("--data", nargs="+", default=["synthetic"], help=sources)
    held_out = "what to validate on (default: synthetic test songs, or other crops of --data)"
    parser.add_argument("--validation", nargs="+", metavar="FOLDER=WEIGHT", help=held_out)
    # torchrun on Python 3.11 takes --run for an abbreviation of its own --run-path.
    folder = "run folder, continued if it exists (default: runs/PRESET-VARIANT); under torchrun the long name"
    parser.add_argument("--run-folder", "--run", dest="run", metavar="FOLDER", help=folder)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    per_node = "processes per node (default: those of torchrun or SLURM, or 1)"
    parser.add_argument("--devices", type=int, help=per_node)
    parser.add_argument("--nodes", type=int, help="machines that share the run folder (default: likewise)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, for each device")
    parser.add_argument("--keep", type=int, default=2, help="training states to keep")
    parser.add_argument("--regroup", action="store_true", help="continue a run of other devices x nodes")
    parser.add_argument("--compiler", metavar="BACKEND", help="torch.compile the network, e.g. inductor")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="e.g. steps=1000 linearity.gain_max=2"
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    try:
        changes = dict(assignment(text) for text in options.set)
        config = recipe(options.preset, options.variant, **changes)
        rate = config.sample_rate
        data = training_data(options.data, rate, split="train")
        held_out, seed = data, config.seed + 2  # other crops
        if options.validation:
            held_out = training_data(options.validation, rate)
        elif options.data == ["synthetic"]:
            held_out, seed = training_data(options.data, rate, split="test"), 0
        given = ("device", "devices", "nodes", "workers", "keep", "regroup", "compiler")
        run = Path(options.run or f"runs/{options.preset}-{options.variant}")
        with noted(run, LOG):
            train(
                objective_of(config),
                data,
                run,
                validation=held_out.crops(range(16), config.crop_samples, seed),
                command=shlex.join(["python", "-m", "lincae.training", *arguments]),
                **{key: getattr(options, key) for key in given},
            )
    except (ValueError, OSError, NonFiniteError, OutOfMemoryError) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))


if __name__ == "__main__":
    main()
