"""Linear operators with a matched adjoint: the contract every forward model of the toolkit keeps.

Contract
--------
- ``forward`` maps ``(*batch, *domain_shape)`` to ``(*batch, *range_shape)``; ``adjoint`` maps back. Leading
  dimensions are batch and may be absent.
- The adjoint is the exact conjugate transpose of ``forward``: <A x, y> = <x, A^H y> for all x and y.
- The backward of ``forward`` *is* ``adjoint`` (and the reverse), to any order, and no tensor is saved for it.
- Precision follows the input (float32/float64, complex64/complex128). Nothing is normalised behind the
  caller's back.
- An operator never changes after construction; caches that do not alter results are the only hidden state.

A subclass sets ``domain_shape``, ``range_shape`` and ``is_complex`` through ``super().__init__`` and writes
the two methods ``_matvec`` and ``_rmatvec`` on plain tensors; everything else is inherited.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.conjugate_gradient import conjugate_gradient
from treg_med.operators.contract import Operator, align_batches, broadcast_batch

__all__ = ["AdjointOperator", "Composition", "Identity", "LinearOperator", "Scaled", "Sum"]


class _Apply(torch.autograd.Function):
    """The single autograd function of the package: derivative of A is A, its transpose is the adjoint."""

    @staticmethod
    def forward(x: Tensor, operator: LinearOperator, adjoint: bool) -> Tensor:
        if x.numel() == 0:
            source, target = operator.domain_shape, operator.range_shape
            source, target = (target, source) if adjoint else (source, target)
            return x.new_zeros(*x.shape[: x.ndim - len(source)], *target)
        # Physics keeps the precision of its input: sparse products have no bf16, and it would not be enough.
        with torch.autocast(x.device.type, enabled=False):
            y = operator._rmatvec(x) if adjoint else operator._matvec(x)
        # Autograd treats a returned input as modified in place; identities must hand back a new view.
        return y.view_as(y) if y is x else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LinearOperator, bool], output: Tensor) -> None:
        _, ctx.operator, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _differentiable(gradients[0], ctx.operator, not ctx.adjoint), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _differentiable(tangents[0], ctx.operator, ctx.adjoint)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, operator: LinearOperator, adjoint: bool
    ) -> tuple[Tensor, int]:
        return _differentiable(x.movedim(in_dims[0] or 0, 0), operator, adjoint), 0


def _differentiable(x: Tensor, operator: LinearOperator, adjoint: bool) -> Tensor:
    result: Tensor = _Apply.apply(x, operator, adjoint)
    return result


class LinearOperator(Operator):
    """A linear map A between image and measurement space with its exact adjoint A^H.

    Parameters
    ----------
    domain_shape
        Trailing shape of the input, without batch.
    range_shape
        Trailing shape of the output, without batch.
    is_complex
        True for complex64/128 operators (MRI; real input is promoted), False for float32/64 operators (CT).

    Attributes
    ----------
    physical
        Whether A carries physical units (line integrals of an attenuation), so that its norm depends on lengths
        and says nothing about the data. Other operators are normalised: A^H A is about one.
    """

    physical: bool = False

    def _matvec(self, x: Tensor) -> Tensor:
        """Apply A to a checked tensor ``(*batch, *domain_shape)``; called without autograd."""
        raise NotImplementedError(f"{type(self).__name__} must implement _matvec")

    def _rmatvec(self, y: Tensor) -> Tensor:
        """Apply A^H to a checked tensor ``(*batch, *range_shape)``; called without autograd."""
        raise NotImplementedError(f"{type(self).__name__} must implement _rmatvec")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``.

        Parameters
        ----------
        x
            ``(*batch, *domain_shape)``.

        Returns
        -------
        ``(*batch, *range_shape)`` in the precision of ``x``.

        Raises
        ------
        GeometryError
            If the trailing shape of ``x`` is not ``domain_shape``.
        ConfigError
            If the dtype cannot be used.
        """
        return _differentiable(self._checked(x, self.domain_shape, "input"), self, False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^H y`` for ``y`` of shape ``(*batch, *range_shape)``; errors as in ``forward``."""
        return _differentiable(self._checked(y, self.range_shape, "measurement"), self, True)

    @property
    def H(self) -> LinearOperator:  # noqa: N802 - the field's symbol for the Hermitian adjoint
        """The adjoint as an operator."""
        return AdjointOperator(self)

    @property
    def gram(self) -> LinearOperator:
        """The normal operator ``A^H A``; subclasses override it where there is a faster form."""
        return Composition(self.H, self)

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the spectral norm ||A||_2 by power iteration on A^H A (an approach from below, cached)."""
        return float(
            self._cached(("norm", max_iter, rtol), lambda: _power_iteration(self, max_iter, rtol))
        )

    def pinv(self, y: Tensor, *, x0: Tensor | None = None, max_iter: int = 100, rtol: float = 1e-6) -> Tensor:
        """Return the least-squares solution of ``A x = y`` nearest to ``x0`` (default: of minimal norm).

        x = x0 + argmin_d ||d|| over the minimisers of ||A (x0 + d) - y||, by conjugate gradients on the
        normal equations started at zero, at most ``max_iter`` iterations or to relative residual ``rtol``.
        """
        y = self._checked(y, self.range_shape, "measurement")
        rhs = self.adjoint(y if x0 is None else y - self.forward(x0))
        gram = self.gram
        step = conjugate_gradient(
            gram, rhs, max_iter=max_iter, rtol=rtol, event_ndim=len(self.domain_shape)
        ).x
        return step if x0 is None else x0 + step

    def prox(
        self, x0: Tensor, y: Tensor, weight: float | Tensor, *, max_iter: int = 50, rtol: float = 1e-6
    ) -> Tensor:
        """Return argmin_x 1/2 ||A x - y||^2 + weight/2 ||x - x0||^2.

        Solves (A^H A + weight) d = A^H (y - A x0), x = x0 + d, by Hermitian conjugate gradients.

        Parameters
        ----------
        x0
            Centre of the proximal term, ``(*batch, *domain_shape)``; also the start.
        y
            Measurement, ``(*batch, *range_shape)``; batch dimensions broadcast with those of ``x0``.
        weight
            Positive number, or tensor of shape ``batch`` (one weight per item).
        max_iter, rtol
            Limits of the inner iteration; unused where a closed form exists.

        Raises
        ------
        ConfigError
            If a weight is not positive and finite.
        """
        x0, y, column = self._prox_arguments(x0, y, weight)
        rhs = self.adjoint(y - self.forward(x0))
        gram = self.gram
        result = conjugate_gradient(
            lambda d: gram(d) + column * d,
            rhs,
            max_iter=max_iter,
            rtol=rtol,
            event_ndim=len(self.domain_shape),
        )
        return x0 + result.x

    def _prox_arguments(
        self, x0: Tensor, y: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """Check the arguments of ``prox``, broadcast their batches, and shape the weight for the image."""
        x0 = self._checked(x0, self.domain_shape, "prox centre")
        y = self._checked(y, self.range_shape, "measurement")
        n_image = len(self.domain_shape)
        x0, y = align_batches(x0, n_image, y, len(self.range_shape))
        batch = x0.shape[: x0.ndim - n_image]
        value = torch.as_tensor(weight).detach()
        if value.is_complex() or not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
            raise ConfigError(f"prox needs positive finite weights, got {weight!r}; pass a weight > 0")
        if not isinstance(weight, Tensor) or weight.ndim == 0:
            return x0, y, weight if not isinstance(weight, Tensor) else weight.to(x0.device)
        if broadcast_batch(weight.shape, batch) != batch:
            raise GeometryError(
                f"prox weights of shape {tuple(weight.shape)} do not fit the batch {tuple(batch)}; "
                "pass one weight per batch item"
            )
        real = torch.empty((), dtype=x0.dtype).real.dtype
        return x0, y, weight.to(x0.device, real).reshape(*weight.shape, *(1,) * n_image)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Return the composition ``x -> self(other(x))``."""
        return Composition(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Return the sum ``x -> self(x) + other(x)``."""
        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """Return the difference ``x -> self(x) - other(x)``."""
        return Sum(self, Scaled(other, -1.0)) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, scalar: complex) -> LinearOperator:
        """Return ``x -> scalar * self(x)``."""
        return Scaled(self, scalar) if isinstance(scalar, int | float | complex) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        """Return ``x -> -self(x)``."""
        return Scaled(self, -1.0)


class Identity(LinearOperator):
    """The identity, A x = x, on images ``(*batch, *shape)``."""

    def __init__(self, shape: tuple[int, ...], *, is_complex: bool = True) -> None:
        super().__init__(shape, shape, is_complex=is_complex)

    def _matvec(self, x: Tensor) -> Tensor:
        return x

    def _rmatvec(self, y: Tensor) -> Tensor:
        return y

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The identity itself."""
        return self

    @property
    def gram(self) -> LinearOperator:
        """The identity itself."""
        return self


class AdjointOperator(LinearOperator):
    """The adjoint ``A^H`` of an operator, whose adjoint is the operator again."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.range_shape, operator.domain_shape, is_complex=operator.is_complex)
        self.operator = operator
        self.physical = operator.physical

    def _matvec(self, x: Tensor) -> Tensor:
        return self.operator._rmatvec(x)

    def _rmatvec(self, y: Tensor) -> Tensor:
        return self.operator._matvec(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The original operator."""
        return self.operator

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the norm of the original operator, which is the same number."""
        return self.operator.norm(max_iter=max_iter, rtol=rtol)

    def _label(self) -> str:
        return f"{self.operator._label()}.H"


class Composition(LinearOperator):
    """The product ``A B``: x -> A(B x)."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.domain_shape != inner.range_shape or outer.is_complex != inner.is_complex:
            raise GeometryError(
                f"cannot compose {outer!r} with {inner!r}: "
                "the domain of the first must be the range of the second"
            )
        super().__init__(inner.domain_shape, outer.range_shape, is_complex=inner.is_complex)
        self.outer, self.inner = outer, inner
        self.physical = outer.physical or inner.physical

    def _matvec(self, x: Tensor) -> Tensor:
        return self.outer._matvec(self.inner._matvec(x))

    def _rmatvec(self, y: Tensor) -> Tensor:
        return self.inner._rmatvec(self.outer._rmatvec(y))

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """B^H A^H."""
        return Composition(self.inner.H, self.outer.H)

    @property
    def gram(self) -> LinearOperator:
        """B^H (A^H A) B, which keeps a fast ``A^H A``."""
        return Composition(self.inner.H, Composition(self.outer.gram, self.inner))

    def _label(self) -> str:
        return f"({self.outer._label()} @ {self.inner._label()})"


class Sum(LinearOperator):
    """The sum ``A + B`` of two operators between the same spaces."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        same_spaces = (first.domain_shape, first.range_shape) == (second.domain_shape, second.range_shape)
        if not same_spaces or first.is_complex != second.is_complex:
            raise GeometryError(f"cannot add {first!r} and {second!r}: both must map between the same spaces")
        super().__init__(first.domain_shape, first.range_shape, is_complex=first.is_complex)
        self.first, self.second = first, second
        self.physical = first.physical or second.physical

    def _matvec(self, x: Tensor) -> Tensor:
        return self.first._matvec(x) + self.second._matvec(x)

    def _rmatvec(self, y: Tensor) -> Tensor:
        return self.first._rmatvec(y) + self.second._rmatvec(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """A^H + B^H."""
        return Sum(self.first.H, self.second.H)

    def _label(self) -> str:
        return f"({self.first._label()} + {self.second._label()})"


class Scaled(LinearOperator):
    """The multiple ``s A`` of an operator; a complex factor needs a complex operator."""

    def __init__(self, operator: LinearOperator, factor: complex) -> None:
        value = complex(factor)
        if not (math.isfinite(value.real) and math.isfinite(value.imag)):
            raise ConfigError(f"cannot scale an operator by {factor}: the factor must be finite")
        if value.imag != 0 and not operator.is_complex:
            raise ConfigError(f"cannot scale the real operator {operator!r} by {factor}: use a real factor")
        super().__init__(operator.domain_shape, operator.range_shape, is_complex=operator.is_complex)
        self.operator = operator
        self.physical = operator.physical
        self.factor: complex = value if value.imag else value.real

    def _matvec(self, x: Tensor) -> Tensor:
        return self.factor * self.operator._matvec(x)

    def _rmatvec(self, y: Tensor) -> Tensor:
        return self.factor.conjugate() * self.operator._rmatvec(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The multiple conj(s) A^H."""
        return Scaled(self.operator.H, self.factor.conjugate())

    @property
    def gram(self) -> LinearOperator:
        """The multiple |s|^2 A^H A."""
        return Scaled(self.operator.gram, abs(self.factor) ** 2)

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return |s| ||A||."""
        return abs(self.factor) * self.operator.norm(max_iter=max_iter, rtol=rtol)

    def _label(self) -> str:
        return f"{self.factor:g} * {self.operator._label()}"


def _power_iteration(operator: LinearOperator, max_iter: int, rtol: float) -> float:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.complex64 if operator.is_complex else torch.float32
    x = torch.randn(operator.domain_shape, dtype=dtype, generator=generator).to(operator._device())
    gram, value = operator.gram, 0.0
    with torch.no_grad():
        for _ in range(max_iter):
            x = gram(x / torch.linalg.vector_norm(x))
            previous, value = value, float(torch.linalg.vector_norm(x))
            if value == 0.0 or abs(value - previous) <= rtol * value:
                break
    return math.sqrt(value)
