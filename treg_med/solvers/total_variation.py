"""Total variation: along an estimated phase, the classical bar for complex MR images, and of attenuations >= 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.discrepancy import WeightSearch
from treg_med.solvers.phase import refine_rotation, smooth_rotation
from treg_med.solvers.problem import Problem, per_image
from treg_med.solvers.tv_splitting import TVSplitting

__all__ = ["PWLSTotalVariation", "PhasedImage", "TotalVariation"]

_BLOCK = 5
_TURN_ITERATIONS = 5
_INNER_ITERATIONS = 6


@dataclass(frozen=True)
class _Splitting:
    """How the iteration is split and where the search for the weight begins; changes the way and not the solution.

    `first_weight` is in units of sigma, near the result of the search, and `lowest` the least share of it; the search
    for the residual waits for `settle` iterations. Measured for attenuations on training slices (256 x 256,
    60 views, 4e3 and 1e5 photons): 24 iterations come within 1 to 2 % of the limit, against 3 to 9 % with the constants
    for MR. The best weights lie between 0.005 and 0.02 sigma from 60 to 180 views and 4e3 to 1e6 photons, so that the
    search may not leave for less where errors of the model, and not noise, keep the residual up.
    """

    threshold: float
    inner_iterations: int
    pin: float
    first_weight: float
    lowest: float
    settle: int


_MAGNETIC_RESONANCE = _Splitting(
    threshold=0.07, inner_iterations=_INNER_ITERATIONS, pin=2.0, first_weight=0.3, lowest=1e-2, settle=0
)
_ATTENUATION = _Splitting(threshold=0.04, inner_iterations=8, pin=2.0, first_weight=0.02, lowest=0.4, settle=10)
# An image of total variation has used up some of its data: measured at the best weights, 60 to 180 views.
_FREEDOM = 0.06  # degrees of freedom per pixel
_TARGET, _LEAST_TARGET = 0.97, 0.88


@dataclass(frozen=True)
class PhasedImage:
    """A complex image as a magnitude along a phase.

    Parameters
    ----------
    image
        Result ``(*batch, H, W)``, complex where the operator is; a real one has a rotation of ones.
    magnitude
        Real, signed, ``(*batch, H, W)``.
    rotation
        Unit-modulus phase factor ``(*batch, H, W)``; ``magnitude * rotation`` is ``image`` where the
        phase-aware fit was kept, and the part of ``image`` along the phase elsewhere.
    """

    image: Tensor
    magnitude: Tensor
    rotation: Tensor


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Solver):
    r"""Isotropic total variation in two stages, the second along the phase found by the first.

    1. :math:`x_1 = \arg\min_x \tfrac12\|A x - y\|^2 + w_1 \mathrm{TV}(x)` over complex images;
    2. :math:`e^{i\phi}` = the phase of the low-passed :math:`x_1`;
    3. :math:`m = \arg\min_m \tfrac12\|A(m e^{i\phi}) - y\|^2 + w_2 \mathrm{TV}(m)` over real images,
    alternated with
       Gauss-Newton turns of the phase towards the data under a smoothness penalty.

    The result is :math:`m e^{i\phi}`. Without a given ``weight`` both weights follow the discrepancy
    principle: the residual reaches ``target`` noise units. Where the phase-aware image cannot come near the
    residual that complex TV reaches, as with a measured phase that is not smooth, the complex TV image is
    returned and the history says so. Every item of a batch is treated by itself.

    An attenuation has one stage and is kept from falling below zero (`nonnegative`). The statistical weights of its
    data are left aside: `PWLSTotalVariation` uses them.

    Rudin, Osher, Fatemi: Physica D 60 (1992) 259. Lustig, Donoho, Pauly: Magn. Reson. Med. 58 (2007) 1182.
    """

    name: ClassVar[str] = "tv"
    weighted: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "complex": {"phase": "none"},
        "two-stage": {"phase_rounds": 0},
        "converged": {"max_iterations": 160, "phase_rounds": 30, "tolerance": 3e-4},
    }

    weight: float | None = setting(None, above=0.0, help="w in units of sigma; None: discrepancy principle")
    target: float | None = setting(
        None, above=0.0, maximum=10.0, help="residual to reach, noise units; None: 0.97, by the number of rays in CT"
    )
    phase: str = setting("smooth", choices=("smooth", "none"), help="'none' is plain complex TV")
    phase_width: float = setting(5.0, above=0.0, help="low-pass width of the first phase, pixels")
    phase_rounds: int = setting(7, minimum=0, maximum=100, help="Gauss-Newton turns of the phase")
    phase_slope: float = setting(0.03, above=0.0, help="slope expected of a turn, rad per pixel")
    phase_bend: float = setting(1e-3, above=0.0, help="curvature expected of a turn, rad per pixel squared")
    excess: float = setting(0.15, minimum=0.0, help="residual above complex TV at which phase-aware TV is dropped")
    max_iterations: int = setting(40, minimum=1, maximum=10000, help="iterations of each stage")
    tolerance: float = setting(2e-3, above=0.0, help="relative change of an iteration at which a stage stops")
    nonnegative: bool | None = setting(None, help="real images >= 0; None: where they are attenuations")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        return self.solve_phased(problem).image

    def solve_phased(self, problem: Problem) -> PhasedImage:
        """Return the image with its magnitude and phase, for methods that start from them."""
        if self.nonnegative and problem.operator.is_complex:
            raise ConfigError("expected a real operator with nonnegative=True, got a complex one; leave it at None")
        work = _Workspace(problem)
        plain, first_weight, first = self._complex_stage(problem, work)
        if self.phase == "none" or not plain.is_complex():
            problem.note(weight=work.batched(first_weight), phase_used="none")
            rotation = smooth_rotation(plain, self.phase_width) if plain.is_complex() else torch.ones_like(plain)
            return work.phased(plain, (plain * rotation.conj()).real, rotation)
        magnitude, rotation, weight, second = self._phase_stage(problem, work, plain, first_weight, first)
        keep = second <= first + self.excess
        if not bool(keep.all()):
            problem.warn(
                "the phase of the image is not smooth enough for phase-aware TV "
                f"(residual {float(second.max()):.2f} against {float(first.max()):.2f}); complex TV was used"
            )
        image = torch.where(per_image(keep), magnitude * rotation, plain)
        magnitude = torch.where(per_image(keep), magnitude, (plain * rotation.conj()).real)
        problem.note(
            weight=work.batched(torch.where(keep, weight, first_weight)),
            phase_used=["smooth" if kept else "none" for kept in keep.tolist()]
            if problem.batch_shape
            else ("smooth" if bool(keep) else "none"),
        )
        return work.phased(image, magnitude, rotation)

    def _search(self, start: Tensor, sigma: Tensor, lowest: float, usual: float) -> WeightSearch:
        target = usual if self.target is None else self.target
        if self.weight is not None:
            return WeightSearch(self.weight * sigma, target, fixed=True)
        return WeightSearch(start, target, bounds=(lowest, 100.0))

    def _complex_stage(self, problem: Problem, work: _Workspace) -> tuple[Tensor, Tensor, Tensor]:
        """Return the complex TV image, its weight and its residual."""
        nonnegative = problem.attenuation if self.nonnegative is None else self.nonnegative
        splitting = _ATTENUATION if problem.attenuation else _MAGNETIC_RESONANCE
        state = TVSplitting(
            work.gram,
            work.backprojected,
            work.diagonal,
            # The adjoint of a projector is no image; from zero the first step is a filtered one.
            torch.zeros_like(work.backprojected) if problem.attenuation else work.backprojected,
            threshold=splitting.threshold,
            inner_iterations=1 if work.exact else splitting.inner_iterations,
            pin=splitting.pin if nonnegative else None,
        )
        search = self._search(splitting.first_weight * work.sigma, work.sigma, splitting.lowest, work.target)
        active = torch.ones_like(work.sigma, dtype=torch.bool)
        residual = torch.full_like(work.sigma, torch.inf)
        weight = search.weight
        while bool(active.any()) and state.iterations < self.max_iterations:
            weight = search.weight
            change = state.run(min(_BLOCK, self.max_iterations - state.iterations), weight, active)
            residual = torch.where(active, work.residual(state.feasible_image), residual)
            problem.log(
                "complex tv" if state.image.is_complex() else "tv",
                state.iterations,
                self.max_iterations,
                image=work.batched(state.feasible_image),
                residual=work.batched(residual),
                weight=work.batched(weight),
                change=work.batched(change),
            )
            if state.iterations < splitting.settle:
                continue
            search.update(residual, active)
            active = active & ~((search.done | search.stuck) & (change < self.tolerance))
        self._warn_unreached(problem, search, residual)
        return state.feasible_image, weight, residual

    def _phase_stage(
        self, problem: Problem, work: _Workspace, plain: Tensor, first_weight: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return magnitude, phase factor, weight and residual of the phase-aware fit."""
        rotation = smooth_rotation(plain, self.phase_width)
        start = (plain * rotation.conj()).real
        state = TVSplitting(
            work.gram,
            work.backprojected,
            work.diagonal,
            start,
            rotation,
            inner_iterations=_INNER_ITERATIONS,
        )
        # A wrong phase would otherwise drive the weight to zero in vain.
        search = self._search(first_weight, work.sigma, 0.125, work.target)
        active = torch.ones_like(work.sigma, dtype=torch.bool)
        residual = torch.full_like(work.sigma, torch.inf)
        reached: list[Tensor] = []
        turns = 0
        weight = search.weight
        while bool(active.any()) and state.iterations < self.max_iterations:
            weight = search.weight
            change = state.run(min(_BLOCK, self.max_iterations - state.iterations), weight, active)
            residual = torch.where(active, work.residual(state.complex_image), residual)
            problem.log(
                "phase-aware tv",
                state.iterations,
                self.max_iterations,
                image=work.batched(state.complex_image),
                residual=work.batched(residual),
                weight=work.batched(weight),
                change=work.batched(change),
            )
            search.update(residual, active)
            reached = [*reached[-2:], residual]
            finished = (search.done | search.stuck) & (change < self.tolerance) & (turns >= self.phase_rounds)
            active = active & ~(finished | (search.stuck & (_limit(reached) > first + self.excess)))
            # The magnitude has to follow a turn, so there is none after the last block.
            if turns < self.phase_rounds and state.iterations < self.max_iterations:
                rotation = torch.where(per_image(active), self._turn(work, state.image, rotation), rotation)
                state.set_rotation(rotation)
                turns += 1
        return state.image, rotation, weight, residual

    def _turn(self, work: _Workspace, magnitude: Tensor, rotation: Tensor) -> Tensor:
        variance = work.sigma.square()
        return refine_rotation(
            work.gram,
            work.backprojected,
            magnitude,
            rotation,
            work.diagonal,
            stiffness=variance / self.phase_slope**2,
            bending=variance / self.phase_bend**2,
            iterations=_TURN_ITERATIONS,
        )

    def _warn_unreached(self, problem: Problem, search: WeightSearch, residual: Tensor) -> None:
        if bool(search.stuck.any()):
            problem.warn(
                f"no weight brings the residual to {search.target:.3g} noise units (it stays at "
                f"{float(residual.max()):.2f}); the noise level of the measurement may be wrong"
            )


@dataclass(frozen=True, kw_only=True)
class PWLSTotalVariation(TotalVariation):
    r"""Penalised weighted least squares with total variation: `TotalVariation` under the statistical weights.

    .. math:: \arg\min_{x \ge 0} \tfrac12 (A x - y)^T W (A x - y) + w\, \mathrm{TV}(x)

    A ray through the pelvis counts a hundredth of the photons of one through the skin, and W says so. Complex images
    are treated as by `TotalVariation`, along their phase.

    Thibault, Sauer, Bouman, Hsieh: A three-dimensional statistical approach to improved image quality for multislice
    helical CT, Med. Phys. 34 (2007) 4526.
    """

    name: ClassVar[str] = "pwls-tv"
    weighted: ClassVar[bool] = True


def _usual_target(problem: Problem) -> float:
    r"""Return the residual to reach, :math:`\sqrt{1 - d / n}` for n rays and d degrees of freedom of an attenuation."""
    if not problem.attenuation:
        return _TARGET
    spent = _FREEDOM * math.prod(problem.operator.domain_shape) / problem.operator.n_measured()
    return max(_LEAST_TARGET, math.sqrt(max(0.0, 1 - spent)))


def _limit(values: list[Tensor]) -> Tensor:
    """Return where a falling sequence is heading, from its last three members (Aitken), or minus infinity."""
    if len(values) < 3:
        return torch.full_like(values[-1], -torch.inf)
    earlier, later = values[-3] - values[-2], values[-2] - values[-1]
    slowing = (later > 0) & (earlier > later)
    return torch.where(slowing, values[-1] - later.square() / (earlier - later), -torch.inf)


class _Workspace:
    """What both stages share, with the batch flattened to one axis."""

    def __init__(self, problem: Problem) -> None:
        operator = problem.linear
        shape = tuple(operator.domain_shape)
        self.batch_shape = problem.batch_shape
        self.operator = operator
        self.gram = operator.gram
        self.y = problem.y.reshape(-1, *operator.range_shape)
        self.sigma = problem.noise_std.reshape(-1)
        self.backprojected = operator.adjoint(problem.y).reshape(-1, *shape)
        spectrum = operator.fourier_diagonal()
        # Where the normal operator is diagonal in Fourier space, one preconditioned step is the exact solution.
        self.diagonal, self.exact = spectrum.values, spectrum.exact
        self.target = _usual_target(problem)
        self._problem = problem

    def residual(self, image: Tensor) -> Tensor:
        """Return the residual of flat images in noise units, ``(batch,)``."""
        return self._problem.residual(image.reshape(*self.batch_shape, *image.shape[-2:])).reshape(-1)

    def batched(self, values: Tensor) -> Tensor:
        """Give values or images of every item the batch shape of the problem."""
        return values.reshape((*self.batch_shape, *values.shape[1:]))

    def phased(self, image: Tensor, magnitude: Tensor, rotation: Tensor) -> PhasedImage:
        """Give the result the batch shape of the problem."""
        parts = (part.reshape(*self.batch_shape, *part.shape[-2:]) for part in (image, magnitude, rotation))
        return PhasedImage(*parts)
