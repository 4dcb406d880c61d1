"""The iteration behind total variation: variable splitting with a preconditioned inner solve."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from treg_med.solvers.differences import (
    divergence,
    gradient,
    inner,
    laplacian_spectrum,
    shrink,
)
from treg_med.solvers.problem import per_image

__all__ = ["TVSplitting"]

_OVER_RELAXATION = 1.8
_TINY = 1e-30


class TVSplitting:
    r"""Warm-startable ADMM for isotropic total variation on the normal equations.

    .. math:: \min_x \tfrac12 x^H G x - \operatorname{Re} x^H b + w \sum_p |(\nabla x)_p|, \qquad G = A^H
    A,\; b = A^H y

    with :math:`z = \nabla x` split off:

    .. math::
        (G + \rho \nabla^T \nabla)\, x &= b + \rho \nabla^T (z - u) \\
        z &= \operatorname{shrink}(\nabla x + u, w / \rho), \qquad u \leftarrow u + \nabla x - z

    The x step is a few conjugate gradients, warm-started and preconditioned by the circulant matrix with
    the Fourier diagonal of G; a single coil without rotation is solved exactly in one. With a rotation
    :math:`e^{i\phi}` the image is :math:`m e^{i\phi}` with real m and G is replaced by
    :math:`\operatorname{Re} e^{-i\phi} G e^{i\phi}`. The ratio w / rho is fixed, so that the state stays
    valid when the weight is changed between iterations.

    With `pin` the image is constrained to :math:`x \ge 0` by a second splitting :math:`v = x` with penalty
    :math:`\kappa\rho`:

    .. math::
        (G + \rho \nabla^T \nabla + \kappa\rho)\, x = b + \rho \nabla^T (z - u) + \kappa\rho (v - t), \qquad
        v = \max(x + t, 0), \qquad t \leftarrow t + x - v

    Two splittings with one multiplier each are one ADMM in (z, v), and as convergent.

    Goldstein and Osher: The split Bregman method for L1-regularized problems, SIAM J. Imaging Sci. 2 (2009)
    323.

    Parameters
    ----------
    gram : callable
        G on complex images ``(batch, H, W)``.
    backprojected : Tensor ``(batch, H, W)``
        b, complex.
    diagonal : Tensor ``(H, W)``
        Fourier diagonal of G.
    image : Tensor ``(batch, H, W)``
        Start; real where a rotation is given.
    rotation : Tensor ``(batch, H, W)``, optional
        Unit-modulus phase factor.
    threshold
        w / rho, in working units of the gradient.
    inner_iterations
        Conjugate-gradient iterations of each x step.
    pin
        kappa; None leaves the sign of the image free.
    """

    def __init__(
        self,
        gram: Callable[[Tensor], Tensor],
        backprojected: Tensor,
        diagonal: Tensor,
        image: Tensor,
        rotation: Tensor | None = None,
        *,
        threshold: float = 0.07,
        inner_iterations: int = 3,
        pin: float | None = None,
    ) -> None:
        self.threshold = threshold
        self.inner_iterations = inner_iterations
        self.iterations = 0
        self._complex_gram = gram
        self._complex_rhs = backprojected
        if rotation is not None:
            diagonal = (diagonal + torch.roll(diagonal.flip((-2, -1)), (1, 1), (-2, -1))) / 2
        self._diagonal = diagonal
        self._laplacian = laplacian_spectrum(tuple(diagonal.shape), diagonal.device)
        self.image = image
        self._gradient = gradient(image)
        self._dual = torch.zeros_like(self._gradient)
        self._split = shrink(self._gradient, threshold)
        self.pin = pin
        self._bounded = image.clamp_min(0) if pin is not None else image
        self._excess = torch.zeros_like(self._bounded)
        self.set_rotation(rotation)

    def set_rotation(self, rotation: Tensor | None) -> None:
        """Change the phase factor and keep the rest of the state."""
        self.rotation = rotation
        self._conjugate = None if rotation is None else rotation.conj().resolve_conj()
        self._rhs = self._complex_rhs if self._conjugate is None else (self._conjugate * self._complex_rhs).real
        self._gram_image = self._gram(self.image)

    @property
    def complex_image(self) -> Tensor:
        """The image with its phase."""
        return self.image if self.rotation is None else self.image * self.rotation

    @property
    def feasible_image(self) -> Tensor:
        """The image with its constraint; where there is none, the image."""
        return self.complex_image if self.pin is None else self.image.clamp_min(0)

    def run(self, iterations: int, weight: Tensor, active: Tensor) -> Tensor:
        """Iterate with ``weight`` ``(batch,)``; items that are not ``active`` keep their state.

        Returns the relative change of the image in the last iteration, ``(batch,)``.
        """
        rho = per_image(weight) / self.threshold
        pull = rho * (self.pin or 0.0)
        inverse = 1 / (self._diagonal + rho * self._laplacian + (1e-6 if self.pin is None else pull))
        # Selecting costs as much as computing: skip it while every item is active.
        keep = None if bool(active.all()) else per_image(active)
        change = torch.zeros_like(weight)
        for _ in range(iterations):
            before = self.image
            self._image_step(rho, pull, inverse, keep)
            if self.pin is not None:
                self._bound(keep)
            mixed = _OVER_RELAXATION * self._gradient + (1 - _OVER_RELAXATION) * self._split
            raised = mixed + self._dual
            split = shrink(raised, self.threshold)
            dual = raised - split
            self._split = split if keep is None else torch.where(keep, split, self._split)
            self._dual = dual if keep is None else torch.where(keep, dual, self._dual)
            moved = self.image - before
            change = (inner(moved, moved) / inner(self.image, self.image).clamp_min(_TINY)).sqrt()[..., 0, 0]
            self.iterations += 1
        return change

    def _bound(self, keep: Tensor | None) -> None:
        raised = _OVER_RELAXATION * self.image + (1 - _OVER_RELAXATION) * self._bounded + self._excess
        bounded = raised.clamp_min(0)
        excess = raised - bounded
        self._bounded = bounded if keep is None else torch.where(keep, bounded, self._bounded)
        self._excess = excess if keep is None else torch.where(keep, excess, self._excess)

    def _image_step(self, rho: Tensor, pull: Tensor, inverse: Tensor, keep: Tensor | None) -> None:
        remaining = self._rhs - self._gram_image - rho * divergence(self._split - self._dual - self._gradient)
        if self.pin is not None:
            remaining = remaining + pull * (self._bounded - self._excess - self.image)
        scaled = self._precondition(remaining, inverse)
        direction = scaled
        energy = inner(remaining, scaled)
        for step in range(self.inner_iterations):
            gram_direction = self._gram(direction)
            gradient_direction = gradient(direction)
            steepness = inner(gradient_direction, gradient_direction).sum(0)
            curvature = inner(direction, gram_direction) + rho * steepness
            if self.pin is not None:
                curvature = curvature + pull * inner(direction, direction)
            length = energy / curvature.clamp_min(_TINY)
            length = length if keep is None else torch.where(keep, length, 0.0)
            self.image = self.image + length * direction
            self._gram_image = self._gram_image + length * gram_direction
            self._gradient = self._gradient + length * gradient_direction
            if step + 1 == self.inner_iterations:
                break
            remaining = remaining - length * (gram_direction - rho * divergence(gradient_direction))
            if self.pin is not None:
                remaining = remaining - length * pull * direction
            scaled = self._precondition(remaining, inverse)
            following = inner(remaining, scaled)
            direction = scaled + following / energy.clamp_min(_TINY) * direction
            energy = following

    def _gram(self, image: Tensor) -> Tensor:
        if self.rotation is None or self._conjugate is None:
            return self._complex_gram(image)
        return (self._conjugate * self._complex_gram(self.rotation * image)).real

    def _precondition(self, image: Tensor, inverse: Tensor) -> Tensor:
        if image.is_complex():
            return torch.fft.ifft2(torch.fft.fft2(image) * inverse)
        half = inverse[..., : image.shape[-1] // 2 + 1]
        return torch.fft.irfft2(torch.fft.rfft2(image) * half, s=tuple(image.shape[-2:]))
