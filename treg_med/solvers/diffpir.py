"""DiffPIR: plug-and-play image restoration with a diffusion model as denoiser, in latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from treg_med.settings import setting
from treg_med.solvers.latent_solver import PUBLISHED, LatentSolver
from treg_med.solvers.prior_space import PriorSpace

__all__ = ["DiffPIR"]


@dataclass(frozen=True, kw_only=True)
class DiffPIR(LatentSolver):
    r"""Half-quadratic splitting along the noise levels of the diffusion.

    .. math::
        \hat x &= \arg\min_x \|B x - b\|^2 + \lambda \frac{\sigma_n^2}{\sigma_t^2} \|x - D(z_0)\|^2, \qquad
            \sigma_t = \sqrt{(1 - a) / a} \\
        \hat\epsilon &= (z_t - \sqrt{a}\, E(\hat x)) / \sqrt{1 - a}, \qquad
        z' = \sqrt{a'}\, E(\hat x) + \sqrt{1 - a'}\, (\sqrt{\zeta}\, n + \sqrt{1 - \zeta}\, \hat\epsilon)

    :math:`\sigma_n` is the noise of one real number of the data; :math:`\sigma_t` is brought to image units by the gain
    of the encoder, which the pixel-space publication did not need.

    Zhu et al.: Denoising Diffusion Models for Plug-and-Play Image Restoration, CVPR workshops 2023, arXiv 2305.08995.
    """

    name: ClassVar[str] = "diffpir"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"steps": 100, "weight": 8.0, "zeta": 0.3, **PUBLISHED},
    }

    weight: float = setting(1.0, above=0.0, help="lambda")
    zeta: float = setting(1.0, minimum=0.0, maximum=1.0, help="share of fresh noise")
    iterations: int = setting(15, minimum=1, help="conjugate-gradient iterations of a data step")

    def sample(self, space: PriorSpace) -> Tensor:
        """Return a real image of the prior ``(n, 1, H', W')``."""
        latent, steps = self.first(space)
        for step in steps:
            prediction = space.predict(latent, step, self.guidance_scale)
            image = space.decode(prediction.clean)
            if not self.at_end(step):
                weight = self.weight * space.noise_weight(step)
                image = space.data_step(image, weight, max_iter=self.iterations)
            space.log(self.name, step, image)
            if not step.last:
                known = space.encode(image)
                implied = step.implied_noise(latent, known)
                mixed = self.zeta**0.5 * space.noise_like(latent) + (1 - self.zeta) ** 0.5 * implied
                latent = step.renoised(known, mixed)
        return image
