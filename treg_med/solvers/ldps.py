"""LDPS: diffusion posterior sampling in the latent space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from treg_med.priors.base import Prediction
from treg_med.settings import setting
from treg_med.solvers.ddim import DDIMStep
from treg_med.solvers.latent_solver import PUBLISHED, LatentSolver
from treg_med.solvers.prior_space import PriorSpace

__all__ = ["LDPS"]


@dataclass(frozen=True, kw_only=True)
class LDPS(LatentSolver):
    r"""Follow the gradient of the data misfit through decoder and denoiser.

    The publication (`rule` = ``"norm"``) moves the next latent against the gradient of the norm, of every image by
    itself, by a size that has to be tuned to the number of steps:

    .. math:: z' = \mathrm{DDIM}(z_t) - \rho\, \nabla_{z_t} \|b - B x_0\|, \qquad x_0 = D(z_0(z_t)),

    :math:`\rho` = `step_size`, times :math:`\sqrt{a'}` with `scaled_step`. The default (``"likelihood"``) adds to the
    score that of the data, a Gaussian about :math:`B x_0` whose variance is that of the noise and of the estimate:

    .. math::
        z_0 \leftarrow z_0 - \rho\, \frac{1 - a}{\sqrt{a}}\, \nabla_{z_t} \frac{\|b - B x_0\|^2}{2 (\sigma^2 + r_t^2)},
        \qquad r_t = \kappa \frac{\|B\|}{g} \sqrt{\frac{1 - a}{a}}

    with the gain g of the encoder, the largest gain :math:`\|B\|` of the forward model and the error of the estimate
    :math:`\kappa` = `error` per noise of the image. Needs derivatives of the forward model alone, so it may be
    non-linear.

    Chung et al.: Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023, arXiv 2209.14687; in
    latents as in Rout et al., arXiv 2307.00619. The variance: Song et al., Pseudoinverse-Guided Diffusion Models for
    Inverse Problems, ICLR 2023.
    """

    name: ClassVar[str] = "ldps"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"rule": "norm", "steps": 1000, "step_size": 1.0, "eta": 1.0, **PUBLISHED},
    }

    rule: str = setting("likelihood", choices=("likelihood", "norm"), help="which gradient is followed, and how far")
    step_size: float = setting(1.5, minimum=0.0, help="rho; below 2 error^2 where all noise is renewed")
    error: float = setting(1.0, above=0.0, help="kappa, error of the estimate per noise of the image; rule likelihood")
    scaled_step: bool = setting(False, help="scale rho by sqrt(a'), as TReg's comparison does; rule norm")
    eta: float | None = setting(
        None, minimum=0.0, maximum=1.0, help="share of fresh noise; 1 is ancestral sampling, None renews all of it"
    )

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        for step in steps:
            prediction, gradient = self._estimate(space, latent, step)
            noise = space.fresh_noise(latent, self.eta)
            if self.rule == "norm":
                size = self.step_size * (step.next_alpha.sqrt() if self.scaled_step else 1.0)
                latent = step(prediction, noise, self.eta) - size * gradient
            else:
                moved = step.posterior(latent, prediction.clean, self.step_size * gradient)
                latent = step(moved, noise, self.eta)
        return space.decode(latent)

    def _estimate(self, space: PriorSpace, latent: Tensor, step: DDIMStep) -> tuple[Prediction, Tensor]:
        """Return the prior's estimates and the gradient of the objective at a noisy latent."""

        def objective(clean: Tensor, image: Tensor) -> Tensor:
            misfit, gluing = space.misfit_norm(image), self._gluing(space, clean, image)
            if self.rule == "norm":
                return misfit + gluing
            variance = space.misfit_variance(step, self.error)
            # What is glued lies in latents; the gains bring it to the units of the data.
            glued = gluing * space.norm() / space.gain
            return (misfit.square() + glued.square()) / (2 * variance)

        prediction, image, gradient = space.differentiated(latent, step, self.guidance_scale, objective)
        space.log(self.name, step, image)
        return prediction, gradient

    def _gluing(self, space: PriorSpace, clean: Tensor, image: Tensor) -> Tensor:
        """Return what else is to fall, per image ``(n,)``, in latent units; nothing here."""
        return torch.zeros_like(space.noise_std)
