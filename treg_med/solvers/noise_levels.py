"""Noise levels of a diffusion loop in image units, and the timesteps of a prior that stand for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.priors.base import Prior
from treg_med.solvers.ddim import DDIMStep, steps_at

__all__ = ["NoiseLevel", "encoder_gain", "noise_levels"]

_PROBE = 0.05
_LARGEST_RATIO = 100.0


@dataclass(frozen=True)
class NoiseLevel:
    """One step of the loop, with one value ``(n,)`` per image.

    Parameters
    ----------
    std : Tensor
        Level sigma_k of white noise in the prior's image units.
    step : DDIMStep
        Of the timesteps of the prior whose latent noise has that level.
    """

    std: Tensor
    step: DDIMStep

    @property
    def timestep(self) -> Tensor:
        """Timesteps ``(n,)``."""
        return self.step.timestep


def encoder_gain(prior: Prior, image: Tensor) -> float:
    r"""Return the latent noise per unit of white image noise, :math:`\|E(x + s n) - E(x)\|_{rms} / s`.

    ``image`` is real ``(n, 1, H, W)`` in [-1, 1]. For an orthonormal encoder the gain is its scaling factor; for any
    other it is measured here, so that a level in image units means the same for every prior.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(image.shape[1:], generator=generator, dtype=image.dtype).to(image.device)
    moved = prior.encode(image + _PROBE * noise) - prior.encode(image)
    return float(moved.square().mean().sqrt() / noise.square().mean().sqrt()) / _PROBE


def noise_levels(prior: Prior, gain: float, first: Tensor, last: Tensor, steps: int) -> list[NoiseLevel]:
    """Return levels that fall geometrically from `first` to `last` ``(n,)``, as the prior's timesteps allow.

    The level of a step is that of the nearest timestep from 1 on, so that the network is told the noise it gets.
    """
    alphas = prior.alphas_cumprod
    ratios = ((1 - alphas) / alphas.clamp_min(1e-12)).sqrt().clamp_max(_LARGEST_RATIO).to(first)
    known = ratios / gain
    high, low = (level.clamp(known[1], known[-1]).log() for level in (first, last))
    shares = torch.linspace(0, 1, steps).to(first)[:, None]
    wanted = torch.lerp(high[None], low[None], shares)
    timesteps = 1 + (known[1:].log() - wanted[..., None]).abs().argmin(-1)
    return [NoiseLevel(known[step.timestep], step) for step in steps_at(prior, timesteps, first)]
