"""An operator seen through the statistical weights of its data."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.base import Composition, LinearOperator, Wrapper

__all__ = ["Weighted"]


class Weighted(Wrapper):
    r"""The whitened operator :math:`W^{1/2} A`, whose normal operator is :math:`A^H W A`.

    Data of variance :math:`\sigma^2 / w_i` become data of variance :math:`\sigma^2` when multiplied by
    :math:`\sqrt{w_i}`, and least squares with this operator weighs every sample by what it knows.

    Parameters
    ----------
    operator
        A, ``(*batch, *domain_shape)`` to ``(*batch, *range_shape)``.
    weights
        ``range_shape``, real, finite and >= 0; zero stands for a sample that was not measured.

    Raises
    ------
    GeometryError
        If the weights are not of the operator's range shape.
    ConfigError
        If they are complex, negative, not finite or all zero.

    Examples
    --------
    >>> import torch
    >>> from treg_med.operators import Identity
    >>> whitened = Weighted(Identity((2,), is_complex=False), torch.tensor([4.0, 0.0]))
    >>> whitened(torch.ones(2))
    tensor([2., 0.])
    """

    weights: Tensor
    _roots: Tensor

    def __init__(self, operator: LinearOperator, weights: Tensor) -> None:
        super().__init__(operator, operator.domain_shape, operator.range_shape)
        values = torch.as_tensor(weights).detach()
        if tuple(values.shape) != operator.range_shape:
            raise GeometryError(
                f"expected weights of shape {operator.range_shape} (the range of {operator!r}), got "
                f"{tuple(values.shape)}; give one weight per sample, the same for the whole batch"
            )
        if values.is_complex() or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
            raise ConfigError(f"expected real, finite weights >= 0, got {values.dtype}; use 1 / variance")
        if not bool((values > 0).any()):
            raise ConfigError("expected at least one weight above 0, got only zeros: no sample would be left")
        kept = values if values.is_floating_point() else values.float()
        self.register_buffer("weights", kept.clone())
        self.register_buffer("_roots", kept.sqrt())

    def _forward(self, x: Tensor) -> Tensor:
        y = self.operator._forward(x)
        return y * self._roots.to(y.real.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._adjoint(y * self._roots.to(y.real.dtype))

    @property
    def gram(self) -> LinearOperator:
        """The normal operator A^H W A."""
        weights = _Diagonal(self._roots.double().square(), self.is_complex)
        return Composition(self.operator.H, Composition(weights, self.operator))

    @property
    def measured(self) -> Tensor:
        """What the operator measures and a weight counts."""
        seen, inner = self.weights > 0, self.operator.measured
        return seen if inner is None else seen & inner

    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Return the level of whitened data, that of the operator's own data with these weights."""
        roots = self._roots.to(y.real.dtype)
        own = self.weights if weights is None else self.weights * weights
        return self.operator.noise_std(torch.where(roots > 0, y / roots, 0), own)

    def _label(self) -> str:
        return f"Weighted({self.operator._label()})"


class _Diagonal(LinearOperator):
    """Multiplication by real numbers."""

    values: Tensor

    def __init__(self, values: Tensor, is_complex: bool) -> None:
        super().__init__(tuple(values.shape), tuple(values.shape), is_complex=is_complex)
        self.register_buffer("values", values)

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.values.to(x.real.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)
