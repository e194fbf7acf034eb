"""`python -m lincae` is the command `lincae`, for torchrun too: `torchrun -m lincae train ...`."""

from lincae.cli import main

if __name__ == "__main__":
    main()
