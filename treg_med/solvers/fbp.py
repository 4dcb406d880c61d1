"""Filtered backprojection as a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor

from treg_med.operators import filtered_backprojection
from treg_med.operators.ramp_filter import FilterName
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.problem import Problem

__all__ = ["FilteredBackprojection"]


@dataclass(frozen=True, kw_only=True)
class FilteredBackprojection(Solver):
    r"""Filter every view by a ramp and smear it back: the inverse of the X-ray transform for full, clean data.

    The statistical weights are left aside. Views that are missing or rays without photons show as streaks; nothing
    brings the image to the data.

    Ramachandran, Lakshminarayanan: Proc. Natl. Acad. Sci. 68 (1971) 2236. Shepp, Logan: IEEE Trans. Nucl. Sci. 21
    (1974) 21.
    """

    name: ClassVar[str] = "fbp"
    volumes: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    filter: str = setting(
        "ram-lak", choices=("ram-lak", "shepp-logan", "cosine", "hamming", "hann"), help="window of the ramp"
    )

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        return filtered_backprojection(problem.linear, problem.y, cast(FilterName, self.filter))
