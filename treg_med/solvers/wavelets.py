"""An orthogonal two-dimensional wavelet transform of images of any size, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.errors import ConfigError

__all__ = ["OrthogonalWavelet"]

# Daubechies' extremal-phase filter with four vanishing moments (eight taps, sum sqrt 2, norm 1).
_DB4 = (
    0.23037781330885523,
    0.7148465705525415,
    0.6308807679295904,
    -0.02798376941698385,
    -0.18703481171888114,
    0.030841381835986965,
    0.032883011666982945,
    -0.010597401784997278,
)


class OrthogonalWavelet:
    r"""Periodic orthogonal db4 transform W of images ``(*batch, H, W)``: :math:`W^T W = I`.

    Sides are padded by reflection to a multiple of ``2 ** levels``; :meth:`inverse` crops. One matrix per
    level and axis keeps low-pass coefficients first, so that the coefficient image has the usual nested
    layout.

    Daubechies: Orthonormal bases of compactly supported wavelets, Comm. Pure Appl. Math. 41 (1988) 909.

    Parameters
    ----------
    shape
        (H, W) of the images.
    levels
        Number of dyadic levels; fewer are used where a side is too short.
    dtype, device
        Real dtype and device of the matrices.

    Raises
    ------
    ConfigError
        If a side is too short for a single level.
    """

    def __init__(self, shape: tuple[int, int], levels: int, dtype: torch.dtype, device: torch.device) -> None:
        while levels > 0 and min(shape) < 2**levels * len(_DB4) // 2:
            levels -= 1
        if levels == 0:
            raise ConfigError(f"the wavelet needs sides of at least {len(_DB4)} pixels, got {shape}")
        self.shape = shape
        self.levels = levels
        rows, columns = (-side % 2**levels for side in shape)
        self._padding = (0, columns, 0, rows)
        self.padded = (shape[0] + rows, shape[1] + columns)
        self._rows = [_analysis_matrix(self.padded[0] >> k, dtype, device) for k in range(levels)]
        self._columns = [_analysis_matrix(self.padded[1] >> k, dtype, device) for k in range(levels)]

    @property
    def coarse(self) -> tuple[int, int]:
        """Size of the block of coarsest low-pass coefficients, in the corner of the coefficient image."""
        return self.padded[0] >> self.levels, self.padded[1] >> self.levels

    def forward(self, image: Tensor) -> Tensor:
        """Return the coefficients ``(*batch, H', W')``, real or complex as the image."""
        parts = _to_real(image)
        if self.padded != self.shape:
            flat = functional.pad(parts.reshape(-1, 1, *self.shape), self._padding, mode="reflect")
            parts = flat.reshape(*parts.shape[:-2], *self.padded)
        else:
            parts = parts.clone()
        for row, column in zip(self._rows, self._columns, strict=True):
            height, width = row.shape[0], column.shape[0]
            parts[..., :height, :width] = row @ parts[..., :height, :width] @ column.T
        return _from_real(parts, image.is_complex())

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Return the image ``(*batch, H, W)``."""
        parts = _to_real(coefficients)
        parts = parts.clone() if parts.data_ptr() == coefficients.data_ptr() else parts
        for row, column in zip(reversed(self._rows), reversed(self._columns), strict=True):
            height, width = row.shape[0], column.shape[0]
            parts[..., :height, :width] = row.T @ parts[..., :height, :width] @ column
        return _from_real(parts[..., : self.shape[0], : self.shape[1]], coefficients.is_complex())


def _analysis_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthogonal ``(size, size)`` matrix of one level: low-pass rows, then high-pass rows."""
    low = torch.tensor(_DB4, dtype=torch.float64)
    high = low.flip(0) * torch.tensor([1.0, -1.0] * (len(_DB4) // 2), dtype=torch.float64)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size // 2):
        for tap in range(len(_DB4)):
            matrix[row, (2 * row + tap) % size] += low[tap]
            matrix[size // 2 + row, (2 * row + tap) % size] += high[tap]
    return matrix.to(dtype=dtype, device=device)


def _to_real(image: Tensor) -> Tensor:
    return torch.stack([image.real, image.imag]) if image.is_complex() else image


def _from_real(parts: Tensor, is_complex: bool) -> Tensor:
    return torch.complex(parts[0].contiguous(), parts[1].contiguous()) if is_complex else parts
