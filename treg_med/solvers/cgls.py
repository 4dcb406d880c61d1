"""CGLS: conjugate gradients on the least-squares problem, stopped at the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.early_stopping import stopped_early
from treg_med.solvers.problem import Problem

__all__ = ["CGLS"]


@dataclass(frozen=True, kw_only=True)
class CGLS(Solver):
    r"""Conjugate gradients for :math:`\min_x \|A x - y\|^2` from zero, stopped by the discrepancy principle.

    The iteration itself regularises: it ends at the first iterate whose residual is at most `target` noise units. The
    statistical weights are left aside; samples of weight zero are not used.

    Hestenes, Stiefel: Methods of conjugate gradients for solving linear systems, J. Res. Natl. Bur. Stand. 49 (1952)
    409.
    """

    name: ClassVar[str] = "cgls"
    volumes: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    target: float = setting(1.0, above=0.0, maximum=10.0, help="residual to reach, noise units")
    max_iterations: int = setting(40, minimum=1, maximum=10000, help="iterations")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        return stopped_early(problem, self.name, self.target, self.max_iterations)
