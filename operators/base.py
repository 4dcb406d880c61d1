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
the two methods ``_forward`` and ``_adjoint`` on plain tensors; everything else is inherited. What a solver or a reader
wants to know of a measurement it asks the operator, which overrides the answers that it knows better: ``norm``,
``measured``, ``noise_std``, ``start``, ``fourier_diagonal``, ``image_unit``, ``facts``.

The algebra (adjoint, product, sum, multiple, one operator for each coil) is in this file because every operator can
make it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators.conjugate_gradient import conjugate_gradient
from treg_med.operators.contract import Operator, align_batches, broadcast_batch
from treg_med.operators.differentiable import differentiable
from treg_med.operators.fourier_diagonal import FourierDiagonal, point_response
from treg_med.operators.power_iteration import power_iteration
from treg_med.operators.unexplained_noise import unexplained_noise_std

__all__ = ["AdjointOperator", "Composition", "Identity", "LinearOperator", "PerCoil", "Scaled", "Sum", "Wrapper"]

# Enough for the level of an image, not for its detail.
_QUICK_ITERATIONS = 3


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
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Take the names that the two methods had until version 0.1, with a warning."""
        super().__init_subclass__(**keywords)
        for old, new in (("_matvec", "_forward"), ("_rmatvec", "_adjoint")):
            if old in cls.__dict__:
                warnings.warn(f"{cls.__name__}.{old} is now called {new}", DeprecationWarning, stacklevel=2)
                setattr(cls, new, cls.__dict__[old])

    def _forward(self, x: Tensor) -> Tensor:
        """Apply A to a checked tensor ``(*batch, *domain_shape)``; called without autograd."""
        raise NotImplementedError(f"{type(self).__name__} must implement _forward")

    def _adjoint(self, y: Tensor) -> Tensor:
        """Apply A^H to a checked tensor ``(*batch, *range_shape)``; called without autograd."""
        raise NotImplementedError(f"{type(self).__name__} must implement _adjoint")

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
        return differentiable(self._checked(x, self.domain_shape, "input"), self, False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^H y`` for ``y`` of shape ``(*batch, *range_shape)``; errors as in ``forward``."""
        return differentiable(self._checked(y, self.range_shape, "measurement"), self, True)

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

        def iterate() -> float:
            generator = torch.Generator().manual_seed(0)
            dtype = torch.complex64 if self.is_complex else torch.float32
            first = torch.randn(self.domain_shape, dtype=dtype, generator=generator).to(self._device())
            return math.sqrt(power_iteration(self.gram, first, max_iter, rtol))

        return float(self._cached(("norm", max_iter, rtol), iterate))

    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise level of one measurement ``range_shape``: Var(y_i) = noise_std^2 / w_i.

        The smaller of two estimates, both of which err upwards: from the samples alone (`samples_noise_std`), and from
        what no image explains (see `unexplained_noise_std`).

        Parameters
        ----------
        y
            Without a batch; complex samples have E|n|^2 = noise_std^2 / w.
        weights
            w, ``range_shape``; None is one for all.

        Raises
        ------
        NumericsError
            If neither can be told.
        """
        y = self._checked(y, self.range_shape, "measurement")
        unexplained = unexplained_noise_std(self, y, weights)
        try:
            return min(self.samples_noise_std(y, weights), math.inf if unexplained is None else unexplained)
        except NumericsError:
            if unexplained is None:
                raise
            return unexplained

    def start(self, y: Tensor) -> Tensor:
        """Return a first image of data ``(*batch, *range_shape)``, of the right level if of little detail.

        Three iterations of conjugate gradients on A^H A x = A^H y.
        """
        dims = len(self.domain_shape)
        return conjugate_gradient(
            self.gram, self.adjoint(y), max_iter=_QUICK_ITERATIONS, rtol=0.0, event_ndim=dims
        ).x

    @property
    def shift_invariant(self) -> bool:
        """Whether A^H A is nearly a convolution, as for a projector or a Fourier transform."""
        return False

    def fourier_diagonal(self) -> FourierDiagonal:
        r"""Return the diagonal of :math:`F A^H A F^H`, which preconditions the inversion of A^H A.

        That of a normal operator that is nearly a convolution is the modulus of the spectrum of its point response at
        the centre. Any other operator gets the constant ``||A||^2 / 2``.

        Fessler, Booth: Conjugate-gradient preconditioning methods for shift-variant PET image reconstruction, IEEE
        Trans. Image Process. 8 (1999) 688.
        """
        spectrum = point_response(self.gram, self.domain_shape, self._device()) if self.shift_invariant else None
        if spectrum is None:
            spectrum = torch.full(self.domain_shape, self.norm() ** 2 / 2, device=self._device())
        return FourierDiagonal(spectrum)

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

    #: Length of the first axis of the range where it counts coils; else 0.
    _coil_axis: int = 0

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Return the composition ``x -> self(other(x))``; after coil maps, for every coil by itself."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        fused = self._fused_with(other)
        if fused is not None:
            return fused
        each = other._coil_axis and self.domain_shape == other.range_shape[1:]
        return Composition(PerCoil(self, other._coil_axis) if each else self, other)

    def _fused_with(self, inner: LinearOperator) -> LinearOperator | None:
        """Return one operator that does both in fewer passes, where there is one."""
        return None

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

    def _forward(self, x: Tensor) -> Tensor:
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
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

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._forward(y)

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
        self.image_unit = inner.image_unit or outer.image_unit
        self._coil_axis = outer._coil_axis

    def _fused_with(self, inner: LinearOperator) -> LinearOperator | None:
        return self.outer._fused_with(self.inner @ inner)

    def _forward(self, x: Tensor) -> Tensor:
        return self.outer._forward(self.inner._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.inner._adjoint(self.outer._adjoint(y))

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """B^H A^H."""
        return Composition(self.inner.H, self.outer.H)

    @property
    def gram(self) -> LinearOperator:
        """B^H (A^H A) B, which keeps a fast ``A^H A``."""
        return Composition(self.inner.H, Composition(self.outer.gram, self.inner))

    @property
    def measured(self) -> Tensor | None:
        """What the outer operator measures."""
        return self.outer.measured

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Return what the outer operator, which knows the samples, finds in them."""
        return self.outer.samples_noise_std(y, weights)

    @property
    def shift_invariant(self) -> bool:
        """Whether both are."""
        return self.outer.shift_invariant and self.inner.shift_invariant

    def facts(self) -> dict[str, Any]:
        """Return what both say."""
        return {**self.inner.facts(), **self.outer.facts()}

    def _label(self) -> str:
        return f"({self.outer._label()} @ {self.inner._label()})"


class Wrapper(LinearOperator):
    """An operator around one of the same measurement, which answers for it."""

    def __init__(
        self, operator: LinearOperator, domain_shape: tuple[int, ...], range_shape: tuple[int, ...]
    ) -> None:
        super().__init__(domain_shape, range_shape, is_complex=operator.is_complex)
        self.operator = operator
        self.image_unit = operator.image_unit

    @property
    def measured(self) -> Tensor | None:
        """What the operator measures."""
        return self.operator.measured

    @property
    def shift_invariant(self) -> bool:
        """As the operator."""
        return self.operator.shift_invariant

    def facts(self) -> dict[str, Any]:
        """Return what the operator says."""
        return self.operator.facts()


class PerCoil(Wrapper):
    """The same operator for each of several coils, ``(*batch, coils, *domain)`` to ``(*batch, coils, *range)``."""

    def __init__(self, operator: LinearOperator, coils: int) -> None:
        domain, data = operator.domain_shape, operator.range_shape
        super().__init__(operator, (coils, *domain), (coils, *data))
        self._coil_axis = coils

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._adjoint(y)

    @property
    def gram(self) -> LinearOperator:
        """A^H A for each coil."""
        return PerCoil(self.operator.gram, self._coil_axis)

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the norm of the operator of one coil."""
        return self.operator.norm(max_iter=max_iter, rtol=rtol)

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Return the root mean square of the levels of the coils."""
        parts = [None] * len(y) if weights is None else weights
        levels = [self.operator.samples_noise_std(coil, part) for coil, part in zip(y, parts, strict=True)]
        return math.sqrt(sum(level**2 for level in levels) / len(levels))

    def _label(self) -> str:
        return f"PerCoil({self.operator._label()})"


class Sum(LinearOperator):
    """The sum ``A + B`` of two operators between the same spaces."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        same_spaces = (first.domain_shape, first.range_shape) == (second.domain_shape, second.range_shape)
        if not same_spaces or first.is_complex != second.is_complex:
            raise GeometryError(f"cannot add {first!r} and {second!r}: both must map between the same spaces")
        super().__init__(first.domain_shape, first.range_shape, is_complex=first.is_complex)
        self.first, self.second = first, second
        self.image_unit = first.image_unit or second.image_unit

    def _forward(self, x: Tensor) -> Tensor:
        return self.first._forward(x) + self.second._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.first._adjoint(y) + self.second._adjoint(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """A^H + B^H."""
        return Sum(self.first.H, self.second.H)

    def _label(self) -> str:
        return f"({self.first._label()} + {self.second._label()})"


class Scaled(Wrapper):
    """The multiple ``s A`` of an operator; a complex factor needs a complex operator."""

    def __init__(self, operator: LinearOperator, factor: complex) -> None:
        value = complex(factor)
        if not (math.isfinite(value.real) and math.isfinite(value.imag)):
            raise ConfigError(f"cannot scale an operator by {factor}: the factor must be finite")
        if value.imag != 0 and not operator.is_complex:
            raise ConfigError(f"cannot scale the real operator {operator!r} by {factor}: use a real factor")
        super().__init__(operator, operator.domain_shape, operator.range_shape)
        self.factor: complex = value if value.imag else value.real

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor.conjugate() * self.operator._adjoint(y)

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

    def start(self, y: Tensor) -> Tensor:
        """Return the start of the operator for y / s."""
        return self.operator.start(y / self.factor)

    def pinv(self, y: Tensor, *, x0: Tensor | None = None, max_iter: int = 100, rtol: float = 1e-6) -> Tensor:
        """Return what the operator gives for y / s."""
        return self.operator.pinv(y / self.factor, x0=x0, max_iter=max_iter, rtol=rtol)

    def prox(
        self, x0: Tensor, y: Tensor, weight: float | Tensor, *, max_iter: int = 50, rtol: float = 1e-6
    ) -> Tensor:
        """Return what the operator gives for y / s and a weight divided by |s|^2; as in `LinearOperator.prox`."""
        self._prox_arguments(x0, y, weight)
        return self.operator.prox(x0, y / self.factor, weight / abs(self.factor) ** 2, max_iter=max_iter, rtol=rtol)

    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Return |s| times what the operator finds in y / s."""
        return abs(self.factor) * self.operator.noise_std(y / self.factor, weights)

    def fourier_diagonal(self) -> FourierDiagonal:
        """Return |s|^2 times that of the operator."""
        return self.operator.fourier_diagonal().times(abs(self.factor) ** 2)

    def _label(self) -> str:
        return f"{self.factor:g} * {self.operator._label()}"
