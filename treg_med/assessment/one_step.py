r"""Noise a latent, estimate it in one step, and compare.

.. math:: z_t = \sqrt{\bar\alpha_t}\, z + \sqrt{1 - \bar\alpha_t}\, n, \qquad n \sim N(0, I)
"""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.priors.base import Prior
from treg_med.training.slices import CaptionedSlices

__all__ = ["TIMESTEPS", "denoising_error", "noised", "prior_images", "usable_levels"]

#: Levels of the denoising error, about evenly spaced in signal to noise.
TIMESTEPS = (4, 12, 31, 69, 145, 282, 487, 695, 838, 970)
_TRAINING_STEPS = 1000


def prior_images(slices: CaptionedSlices) -> Tensor:
    """Images of the slices as a prior sees them, ``(n, 1, H, W)`` in [-1, 1]."""
    return slices.images.float() / 127.5 - 1


def noised(prior: Prior, latent: Tensor, timestep: int, generator: torch.Generator) -> Tensor:
    """Return z_t of a latent ``(n, c, h, w)``."""
    alpha = prior.alphas_cumprod[timestep].to(latent)
    return alpha.sqrt() * latent + (1 - alpha).sqrt() * torch.randn(latent.shape, generator=generator).to(latent)


@torch.no_grad()
def denoising_error(
    prior: Prior, slices: CaptionedSlices, timesteps: tuple[int, ...] = TIMESTEPS, seed: int = 0
) -> dict[int, float]:
    """Return the rms error per pixel, in [-1, 1] units, of the decoded one-step clean estimate with the right text."""
    generator = torch.Generator().manual_seed(seed)
    images = prior_images(slices)
    out = {}
    for t in timesteps:
        squares = []
        for start in range(0, len(images), 8):
            x = images[start : start + 8]
            noisy = noised(prior, prior.encode(x), t, generator)
            clean = prior.predict(noisy, t, prior.embed(slices.captions[start : start + 8])).clean
            squares.append((prior.decode(clean) - x).square().mean((1, 2, 3)))
        out[t] = float(torch.cat(squares).mean().sqrt())
    return out


@torch.no_grad()
def usable_levels(prior: Prior, levels: tuple[int, ...], like: Tensor) -> tuple[int, ...]:
    """Levels of a schedule of 1000 steps on the prior's own, without those where it gives no finite estimate.

    A prior that predicts noise has no clean estimate where nothing of the signal is left.

    Raises
    ------
    ConfigError
        If no level is left.
    """
    steps = len(prior.alphas_cumprod)
    own = dict.fromkeys(min(level * steps // _TRAINING_STEPS, steps - 1) for level in levels)
    condition = prior.embed([""])
    latent = torch.randn(like[:1].shape, generator=torch.Generator().manual_seed(0)).to(like)
    finite = tuple(t for t in own if bool(prior.predict(latent, t, condition).clean.isfinite().all()))
    if not finite:
        raise ConfigError(f"expected finite estimates at timesteps {tuple(own)}, got none; check the prior's weights")
    return finite
