"""The spectral VAE, the second kind of autoencoder: its model, its objective, its configuration."""
