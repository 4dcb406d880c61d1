"""Sparsity in an orthogonal wavelet basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.differences import inner
from treg_med.solvers.discrepancy import WeightSearch
from treg_med.solvers.problem import Problem, per_image
from treg_med.solvers.wavelets import OrthogonalWavelet

__all__ = ["Wavelet"]

_FIRST_WEIGHT = 0.5  # of sigma
_BLOCK = 10


@dataclass(frozen=True, kw_only=True)
class Wavelet(Solver):
    r"""l1-wavelet reconstruction with cycle spinning.

    .. math:: \min_x \tfrac12 \|A x - y\|^2 + w \|W x\|_1

    over complex images, with W the orthogonal db4 transform (coarsest low-pass coefficients left alone), by
    FISTA with adaptive restart. The transform is shifted by another offset in every iteration, which
    removes the block pattern of an orthogonal basis. Without a given ``weight`` the residual is brought to
    ``target`` noise units. The step is one because normalised coil maps make ``||A|| <= 1``; other
    operators are divided by their norm.

    Lustig, Donoho, Pauly: Magn. Reson. Med. 58 (2007) 1182. Beck and Teboulle: SIAM J. Imaging Sci. 2
    (2009) 183. O'Donoghue and Candes: Found. Comput. Math. 15 (2015) 715 (restart).
    """

    name: ClassVar[str] = "wavelet"

    weight: float | None = setting(None, above=0.0, help="w in units of sigma; None: discrepancy principle")
    target: float = setting(0.93, above=0.0, maximum=10.0, help="residual to reach, noise units")
    levels: int = setting(3, minimum=1, maximum=8, help="dyadic levels; fewer for small images")
    cycle_spinning: bool = setting(True, help="shift the transform in every iteration")
    max_iterations: int = setting(100, minimum=1, maximum=10000, help="FISTA iterations")
    tolerance: float = setting(1e-3, above=0.0, help="relative change of an iteration at which it stops")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        state = _Fista(problem, self)
        sigma = problem.noise_std
        start = (_FIRST_WEIGHT if self.weight is None else self.weight) * sigma
        search = WeightSearch(start, self.target, fixed=self.weight is not None)
        active = torch.ones_like(sigma, dtype=torch.bool)
        residual = torch.full_like(sigma, torch.inf)
        weight = search.weight
        while bool(active.any()) and state.iterations < self.max_iterations:
            weight = torch.where(active, search.weight, weight)
            change = state.run(min(_BLOCK, self.max_iterations - state.iterations), weight, active)
            residual = torch.where(active, problem.residual(state.image), residual)
            problem.log(
                "wavelet",
                state.iterations,
                self.max_iterations,
                image=state.image,
                residual=residual,
                weight=weight,
                change=change,
            )
            search.update(residual, active)
            active = active & ~((search.done | search.stuck) & (change < self.tolerance))
        problem.note(weight=weight)
        if bool(search.stuck.any()):
            problem.warn(
                f"no weight brings the residual to {self.target:g} noise units (it stays at "
                f"{float(residual.max()):.2f}); the noise level of the measurement may be wrong"
            )
        return state.image


class _Fista:
    """Warm-startable FISTA whose weight may change between runs; every batch item restarts by itself."""

    def __init__(self, problem: Problem, settings: Wavelet) -> None:
        operator = problem.linear
        shape = (operator.domain_shape[-2], operator.domain_shape[-1])
        self.gram = operator.gram
        self.rhs = operator.adjoint(problem.y)
        # Power iteration approaches the norm from below.
        self.step = 1.0 if operator.norm() <= 1.001 else 1 / (1.02 * operator.norm()) ** 2
        self.wavelet = OrthogonalWavelet(shape, settings.levels, self.rhs.abs().dtype, self.rhs.device)
        self.period = 2**self.wavelet.levels if settings.cycle_spinning else 1
        self.image = self.rhs
        self.iterations = 0
        self._point = self.rhs
        self._momentum = per_image(torch.ones_like(problem.noise_std))

    def run(self, iterations: int, weight: Tensor, active: Tensor) -> Tensor:
        """Iterate items that are ``active``; return the relative change of the last step, ``(*batch,)``."""
        threshold = per_image(weight) * self.step
        keep = per_image(active)
        change = torch.zeros_like(weight)
        for _ in range(iterations):
            before = self.image
            descended = self._point + self.step * (self.rhs - self.gram(self._point))
            image = self._threshold(descended, threshold)
            moved = image - before
            uphill = inner(self._point - image, moved) > 0
            momentum = torch.where(uphill, 1.0, self._momentum)
            following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
            self._point = image + (momentum - 1) / following * moved
            self._momentum = following
            self.image = torch.where(keep, image, before)
            change = (inner(moved, moved) / inner(image, image).clamp_min(1e-30)).sqrt()[..., 0, 0]
            self.iterations += 1
        return change

    def _threshold(self, image: Tensor, threshold: Tensor) -> Tensor:
        """Soft-threshold the detail coefficients of the shifted image."""
        # Steps coprime to the period visit every row offset and every column offset.
        shift = ((5 * self.iterations) % self.period, (11 * self.iterations) % self.period)
        coefficients = self.wavelet.forward(torch.roll(image, shift, (-2, -1)))
        rows, columns = self.wavelet.coarse
        coarse = coefficients[..., :rows, :columns].clone()
        # Not abs(): for complex numbers that goes through hypot and is several times slower.
        square = (
            coefficients.real.square() + coefficients.imag.square()
            if coefficients.is_complex()
            else coefficients.square()
        )
        shrunk = coefficients * (1 - threshold * torch.rsqrt(torch.maximum(square, threshold.square())))
        shrunk[..., :rows, :columns] = coarse
        return torch.roll(self.wavelet.inverse(shrunk), (-shift[0], -shift[1]), (-2, -1))
