"""What the supervised network for CT is given: two simple images of a sinogram."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.operators import filtered_backprojection
from treg_med.operators.ct_operator import CTOperator

__all__ = ["ct_channels", "from_attenuation", "to_attenuation"]

_ITERATIONS = 20
_RELAXATION = 1.8
_LEAST_SHARE = 1e-3
# Of the input in HU / 1000: streaks beyond say nothing more.
_RANGE = (-1.5, 3.0)


def from_attenuation(mu: Tensor, mu_water: float) -> Tensor:
    """Return attenuation in 1/mm as HU / 1000."""
    return mu / mu_water - 1


def to_attenuation(image: Tensor, mu_water: float) -> Tensor:
    """Return HU / 1000 as attenuation in 1/mm, not below zero."""
    return ((image + 1) * mu_water).clamp_min(0.0)


def ct_channels(operator: CTOperator, sinogram: Tensor, mu_water: float) -> Tensor:
    """Return a sharp and a smooth image of line integrals ``(*batch, views, bins)``.

    Filtered backprojection with a Hann window, and twenty iterations of SIRT without negative values. Neither knows the
    noise level; the network is given what depends on the data alone.

    Returns
    -------
    ``(*batch, 2, H, W)`` in HU / 1000, limited to -1500 to 3000 HU.
    """
    sharp = filtered_backprojection(operator, sinogram, "hann")
    smooth = _sirt(operator, sinogram)
    return from_attenuation(torch.stack([sharp, smooth], -3), mu_water).clamp(*_RANGE)


def _sirt(operator: CTOperator, sinogram: Tensor) -> Tensor:
    rays = _inverted(operator(torch.ones(operator.domain_shape, dtype=sinogram.dtype, device=sinogram.device)))
    pixels = _inverted(operator.adjoint(torch.ones_like(rays)))
    image = torch.zeros_like(operator.adjoint(sinogram))
    for _ in range(_ITERATIONS):
        step = pixels * operator.adjoint(rays * (sinogram - operator(image)))
        image = (image + _RELAXATION * step).clamp_min(0)
    return image


def _inverted(values: Tensor) -> Tensor:
    return torch.where(values > _LEAST_SHARE * values.max(), 1 / values, 0.0)
