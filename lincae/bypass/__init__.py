"""The bypass autoencoder, the third kind: a fixed linear map to latents, a decoder that is homogeneous."""
