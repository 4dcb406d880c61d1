"""Periodic finite differences of images and the pointwise arithmetic that total variation needs."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.solvers.problem import per_image

__all__ = ["divergence", "gradient", "inner", "laplacian", "laplacian_spectrum", "shrink", "squared_length"]


def gradient(image: Tensor) -> Tensor:
    """Return forward differences along columns and rows, ``(2, *batch, H, W)``, periodic at the edges."""
    field = image.new_empty(2, *image.shape)
    source, (columns, rows) = _parts(image), (_parts(field[0]), _parts(field[1]))
    torch.sub(source[..., 1:, :], source[..., :-1, :], out=columns[..., :-1, :])
    torch.sub(source[..., 0, :], source[..., -1, :], out=columns[..., -1, :])
    torch.sub(source[..., 1:, :, :], source[..., :-1, :, :], out=rows[..., :-1, :, :])
    torch.sub(source[..., 0, :, :], source[..., -1, :, :], out=rows[..., -1, :, :])
    return field


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
    """Return the sum over the leading axis (of length two) of the squared modulus, real."""
    # Complex abs() and sums over an axis of length two are an order of magnitude slower than plain additions.
    squares = _parts(field).square()
    total = squares[0, ..., 0] + squares[1, ..., 0]
    return total + squares[0, ..., 1] + squares[1, ..., 1] if field.is_complex() else total


def shrink(field: Tensor, threshold: float) -> Tensor:
    """Shorten each vector by ``threshold``, at most to zero: the proximal map of the isotropic length."""
    floor = max(threshold * threshold, torch.finfo(torch.float32).tiny)
    return field * (1 - threshold * torch.rsqrt(squared_length(field).clamp_min(floor)))


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Return the real part of the inner product of each batch item, shape ``(*batch, 1, 1)``."""
    return per_image((_parts(left) * _parts(right)).sum((-3, -2, -1)))


def _parts(image: Tensor) -> Tensor:
    """View as real numbers with a trailing axis: length two for complex, one for real images."""
    return torch.view_as_real(image) if image.is_complex() else image.unsqueeze(-1)
