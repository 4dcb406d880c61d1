"""Diffusion priors: the embedded latent prior, anybody's folder, and exact ones for tests.

The latent prior is imported on first use: its libraries take seconds, which classical methods need not wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treg_med.priors.base import Prediction, Prior
from treg_med.priors.gaussian import GaussianPrior
from treg_med.priors.gaussian_mixture import GaussianMixturePrior
from treg_med.priors.linear_codec import LinearCodecPrior

if TYPE_CHECKING:
    from treg_med.priors.latent import DEFAULT_PRIOR, LatentPrior

__all__ = [
    "DEFAULT_PRIOR",
    "GaussianMixturePrior",
    "GaussianPrior",
    "LatentPrior",
    "LinearCodecPrior",
    "Prediction",
    "Prior",
]

if not TYPE_CHECKING:  # a type checker would take __getattr__ as leave for any name

    def __getattr__(name: str) -> Any:
        """Import the latent prior on first use (PEP 562)."""
        if name in ("DEFAULT_PRIOR", "LatentPrior"):
            from treg_med.priors import latent

            return getattr(latent, name)
        raise AttributeError(f"module 'treg_med.priors' has no attribute {name!r}")
