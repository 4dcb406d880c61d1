"""Linear operators whose singular basis is known: norm, pinv and prox without any iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.base import LinearOperator

__all__ = ["DiagonalisedOperator"]


class DiagonalisedOperator(LinearOperator):
    """A linear operator A = U D V^H with D diagonal, so that every regularised inverse is a filter.

    A^H (A A^H + w)^+ = V [conj(D) / (|D|^2 + w)] U^H

    A subclass writes ``_gains`` (D), ``_analysed`` (U^H y) and ``_synthesised`` (V z) besides ``_forward`` and
    ``_adjoint``. The columns of U and V are orthonormal, or orthogonal with norms whose product is 1 (an
    unnormalised DFT and its inverse).
    """

    def _gains(self, dtype: torch.dtype) -> Tensor:
        """Return the diagonal D for tensors of this dtype, broadcastable to ``_analysed``."""
        raise NotImplementedError(f"{type(self).__name__} must implement _gains")

    def _analysed(self, y: Tensor) -> Tensor:
        """Return U^H y of a checked measurement ``(*batch, *range_shape)``, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must implement _analysed")

    def _synthesised(self, z: Tensor) -> Tensor:
        """Return the image V z, ``(*batch, *domain_shape)``, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must implement _synthesised")

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the spectral norm, max |D|; the limits of an iteration are not used."""
        return float(self._gains(torch.complex128 if self.is_complex else torch.float64).abs().max())

    def pinv(
        self,
        y: Tensor,
        *,
        x0: Tensor | None = None,
        max_iter: int = 100,
        rtol: float = 1e-6,
        cutoff: float = 1e-6,
    ) -> Tensor:
        """Return the least-squares solution of ``A x = y`` nearest to ``x0`` (default: of minimal norm).

        x = x0 + V [1 / D] U^H (y - A x0), where 1 / D is 0 for |D| <= ``cutoff`` max |D|: what the operator
        passes with a smaller gain is taken as not measured. ``max_iter`` and ``rtol`` are not used.

        Raises
        ------
        ConfigError
            If ``cutoff`` is not in [0, 1).
        """
        if not 0 <= cutoff < 1:
            raise ConfigError(f"pinv needs a cutoff in [0, 1), got {cutoff}")
        y = self._checked(y, self.range_shape, "measurement")
        step = self._regularised_inverse(y if x0 is None else y - self.forward(x0), 0.0, cutoff)
        return step if x0 is None else x0 + step

    def prox(
        self, x0: Tensor, y: Tensor, weight: float | Tensor, *, max_iter: int = 50, rtol: float = 1e-6
    ) -> Tensor:
        """Return argmin_x 1/2 ||A x - y||^2 + weight/2 ||x - x0||^2.

        x = x0 + V [conj(D) / (|D|^2 + weight)] U^H (y - A x0); ``max_iter`` and ``rtol`` are not used.
        Parameters and errors as in `LinearOperator.prox`.
        """
        x0, y, column = self._prox_arguments(x0, y, weight)
        return x0 + self._regularised_inverse(y - self.forward(x0), column, 0.0)

    def _regularised_inverse(self, residual: Tensor, weight: Tensor | float, cutoff: float) -> Tensor:
        """Return A^H (A A^H + weight)^+ applied to ``(*batch, *range_shape)``."""
        if residual.numel() == 0:  # a Fourier transform refuses an empty batch
            return residual.new_zeros(*residual.shape[: -len(self.range_shape)], *self.domain_shape)
        gains = self._gains(residual.dtype)
        size = gains.abs()
        measured = size > cutoff * size.max()
        damping = gains.conj() / torch.where(measured, size.square() + weight, 1)
        return self._synthesised(torch.where(measured, damping, 0) * self._analysed(residual))
