r"""Samples of a prior by deterministic diffusion (DDIM) under classifier-free guidance.

.. math:: z_{s} = \sqrt{\bar\alpha_s}\, \hat z_0(z_t) + \sqrt{1 - \bar\alpha_s}\, \hat\epsilon(z_t)

Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021, arXiv 2010.02502.
"""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.guidance import guided_prediction
from treg_med.priors.base import Prior
from treg_med.solvers.ddim import steps_at

__all__ = ["draw_samples"]


@torch.no_grad()
def draw_samples(
    prior: Prior, noise: Tensor, texts: list[str], *, steps: int = 20, guidance_scale: float = 2.0
) -> Tensor:
    """Return one image ``(H, W)`` in [0, 1] per text, ``(texts, H, W)``.

    The noise is that of all texts, ``(1, c, h, w)``, or one for each, ``(texts, c, h, w)``.
    """
    count = len(texts)
    latent = noise.expand(count, -1, -1, -1)
    text = prior.embed(texts)
    null = prior.embed([""]).expand(count, *text.shape[1:])
    total = len(prior.alphas_cumprod)
    # Spacing from the end: the first step must be told that nothing but noise is there.
    timesteps = torch.tensor([round(total * (steps - k) / steps) - 1 for k in range(steps)])
    for step in steps_at(prior, timesteps[:, None].expand(-1, count), latent):
        latent = step(guided_prediction(prior, latent, step.timestep, text, null, guidance_scale))
    return ((prior.decode(latent)[:, 0] + 1) / 2).clamp(0, 1)
