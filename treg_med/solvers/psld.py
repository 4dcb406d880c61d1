"""PSLD: posterior sampling with latent diffusion, LDPS with a gluing term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from treg_med.settings import setting
from treg_med.solvers.latent_solver import PUBLISHED
from treg_med.solvers.ldps import LDPS
from treg_med.solvers.prior_space import PriorSpace

__all__ = ["PSLD"]


@dataclass(frozen=True, kw_only=True)
class PSLD(LDPS):
    r"""LDPS that also asks the clean latent to be the code of its own data-consistent image.

    .. math::
        z' = \mathrm{DDIM}(z_t) - \rho\, \nabla_{z_t} \left( \|b - B x_0\|
            + \gamma\, \|z_0 - E(x_0 + B^+ (b - B x_0))\| \right), \qquad x_0 = D(z_0(z_t))

    or both terms squared, in units of their variances, with the default `rule` of LDPS.

    The publication writes :math:`B^T` for :math:`B^+` (`gluing` = ``"adjoint"``), which is the same only where
    :math:`B^T B` is a projection: not with coil maps and not in tomography.

    Rout et al.: Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models,
    NeurIPS 2023, arXiv 2307.00619.
    """

    name: ClassVar[str] = "psld"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {
            "rule": "norm",
            "steps": 1000,
            "step_size": 1.0,
            "gluing_size": 0.1,
            "gluing": "adjoint",
            "eta": 0.0,
            **PUBLISHED,
        },
    }

    gluing_size: float = setting(0.3, minimum=0.0, help="gamma, weight of the gluing term")
    gluing: str = setting("inverse", choices=("inverse", "adjoint"), help="B^+ or, as published, B^T")
    gluing_iterations: int = setting(8, minimum=1, help="conjugate-gradient iterations of B^+")

    def _gluing(self, space: PriorSpace, clean: Tensor, image: Tensor) -> Tensor:
        if self.gluing == "adjoint":
            glued = image - space.backproject(space.misfit(image))
        else:
            glued = space.data_step(image, 0.0, max_iter=self.gluing_iterations)
        apart = (clean - space.encode(glued)).square().flatten(1).sum(1).clamp_min(1e-20).sqrt()
        return self.gluing_size * apart
