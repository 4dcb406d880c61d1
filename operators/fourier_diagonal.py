"""The diagonal of a normal operator in Fourier space, which preconditions its inversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["FourierDiagonal", "point_response"]

# Share of the largest value below which nothing is said about a frequency: tomography sees every one a little.
_FLOOR = 1e-4


@dataclass(frozen=True, eq=False)
class FourierDiagonal:
    r"""Diagonal of :math:`F A^H A F^H`.

    Parameters
    ----------
    values
        ``domain_shape``, real, >= 0, in FFT order (zero frequency first).
    exact
        Whether :math:`A^H A` has no other entries in Fourier space, so that one division inverts it.
    """

    values: Tensor
    exact: bool = False

    def times(self, factor: float) -> FourierDiagonal:
        """Return the diagonal of a multiple of the normal operator."""
        return replace(self, values=self.values * factor)


def point_response(
    gram: Callable[[Tensor], Tensor], domain_shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    """Return the modulus of the spectrum of the response to a point at the centre; None where it gives none."""
    centre = tuple(n // 2 for n in domain_shape)
    point = torch.zeros(domain_shape, device=device)
    point[centre] = 1.0
    response = torch.roll(gram(point), tuple(-c for c in centre), tuple(range(len(domain_shape))))
    spectrum = torch.fft.fftn(response).abs()
    largest = float(spectrum.max())
    return spectrum.clamp_min(_FLOOR * largest) if largest > 0 else None
