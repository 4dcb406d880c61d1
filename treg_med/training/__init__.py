"""Training of the embedded prior: autoencoder, text encoder and denoiser, each resumable."""
