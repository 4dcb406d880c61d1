"""Linear operators that act on the rows and the columns of an image one after the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from treg_med.operators.base import LinearOperator
from treg_med.operators.contract import checked_matrix
from treg_med.operators.diagonalised import DiagonalisedOperator

__all__ = ["Separable"]


class _Bases(NamedTuple):
    """Thin singular value decompositions R = U_R S_R V_R^T and C = U_C S_C V_C^T, and S_R[i] S_C[j]."""

    row_left: Tensor
    row_right: Tensor
    column_left: Tensor
    column_right: Tensor
    gains: Tensor


class Separable(DiagonalisedOperator):
    """One matrix applied to the rows of an image and one to its columns.

    y = R x C^T,  A^H y = R^T y C

    The singular values of A are the products S_R[i] S_C[j] of those of R and C, so that norm, prox and pinv
    are closed forms. Images are ``(*batch, H, W)``, measurements ``(*batch, h, w)``.

    Parameters
    ----------
    row_matrix
        Real R, ``(h, H)``: each row of y is a combination of rows of x.
    column_matrix
        Real C, ``(w, W)``.
    is_complex
        Whether images are complex; the matrices are real in any case.

    Raises
    ------
    GeometryError
        If a matrix does not have two axes.
    ConfigError
        If a matrix is complex or holds NaN or Inf.

    Notes
    -----
    The matrices are kept in double precision and cast to that of the input. They are decomposed at the first
    prox, pinv or norm: the normal operator is separable too, and often asked for nothing but products.
    """

    row_matrix: Tensor
    column_matrix: Tensor

    def __init__(self, row_matrix: Tensor, column_matrix: Tensor, *, is_complex: bool = False) -> None:
        rows, columns = checked_matrix("row matrix", row_matrix), checked_matrix("column matrix", column_matrix)
        (h, height), (w, width) = rows.shape, columns.shape
        super().__init__((height, width), (h, w), is_complex=is_complex)
        self.register_buffer("row_matrix", rows, persistent=False)
        self.register_buffer("column_matrix", columns, persistent=False)

    @property
    def gram(self) -> LinearOperator:
        """The separable operator of R^T R and C^T C."""
        rows, columns = self._matrices(torch.float64)
        return Separable(rows.mT @ rows, columns.mT @ columns, is_complex=self.is_complex)

    def _forward(self, x: Tensor) -> Tensor:
        rows, columns = self._matrices(x.dtype)
        return rows @ x @ columns.mT

    def _adjoint(self, y: Tensor) -> Tensor:
        rows, columns = self._matrices(y.dtype)
        return rows.mT @ y @ columns

    def _gains(self, dtype: torch.dtype) -> Tensor:
        return self._bases(dtype).gains

    def _analysed(self, y: Tensor) -> Tensor:
        bases = self._bases(y.dtype)
        return bases.row_left.mT @ y @ bases.column_left

    def _synthesised(self, z: Tensor) -> Tensor:
        bases = self._bases(z.dtype)
        return bases.row_right @ z @ bases.column_right.mT

    def _matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return R and C in this dtype."""
        return self._cached(
            ("matrices", dtype), lambda: (self.row_matrix.to(dtype), self.column_matrix.to(dtype))
        )

    def _bases(self, dtype: torch.dtype) -> _Bases:
        """Return the singular bases in this dtype, decomposed in double precision."""

        def build() -> _Bases:
            rows, columns = self._matrices(torch.float64)
            row_left, row_values, row_right = torch.linalg.svd(rows, full_matrices=False)
            column_left, column_values, column_right = torch.linalg.svd(columns, full_matrices=False)
            gains = torch.outer(row_values, column_values)
            # Matrix products want one dtype; the gains multiply elementwise and may stay real.
            return _Bases(
                row_left.to(dtype),
                row_right.mT.to(dtype),
                column_left.to(dtype),
                column_right.mT.to(dtype),
                gains.to(dtype.to_real()),
            )

        return self._cached(("bases", dtype), build)
