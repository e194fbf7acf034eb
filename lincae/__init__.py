"""Linear consistency autoencoders: audio latents that add, subtract and scale like the sound.

    import lincae
    model = lincae.load("runs/desk-lin-cae")
    z = model.encode(audio)                  # (B, T) -> (B, C, L)
    quieter = model.decode(0.5 * z)          # about 0.5 * audio
    vocals = model.decode(z_mix - z_accompaniment)

Axis legend, used in every docstring: `B` batch, `S` source (stem), `T` samples, `C` latent channels, `L`
latent frames, `F` frequency bins, `N` spectrogram frames. Audio is `(B, T)` mono, latents are `(B, C, L)`.
"""

from lincae._torchaudio import ensure_torchaudio

ensure_torchaudio()  # before anything that may import torchaudio, transformers or diffusers

from lincae.autoencoder import Autoencoder  # noqa: E402
from lincae.linearity import VARIANTS, LinearityConfig  # noqa: E402
from lincae.presets import AutoencoderConfig, SpectralVaeConfig  # noqa: E402
from lincae.pretrained import load  # noqa: E402
from lincae.recipes import PRESETS, TrainingConfig, VaeTrainingConfig, recipe  # noqa: E402
from lincae.spectral_vae import SpectralVae  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "VARIANTS",
    "Autoencoder",
    "AutoencoderConfig",
    "LinearityConfig",
    "SpectralVae",
    "SpectralVaeConfig",
    "TrainingConfig",
    "VaeTrainingConfig",
    "load",
    "recipe",
]
