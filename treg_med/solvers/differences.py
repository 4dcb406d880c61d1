"""Periodic finite differences of images and the pointwise arithmetic that total variation needs."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.solvers.base import per_image

__all__ = ["divergence", "gradient", "inner", "laplacian", "laplacian_spectrum", "shrink", "squared_length"]


def gradient(image: Tensor) -> Tensor:
    """Return forward differences along columns and rows, ``(2, *batch, H, W)``, periodic at the edges."""
    return torch.stack([torch.roll(image, -1, -1) - image, torch.roll(image, -1, -2) - image])


def divergence(field: Tensor) -> Tensor:
    """Return the negative adjoint of :func:`gradient`, ``(*batch, H, W)``."""
    columns, rows = field[0], field[1]
    return columns - torch.roll(columns, 1, -1) + rows - torch.roll(rows, 1, -2)


def laplacian(image: Tensor) -> Tensor:
    """Return the positive periodic Laplacian, minus the divergence of the gradient."""
    neighbours = (
        torch.roll(image, 1, -1) + torch.roll(image, -1, -1) + torch.roll(image, 1, -2) + torch.roll(image, -1, -2)
    )
    return 4 * image - neighbours


def laplacian_spectrum(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the eigenvalues of :func:`laplacian` in FFT order, ``(H, W)``."""
    rows, columns = (2 - 2 * torch.cos(2 * torch.pi * torch.fft.fftfreq(n, device=device)) for n in shape)
    return rows[:, None] + columns[None, :]


def squared_length(field: Tensor) -> Tensor:
    """Return the sum over the leading axis of the squared modulus, real."""
    if field.is_complex():
        # Complex abs() goes through hypot and is an order of magnitude slower.
        return torch.view_as_real(field).square().sum(-1).sum(0)
    return field.square().sum(0)


def shrink(field: Tensor, threshold: float) -> Tensor:
    """Shorten each vector by ``threshold``, to zero where it is shorter: the proximal map of the isotropic length."""
    floor = max(threshold * threshold, torch.finfo(torch.float32).tiny)
    return field * (1 - threshold * torch.rsqrt(squared_length(field).clamp_min(floor)))


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Return the real part of the inner product of each batch item, shape ``(*batch, 1, 1)``."""
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
        return per_image((left * right).sum((-3, -2, -1)))
    return per_image((left * right).sum((-2, -1)))
