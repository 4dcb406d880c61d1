"""A linear map and its adjoint as one function of autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from treg_med.operators.base import LinearOperator

__all__ = ["differentiable"]


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
            y = operator._adjoint(x) if adjoint else operator._forward(x)
        # Autograd treats a returned input as modified in place; identities must hand back a new view.
        return y.view_as(y) if y is x else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LinearOperator, bool], output: Tensor) -> None:
        _, ctx.operator, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return differentiable(gradients[0], ctx.operator, not ctx.adjoint), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return differentiable(tangents[0], ctx.operator, ctx.adjoint)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, operator: LinearOperator, adjoint: bool
    ) -> tuple[Tensor, int]:
        return differentiable(x.movedim(in_dims[0] or 0, 0), operator, adjoint), 0


def differentiable(x: Tensor, operator: LinearOperator, adjoint: bool) -> Tensor:
    """Return A x, or A^H x, whose derivative is the same map and whose transpose the other."""
    result: Tensor = _Apply.apply(x, operator, adjoint)
    return result
