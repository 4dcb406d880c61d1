"""CG-SENSE: regularised least squares by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from treg_med.operators import conjugate_gradient
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.discrepancy import WeightSearch
from treg_med.solvers.early_stopping import stopped_early
from treg_med.solvers.problem import Problem, per_image

__all__ = ["CGSense"]

_FIRST_WEIGHT = 0.03  # of ||A||^2 <= 1: close to the result of the search for eight coils at 35 dB
_SEARCH_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class CGSense(Solver):
    r"""Tikhonov-regularised SENSE, :math:`(A^H A + \lambda) x = A^H y`, by Hermitian conjugate gradients.

    With ``rule="tikhonov"`` lambda follows the discrepancy principle: the residual reaches ``target`` noise
    units, each trial started from the last. With ``rule="early-stopping"`` lambda is zero and the iteration
    itself regularises: it stops at the first iterate whose residual is at most ``target``. Measured on
    training slices (8 coils, R = 4 and 8) both rules give the same PSNR within 0.1 dB, and ``target = 0.9``
    is within 0.1 dB of the best weight; the first does not depend on the iteration count and is the default.

    Pruessmann et al.: Advances in sensitivity encoding with arbitrary k-space trajectories, Magn. Reson.
    Med. 46 (2001) 638.
    """

    name: ClassVar[str] = "cg-sense"

    weight: float | None = setting(None, minimum=0.0, help="lambda (||A|| <= 1); None: discrepancy principle")
    rule: str = setting("tikhonov", choices=("tikhonov", "early-stopping"), help="what regularises")
    target: float = setting(0.9, above=0.0, maximum=10.0, help="residual to reach, noise units")
    max_iterations: int = setting(30, minimum=1, maximum=10000, help="conjugate-gradient iterations per weight")
    tolerance: float = setting(1e-4, above=0.0, maximum=1.0, help="relative residual of the normal equations")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        if self.rule == "early-stopping" and self.weight is None:
            problem.note(weight=0.0)
            return stopped_early(problem, self.name, self.target, self.max_iterations)
        return self._tikhonov(problem)

    def _tikhonov(self, problem: Problem) -> Tensor:
        gram = problem.linear.gram
        rhs = problem.linear.adjoint(problem.y)
        first = torch.full_like(problem.noise_std, _FIRST_WEIGHT if self.weight is None else max(self.weight, 1e-12))
        search = WeightSearch(first, self.target, bounds=(1e-4, 1e4), fixed=self.weight is not None)
        image = torch.zeros_like(rhs)
        active = torch.ones_like(problem.noise_std, dtype=torch.bool)
        for step in range(_SEARCH_STEPS):
            weight = search.weight
            column = per_image(weight)
            result = conjugate_gradient(
                lambda x, column=column: gram(x) + column * x,  # type: ignore[misc]
                rhs,
                x0=image,
                max_iter=self.max_iterations,
                rtol=self.tolerance,
            )
            image = torch.where(per_image(active), result.x, image)
            residual = problem.residual(image)
            problem.log(
                "cg-sense",
                step + 1,
                _SEARCH_STEPS,
                image=image,
                residual=residual,
                weight=weight,
                iterations=result.iterations,
            )
            problem.note(weight=weight)
            search.update(residual, active)
            active = active & ~(search.done | search.stuck)
            if not bool(active.any()):
                break
        return image
