"""Timesteps and steps of denoising diffusion implicit models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.priors.base import Prediction, Prior

__all__ = ["DDIMStep", "ddim_steps", "steps_at", "steps_between"]


@dataclass(frozen=True)
class DDIMStep:
    r"""One step from a timestep to the next lower one; after the last :math:`\bar\alpha` is one.

    Parameters
    ----------
    index, total : int
        Steps done before this one, and steps in all.
    timestep : Tensor ``(n,)``
        Of the prior's schedule, one per image.
    alpha, next_alpha : Tensor ``(n, 1, 1, 1)``
        :math:`\bar\alpha` before and after.
    """

    index: int
    total: int
    timestep: Tensor
    alpha: Tensor
    next_alpha: Tensor

    @property
    def last(self) -> bool:
        """Whether the step ends at the clean image."""
        return self.index == self.total - 1

    @property
    def noise_ratio(self) -> Tensor:
        r"""Noise of a latent over its signal, :math:`\sqrt{(1 - a) / a}`, ``(n, 1, 1, 1)``."""
        return ((1 - self.alpha) / self.alpha.clamp_min(1e-8)).sqrt()

    @property
    def removed(self) -> Tensor:
        """Share of the noise that a deterministic step removes, ``(n,)``: the weight of the clean estimate in it."""
        after = ((1 - self.next_alpha) / self.next_alpha).clamp_min(0).sqrt()
        return 1 - (after / self.noise_ratio).flatten()

    def noised(self, latent: Tensor, noise: Tensor) -> Tensor:
        r"""Return a clean latent with noise of the step's level, :math:`\sqrt{a} z + \sqrt{1 - a} n`."""
        return self.alpha.sqrt() * latent + (1 - self.alpha).sqrt() * noise

    def implied_noise(self, latent: Tensor, clean: Tensor) -> Tensor:
        r"""Return the noise that a clean latent leaves in a noisy one, :math:`(z_t - \sqrt{a} z) / \sqrt{1 - a}`."""
        return (latent - self.alpha.sqrt() * clean) / (1 - self.alpha).sqrt()

    def posterior(self, latent: Tensor, clean: Tensor, gradient: Tensor) -> Prediction:
        r"""Return the estimates once data are known, by Tweedie's formula.

        .. math:: z_0 - \frac{1 - a}{\sqrt{a}}\, \nabla_{z_t} \left(-\log p(b | z_t)\right)

        and the noise which that leaves in the latent.
        """
        moved = clean - (1 - self.alpha) / self.alpha.clamp_min(1e-8).sqrt() * gradient
        return Prediction(self.implied_noise(latent, moved), moved)

    def renoised(self, clean: Tensor, noise: Tensor) -> Tensor:
        r"""Return a clean latent with noise of the level after the step, :math:`\sqrt{a'} z + \sqrt{1 - a'} n`."""
        return self.next_alpha.sqrt() * clean + (1 - self.next_alpha).sqrt() * noise

    def __call__(self, prediction: Prediction, noise: Tensor | None = None, eta: float | None = 0.0) -> Tensor:
        r"""Return the next latent.

        .. math::
            z' = \sqrt{a'}\, z_0 + \sqrt{1 - a' - \sigma^2}\, \epsilon + \sigma n, \qquad
            \sigma = \eta \sqrt{\frac{1 - a'}{1 - a} \left(1 - \frac{a}{a'}\right)}

        with the clean estimate, the predicted noise and fresh noise n ``(n, c, h, w)``, needed unless eta is zero. With
        eta = None nothing of the predicted noise is kept: where the clean estimate was moved to the data, that noise is
        not what separates it from the latent, and keeping it adds up.

        Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021, arXiv 2010.02502.
        """
        if noise is None or eta == 0:
            return self.renoised(prediction.clean, prediction.noise)
        if eta is None:
            return self.renoised(prediction.clean, noise)
        a, b = self.alpha, self.next_alpha
        variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        rest = (1 - b - variance).clamp_min(0).sqrt()
        return b.sqrt() * prediction.clean + rest * prediction.noise + variance.sqrt() * noise


def ddim_steps(
    prior: Prior, steps: int, like: Tensor, *, shift: int = 0, last_alpha: float = 1.0
) -> list[DDIMStep]:
    r"""Return evenly spaced steps that end at timestep 1, as "leading" spacing with an offset of one does.

    Parameters
    ----------
    prior : Prior
        Its schedule is used.
    steps : int
        Number of steps.
    like : Tensor ``(n, ...)``
        Latents: their number, type and device.
    shift : int
        :math:`\bar\alpha` is read that many timesteps before the one the network is told; published code does so.
    last_alpha : float
        :math:`\bar\alpha` after the last step.

    Raises
    ------
    ConfigError
        If the schedule of the prior is shorter.
    """
    known = len(prior.alphas_cumprod)
    if steps > known:
        raise ConfigError(f"expected at most {known} steps, the length of the prior's schedule; got {steps}")
    timesteps = (torch.arange(steps - 1, -1, -1) * (known // steps) + 1).clamp_max(known - 1)
    return steps_at(prior, timesteps[:, None].expand(steps, len(like)), like, shift, last_alpha)


def steps_between(prior: Prior, steps: int, like: Tensor, first: Tensor, last: Tensor) -> list[DDIMStep]:
    r"""Return steps whose timesteps are evenly spaced between two noise levels, of every image by itself.

    Parameters
    ----------
    prior : Prior
        Its schedule is used.
    steps : int
        Number of steps.
    like : Tensor ``(n, ...)``
        Latents: their number, type and device.
    first, last : Tensor ``(n,)``
        Ratios :math:`\sqrt{(1 - a) / a}` of noise to signal where the steps begin and end; infinity is the top.
    """
    levels = prior.alphas_cumprod.detach().cpu().double()
    ratios = ((1 - levels) / levels.clamp_min(1e-12)).sqrt()
    top, bottom = (
        torch.searchsorted(ratios, ratio.detach().cpu().double()).clamp(1, len(levels) - 1).double()
        for ratio in (first, last)
    )
    shares = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    return steps_at(prior, torch.lerp(top[None], bottom[None], shares).round().long(), like)


def steps_at(
    prior: Prior, timesteps: Tensor, like: Tensor, shift: int = 0, last_alpha: float = 1.0
) -> list[DDIMStep]:
    """Return the steps of timesteps ``(steps, n)``; arguments as for `ddim_steps`."""
    levels = prior.alphas_cumprod.to(like)[(timesteps - shift).to(like.device)]
    alphas = torch.cat([levels, torch.full_like(levels[:1], last_alpha)])[..., None, None, None]
    told = timesteps.to(like.device)
    return [DDIMStep(i, len(told), t, alphas[i], alphas[i + 1]) for i, t in enumerate(told)]
