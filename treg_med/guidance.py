"""Classifier-free guidance: how far the words pull the prediction away from the unconditional one."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.priors.base import Prediction, Prior

__all__ = ["guided_prediction"]


def guided_prediction(
    prior: Prior, latent: Tensor, timestep: int | Tensor, text: Tensor, null: Tensor, guidance_scale: float
) -> Prediction:
    r"""Noise and clean estimate under guidance, :math:`\epsilon_\varnothing + w (\epsilon_c - \epsilon_\varnothing)`.

    ``w = 1`` is the conditional prediction and ``w = 0`` the unconditional one, each with a single network pass.

    Parameters
    ----------
    prior : Prior
        The diffusion prior.
    latent : Tensor ``(n, c, h, w)``
        Noisy latent at ``timestep``.
    timestep : int or Tensor ``(n,)``
        Index into the training schedule.
    text, null : Tensor ``(n, ...)``
        Conditions of the prompt and of the empty text.
    guidance_scale : float
        w.
    """
    if guidance_scale == 1:
        return prior.predict(latent, timestep, text)
    if guidance_scale == 0:
        return prior.predict(latent, timestep, null)
    twice = timestep.repeat(2) if isinstance(timestep, Tensor) else timestep
    both = prior.predict(torch.cat([latent, latent]), twice, torch.cat([null, text]))
    noise_null, noise_text = both.noise.chunk(2)
    clean_null, clean_text = both.clean.chunk(2)
    return Prediction(
        noise_null + guidance_scale * (noise_text - noise_null),
        clean_null + guidance_scale * (clean_text - clean_null),
    )
