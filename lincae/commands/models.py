"""`lincae models`."""

import click

from lincae.checkpoints import BUNDLED
from lincae.interop import models as known
from lincae.interop.codecs import HUB, STABLE_AUDIO, STABLE_AUDIO_HUB
from lincae.interop.linear import EXAMPLES
from lincae.interop.references import REFERENCES


@click.command()
def models() -> None:
    """List the models that commands and `lincae.load` take by name, and where each comes from.

    Commands also take folders of checkpoints: our own, the official training script's, or those of diffusers
    and transformers.

    \b
        lincae models
        lincae encode song.wav song.safetensors --model desk/lin-cae
    """
    places = dict.fromkeys(known.LIN_CAE, f"https://huggingface.co/{known.LIN_CAE_HUB}")
    places[known.MUSIC2LATENT] = f"https://huggingface.co/{known.MUSIC2LATENT_HUB}"
    places |= {name: f"https://huggingface.co/{repository}" for name, repository in HUB.items()}
    places |= dict.fromkeys((*REFERENCES, *EXAMPLES), "computed, not trained")
    places[STABLE_AUDIO] = f"https://huggingface.co/{STABLE_AUDIO_HUB}"
    for name in known.names():
        click.echo(f"{name:24} {places.get(name, BUNDLED / name)}")
