"""`lincae reencoder pairs`: encode pairs of latents to train a Re-Encoder on."""

import sys

from lincae.data.audio import AudioFileError
from lincae.data.tracks import SPLITS
from lincae.machine import keep_freed_memory, resolve_device
from lincae.reencoder.module import TASKS
from lincae.reencoder.pairs import LatentPairs, sources_of, write_pairs

# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Exits with 1 and a message for an error."""
    import argparse

    from lincae.interop.models import load

    parser = argparse.ArgumentParser(
        "python -m lincae.commands.pairs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("audio", nargs="+", help="synthetic, or folders of audio files")
    parser.add_argument("out", help="a folder, continued if it exists")
    parser.add_argument("--model", required=True, help="a name that lincae.load knows, or a checkpoint")
    parser.add_argument("--factor", type=int, default=2, help="bandwidth: inputs keep 1 / FACTOR of the band")
    parser.add_argument("--split", default="train", choices=SPLITS["synthetic"], help="of synthetic")
    parser.add_argument("--songs", type=int, help="of synthetic (default: all)")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1, help="processes that share the work")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(arguments)
    try:
        model = load(options.model, options.device)
        if resolve_device(options.device).type == "cpu":
            keep_freed_memory()
        sources = sources_of(options.task, options.audio, options.split, options.songs)
        where = options.rank, options.world
        write_pairs(model, sources, options.out, options.task, options.factor, "float32", *where)
        if where == (0, 1):
            pairs = LatentPairs(options.out)
            print(f"{options.out}: {len(pairs.names)} pairs")
    except (ValueError, OSError, ImportError, AudioFileError) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))


if __name__ == "__main__":
    main()
