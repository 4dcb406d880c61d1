"""Batched conjugate gradients for Hermitian positive systems, each batch item stopping by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError

__all__ = ["CGResult", "conjugate_gradient"]


@dataclass(frozen=True)
class CGResult:
    """Solution of a conjugate-gradient run with what each batch item needed.

    Attributes
    ----------
    x
        Solution, shape of the right-hand side.
    iterations
        Iterations spent on each item, int64, shape ``batch``.
    relative_residual
        ||b - Q x|| / ||b|| of each item as updated by the recursion (0 where b = 0), shape ``batch``.
    """

    x: Tensor
    iterations: Tensor
    relative_residual: Tensor


def conjugate_gradient(
    gram_plus: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    x0: Tensor | None = None,
    max_iter: int = 30,
    rtol: float = 1e-6,
    event_ndim: int = 2,
) -> CGResult:
    """Solve ``Q x = b`` for a Hermitian positive (semi-)definite Q by conjugate gradients.

    All inner products are Hermitian and real, r^H r = sum |r|^2. Each batch item has its own step lengths and
    stops by itself once ||r|| <= rtol ||b|| (or its search direction has no curvature left); items never
    influence each other. Gradients flow through the iterations if the inputs ask for them.

    Parameters
    ----------
    gram_plus
        The map Q, e.g. ``op.gram`` or ``lambda x: op.gram(x) + weight * x``, acting on ``(*batch, *event)``.
    rhs
        Right-hand side b, ``(*batch, *event)``, real or complex.
    x0
        Start (default zero).
    max_iter
        Largest number of iterations.
    rtol
        Tolerance relative to ||b||; 0 runs all iterations.
    event_ndim
        Number of trailing axes that form one unknown (2 for images).

    Raises
    ------
    ConfigError
        If a limit is negative.
    GeometryError
        If the shapes of ``x0`` and ``rhs`` differ or there are fewer than ``event_ndim`` axes.
    NumericsError
        If b or the iteration is not finite, or Q has negative curvature.

    Notes
    -----
    Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952) 409.
    """
    _check_arguments(rhs, x0, max_iter, rtol, event_ndim)
    as_vectors, as_event = _flattening(rhs, event_ndim)

    def apply(vectors: Tensor) -> Tensor:
        return as_vectors(gram_plus(as_event(vectors)))

    b = as_vectors(rhs)
    scale = torch.linalg.vecdot(b, b)
    _require_finite(scale, "the right-hand side")
    threshold = rtol**2 * scale
    x = torch.zeros_like(b) if x0 is None else as_vectors(x0)
    r = b if x0 is None else b - apply(x)
    p, rho = r, torch.linalg.vecdot(r, r)
    iterations = torch.zeros_like(rho, dtype=torch.int64)
    active = rho > threshold
    for _ in range(max_iter):
        if not bool(active.any()):
            break
        q = apply(p)
        curvature = torch.linalg.vecdot(p, q)
        # A direction in the null space of Q cannot lower the residual any further: that item is done.
        active = active & (curvature > 0)
        alpha = torch.where(active, rho / torch.where(active, curvature, 1), 0)[..., None]
        x, r = torch.addcmul(x, p, alpha), torch.addcmul(r, q, alpha, value=-1)
        rho_new = torch.where(active, torch.linalg.vecdot(r, r), rho)
        _require_finite(rho_new, "the residual")
        beta = torch.where(active, rho_new / torch.where(active, rho, 1), 0)[..., None]
        p, rho = torch.addcmul(r, p, beta), rho_new
        iterations = iterations + active
        active = active & (rho > threshold)
    relative = (rho / torch.where(scale > 0, scale, 1)).sqrt()
    batch = rhs.shape[: rhs.ndim - event_ndim]
    return CGResult(as_event(x), iterations.reshape(batch), relative.reshape(batch))


def _flattening(
    rhs: Tensor, event_ndim: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return maps to and from real vectors ``(items, n)``: on these, sum(a b) is the Hermitian Re(a^H b)."""
    n_items = math.prod(rhs.shape[: rhs.ndim - event_ndim])
    n_components = math.prod(rhs.shape[rhs.ndim - event_ndim :]) * (2 if rhs.is_complex() else 1)

    def as_vectors(a: Tensor) -> Tensor:
        real = torch.view_as_real(a.resolve_conj()) if a.is_complex() else a
        return real.reshape(n_items, n_components)

    def as_event(vectors: Tensor) -> Tensor:
        if rhs.is_complex():
            return torch.view_as_complex(vectors.reshape(*rhs.shape, 2))
        return vectors.reshape(rhs.shape)

    return as_vectors, as_event


def _check_arguments(rhs: Tensor, x0: Tensor | None, max_iter: int, rtol: float, event_ndim: int) -> None:
    if max_iter < 0 or not rtol >= 0 or event_ndim < 1:
        raise ConfigError(
            "conjugate_gradient needs max_iter >= 0, rtol >= 0 and event_ndim >= 1, "
            f"got {max_iter}, {rtol}, {event_ndim}"
        )
    if rhs.ndim < event_ndim:
        raise GeometryError(f"a right-hand side of shape {tuple(rhs.shape)} has fewer than {event_ndim} axes")
    if x0 is not None and x0.shape != rhs.shape:
        raise GeometryError(
            f"x0 has shape {tuple(x0.shape)}, the right-hand side {tuple(rhs.shape)}; make them equal"
        )


def _require_finite(value: Tensor, what: str) -> None:
    if not bool(torch.isfinite(value).all()):
        raise NumericsError(
            f"conjugate gradients: {what} is not finite; check the data and the operator for NaN or Inf"
        )
