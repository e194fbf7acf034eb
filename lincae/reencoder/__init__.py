"""The Re-Encoder (Bralios et al., WASPAA 2025): audio processing on latents alone."""
