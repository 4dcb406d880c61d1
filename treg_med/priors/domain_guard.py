r"""How far an image lies from what a prior was trained on, in one number.

A denoiser that knows an image estimates it from noise about as well as it does slices of its training domain. What it
errs is compared with what a linear filter errs that knows the local variance of the image, so that texture alone is not
far and a flat phantom is not near; both too much and too little count. Two numbers on the object's size and on what it
fills of the frame stand beside them.

What it does not see: an upright head on its side, and another organ or a picture with background around it. A denoiser
of images takes the noise off those nearly as well as off its own. A number below the limit is no proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.codec import even_margins
from treg_med.errors import FormatError

if TYPE_CHECKING:
    from treg_med.priors.base import Prior
    from treg_med.training.slices import CaptionedSlices

__all__ = ["DOMAIN", "DomainGuard", "calibrate_domain", "domain_features"]

#: Entry of a prior's card.
DOMAIN = "domain"
_LEVELS = (69, 282, 838)
#: Values above are the object: a tenth of the upper level, of images in [-1, 1].
_OBJECT = -0.8
# More slices say little more, and each costs as many evaluations as there are levels.
_MOST_SLICES = 120
# Of fewer no covariance of so many numbers is known.
_LEAST_SLICES = 24
_FOLDS = 5
_BATCH = 4
# Share of the covariance that is taken as its diagonal alone, and the least spread of a number.
_SHRINKAGE, _FLOOR = 0.05, 0.05
_QUANTILES = (0.5, 0.9, 0.98, 1.0)
# The limit lies a little above the distance that so many slices of unseen subjects keep.
_KEPT, _MARGIN = 0.98, 1.1
_TINY = 1e-9


@dataclass(frozen=True, eq=False)
class DomainGuard:
    r"""Mahalanobis distance of an image's features f from those of validation slices, over its limit.

    .. math:: d = \frac{1}{l} \sqrt{(f - \mu)^T \Sigma^{-1} (f - \mu)}

    Nearly all validation slices lie below one, most below one half; above one the prior is not to be trusted.

    Parameters
    ----------
    levels
        Timesteps of the features, as many evaluations of the network per image.
    mean, precision
        :math:`\mu` ``(d,)`` and :math:`\Sigma^{-1}` ``(d, d)``, float64.
    limit
        l.

    Lee et al.: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    NeurIPS 2018, arXiv 1807.03888. Graham et al.: Denoising diffusion models for out-of-distribution detection, CVPR
    workshops 2023, arXiv 2211.07740.
    """

    levels: tuple[int, ...]
    mean: Tensor
    precision: Tensor
    limit: float

    @classmethod
    def of(cls, prior: object) -> DomainGuard | None:
        """Read the guard off a prior's card; None where the prior has no card, or its card no such entry.

        Raises
        ------
        FormatError
            If the entry is not what `calibrate_domain` makes.
        """
        card = getattr(prior, "card", None)
        entry = card.get(DOMAIN) if isinstance(card, Mapping) else None
        if entry is None:
            return None
        try:
            levels = tuple(int(level) for level in entry["levels"])
            mean = torch.tensor(entry["mean"], dtype=torch.float64)
            covariance = torch.tensor(entry["covariance"], dtype=torch.float64)
            limit = float(entry["limit"])
            steps = len(prior.alphas_cumprod)  # type: ignore[attr-defined]
            size = 2 * len(levels) + 1
            fits = mean.shape == (size,) and covariance.shape == (size, size)
            if not (fits and levels and 0 <= min(levels) <= max(levels) < steps and 0 < limit < math.inf):
                raise ValueError(f"{len(levels)} levels with a mean of shape {tuple(mean.shape)} and limit {limit}")
            precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"expected levels, mean, covariance and limit under {DOMAIN!r} in the prior's card, got others "
                f"({' '.join(str(error).split())[:120]}); export the prior again, or remove the entry"
            ) from error
        return cls(levels, mean, precision, limit)

    @torch.no_grad()
    def distance(self, prior: Prior, image: Tensor) -> Tensor:
        """Return d of prior images ``(n, 1, H, W)`` in [-1, 1], not padded, as ``(n,)`` float64 on the CPU.

        The noise is the same for every image of a size, so that no result depends on its neighbours.
        """
        noise = torch.Generator().manual_seed(0)
        return self.of_features(domain_features(prior, image, self.levels, noise))

    def of_features(self, features: Tensor) -> Tensor:
        """Return d of features ``(n, d)``."""
        return _mahalanobis(features, self.mean, self.precision) / self.limit


@torch.no_grad()
def domain_features(
    prior: Prior, image: Tensor, levels: Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    r"""Return what tells the domain of images, ``(n, 2 levels + 1)`` float64 on the CPU.

    With the latent z, its variance v in a window of 3 x 3, and the noise :math:`\sigma_t^2 = (1 - a) / a` of a level

    .. math::
        r_t = \log \overline{|\hat z_0(z_t, t) - z|^2} - w_t, \qquad
        w_t = \log \overline{v \sigma_t^2 / (v + \sigma_t^2)}

    for all levels; then :math:`w_t - w_{t_0}` of all but the first, the logarithm of the object's pixels, and the share
    of the frame's border that lies on the object: it tells what was cut out of something larger. Background around the
    object changes what a denoiser errs little, and all else not at all. The text is the empty one, so that a wrong text
    does not make an image strange.

    Parameters
    ----------
    prior : Prior
        Must take the empty text.
    image : Tensor ``(n, 1, H, W)``
        In [-1, 1], not padded.
    levels : sequence of int
        Timesteps t.
    generator : torch.Generator, optional
        Of the noise, which all images of a call share.
    """
    height, width = image.shape[-2:]
    margins = even_margins(height, width, prior.image_multiple)
    latent = prior.encode(functional.pad(image, margins, value=-1.0))
    noise = torch.randn((1, *latent.shape[1:]), generator=generator).to(latent)
    condition = prior.embed("").to(latent.device)
    condition = condition.expand(len(latent), *condition.shape[1:])
    variance = _local_variance(latent)
    residuals, references = [], []
    for level in levels:
        alpha = prior.alphas_cumprod[level].to(latent)
        noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * noise
        residuals.append(_log_mean((prior.predict(noisy, level, condition).clean - latent).square()))
        spread = (1 - alpha) / alpha.clamp_min(_TINY)
        references.append(_log_mean(variance * spread / (variance + spread)))
    excess = [residual - reference for residual, reference in zip(residuals, references, strict=True)]
    rise = [reference - references[0] for reference in references[1:]]
    return torch.stack([*excess, *rise, *_shape(image)], dim=1).double().cpu()


@torch.no_grad()
def calibrate_domain(prior: Prior, validation: CaptionedSlices, *, seed: int = 0) -> dict[str, Any] | None:
    """Return the card's entry: levels, mean and covariance of the features of validation slices, limit, quantiles.

    The limit is that of slices of subjects that mean and covariance do not know: every subject is left out once. At
    most 120 slices are taken, evenly spaced; of fewer than 24 nothing is learned, and there is no entry.

    Parameters
    ----------
    prior : Prior
        As it is exported.
    validation : CaptionedSlices
        Slices of subjects that it was not trained on.
    seed : int
        Of the noises: every slice has its own, as the chance in them is part of the spread.
    """
    if len(validation) < _LEAST_SLICES:
        return None
    slices = validation.evenly(_MOST_SLICES)
    # A slice at a time would be as good; a few share a noise because they are faster together.
    parts = [
        domain_features(prior, part.float() / 127.5 - 1, _LEVELS, torch.Generator().manual_seed(seed + k))
        for k, part in enumerate(slices.images.split(_BATCH))
    ]
    features = torch.cat(parts)
    mean, covariance = _moments(features)
    distances = _held_out_distances(features, slices.subjects)
    limit = _MARGIN * float(distances.quantile(_KEPT))
    return {
        "levels": list(_LEVELS),
        "mean": [round(value, 6) for value in mean.tolist()],
        "covariance": [[float(f"{value:.8g}") for value in row] for row in covariance.tolist()],
        "limit": round(limit, 4),
        "slices": len(slices),
        "quantiles": {str(q): round(float(distances.quantile(q)) / limit, 4) for q in _QUANTILES},
    }


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance, drawn towards its diagonal so that no direction seems free of spread."""
    covariance = torch.cov(features.T)
    diagonal = torch.diag(covariance.diagonal())
    floor = _FLOOR**2 * torch.eye(len(covariance), dtype=covariance.dtype)
    return features.mean(0), torch.lerp(covariance, diagonal, _SHRINKAGE) + floor


def _held_out_distances(features: Tensor, subjects: Sequence[str]) -> Tensor:
    """Distance of every slice from the slices of other subjects; of other slices where there are too few subjects."""
    names = sorted(set(subjects))
    enough = len(names) >= _FOLDS
    fold = torch.tensor([(names.index(s) if enough else k) % _FOLDS for k, s in enumerate(subjects)])
    distances = torch.zeros(len(features), dtype=features.dtype)
    for k in range(_FOLDS):
        held = fold == k
        mean, covariance = _moments(features[~held])
        distances[held] = _mahalanobis(features[held], mean, torch.linalg.inv(covariance))
    return distances


def _mahalanobis(features: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    away = features - mean
    return ((away @ precision) * away).sum(1).clamp_min(0).sqrt()


def _local_variance(latent: Tensor) -> Tensor:
    padded = functional.pad(latent, (1, 1, 1, 1), mode="replicate")
    mean = functional.avg_pool2d(padded, 3, 1)
    return (functional.avg_pool2d(padded.square(), 3, 1) - mean.square()).clamp_min(0)


def _log_mean(value: Tensor) -> Tensor:
    return value.flatten(1).mean(1).clamp_min(_TINY).log()


def _shape(image: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the object's pixels, and the share of the border that lies on it, ``(n,)`` each."""
    inside = (image[:, 0] > _OBJECT).to(image)
    border = torch.cat([inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]], dim=1)
    return inside.flatten(1).sum(1).add(1).log(), border.mean(1)
