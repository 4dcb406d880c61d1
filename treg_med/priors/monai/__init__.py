"""MONAI bundles of a 2-D autoencoder and denoiser as priors: wrapped, not converted; no expression is evaluated."""
