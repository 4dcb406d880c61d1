"""P2L: prompt tuning for latent diffusion inverse problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from treg_med.priors.base import Prediction
from treg_med.settings import setting
from treg_med.solvers.latent_solver import PUBLISHED, LatentSolver
from treg_med.solvers.prior_space import PriorSpace

__all__ = ["P2L"]


@dataclass(frozen=True, kw_only=True)
class P2L(LatentSolver):
    r"""Fit the condition to the data along the way, and keep the latent on the range of the encoder.

    .. math::
        c \leftarrow \arg\min_c \|b - B D(z_0(z_t, c))\|^2, \qquad
        z_0 \leftarrow E\left(\arg\min_x \|b - B x\|^2 + \lambda \|x - D(z_0)\|^2\right)

    c starts at the condition of the text and moves by `tuning_steps` steps of Adam at every level, with one optimiser
    for the whole loop; the projection is made every `data_every` steps. The estimate with the fitted c is then not
    what the text says but what fits: this method shows what prompts the data ask for, not what a prompt does.
    Its code is not public, and the constants of `paper` were not checked against the publication.

    Chung, Ye, Milanfar, Delbracio: Prompt-tuning Latent Diffusion Models for Inverse Problems, ICML 2024,
    arXiv 2310.01110.
    """

    name: ClassVar[str] = "p2l"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"steps": 1000, "tuning_rate": 1e-4, "error": None, "weight": 1.0, "eta": 1.0, **PUBLISHED},
    }

    tuning_steps: int = setting(1, minimum=0, help="Adam steps on the condition at every level")
    tuning_rate: float = setting(1e-3, above=0.0, help="learning rate of the condition")
    data_every: int = setting(1, minimum=1, help="a data step every that many steps")
    weight: float = setting(1.0, above=0.0, help="lambda where `error` is None")
    error: float | None = setting(
        1.0, above=0.0, help="error of the estimate per noise of the image: gives lambda; None leaves noise aside"
    )
    iterations: int = setting(10, minimum=1, help="conjugate-gradient iterations of a data step")
    eta: float | None = setting(None, minimum=0.0, maximum=1.0, help="share of fresh noise; None renews all of it")

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        condition = space.condition(space.problem.text or "").clone().requires_grad_()
        optimizer = torch.optim.Adam([condition], lr=self.tuning_rate)
        for step in steps:
            for _ in range(self.tuning_steps):
                with torch.enable_grad():
                    clean = space.predict(latent, step, self.guidance_scale, text=condition).clean
                    misfit = space.misfit_norm(space.decode(clean)).square().sum()
                (condition.grad,) = torch.autograd.grad(misfit, condition)
                optimizer.step()
            prediction = space.predict(latent, step, self.guidance_scale, text=condition.detach())
            clean, image = prediction.clean, space.decode(prediction.clean)
            if (step.index % self.data_every == 0 or step.last) and not self.at_end(step):
                weight = self.weight if self.error is None else space.noise_weight(step, self.error)
                image = space.data_step(image, weight, max_iter=self.iterations)
                clean = space.encode(image)
            space.log(self.name, step, image)
            noise = space.fresh_noise(latent, self.eta)
            latent = step(Prediction(prediction.noise, clean), noise, self.eta)
        return image
