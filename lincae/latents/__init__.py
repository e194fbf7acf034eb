"""Latents: arithmetic on them, and files that hold them."""
