"""Linear consistency autoencoders: audio latents that add, subtract and scale like the sound.

    import lincae
    model = lincae.load("study/listen")
    z = model.encode(audio)                  # (B, T) -> (B, C, L)
    quieter = model.decode(0.5 * z)          # about 0.5 * audio
    vocals = model.decode(z_mix - z_accompaniment)

Shapes in docstrings follow the axis legend of `lincae.interface`.
"""

import importlib

from lincae.interop.torchaudio_stub import ensure_torchaudio

# This comes before anything that may import torchaudio, transformers or diffusers.
ensure_torchaudio()

__version__ = "0.1.0"

# Public names and the module that each is imported from when it is first used.
_HOMES = {
    "Autoencoder": "lincae.autoencoder",
    "AutoencoderConfig": "lincae.autoencoder",
    "LinearityConfig": "lincae.linearity",
    "PRESETS": "lincae.training.config",
    "SpectralVae": "lincae.vae.model",
    "SpectralVaeConfig": "lincae.vae.config",
    "TrainingConfig": "lincae.training.config",
    "VARIANTS": "lincae.linearity",
    "VaeTrainingConfig": "lincae.vae.config",
    "load": "lincae.reencoder.linear",
    "recipe": "lincae.interop.recipes",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"lincae has no {name!r}; its public names are {', '.join(__all__)}")

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
