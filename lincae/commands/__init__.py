"""The command `lincae`: its subcommands, each imported when it is called, and one style of errors.

The exit status is 0 when all was done, 1 after an error, 2 for words that the command does not know, and 3
when the rest was done but files were skipped. Errors go to stderr, as "error: ..." and notes below it.
"""

import importlib
import sys
from collections.abc import Sequence

import click

# Each name stands for a function of a module in this folder: `lincae --help` imports none of them.
COMMANDS = {
    "data": ("data:data", "Fetch or make data sets."),
    "decode": ("latents:decode", "Turn latents into audio."),
    "demo": ("models:demo", "Write a page that plays sums, differences and multiples of latents."),
    "desk": ("desk:desk", "Serve the latent mixing desk as a page."),
    "encode": ("latents:encode", "Turn audio files into latents."),
    "evaluate": ("models:evaluate", "Measure models as the paper's tables do."),
    "export": ("models:export", "Write encoder and decoder as ONNX files."),
    "info": ("latents:info", "Show what a file or folder of latents holds."),
    "mix": ("latents:mix", "Add the latents of files, each with its gain and start."),
    "models": ("models:models", "List the models that can be loaded by name, and where they come from."),
    "process": ("latents:process", "Send latents through a Re-Encoder."),
    "reencoder": ("reencoder:reencoder", "Train Re-Encoders, which work on latents."),
    "report": ("models:report", "Report how linear models are, as one page."),
    "shards": ("data:shards", "Write corpora as few large files."),
    "train": ("train:train", "Train a consistency autoencoder, or a spectral VAE."),
}


class Later(click.Command):
    """A subcommand that is imported when it is called, completed or asked for its own help."""

    def __init__(self, name: str, home: str, summary: str):
        super().__init__(name, help=summary, short_help=summary)
        self.module, self.function = home.split(":")

    def make_context(self, *arguments, **settings) -> click.Context:
        module = importlib.import_module(f"lincae.commands.{self.module}")
        return getattr(module, self.function).make_context(*arguments, **settings)


lincae = click.Group(
    "lincae",
    commands=[Later(name, *home) for name, home in COMMANDS.items()],
    help="Linear consistency autoencoders: audio latents that add, subtract and scale like the sound.",
    epilog="""`lincae COMMAND --help` shows an example of each. A shell completes commands and options after
    eval "$(_LINCAE_COMPLETE=bash_source lincae)", or zsh_source or fish_source.""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; with `arguments` None, that of this process. Exits unless all went well."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        status = lincae.main(arguments, "lincae", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f"{context.get_usage()}\n" if context else ""
        click.echo(f"{usage}error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except click.Abort as aborted:  # click's word for Ctrl-C, which is to end this process as it does others
        raise KeyboardInterrupt from aborted
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("lincae."):
            raise
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    if status:
        sys.exit(status)
