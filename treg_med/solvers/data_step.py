"""The data-consistency step of a magnitude prior, with the phase carried beside the magnitude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from treg_med.operators import conjugate_gradient
from treg_med.solvers.phase import smooth_rotation
from treg_med.solvers.problem import Problem, per_image
from treg_med.solvers.total_variation import PhasedImage

__all__ = ["CarriedPhase", "PhaseAwareDataStep", "to_noise_level"]

# How much less an image may err across a smooth phase than along it.
_ACROSS = 0.1
_BISECTIONS = 8


@dataclass(frozen=True)
class CarriedPhase:
    r"""Unit phase factor :math:`e^{i\phi}` of an image and whether it is smooth enough to constrain it.

    Parameters
    ----------
    rotation : Tensor ``(*batch, H, W)`` complex
        The phase factor.
    smooth : Tensor ``(*batch,)`` bool
        Where False, the phase is that of every pixel by itself and says nothing about the image.
    width : float
        Low-pass width in pixels of a refinement.
    """

    rotation: Tensor
    smooth: Tensor
    width: float

    @classmethod
    def of(cls, start: PhasedImage, width: float) -> CarriedPhase:
        """Phase of a classical reconstruction: its smooth one where that describes the image."""
        away = (start.image - start.magnitude * start.rotation).abs().square().sum((-2, -1))
        smooth = away <= 1e-4 * start.image.abs().square().sum((-2, -1))
        return cls(torch.where(per_image(smooth), start.rotation, torch.sgn(start.image)), smooth, width)

    def refined(self, image: Tensor) -> CarriedPhase:
        """Turn a smooth phase smoothly towards that of an image; the phase of single pixels would copy their noise."""
        if not image.is_complex():
            return self
        turn = smooth_rotation(image * self.rotation.conj(), self.width)
        return replace(self, rotation=torch.where(per_image(self.smooth), self.rotation * turn, self.rotation))

    def along(self, image: Tensor) -> Tensor:
        """Signed magnitude of a complex image along the phase."""
        return (image * self.rotation.conj()).real


class PhaseAwareDataStep:
    r"""Solve for the complex image near a magnitude along a phase, given the data.

    With :math:`x = (m + i q) e^{i\phi}` the step returns

    .. math:: \arg\min_x \tfrac{1}{2}\|A x - y\|^2 + \tfrac{w}{2}\|m - m_0\|^2 + \tfrac{w_q}{2}\|q\|^2,

    by Hermitian conjugate gradients on the image-space normal equations. ``w = sigma^2 / tau^2`` with the noise
    level sigma of the data and the error tau of the estimate is the least-squares weighting. ``w_q = 100 w`` ties the
    image to a smooth phase, as partial-Fourier reconstruction does; without a smooth phase ``w_q = w``. Real images
    have neither phase nor q.

    Parameters
    ----------
    problem : Problem
        Data, forward model and noise level.
    max_iter, rtol
        Limits of the inner iteration.
    """

    def __init__(self, problem: Problem, *, max_iter: int, rtol: float = 1e-4) -> None:
        self.gram = problem.linear.gram
        self.backprojected = problem.linear.adjoint(problem.y)
        self.noise_std = problem.noise_std
        self.max_iter = max_iter
        self.rtol = rtol

    def __call__(
        self, magnitude: Tensor, phase: CarriedPhase, error_std: Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Return the complex image ``(*batch, H, W)`` for a magnitude with error ``error_std`` ``(*batch,)``."""
        weight = (self.noise_std / error_std.clamp_min(1e-6)).square()
        along, across = per_image(weight), per_image(torch.where(phase.smooth, weight / _ACROSS**2, weight))
        rotation, conjugate = phase.rotation, phase.rotation.conj().resolve_conj()

        def pull(x: Tensor) -> Tensor:
            turned = x * conjugate
            if not turned.is_complex():
                return along * turned
            return torch.complex(along * turned.real, across * turned.imag) * rotation

        guess = magnitude * rotation if start is None else start
        residual = self.backprojected + along * magnitude * rotation - self.gram(guess) - pull(guess)
        step = conjugate_gradient(
            lambda x: self.gram(x) + pull(x), residual, max_iter=self.max_iter, rtol=self.rtol
        )
        return guess + step.x


def to_noise_level(problem: Problem, image: Tensor, towards_data: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Move an image towards the data until its residual is one noise unit (discrepancy principle).

    The error that is granted to the image is found per batch item by bisection on its logarithm; an image that already
    fits the data to the noise is left alone, because fitting it closer would only copy noise.

    Parameters
    ----------
    problem : Problem
        Data and forward model.
    image : Tensor ``(*batch, H, W)``
        In working units.
    towards_data : callable
        Image for an error ``(*batch,)`` of the one given, from a start.

    Morozov: On the solution of functional equations by the method of regularization, Soviet Math. Dokl. 7 (1966).
    """
    fits = problem.residual(image) <= 1
    low, high = torch.full_like(problem.noise_std, -9.0), torch.full_like(problem.noise_std, 2.0)
    for step in range(_BISECTIONS):
        if bool(fits.all()):
            break
        middle = (low + high) / 2
        candidate = towards_data(torch.exp(middle), image)
        residual = problem.residual(candidate)
        image = torch.where(per_image(fits), image, candidate)
        low, high = torch.where(residual > 1, middle, low), torch.where(residual > 1, high, middle)
        problem.log("noise level", step + 1, _BISECTIONS, image=image, residual=residual)
    return image
