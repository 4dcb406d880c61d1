"""Zero-filled reconstruction: the first image of a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from treg_med.solvers.base import Solver
from treg_med.solvers.problem import Problem

__all__ = ["ZeroFilled"]


@dataclass(frozen=True, kw_only=True)
class ZeroFilled(Solver):
    r"""Fill what was not measured with zeros, :math:`\hat x = A^H y`.

    With normalised coil maps (sum of squares one) this is the coil-combined inverse Fourier transform. Where A^H says
    nothing of levels, as that of a projector or a radial trajectory, it is the first image that the operator gives
    (`LinearOperator.start`): a few conjugate-gradient steps from zero.
    """

    name: ClassVar[str] = "zero-filled"

    def solve(self, problem: Problem) -> Tensor:
        """Return the operator's first image, ``(*batch, H, W)``."""
        return problem.linear.start(problem.y)
