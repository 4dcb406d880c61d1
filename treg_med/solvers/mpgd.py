"""MPGD: the data gradient at the clean estimate, kept on the autoencoder's manifold."""

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
from treg_med.solvers.problem import per_image

__all__ = ["MPGD"]


@dataclass(frozen=True, kw_only=True)
class MPGD(LatentSolver):
    r"""Gradient steps on the clean estimate alone; nothing is differentiated through the denoiser.

    .. math::
        z_0 \leftarrow E(x_0 - c\, B^T (B x_0 - b)), \qquad x_0 = D(z_0), \qquad
        z' = \sqrt{a'}\, z_0 + \sqrt{1 - a' - \sigma^2}\, \epsilon + \sigma n

    with :math:`c` = `step_size` over :math:`\|B\|^2`; passing through E and D keeps the estimate where images are. The
    default shortens the step where the estimate errs less than the noise of the data: c = `step_size` over
    :math:`\|B\|^2 + \sigma^2 / r_t^2`, with the error of the estimate :math:`r_t` = `error` per noise of the image.

    He et al.: Manifold Preserving Guided Diffusion, ICLR 2024, arXiv 2311.16424.
    """

    name: ClassVar[str] = "mpgd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"steps": 100, "inner_steps": 1, "eta": 0.5, "error": None, **PUBLISHED},
    }

    step_size: float = setting(1.0, above=0.0, maximum=2.0, help="c times ||B||^2; below 2")
    error: float | None = setting(
        0.5, above=0.0, help="error of the estimate per noise of the image; None leaves the data's noise aside"
    )
    inner_steps: int = setting(4, minimum=1, help="gradient steps per diffusion step")
    eta: float | None = setting(None, minimum=0.0, maximum=1.0, help="share of fresh noise; None renews all of it")

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        peak = space.norm() ** 2
        for step in steps:
            prediction = space.predict(latent, step, self.guidance_scale)
            image = space.decode(prediction.clean)
            ease = torch.zeros_like(space.noise_std) if self.error is None else space.noise_weight(step, self.error)
            size = self.step_size / per_image(peak + ease, 3)
            for _ in range(0 if self.at_end(step) else self.inner_steps):
                image = image - size * space.backproject(space.misfit(image))
            space.log(self.name, step, image)
            noise = space.fresh_noise(latent, self.eta)
            latent = step(Prediction(prediction.noise, space.encode(image)), noise, self.eta)
        return image
