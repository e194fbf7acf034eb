"""The command `lincae` (`lincae.commands`), where the console script and the cards of models look for it."""

from lincae.commands import lincae, main

__all__ = ["lincae", "main"]
