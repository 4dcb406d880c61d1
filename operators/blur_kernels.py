"""Kernels of common blurs: defocus as a Gaussian, and camera or patient motion along a random path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.noise import gaussian_noise

__all__ = ["gaussian_kernel", "motion_kernel"]

_STEPS_PER_PIXEL = 8


def gaussian_kernel(size: int, std: float) -> Tensor:
    """Return a sampled Gaussian of exactly ``size`` x ``size`` taps, symmetric and of sum one.

    k[i, j] ~ exp(-((i - c)^2 + (j - c)^2) / (2 std^2)),  c = size // 2

    Parameters
    ----------
    size
        Odd number of taps along each axis.
    std
        Standard deviation in pixels, > 0.

    Returns
    -------
    ``(size, size)``, float64.

    Raises
    ------
    ConfigError
        If the size is not odd and positive or ``std`` is not positive and finite.
    """
    offset = torch.arange(_checked_size(size), dtype=torch.float64) - size // 2
    if not (math.isfinite(std) and std > 0):
        raise ConfigError(f"a Gaussian kernel needs a finite std > 0 in pixels, got {std}")
    profile = torch.exp(-((offset / std) ** 2) / 2)
    profile = profile / profile.sum()
    return torch.outer(profile, profile)


def motion_kernel(size: int, intensity: float, *, generator: torch.Generator) -> Tensor:
    """Return the trace of a point that moves at constant speed while its direction wanders.

    p'(s) = (sin a(s), cos a(s)),  a(s) = a_0 + 2 pi ``intensity`` B(s / L),  0 <= s <= L = size - 1

    with B a Brownian motion and a_0 uniform: a straight line at intensity 0, about one full turn at 1. The
    path is drawn anti-aliased (bilinear weights), with its centre of mass on the central pixel: no point of a
    path is farther than L / 2 from it, so the trace always fits.

    Parameters
    ----------
    size
        Odd number of taps along each axis.
    intensity
        Roughness of the path, in [0, 1].
    generator
        Source of randomness.

    Returns
    -------
    ``(size, size)``, float64, non-negative, of sum one.

    Raises
    ------
    ConfigError
        If the size is not odd and positive or the intensity is not in [0, 1].
    """
    length = _checked_size(size) - 1
    if not 0 <= intensity <= 1:
        raise ConfigError(f"the intensity of a motion kernel must lie in [0, 1], got {intensity}")
    n_steps = max(1, _STEPS_PER_PIXEL * length)
    start = torch.rand((), dtype=torch.float64, generator=generator, device=generator.device)
    wander = 2 * math.pi * intensity / math.sqrt(n_steps)
    turns = gaussian_noise((n_steps,), wander, generator, dtype=torch.float64)
    angle = (2 * math.pi * start + turns.cumsum(0)).cpu()
    steps = torch.stack([angle.sin(), angle.cos()], dim=1) * (length / n_steps)
    path = torch.cat([torch.zeros(1, 2, dtype=torch.float64), steps.cumsum(0)])
    return _drawn(path - path.mean(dim=0) + size // 2, size)


def _drawn(points: Tensor, size: int) -> Tensor:
    """Return equal masses at points ``(n, 2)`` as a ``(size, size)`` image, split among the four pixels around.

    Bilinear weights keep the centre of mass.
    """
    pixel = torch.arange(size, dtype=torch.float64)
    distance = (points[..., None] - pixel).abs()
    rows, columns = (1 - distance).clamp(min=0).unbind(dim=1)
    return rows.mT @ columns / points.shape[0]


def _checked_size(size: int) -> int:
    if not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ConfigError(f"a blur kernel needs an odd positive number of taps, got {size!r}")
    return size
