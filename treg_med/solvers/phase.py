"""The smooth phase of an image: a first estimate, and its refinement against the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from treg_med.solvers.differences import inner, laplacian, laplacian_spectrum
from treg_med.solvers.problem import per_image

__all__ = ["refine_rotation", "smooth_rotation"]

_LARGEST_TURN = 0.5
_TINY = 1e-30


def smooth_rotation(image: Tensor, width: float) -> Tensor:
    r"""Return the phase factor :math:`e^{i\phi}` of the low-passed image.

    ``image`` is complex ``(*batch, H, W)``, ``width`` the standard deviation of the Gaussian in pixels.
    Smoothing the complex image weights the phase by magnitude and knows no wraps.
    """
    rows, columns = (torch.fft.fftfreq(n, device=image.device).square() for n in image.shape[-2:])
    low_pass = torch.exp(-2 * (torch.pi * width) ** 2 * (rows[:, None] + columns[None, :]))
    smooth = torch.fft.ifft2(torch.fft.fft2(image) * low_pass)
    modulus = smooth.abs()
    return torch.where(modulus > 0, smooth / modulus.clamp_min(_TINY), torch.ones_like(smooth))


def refine_rotation(
    gram: Callable[[Tensor], Tensor],
    backprojected: Tensor,
    magnitude: Tensor,
    rotation: Tensor,
    diagonal: Tensor,
    *,
    stiffness: Tensor,
    bending: Tensor,
    iterations: int,
) -> Tensor:
    r"""Turn the phase towards the data by one Gauss-Newton step.

    Linearised about the current :math:`m e^{i\phi}`, the turn :math:`\delta` (rad, real) solves

    .. math:: \min_\delta \tfrac12 \|A(m e^{i\phi}(1 + i\delta)) - y\|^2
              + \tfrac{s}{2} \|\nabla \delta\|^2 + \tfrac{b}{2} \|\Delta \delta\|^2

    by preconditioned conjugate gradients on the normal equations. The penalties act on the turn, not on the
    phase, so structure that the data ask for builds up over several calls while noise does not.

    Parameters
    ----------
    gram, backprojected
        A^H A on complex images ``(batch, H, W)``, and A^H y.
    magnitude, rotation
        m (real, signed) and its unit-modulus phase factor, ``(batch, H, W)``.
    diagonal
        Fourier diagonal of the normal operator, ``(H, W)``.
    stiffness, bending
        s and b per batch item, ``(batch,)``: noise variance over the variance expected of slope and
        curvature.
    iterations
        Conjugate-gradient iterations.

    Returns
    -------
    The turned phase factor; a single call turns by at most half a radian.
    """
    conjugate = rotation.conj().resolve_conj()
    slope_weight, bend_weight = per_image(stiffness), per_image(bending)

    def curvature(turn: Tensor) -> Tensor:
        bent = laplacian(turn)
        data = magnitude * (conjugate * gram(rotation * (magnitude * turn))).real
        return data + slope_weight * bent + bend_weight * laplacian(bent)

    spectrum = laplacian_spectrum(tuple(diagonal.shape), diagonal.device)
    level = per_image(magnitude.square().mean((-2, -1)))
    inverse = 1 / (level * diagonal + slope_weight * spectrum + bend_weight * spectrum.square() + 1e-6)
    half = inverse[..., : magnitude.shape[-1] // 2 + 1]

    def precondition(image: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(image) * half, s=tuple(image.shape[-2:]))

    misfit = backprojected - gram(magnitude * rotation)
    remaining = magnitude * (conjugate * misfit).imag
    turn = torch.zeros_like(magnitude)
    scaled = precondition(remaining)
    direction = scaled
    energy = inner(remaining, scaled)
    for _ in range(iterations):
        product = curvature(direction)
        length = energy / inner(direction, product).clamp_min(_TINY)
        turn = turn + length * direction
        remaining = remaining - length * product
        scaled = precondition(remaining)
        following = inner(remaining, scaled)
        direction = scaled + following / energy.clamp_min(_TINY) * direction
        energy = following
    turn = turn.clamp(-_LARGEST_TURN, _LARGEST_TURN)
    return rotation * torch.polar(torch.ones_like(turn), turn)
