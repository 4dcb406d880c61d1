"""SIRT: simultaneous iterative reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators import LinearOperator
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.problem import Problem, per_image

__all__ = ["SIRT"]

# Rays and pixels that meet less than this share of the longest path through the other side hold no information.
_LEAST_SHARE = 1e-3
_BLOCK = 5


@dataclass(frozen=True, kw_only=True)
class SIRT(Solver):
    r"""Average the misfit of every ray along its path, until the data are fitted to the noise.

    .. math:: x \leftarrow x + \lambda\, C A^T R (y - A x), \qquad R = 1 / (A 1), \quad C = 1 / (A^T 1)

    from zero, with negative values set to zero after every step. :math:`\lambda` = `relaxation` below 2 converges. The
    iteration ends at the first image whose residual, looked at every fifth time, is at most `target` noise units, or at
    the last one before it rises, with a warning. The statistical weights are left aside; samples of weight zero are not
    used.

    Gilbert: Iterative methods for the three-dimensional reconstruction of an object from projections, J. Theor. Biol.
    36 (1972) 105. Gregor, Benson: Computational analysis and improvement of SIRT, IEEE Trans. Med. Imaging 27 (2008)
    918.
    """

    name: ClassVar[str] = "sirt"
    volumes: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    relaxation: float = setting(1.8, above=0.0, maximum=1.999, help="lambda")
    nonnegative: bool = setting(True, help="set negative values to zero after every step")
    target: float = setting(1.0, above=0.0, maximum=10.0, help="residual to reach, noise units")
    max_iterations: int = setting(200, minimum=1, maximum=100000, help="iterations")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        operator = problem.linear
        if operator.is_complex:
            raise ConfigError(
                f"solver {self.name!r} needs a real operator with entries >= 0, got {operator!r}; "
                "use cg-sense, wavelet or tv for complex images"
            )
        rays, pixels = _shares(operator, problem.y)
        image = torch.zeros_like(operator.adjoint(problem.y))
        best, least = image, torch.full_like(problem.noise_std, torch.inf)
        active = torch.ones_like(problem.noise_std, dtype=torch.bool)
        dims, events = len(operator.domain_shape), tuple(range(-len(operator.range_shape), 0))
        misfit = problem.y
        for step in range(1, self.max_iterations + 1):
            moved = image + self.relaxation * pixels * operator.adjoint(rays * misfit)
            image = moved.clamp_min(0) if self.nonnegative else moved
            misfit = problem.y - operator(image)
            if step % _BLOCK and step < self.max_iterations:
                continue
            residual = (misfit.square().sum(events) / operator.n_measured()).sqrt() / problem.noise_std
            # A ray that grazes the image counts as much as one through its middle: in the end its noise is fitted, and
            # the others worse.
            better = active & (residual < least)
            best = torch.where(per_image(better, dims), image, best)
            least = torch.where(better, residual, least)
            active = better & (residual > self.target)
            problem.log(self.name, step, self.max_iterations, image=best, residual=least)
            if not bool(active.any()):
                break
        missed = least > self.target
        if bool(missed.any()):
            problem.warn(
                f"sirt came to a residual of {float(least.max()):.3g} noise units and no nearer to {self.target:g}; "
                "the noise level may be too low, or the data may hold more than the image can explain (try pwls-tv)"
            )
        return best


def _shares(operator: LinearOperator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return R and C, zero for rays and pixels that meet nothing."""
    lengths = operator(torch.ones(operator.domain_shape, dtype=like.dtype, device=like.device))
    seen = operator.adjoint(torch.ones(operator.range_shape, dtype=like.dtype, device=like.device))
    return _inverted(lengths), _inverted(seen)


def _inverted(values: Tensor) -> Tensor:
    return torch.where(values > _LEAST_SHARE * values.max(), 1 / values, 0.0)
