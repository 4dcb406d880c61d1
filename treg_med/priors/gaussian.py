"""A prior with a closed-form denoiser and posterior: the yardstick every solver is tested against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.priors.base import Prediction

__all__ = ["GaussianPrior"]


class GaussianPrior:
    r"""Gaussian images whose mean depends on the text, with the identity as autoencoder.

    For ``x ~ N(mu, C)`` and ``z_t = sqrt(ab) x + sqrt(1 - ab) eps`` the exact clean estimate is

    .. math:: E[x | z_t] = \mu + \sqrt{ab}\, C (ab\, C + (1 - ab) I)^{-1} (z_t - \sqrt{ab}\, \mu).

    Parameters
    ----------
    means : Mapping of str to Tensor ``(H, W)``
        Mean image in [-1, 1] per text; the empty text must be there. An unknown text is an error.
    covariance : Tensor ``(H*W, H*W)``
        Symmetric positive definite, shared by all texts.
    alphas_cumprod : Tensor ``(steps,)``, optional
        Noise schedule; a cosine schedule of 1000 steps by default.
    """

    image_multiple = 1

    def __init__(self, means: Mapping[str, Tensor], covariance: Tensor, alphas_cumprod: Tensor | None = None) -> None:
        if "" not in means:
            raise ConfigError(f"expected a mean for the empty text '', got texts {sorted(means)}")
        self.texts = list(means)
        self.means = torch.stack([means[text] for text in self.texts])
        size = self.means[0].numel()
        if covariance.shape != (size, size):
            raise GeometryError(
                f"expected a covariance ({size}, {size}) for images {tuple(self.means[0].shape)}, "
                f"got {tuple(covariance.shape)}"
            )
        self.covariance = covariance
        self._variances, self._vectors = torch.linalg.eigh(covariance.double())
        steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
        cosine = torch.cos(steps * torch.pi / 2).square().clamp_min(1e-5)
        self.alphas_cumprod = cosine if alphas_cumprod is None else alphas_cumprod.double()

    def encode(self, image: Tensor) -> Tensor:
        """Return the image itself, ``(n, 1, H, W)``."""
        return image

    def decode(self, latent: Tensor) -> Tensor:
        """Return the latent itself, ``(n, 1, H, W)``."""
        return latent

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Return the mean images ``(n, 1, H, W)`` that belong to the texts."""
        return self.means[self.indices(text)][:, None]

    def indices(self, text: str | Sequence[str]) -> list[int]:
        """Return where texts stand among those of the prior; an unknown one is an error."""
        wanted = [text] if isinstance(text, str) else list(text)
        unknown = [entry for entry in wanted if entry not in self.texts]
        if unknown:
            raise ConfigError(f"expected one of the texts {self.texts}, got {unknown[0]!r}")
        return [self.texts.index(entry) for entry in wanted]

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Return nothing: a known text has its exact mean, and an unknown one is an error."""
        return ()

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        """Return the exact noise and clean estimates at a timestep, or at one per latent ``(n,)``."""
        alpha = self.alphas_cumprod[torch.as_tensor(timestep).expand(len(latent))][:, None]
        signal, spread = (part.sqrt()[..., None, None].to(latent) for part in (alpha, 1 - alpha))
        mean = condition.to(latent)
        gain = alpha.sqrt() * self._variances / (alpha * self._variances + 1 - alpha)
        away = (latent - signal * mean).flatten(1).double()
        moved = (away @ self._vectors * gain) @ self._vectors.T
        clean = mean + moved.to(latent).reshape(latent.shape)
        return Prediction((latent - signal * clean) / spread, clean)
