"""The noise level of data from the part of them that no image explains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from treg_med.operators.conjugate_gradient import conjugate_gradient

if TYPE_CHECKING:
    from treg_med.operators.base import LinearOperator

__all__ = ["unexplained_noise_std"]

# Iterations go on in blocks until one lowers the estimate by less than a fiftieth.
_ITERATIONS = 20
_MOST_BLOCKS = 8
_SETTLED = 0.98
# Where the iteration has converged, it would go on with rounding errors.
_ROUNDING = 1e-5
# Below this share of white noise nearly everything is explained, and too little is left to tell a level from.
_LEAST_SHARE = 0.1
# Frequencies that are seen less than this share of the best seen ones are not amplified further.
_LEAST_SEEN = 1e-3


@torch.no_grad()
def unexplained_noise_std(operator: LinearOperator, y: Tensor, weights: Tensor | None = None) -> float | None:
    r"""Return the noise level of data whose range is larger than what images reach; None where it is not.

    .. math:: \hat\sigma^2 = \frac{\|y - A x_k(y)\|^2}{\|e - A x_k(e)\|^2}

    with white noise e of level one and k steps of preconditioned conjugate gradients on the normal equations: images
    explain the signal, and of the noise as much as of e. What k steps leave of the signal, or an operator that is
    wrong, make it too high. Measured on images of 64 and 128 pixels, radial and Cartesian with 4 and 8 coils: within a
    tenth up to a signal of 100 times the noise, where the highest frequencies alone are 1.4 to 7 times too high.

    Parameters
    ----------
    operator
        A.
    y
        ``range_shape``; zero where nothing is measured.
    weights
        w of the samples, ``range_shape``; None is one for all.
    """
    generator = torch.Generator().manual_seed(0)
    seen = operator.measured
    known = torch.ones(operator.range_shape, device=y.device) if seen is None else seen.to(y.real.dtype)
    if weights is not None:
        known = known * weights.sqrt()
    drawn = torch.randn(operator.range_shape, dtype=y.dtype, generator=generator).to(y.device)
    # Whitened: y has the noise sigma / sqrt(w).
    data = torch.stack([known * y, (known > 0) * drawn])
    steeper = _preconditioner(operator)
    image = torch.zeros(2, *operator.domain_shape, dtype=y.dtype, device=y.device)
    events = len(operator.domain_shape)
    level: float | None = None
    for block in range(_MOST_BLOCKS):
        left = data - known * operator(image)
        share = left.abs().square().flatten(1).sum(1).double()
        if not float(share[1]) > _LEAST_SHARE * float(data[1].abs().square().sum()):
            return level
        estimate = math.sqrt(float(share[0] / share[1]))
        if level is not None and estimate > _SETTLED * level:
            return estimate
        # Before the first block nothing is explained.
        level = estimate if block else None
        image = image + steeper(
            conjugate_gradient(
                lambda z: steeper(operator.adjoint(known.square() * operator(steeper(z)))),
                steeper(operator.adjoint(known * left)),
                max_iter=_ITERATIONS,
                rtol=_ROUNDING,
                event_ndim=events,
            ).x
        )
    return level


def _preconditioner(operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    """Return the inverse root of the normal operator, as far as it is a convolution."""
    spectrum = operator.fourier_diagonal().values
    roots = spectrum.clamp_min(_LEAST_SEEN * float(spectrum.max())).rsqrt()
    axes = tuple(range(-roots.ndim, 0))

    def apply(image: Tensor) -> Tensor:
        filtered = torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * roots.to(image.real.dtype), dim=axes)
        return filtered if image.is_complex() else filtered.real

    return apply
