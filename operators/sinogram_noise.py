"""The noise level of a sinogram, which differs from ray to ray."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["estimate_sinogram_noise_std"]

_ORDER = 4
_BLOCK = (6, 8)  # views and bins over which the noise is taken as constant
_MAD_OF_NORMAL = 0.6744897501960817


def estimate_sinogram_noise_std(sinogram: Tensor, weights: Tensor | None = None) -> float:
    r"""Return the noise level :math:`\sigma` of line integrals with :math:`Var(p_i) = \sigma^2 / w_i`.

    Fourth differences along the detector keep the noise and little of the object, whose projections are smooth; views
    may lie far apart and are not compared. Without weights the level of each small block is estimated by itself and the
    root mean square returned, because few photons come through the middle of a body: a median over all rays would be
    that of its outskirts.

    Parameters
    ----------
    sinogram : Tensor ``(views, bins)``
        Real.
    weights : Tensor ``(views, bins)``, optional
        w; rays of weight zero say nothing.

    Notes
    -----
    Measured on simulated scans of body CT (60 and 360 views, 4e3 photons): within 5 %, where the median of all finest
    Haar coefficients is at 0.4 to 0.7 of the level. Too high by a fifth at 1e5 photons and 60 views of rough detail.
    """
    steps = torch.tensor([(-1) ** k * math.comb(_ORDER, k) for k in range(_ORDER + 1)]).to(sinogram)
    if sinogram.shape[-1] <= _ORDER:
        return float(sinogram.std())
    differences = sinogram.unfold(-1, _ORDER + 1, 1) @ steps
    variance = torch.ones_like(sinogram) if weights is None else 1 / weights.to(sinogram)
    scaled = differences / (variance.unfold(-1, _ORDER + 1, 1) @ steps.square()).sqrt()
    # Rays that hit nothing and rays that were not measured carry no noise to see.
    known = torch.where((differences != 0) & (scaled != 0), scaled.abs(), torch.nan)
    levels = _block_medians(known) / _MAD_OF_NORMAL
    levels = levels[torch.isfinite(levels)]
    if levels.numel() == 0:
        return 0.0
    return float(levels.square().mean().sqrt() if weights is None else levels.median())


def _block_medians(values: Tensor) -> Tensor:
    rows, columns = (min(size, length) for size, length in zip(_BLOCK, values.shape, strict=True))
    return values.unfold(0, rows, rows).unfold(1, columns, columns).flatten(-2).nanmedian(-1).values
