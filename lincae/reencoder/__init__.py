"""The Re-Encoder (Bralios et al., WASPAA 2025): audio processing on latents alone."""

from lincae.reencoder.module import ReEncoder  # as the cards of released modules say it

__all__ = ["ReEncoder"]
