"""Choosing a regularisation weight without a reference: Morozov's discrepancy principle, per batch item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["WeightSearch"]

_LARGEST_STEP = math.log(2.5)
_DAMPING = 0.7


class WeightSearch:
    r"""Secant search on the logarithm of a weight until the residual reaches a target.

    The residual of a regularised fit grows with the weight w; near a point it behaves as
    :math:`r \propto w^s`. Each call of :meth:`update` estimates s from the last two points and moves
    :math:`\log w \mathrel{+}= (\log r^\star - \log r) / s`, damped and at most by a
    factor of 2.5. No bracket is kept, because the
    residual of a warm-started iteration still drifts while the search runs. Items of a batch do not see
    each other.

    Morozov: On the solution of functional equations by the method of regularization, Soviet Math. Dokl. 7
    (1966).

    Parameters
    ----------
    start : Tensor ``(*batch,)``
        First weight.
    target
        Residual in noise units to reach.
    tolerance
        The search is over for an item when its residual is within this of the target.
    bounds
        Smallest and largest weight, relative to ``start``.
    fixed
        Keep ``start``: the weight was given by the user.
    slope
        First guess of s.
    """

    def __init__(
        self,
        start: Tensor,
        target: float,
        *,
        tolerance: float = 0.01,
        bounds: tuple[float, float] = (1e-2, 1e2),
        fixed: bool = False,
        slope: float = 0.2,
    ) -> None:
        self.target = target
        self.tolerance = tolerance
        self.fixed = fixed
        self._log = start.log()
        self._low = self._log + math.log(bounds[0])
        self._high = self._log + math.log(bounds[1])
        self._slope = torch.full_like(start, slope)
        self._previous: tuple[Tensor, Tensor] | None = None
        self.done = torch.full_like(start, fixed, dtype=torch.bool)
        self.stuck = torch.zeros_like(self.done)

    @property
    def weight(self) -> Tensor:
        """Current weight, shape ``(*batch,)``."""
        return self._log.exp()

    def update(self, residual: Tensor, active: Tensor | None = None) -> None:
        """Take the residual ``(*batch,)`` reached with the weight and move the weight of active items."""
        if self.fixed:
            return
        log_residual = residual.clamp_min(1e-12).log()
        if self._previous is not None:
            moved = self._log - self._previous[0]
            slope = (log_residual - self._previous[1]) / torch.where(moved.abs() > 0.05, moved, torch.inf)
            self._slope = torch.where(moved.abs() > 0.05, slope.clamp(0.05, 1.0), self._slope)
        self.done = (residual - self.target).abs() <= self.tolerance
        step = (_DAMPING * (math.log(self.target) - log_residual) / self._slope).clamp(-_LARGEST_STEP, _LARGEST_STEP)
        step = torch.where(self.done if active is None else self.done | ~active, 0.0, step)
        wanted = self._log + step
        following = torch.minimum(torch.maximum(wanted, self._low), self._high)
        # At a bound and still pushing outwards: the target cannot be reached with any sensible weight.
        self.stuck = (following == self._log) & (step != 0)
        self._previous = (self._log, log_residual)
        self._log = following
