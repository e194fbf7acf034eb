"""What several subcommands share: options that take many values, and the same names for the same things."""

import itertools

import click

WORDS = "lincae.words"


class Command(click.Command):
    """A command whose repeatable options also take their values in a row: `--gains-db 0 -6 -inf`.

    Texts of such an option end with the next option, numbers with the next word that is none. The words of
    the command line stay in the context's `meta[WORDS]`, for logs and cards.
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


model = click.option("--model", required=True, help="A name that `lincae models` lists, or a checkpoint.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
dataset = click.option(
    "--data",
    "dataset",
    default="embedded",
    show_default=True,
    help="embedded (a real clip, then synthetic songs), clip, synthetic, musdb, or a folder.",
)
n_tracks = click.option("--n-tracks", type=click.IntRange(1), help="Take the first tracks only.")
