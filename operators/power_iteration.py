"""The largest eigenvalue of a positive map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["power_iteration"]


@torch.no_grad()
def power_iteration(apply: Callable[[Tensor], Tensor], first: Tensor, max_iter: int, rtol: float) -> float:
    """Return the largest eigenvalue of a Hermitian positive map, from below, starting at `first`."""
    x, value = first, 0.0
    for _ in range(max_iter):
        x = apply(x / torch.linalg.vector_norm(x))
        previous, value = value, float(torch.linalg.vector_norm(x))
        if value == 0.0 or abs(value - previous) <= rtol * value:
            break
    return value
