"""Centred orthonormal two-dimensional Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centered_fft2", "centered_ifft2"]

_AXES = (-2, -1)


def centered_fft2(image: Tensor) -> Tensor:
    """Return the orthonormal DFT with the origin of both domains at index ``n // 2``.

    y[k] = 1/sqrt(HW) sum_n x[n] exp(-2 pi i ((k_0 - H//2)(n_0 - H//2)/H + (k_1 - W//2)(n_1 - W//2)/W))

    Parameters
    ----------
    image
        ``(..., H, W)``, real or complex, any lengths.

    Returns
    -------
    Complex ``(..., H, W)``.
    """
    spectrum = torch.fft.fft2(torch.fft.ifftshift(image, dim=_AXES), norm="ortho")
    return torch.fft.fftshift(spectrum, dim=_AXES)


def centered_ifft2(kspace: Tensor) -> Tensor:
    """Return the inverse (and adjoint) of ``centered_fft2`` for ``(..., H, W)``."""
    image = torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=_AXES), norm="ortho")
    return torch.fft.fftshift(image, dim=_AXES)
