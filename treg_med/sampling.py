r"""Samples of a prior by deterministic diffusion (DDIM) under classifier-free guidance.

.. math:: z_{s} = \sqrt{\bar\alpha_s}\, \hat z_0(z_t) + \sqrt{1 - \bar\alpha_s}\, \hat\epsilon(z_t)

Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021, arXiv 2010.02502.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from treg_med.guidance import guided_prediction
from treg_med.priors.base import Prior

__all__ = ["draw_samples"]


@torch.no_grad()
def draw_samples(
    prior: Prior, noise: Tensor, texts: list[str], *, steps: int = 20, guidance_scale: float = 2.0
) -> Tensor:
    """Return one image ``(H, W)`` in [0, 1] per text, ``(texts, H, W)``, all from the noise ``(1, c, h, w)``."""
    count = len(texts)
    latent = noise.expand(count, -1, -1, -1)
    text = prior.embed(texts)
    null = prior.embed([""]).expand(count, *text.shape[1:])
    total = len(prior.alphas_cumprod)
    # Spacing from the end: the first step must be told that nothing but noise is there.
    timesteps = [round(total * (steps - k) / steps) - 1 for k in range(steps)]
    for now, then in pairwise(timesteps):
        estimate = guided_prediction(prior, latent, now, text, null, guidance_scale)
        alpha = prior.alphas_cumprod[then].to(latent)
        latent = alpha.sqrt() * estimate.clean + (1 - alpha).sqrt() * estimate.noise
    clean = guided_prediction(prior, latent, timesteps[-1], text, null, guidance_scale).clean
    return ((prior.decode(clean)[:, 0] + 1) / 2).clamp(0, 1)
