"""ProjDiff: projected gradient descent on the clean image and its twin at the noise level of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from treg_med.settings import setting
from treg_med.solvers.ddim import DDIMStep
from treg_med.solvers.latent_solver import PUBLISHED, LatentSolver
from treg_med.solvers.prior_space import PriorSpace
from treg_med.solvers.problem import per_image

__all__ = ["ProjDiff"]


@dataclass(frozen=True, kw_only=True)
class ProjDiff(LatentSolver):
    r"""Read the noise of the data as diffusion noise and optimise two variables under the data as a constraint.

    The level whose noise is that of the data is :math:`a_a = 1 / (1 + g^2 \sigma^2 / s^2)`, with the gain g of the
    encoder and the singular value s of the forward model (its norm; one for masks and for coil maps of unit sum of
    squares). At levels noisier than :math:`a_a` the twin :math:`z_a` of the clean latent is noised, denoised and
    projected onto the data,

    .. math::
        z_t = \sqrt{a / a_a}\, z_a + \sqrt{1 - a / a_a}\, n, \qquad
        z_0 \leftarrow z_0 + \eta_a v, \qquad
        z_a = P\left(\sqrt{a_a}\, z_0 + \sqrt{1 - a_a}\, n'\right),

    and at cleaner ones the way from :math:`z_a` to :math:`z_0` is straightened with the twin held,

    .. math::
        z_t = \sqrt{a}\, z_0 + \sqrt{\tfrac{1 - a}{1 - a_a}}\, (z_a - \sqrt{a_a}\, z_0), \qquad
        z_0 \leftarrow z_0 + \eta v, \qquad v \leftarrow \beta v + (1 - \beta)(\hat z_0(z_t) - z_0).

    P brings the image x of :math:`z_a / \sqrt{a_a}` to :math:`\arg\min_{x'} \|b - B x'\|^2 + \omega \|B\|^2 \|x' -
    x\|^2` by conjugate gradients. With :math:`\omega` = `damping` = 0 that is the published projection, which puts the
    noise of the data, divided by s, into directions of small singular values; damping leaves those to the prior. None
    takes :math:`\omega \|B\|^2 = \sigma^2 / r_t^2` with the noise :math:`r_t` of the level in the image: a direction
    follows the data by :math:`r_t^2 / (r_t^2 + \sigma^2 / s^2)`, as far as its own noise lies below that of the level.
    That is the publication's level per singular value, without a decomposition and with a smooth transition.
    With `noiseless` :math:`z_0` itself is noised, moved and projected at every level. The gradient of the denoiser is
    left out, as published. In the public code momentum has no effect with noise; here it has.

    Zhang et al.: Unleashing the Denoising Capability of Diffusion Prior for Solving Inverse Problems, NeurIPS 2024,
    arXiv 2406.06959.
    """

    name: ClassVar[str] = "projdiff"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        # The singular values of a projector spread over two decades: each is weighed by its own noise.
        "ct": {"damping": None, "start_noise": 0.05, "end_noise": 3.0},
        "paper": {"steps": 100, "step_size": 1.0, "damping": 0.0, **PUBLISHED},
    }

    step_size: float = setting(0.5, above=0.0, maximum=4.0, help="eta, at levels cleaner than the data")
    twin_step_size: float = setting(1.0, above=0.0, maximum=4.0, help="eta_a, at levels noisier than the data")
    momentum: float = setting(0.0, minimum=0.0, maximum=0.999, help="beta")
    repeats: int = setting(1, minimum=1, help="inner repeats of every level")
    noiseless: bool = setting(False, help="treat the data as exact")
    damping: float | None = setting(
        0.2, minimum=0.0, help="omega; 0 projects onto the data, None weighs every singular value by its noise"
    )
    iterations: int = setting(15, minimum=1, help="conjugate-gradient iterations of a projection")

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        clean = space.predict(latent, steps[0], self.guidance_scale).clean
        noise = steps[0].implied_noise(latent, clean)
        # Without noise in the data the twin and the clean latent are one.
        level = torch.ones(len(noise), 1, 1, 1).to(noise) if self.noiseless else self._level_of_data(space, noise)
        twin = self._projected(space, level.sqrt() * clean + (1 - level).sqrt() * noise, level, steps[0])
        velocity = torch.zeros_like(clean)
        for step in (step for step in steps for _ in range(self.repeats)):
            noisier = step.alpha <= level
            fresh = space.noise_like(clean)
            share = (step.alpha / level).clamp_max(1)
            between = (twin - level.sqrt() * clean) * ((1 - step.alpha) / (1 - level).clamp_min(1e-12)).sqrt()
            latent = torch.where(
                noisier, share.sqrt() * twin + (1 - share).sqrt() * fresh, step.alpha.sqrt() * clean + between
            )
            away = space.predict(latent, step, self.guidance_scale).clean - clean
            velocity = self.momentum * velocity + (1 - self.momentum) * away
            size = self.step_size if self.noiseless else torch.where(noisier, self.twin_step_size, self.step_size)
            clean = clean + size * velocity
            renewed = level.sqrt() * clean + (1 - level).sqrt() * space.noise_like(clean)
            if bool(noisier.any()):
                twin = torch.where(noisier, self._projected(space, renewed, level, step), twin)
            clean = twin if self.noiseless else clean
            image = space.decode(clean)
            space.log(self.name, step, image)
        return image

    def _level_of_data(self, space: PriorSpace, latent: Tensor) -> Tensor:
        """Alpha-bar whose noise is that of the data, ``(n, 1, 1, 1)``."""
        ratio = (space.gain * space.noise_std / space.norm()).square()
        return per_image(1 / (1 + ratio), 3).to(latent)

    def _projected(self, space: PriorSpace, twin: Tensor, level: Tensor, step: DDIMStep) -> Tensor:
        image = space.decode(twin / level.sqrt())
        weight = space.noise_weight(step) if self.damping is None else self.damping * space.norm() ** 2
        image = space.data_step(image, weight, max_iter=self.iterations)
        return level.sqrt() * space.encode(image)
