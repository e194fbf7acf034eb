"""`python -m lincae.training` is `lincae train`, as the cards of released checkpoints say it."""

from lincae.commands.train import main

if __name__ == "__main__":
    main()
