"""What several subcommands share: options that take many values, and the same names for the same things."""

import itertools
import json
from functools import partial
from typing import Any

import click

WORDS = "lincae.words"


class Command(click.Command):
    """A command whose repeatable options also take their values in a row: `--gains-db 0 -6 -inf`.

    Texts of such an option end with the next option, numbers with the next word that is none. The words of
    the command line stay in the context's `meta[WORDS]`, for cards.
    """

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[WORDS] = list(args)
        repeatable = {}
        for option in self.params:
            if isinstance(option, click.Option) and option.multiple:
                repeatable |= dict.fromkeys(option.opts, option.type)

        spread: list[str] = []
        name = None
        for previous, word in itertools.pairwise(["", *args]):
            if word in repeatable:
                name = word
            elif name and previous != name:
                if _is_value(word, repeatable[name]):
                    spread.append(name)
                else:
                    name = None
            spread.append(word)
        return super().parse_args(context, spread)


def _is_value(word: str, kind: click.ParamType) -> bool:
    if kind is not click.FLOAT:
        return not word.startswith("--")

    try:
        float(word)
    except ValueError:
        return False
    return True


def together(*decorators):
    """One decorator of several: what some commands share, in the order of their help."""

    def decorate(command):
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


option = partial(click.option, show_default=True)
several = partial(option, multiple=True)


def choice(name: str, allowed, **settings):
    """An option with one of the `allowed` values."""
    return option(name, type=click.Choice(list(allowed)), **settings)


model = option("--model", required=True, help="A name that `lincae models` lists, or a checkpoint.")
device = option("--device", default="auto", help="auto, cpu, cuda or mps.")
DATASETS = "embedded, clip, synthetic, sampled, musdb, free-music, pairs, a folder."
music = together(
    option("--data", "dataset", default="embedded", help=DATASETS),
    option("--n-tracks", type=click.IntRange(1), help="Take the first tracks only."),
)
models_and_music = together(click.argument("models", nargs=-1, metavar="MODEL..."), music, device)
micro = "Micro-batches of a step, shared by all processes; default: one each."
batches = together(
    option("--devices", type=int, help="Processes per node; default: those of torchrun or SLURM, or 1."),
    option("--nodes", type=int, help="Machines that share the run folder; default: likewise."),
    option("--accumulate", type=int, help=micro),
    option("--workers", default=0, help="Processes that load data, for each device."),
)
heard = option("--seconds", default=6.0, help="How much of each track is heard.")


def assignments(_context, _option, texts) -> dict[str, Any]:
    """FIELD=VALUE texts by field; a value is JSON, or else text."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {text!r}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values


changes = several(
    "--set",
    "changes",
    metavar="FIELD=VALUE",
    callback=assignments,
    help="Settings to change, e.g. steps=1000.",
)
# torchrun on Python 3.11 takes --run for an abbreviation of its own --run-path.
run_folder = option("--run-folder", "--run", "run", help="Continued if it exists. Under torchrun: long name.")
