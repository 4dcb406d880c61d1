"""Which timesteps a training batch shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["above", "draw_crop_timesteps", "draw_timesteps", "evenly_spread"]


def draw_timesteps(count: int, low_noise_share: float, high_noise_share: float, generator: torch.Generator) -> Tensor:
    """Stratified timesteps, ``(count,)``, with extra mass at both ends.

    Below 250 live the solvers that start from a reconstruction. Only near the end, where even the mean intensity of a
    region is lost in the noise, must the network take contrast and plane from the words: the mass above 850 grows
    towards it.
    """
    u = _shuffled_strata(count, generator)
    middle = 1 - low_noise_share - high_noise_share
    t = torch.where(
        u < low_noise_share,
        250 * u / max(low_noise_share, 1e-9),
        torch.where(
            u < low_noise_share + middle,
            1000 * (u - low_noise_share) / max(middle, 1e-9),
            1000 - 150 * ((1 - u) / max(high_noise_share, 1e-9)) ** 2,
        ),
    )
    return t.long().clamp(0, 999)


def draw_crop_timesteps(count: int, end: int, generator: torch.Generator) -> Tensor:
    """Stratified timesteps below `end`, ``(count,)``, evenly spread in the logarithm of ``t + 1``."""
    return (torch.exp(_shuffled_strata(count, generator) * math.log(end)) - 1).long()


def above(timesteps: Tensor, least: Tensor) -> Tensor:
    """Squeeze timesteps ``(count,)`` of a schedule of 1000 into those from `least` ``(count,)`` on."""
    return (least + timesteps * (1000 - least) / 1000).long()


def evenly_spread(step: int, share: float) -> bool:
    """Whether a step is one of the `share` of all steps that are evenly spread over them."""
    return math.floor((step + 1) * share) > math.floor(step * share)


def _shuffled_strata(count: int, generator: torch.Generator) -> Tensor:
    """One uniform number from each of `count` equal parts of [0, 1), in random order."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return u[torch.randperm(count, generator=generator)]
