"""TReg as published and released, step for step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from treg_med.guidance import AdaptiveNegation, Guidance
from treg_med.settings import setting
from treg_med.solvers.ddim import DDIMStep, ddim_steps
from treg_med.solvers.latent_solver import LatentSolver
from treg_med.solvers.prior_space import PriorSpace

__all__ = ["PublishedTReg"]


@dataclass(frozen=True, kw_only=True)
class PublishedTReg(LatentSolver):
    r"""Alternate a guided DDIM step with conjugate gradients in the image and a mix in the latent.

    Every `data_every` steps before the share `data_until` of the loop, with the guided clean estimate :math:`z_0`,

    .. math::
        x &= (B^T B + \lambda)^{-1} (B^T b + \lambda D(z_0)), \qquad
        \hat z = a' E(x) + (1 - a') z_0 \\
        z' &= \sqrt{a'}\, \hat z + (1 - a')\, \epsilon + \sqrt{a' (1 - a')}\, n

    and :math:`z' = \sqrt{a'}\, z_0 + \sqrt{1 - a'}\, \epsilon` at all others, where `gradient_steps` takes the
    unconditional estimate and subtracts :math:`\sqrt{a'}\, \nabla_{z_t} \|b - B D(z_0)\|`. After each data step the
    negative condition moves away from what the image shows (`AdaptiveNegation`), if the prior has a scorer.

    What the released code does and the default preset does not: :math:`\bar\alpha` is read one timestep early, the
    last step goes to the first :math:`\bar\alpha` instead of 1, and no data step is made after `data_until`, so that
    the image need not fit the data. The released code draws from the encoder; here its mode is taken, for one seed to
    give one image. A guidance scale of 1 is the conditional prediction; the released code feeds it the empty text.

    Kim, Park, Chung, Ye: Regularization by Texts for Latent Diffusion Inverse Solvers, ICLR 2025, arXiv 2311.15658.
    """

    name: ClassVar[str] = "treg"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        # The branch of the released code for skipped steps and forward models that are not linear.
        "paper-gradient": {"gradient_steps": True},
    }

    steps: int = setting(200, minimum=1, maximum=1000, help="diffusion steps")
    guidance_scale: float | Guidance = setting(5.0, minimum=0.0, maximum=30.0, help="w of classifier-free guidance")
    start: str = setting("noise", choices=("classical", "noise"), help="noised classical image, or pure noise")
    end_noise: float = setting(0.0, minimum=0.0, help="last noise level, in units of the data's noise per real part")
    final: str = setting("none", choices=("noise-level", "none"), help="last step: to the noise of the data, or none")
    data_every: int = setting(3, minimum=1, help="a data step every that many steps")
    data_until: float = setting(0.85, minimum=0.0, maximum=1.0, help="share of the loop with data steps")
    weight: float = setting(1e-4, above=0.0, help="lambda")
    iterations: int = setting(5, minimum=1, help="conjugate-gradient iterations of a data step")
    gradient_steps: bool = setting(False, help="gradients through decoder and denoiser where there is no data step")
    negative_prompt: str = setting("", help="text of the negative condition")
    negation: str = setting("treg", choices=("treg", "bounded"), help="how the negative condition moves")
    negation_rate: float = setting(1e-3, minimum=0.0, help="learning rate of adaptive negation")
    negation_steps: int = setting(10, minimum=0, help="steps of adaptive negation at each data step")

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        null = space.condition(self.negative_prompt)
        negation = AdaptiveNegation.of(
            space.prior, self.negative_prompt, self.negation, rate=self.negation_rate, steps=self.negation_steps
        )
        if negation is None and self.negation_steps > 0:
            space.problem.warn("the prior has no scorer of images and texts: there was no adaptive negation")
        clean = latent
        for step in steps:
            if self._has_data(step):
                estimate = space.predict(latent, step, self.guidance_scale, null=null)
                image = space.data_step(space.decode(estimate.clean), self.weight, max_iter=self.iterations)
                space.log(self.name, step, image)
                if negation is not None:
                    null = negation(space.codec.compress(image), null)
                b = step.next_alpha
                clean = b * space.encode(image) + (1 - b) * estimate.clean
                noise = space.noise_like(latent)
                latent = step.renoised(clean, (1 - b).sqrt() * estimate.noise + b.sqrt() * noise)
            elif self.gradient_steps:
                latent, clean = self._gradient_step(space, latent, step, null)
            else:
                estimate = space.predict(latent, step, self.guidance_scale, null=null)
                latent, clean = step(estimate), estimate.clean
        if negation is not None:
            space.problem.note(negation_drift=negation.drift)
        return space.decode(clean)

    def _published_steps(self, space: PriorSpace, blank: Tensor) -> list[DDIMStep]:
        last = float(space.prior.alphas_cumprod[0])
        return ddim_steps(space.prior, self.steps, blank, shift=1, last_alpha=last)

    def _has_data(self, step: DDIMStep) -> bool:
        return step.index % self.data_every == 0 and step.index < int(self.data_until * step.total)

    def _gradient_step(
        self, space: PriorSpace, latent: Tensor, step: DDIMStep, null: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next latent and the clean one of an unconditional step with the gradient of the misfit."""
        estimate, _, gradient = space.differentiated(
            latent, step, 0.0, lambda _, image: space.misfit_norm(image), null=null
        )
        return step(estimate) - step.next_alpha.sqrt() * gradient, estimate.clean
