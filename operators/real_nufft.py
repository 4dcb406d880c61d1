"""The Fourier transform of real images at arbitrary frequencies, view by view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from treg_med.operators.contract import Operator
from treg_med.operators.nufft import inverse_kernel_transform, kernel_at, origin_halves, smooth_length, sparse_rows

__all__ = ["RealNonuniformFFT"]

_OVERSAMPLING = 1.25
_WIDTH = 5
# Columns of the grid beyond either end of the half plane that kernels reach into.
_REACH = _WIDTH // 2 + 1
_Block = tuple[slice, Tensor, Tensor, Tensor]
# Frequencies that are transformed at once: their values are small beside an image and its projections.
_BLOCK = 12_000


class RealNonuniformFFT(Operator):
    r"""Values :math:`\sum_r x_r e^{-2 \pi i k \cdot r}` of real images ``(n, H, W)`` at ``(views, m)`` frequencies.

    As `NonuniformFFT` with half the grid: a frequency in the left half plane is taken at -k, and the right half plane
    is continued by its Hermitian mirror as far as kernels reach. Views come and go in blocks, so that the values of one
    block are all that is held. Both directions are the same real matrix, transposed.

    Parameters
    ----------
    shape
        ``(H, W)``.
    points
        ``(views, m, 2)`` float64 in cycles per pixel, row then column; periodic with period one.
    """

    _points: Tensor
    _sign: Tensor
    _deapodisation: Tensor

    def __init__(self, shape: tuple[int, int], points: Tensor) -> None:
        super().__init__(shape, tuple(points.shape[:2]), is_complex=False)
        wrapped = torch.remainder(points + 0.5, 1) - 0.5
        sign = torch.where(wrapped[..., 1] < 0, -1.0, 1.0)
        self.register_buffer("_points", wrapped * sign[..., None])
        self.register_buffer("_sign", sign.float())
        self._grid = tuple(smooth_length(max(math.ceil(_OVERSAMPLING * n), 2 * _WIDTH)) for n in shape)
        self._half = self._grid[1] // 2 + 1
        inverse = [inverse_kernel_transform(n, g, _WIDTH) for n, g in zip(shape, self._grid, strict=True)]
        self.register_buffer("_deapodisation", (inverse[0][:, None] * inverse[1]).float())

    def view_blocks(self) -> list[slice]:
        """Return the blocks of views."""
        views, per_view = self.range_shape
        step = max(1, _BLOCK // per_view)
        return [slice(first, min(first + step, views)) for first in range(0, views, step)]

    def forward_blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Give views and their values ``(n, views, m)`` for real images ``(n, H, W)``."""
        columns = self._columns(x)
        for views, reached, matrix, _ in self._matrices(x):
            values = (matrix @ columns[reached]).reshape(-1, len(x), 2).transpose(0, 1).contiguous()
            values = values.reshape(len(x), -1, self.range_shape[1], 2)
            values[..., 1] *= self._sign[views].to(values.dtype)
            yield views, torch.view_as_complex(values)

    def adjoint_blocks(self, blocks: Iterable[tuple[slice, Tensor]], count: int, like: Tensor) -> Tensor:
        """Return the real part of the adjoint, ``(count, H, W)``, of all blocks of values, in the order of the views.

        `like` has the precision and device of the result; the values of the blocks are overwritten.
        """
        columns = like.new_zeros(self._grid[0] * (self._half + 2 * _REACH), 2 * count)
        for (views, values), (_, reached, _, transposed) in zip(blocks, self._matrices(like), strict=True):
            parts = torch.view_as_real(values)
            parts[..., 1] *= self._sign[views].to(parts.dtype)
            parts = parts.reshape(count, -1, 2).transpose(0, 1).reshape(-1, 2 * count)
            columns.index_add_(0, reached, transposed @ parts)
        grid = columns.reshape(self._grid[0], -1, count, 2).permute(2, 0, 1, 3).contiguous()
        return self._images(torch.view_as_complex(grid))

    def _columns(self, x: Tensor) -> Tensor:
        """Return the oversampled spectrum of images, mirrored beyond its half plane, ``(points, 2 n)``."""
        complex_type = x.dtype.to_complex()
        grid = x.new_zeros(len(x), self._grid[0], self._half + 2 * _REACH, dtype=complex_type)
        inner = grid[..., _REACH : _REACH + self._half]
        scaled = x * self._deapodisation.to(x.dtype)
        # Rows that hold nothing stay as they are, so the rows are transformed before the columns.
        for rows, place in self._row_blocks():
            padded = x.new_zeros(len(x), rows.stop - rows.start, self._grid[1])
            for own, columns in origin_halves(self.domain_shape[1], self._grid[1]):
                padded[..., columns] = scaled[:, rows, own]
            inner[:, place] = torch.fft.rfft(padded)
        del scaled, padded
        inner.copy_(torch.fft.fft(inner, dim=-2))
        for beyond, mirrored in self._margins():
            grid[..., _REACH + beyond] = self._mirror(inner[..., mirrored])
        flat = torch.view_as_real(grid).flatten(1, 2)
        return flat.transpose(0, 1).reshape(flat.shape[1], -1)

    def _images(self, grid: Tensor) -> Tensor:
        """Apply the transpose of `_columns` to ``(n, rows, columns)``, which is overwritten."""
        inner = grid[..., _REACH : _REACH + self._half]
        for beyond, mirrored in self._margins():
            inner[..., mirrored] += self._mirror(grid[..., _REACH + beyond])
        # The inverse real transform counts these columns twice.
        inner[..., 1 : self._half - 1] *= 0.5
        inner.copy_(torch.fft.ifft(inner, dim=-2, norm="forward"))
        image = grid.real.new_empty(len(grid), *self.domain_shape)
        for rows, place in self._row_blocks():
            padded = torch.fft.irfft(inner[:, place], n=self._grid[1], norm="forward")
            for own, columns in origin_halves(self.domain_shape[1], self._grid[1]):
                image[:, rows, own] = padded[..., columns]
        return image.mul_(self._deapodisation.to(image.dtype))

    def _row_blocks(self) -> list[tuple[slice, slice]]:
        """Return the two halves of the image's rows, and where they lie on the grid."""
        return origin_halves(self.domain_shape[0], self._grid[0])

    def _margins(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the columns left and right of the half plane, counted from it, and those of it that they mirror."""
        away = torch.arange(1, _REACH + 1, device=self._points.device)
        yield -away, away
        yield self._half - 1 + away, self._half - 1 - away

    @staticmethod
    def _mirror(columns: Tensor) -> Tensor:
        """Return the columns at minus their rows, conjugated."""
        return torch.roll(columns.flip(-2), 1, -2).conj()

    def _matrices(self, like: Tensor) -> list[_Block]:
        blocks: list[_Block] = self._cached(
            ("interpolation", like.dtype, like.device), lambda: list(self._build(like))
        )
        return blocks

    def _build(self, like: Tensor) -> Iterator[_Block]:
        """Give every block of views, the grid points that it reaches, its matrix from these, and the transpose."""
        width = self._half + 2 * _REACH
        for block in self.view_blocks():
            k = self._points[block].to(like.device).double().reshape(-1, 2)
            rows, by_row = kernel_at(k[:, 0], self._grid[0], _WIDTH, self.domain_shape[0])
            columns, by_column = kernel_at(k[:, 1], self._grid[1], _WIDTH, self.domain_shape[1])
            rows = torch.remainder(rows, self._grid[0])
            index = (rows[:, :, None] * width + (columns + _REACH)[:, None, :]).flatten(1)
            weight = (by_row[:, :, None] * by_column[:, None, :]).flatten(1).float().to(like.dtype)
            reached, place = torch.unique(index, return_inverse=True)
            yield block, reached, *sparse_rows(place, weight, len(reached))
