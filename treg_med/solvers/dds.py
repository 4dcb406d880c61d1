"""DDS: decomposed diffusion sampling, a few conjugate gradients per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from treg_med.settings import setting
from treg_med.solvers.latent_solver import PUBLISHED, LatentSolver
from treg_med.solvers.prior_space import PriorSpace

__all__ = ["DDS"]


@dataclass(frozen=True, kw_only=True)
class DDS(LatentSolver):
    r"""Bring each clean estimate to the data by a few Hermitian conjugate gradients.

    .. math::
        \hat x = \arg\min_x \tfrac{\gamma}{2} \|B x - b\|^2 + \tfrac12 \|x - D(z_0)\|^2, \qquad
        z' = \sqrt{a'}\, E(\hat x) + \sqrt{1 - a'}\, (\eta n + \sqrt{1 - \eta^2}\, \epsilon)

    With a prior whose autoencoder is the identity this is the published pixel form, with any other its latent one. The
    public code takes :math:`r^T r` for :math:`r^H r` on complex data and diverges with more iterations; this one does
    not.

    Chung, Lee, Ye: Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems, ICLR 2024,
    arXiv 2303.05754.
    """

    name: ClassVar[str] = "dds"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        # A projector of unit norm sees detail a hundred times weaker in A^H A than k-space does.
        "ct": {"gamma": 100.0, "start_noise": 0.05, "end_noise": 3.0},
        "paper": {"steps": 50, "gamma": 1.0, "eta": 0.85, "iterations": 5, **PUBLISHED},
        "contextmri": {"steps": 100, "gamma": 5.0, "eta": 0.8, "iterations": 5, **PUBLISHED},
    }

    gamma: float = setting(4.0, above=0.0, help="weight of the data against the prior's estimate")
    iterations: int = setting(10, minimum=1, help="conjugate-gradient iterations of a data step")
    eta: float = setting(1.0, minimum=0.0, maximum=1.0, help="share of fresh noise")

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        for step in steps:
            prediction = space.predict(latent, step, self.guidance_scale)
            image = space.decode(prediction.clean)
            if not self.at_end(step):
                image = space.data_step(image, 1 / self.gamma, max_iter=self.iterations)
            space.log(self.name, step, image)
            if not step.last:
                mixed = self.eta * space.noise_like(latent) + (1 - self.eta**2) ** 0.5 * prediction.noise
                latent = step.renoised(space.encode(image), mixed)
        return image
