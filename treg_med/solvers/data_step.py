"""The data-consistency step of a magnitude prior: a complex solve around an image with a known phase."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.codec import apply_phase
from treg_med.operators import LinearOperator, conjugate_gradient

__all__ = ["PhaseAwareDataStep"]


class PhaseAwareDataStep:
    r"""Solve for the complex image near a magnitude along a phase, given the data.

    With :math:`x = (m + i q) e^{i\phi}` the step returns

    .. math:: \arg\min_x \tfrac{1}{2}\|A x - y\|^2 + \tfrac{w}{2}\|m - m_0\|^2 + \tfrac{w_q}{2}\|q\|^2,

    by Hermitian conjugate gradients on the image-space normal equations. ``w = sigma^2 / tau^2`` with the noise
    level sigma of the data and the error tau of the estimate is the least-squares weighting. A large ``w_q`` ties the
    image to its phase, as partial-Fourier reconstruction does; ``w_q = w`` is the plain proximal step.

    Parameters
    ----------
    operator : LinearOperator
        Forward model A of complex images.
    y : Tensor ``(*batch, *range_shape)``
        Data.
    noise_std : Tensor ``(*batch,)``
        sigma in the units of ``y``.
    max_iter, rtol
        Limits of the inner iteration.
    """

    def __init__(self, operator: LinearOperator, y: Tensor, noise_std: Tensor, *, max_iter: int = 10, rtol: float = 1e-4) -> None:
        self.operator = operator
        self.gram = operator.gram
        self.backprojected = operator.adjoint(y)
        self.noise_std = noise_std
        self.max_iter = max_iter
        self.rtol = rtol
        self.events = len(operator.domain_shape)

    def __call__(self, magnitude: Tensor, phase: Tensor, error_std: Tensor, quadrature_std: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the complex image ``(*batch, H, W)``; the standard deviations have shape ``(*batch,)``."""
        in_phase = self._weight(error_std)
        across = self._weight(quadrature_std)
        rotation = apply_phase(torch.ones_like(phase), phase)

        def pull(x: Tensor) -> Tensor:
            turned = x * rotation.conj()
            return torch.complex(in_phase * turned.real, across * turned.imag) * rotation

        target = magnitude * rotation
        guess = target if start is None else start
        rhs = self.backprojected + in_phase * target
        residual = rhs - self.gram(guess) - pull(guess)
        step = conjugate_gradient(
            lambda x: self.gram(x) + pull(x), residual, max_iter=self.max_iter, rtol=self.rtol, event_ndim=self.events
        )
        return guess + step.x

    def _weight(self, std: Tensor) -> Tensor:
        weight = (self.noise_std / std.clamp_min(1e-6)).square()
        return weight[(..., *([None] * self.events))]
