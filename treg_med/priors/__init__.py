"""Diffusion priors: the embedded latent prior, anybody's folder, and exact ones for tests."""

from treg_med.priors.base import Prediction, Prior
from treg_med.priors.gaussian import GaussianPrior
from treg_med.priors.latent import DEFAULT_PRIOR, LatentPrior

__all__ = ["DEFAULT_PRIOR", "GaussianPrior", "LatentPrior", "Prediction", "Prior"]
