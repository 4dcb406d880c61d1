"""Diffusion priors: the embedded latent prior, anybody's folder, and exact ones for tests."""

from treg_med.priors.base import Prediction, Prior
from treg_med.priors.gaussian import GaussianPrior
from treg_med.priors.gaussian_mixture import GaussianMixturePrior
from treg_med.priors.latent import DEFAULT_PRIOR, LatentPrior
from treg_med.priors.linear_codec import LinearCodecPrior

__all__ = [
    "DEFAULT_PRIOR",
    "GaussianMixturePrior",
    "GaussianPrior",
    "LatentPrior",
    "LinearCodecPrior",
    "Prediction",
    "Prior",
]
