"""Receive coils: what each of them sees of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.base import LinearOperator

__all__ = ["CoilMaps"]


class CoilMaps(LinearOperator):
    r"""Coil images :math:`S_c x` of an image, ``(*batch, H, W)`` to ``(*batch, coils, H, W)``.

    .. math:: y_c = S_c\, x, \qquad A^H y = \sum_c \bar S_c\, y_c

    An operator that acts on images acts on every coil image by itself: ``NonuniformFFT(shape, points) @
    CoilMaps(maps)`` is radial imaging with coils, and ``Sampling(mask) @ FourierTransform(shape) @ CoilMaps(maps)`` is
    `CartesianMRI`, in its faster form.

    Parameters
    ----------
    maps
        Complex, finite ``(coils, H, W)``.

    Raises
    ------
    GeometryError
        If the maps are not ``(coils, H, W)``.
    ConfigError
        If they are not complex and finite, or all zero.

    Notes
    -----
    Pruessmann et al., Magn. Reson. Med. 42 (1999) 952.
    """

    maps: Tensor
    shift_invariant = True

    def __init__(self, maps: Tensor) -> None:
        values = torch.as_tensor(maps).detach()
        if values.ndim != 3 or values.numel() == 0:
            raise GeometryError(f"expected sensitivity maps (coils, H, W), got {tuple(values.shape)}")
        if not values.is_complex() or not bool(torch.isfinite(torch.view_as_real(values)).all()):
            raise ConfigError(f"expected complex, finite sensitivity maps, got {values.dtype}; check them for NaN")
        if not bool((values != 0).any()):
            raise ConfigError("expected sensitivity maps with signal, got only zeros")
        coils, height, width = values.shape
        super().__init__((height, width), (coils, height, width), is_complex=True)
        self._coil_axis = coils
        self.register_buffer("maps", values.contiguous().clone(), persistent=False)

    def _forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-3) * self.maps.to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.to(y.dtype).conj() * y).sum(-3)

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the largest root of the sum of squares of the maps; the limits of an iteration are not used."""
        return float(torch.linalg.vector_norm(self.maps, dim=0).max())

    def facts(self) -> dict[str, Any]:
        """Return the number of coils."""
        return {"coils": len(self.maps)}
