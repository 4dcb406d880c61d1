"""Zero-filled reconstruction: the adjoint of the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from treg_med.solvers.base import Problem, Solver

__all__ = ["ZeroFilled"]


@dataclass(frozen=True, kw_only=True)
class ZeroFilled(Solver):
    r"""Fill what was not measured with zeros, :math:`\hat x = A^H y`.

    With normalised coil maps (sum of squares one) this is the coil-combined inverse Fourier transform.
    """

    name: ClassVar[str] = "zero-filled"

    def solve(self, problem: Problem) -> Tensor:
        """Return the adjoint of the data, ``(*batch, H, W)``."""
        return problem.linear.adjoint(problem.y)
