"""`python -m lincae.training` is `lincae train`, as the cards of released checkpoints say it."""

import sys

from lincae.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
