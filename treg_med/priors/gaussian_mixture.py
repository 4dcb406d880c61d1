"""A prior with several modes and a closed-form denoiser: where a posterior is ambiguous, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.priors.base import Prediction
from treg_med.priors.gaussian import GaussianPrior

__all__ = ["GaussianMixturePrior"]


class GaussianMixturePrior(GaussianPrior):
    r"""Images from one of several Gaussians of one covariance; a text weighs the components.

    For ``x ~ \sum_k w_k N(mu_k, C)`` and ``z_t = sqrt(ab) x + sqrt(1 - ab) eps`` the exact clean estimate is

    .. math::
        E[x | z_t] = \sum_k r_k E_k[x | z_t], \qquad
        r_k \propto w_k N(z_t; \sqrt{ab}\, \mu_k, ab\, C + (1 - ab) I).

    Parameters
    ----------
    means : Tensor ``(K, H, W)``
        Mean images in [-1, 1].
    weights : Mapping of str to sequence of float
        w per text, adding up to one; the empty text must be there. An unknown text is an error.
    covariance : Tensor ``(H*W, H*W)``
        Symmetric positive definite.
    alphas_cumprod : Tensor ``(steps,)``, optional
        Noise schedule; a cosine schedule of 1000 steps by default.

    Raises
    ------
    ConfigError, GeometryError
        If weights are missing, negative or do not add up to one, or are not as many as the means.
    """

    def __init__(
        self,
        means: Tensor,
        weights: Mapping[str, Sequence[float]],
        covariance: Tensor,
        alphas_cumprod: Tensor | None = None,
    ) -> None:
        if "" not in weights:
            raise ConfigError(f"expected weights for the empty text '', got texts {sorted(weights)}")
        table = torch.tensor([list(weights[text]) for text in weights], dtype=torch.float64)
        if table.shape[1] != len(means):
            raise GeometryError(f"expected {len(means)} weights per text, one per mean, got {table.shape[1]}")
        if bool((table < 0).any()) or not torch.allclose(table.sum(1), torch.ones(1, dtype=torch.float64)):
            raise ConfigError(f"expected weights >= 0 that add up to one, got {table.tolist()}")
        super().__init__({"": means[0]}, covariance, alphas_cumprod)
        self.texts = list(weights)
        self.means = means
        self.weights = table

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Return the weights ``(n, K)`` that belong to the texts."""
        return self.weights[self.indices(text)]

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        """Return the exact noise and clean estimates at a timestep, or at one per latent ``(n,)``."""
        alpha = self.alphas_cumprod[torch.as_tensor(timestep).expand(len(latent))]
        parts = [super(GaussianMixturePrior, self).predict(latent, timestep, mean[None, None]) for mean in self.means]
        shares = torch.softmax(self._log_likelihoods(latent, alpha) + condition.log(), 1).to(latent)
        clean = sum(shares[:, k, None, None, None] * part.clean for k, part in enumerate(parts))
        signal, spread = (part.sqrt()[:, None, None, None].to(latent) for part in (alpha, 1 - alpha))
        return Prediction((latent - signal * clean) / spread, torch.as_tensor(clean))

    def _log_likelihoods(self, latent: Tensor, alpha: Tensor) -> Tensor:
        """Log-likelihood of every component ``(n, K)`` but for what they share."""
        variances = alpha[:, None] * self._variances + 1 - alpha[:, None]
        away = latent[:, 0, None].double() - alpha.sqrt()[:, None, None, None] * self.means.double()
        white = (away.flatten(2) @ self._vectors).square() / variances[:, None]
        return -white.sum(2) / 2
