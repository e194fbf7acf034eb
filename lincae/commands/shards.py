"""`lincae shards`: write corpora as few large files."""

import sys

from lincae.data.corpora import Corpora, weighted_folders
from lincae.data.shards import Shards, write_shards


def main(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(
        "python -m lincae.commands.shards", description="Write corpora as shards."
    )
    parser.add_argument("command", choices=["write"])
    parser.add_argument("corpora", nargs="+", metavar="FOLDER=WEIGHT")
    parser.add_argument("out", help="folder of the shards; an interrupted writing is continued")
    parser.add_argument("--sample-rate", type=int, default=44100, help="of the model to be trained")
    parser.add_argument("--workers", type=int, help="threads (default: one a core)")
    options = parser.parse_args(arguments)
    try:
        corpora = Corpora(weighted_folders(options.corpora), options.sample_rate)
        write_shards(corpora, options.out, options.workers)
        written = Shards(options.out, options.sample_rate)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {written.description}")


if __name__ == "__main__":
    main()
