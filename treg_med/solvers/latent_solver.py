"""What the published latent diffusion methods share: the call, the phase, the last step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.guidance import Guidance
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.data_step import CarriedPhase, PhaseAwareDataStep, to_noise_level
from treg_med.solvers.ddim import DDIMStep, ddim_steps, steps_between
from treg_med.solvers.prior_space import PriorSpace, codec_for
from treg_med.solvers.problem import EarlyStop, Problem
from treg_med.solvers.total_variation import TotalVariation

__all__ = ["PUBLISHED", "LatentSolver"]

#: How publications begin and end: with noise, at the end of the schedule, without a look at the noise of the data.
PUBLISHED = {"start": "noise", "end_noise": 0.0, "final": "none"}

_LAST_ITERATIONS = 12


@dataclass(frozen=True, kw_only=True)
class LatentSolver(Solver):
    r"""Base of methods that sample a real image of the prior given data :math:`b = B(x) + n`.

    A method implements `sample` on a `PriorSpace`, in the units of its publication: images in [-1, 1]. Complex images
    are real ones along a phase that the classical reconstruction gives; scale, phase and the last step are the same for
    all methods, so that a table compares the methods alone. With ``final = "noise-level"`` the sample is moved towards
    the data until its residual is one noise unit, which no publication does but every measurement asks for.
    """

    needs_prior: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True

    steps: int = setting(24, minimum=1, maximum=1000, help="diffusion steps")
    start: str = setting("classical", choices=("classical", "noise"), help="noised classical image, or pure noise")
    start_noise: float = setting(
        0.15, above=0.0, maximum=100.0, help="first noise level of a classical start, share of the image's upper level"
    )
    end_noise: float = setting(0.75, minimum=0.0, help="last noise level, in units of the data's noise per real part")
    guidance_scale: float | Guidance = setting(1.0, minimum=0.0, maximum=30.0, help="w of classifier-free guidance")
    phase_width: float = setting(4.0, minimum=0.0, help="low-pass width of the phase in pixels")
    use_prior: bool = setting(True, help="False is the control: the classical image in place of the sample")
    final: str = setting(
        "noise-level", choices=("noise-level", "none"), help="last step: to the noise of the data, or none"
    )

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        if not problem.is_linear:
            if not self.use_prior:
                raise ConfigError("expected a linear operator for the control, which starts from total variation")
            return self._sampled(PriorSpace(problem, problem.prior, codec_for(problem, problem.prior)))
        classical = TotalVariation().solve_phased(problem)
        codec = codec_for(problem, problem.prior, classical.image.abs())
        phase = CarriedPhase.of(classical, self.phase_width)
        start = codec.encode(phase.along(classical.image))
        rotation = phase.rotation if problem.operator.is_complex else None
        space = PriorSpace(problem, problem.prior, codec, rotation, start)
        image = self._sampled(space) if self.use_prior else classical.image
        magnitude, data = phase.along(image), PhaseAwareDataStep(problem, max_iter=_LAST_ITERATIONS)
        if self.final == "none":
            return image
        return to_noise_level(problem, image, lambda error, start: data(magnitude, phase, error, start=start))

    def _sampled(self, space: PriorSpace) -> Tensor:
        """Return the sample, or the estimate at which the callback stopped it, in working units."""
        try:
            return space.image(self.sample(space))
        except EarlyStop as stop:
            return stop.image

    def first(self, space: PriorSpace) -> tuple[Tensor, list[DDIMStep]]:
        """Return the first latent and the steps from its level on."""
        blank = space.blank_latent()
        noise = space.noise_like(blank)
        start = space.start if self.start == "classical" else None
        if start is None and self.end_noise == 0:
            return noise, self._published_steps(space, blank)
        gain = space.gain
        last = gain * self.end_noise * space.noise_std
        highest = torch.full_like(last, torch.inf) if start is None else last.clamp_min(2 * self.start_noise * gain)
        steps = steps_between(space.prior, self.steps, blank, highest, last)
        return (noise if start is None else steps[0].noised(space.encode(start), noise)), steps

    def _published_steps(self, space: PriorSpace, blank: Tensor) -> list[DDIMStep]:
        return ddim_steps(space.prior, self.steps, blank)

    def at_end(self, step: DDIMStep) -> bool:
        """Whether the prior's estimate is the result: the last step to the noise of the data then fits it to them."""
        return step.last and self.final == "noise-level"

    @abstractmethod
    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
