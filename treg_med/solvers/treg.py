"""TReg: regularisation by text of a latent diffusion prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from treg_med.codec import ImageCodec, apply_phase, smooth_phase
from treg_med.guidance import guided_prediction
from treg_med.priors.base import Prior
from treg_med.solvers.base import Problem, Solver, per_image, setting
from treg_med.solvers.data_step import PhaseAwareDataStep

__all__ = ["TReg"]


@dataclass(frozen=True, kw_only=True)
class TReg(Solver):
    r"""Alternate a text-conditioned latent prior step with a data step in image space.

    At each timestep, with :math:`a = \bar\alpha_t`, the next level :math:`a'`, prompt c and decoder D, encoder E:

    .. math::
        \epsilon &= \epsilon_\varnothing + w (\epsilon_c - \epsilon_\varnothing), \qquad
        z_0 = (z_t - \sqrt{1-a}\,\epsilon) / \sqrt{a} \\
        x &= \arg\min_x \|A x - y\|^2 / \sigma^2 + \|x - D(z_0) e^{i\phi}\|^2 / \tau_t^2 \\
        \hat z &= a' E(|x|_\phi) + (1 - a') z_0 \\
        z_{t'} &= \sqrt{a'}\, \hat z + \sqrt{1-a'}\, (c_n \epsilon + \sqrt{1 - c_n^2}\, n), \qquad n \sim N(0, I)

    where :math:`\tau_t` is the error of the prior's clean estimate, :math:`\phi` the phase carried beside the
    magnitude and :math:`c_n` = `noise_memory` (``sqrt(1 - a')`` in the publication). The loop starts from the
    classical reconstruction noised to `start_timestep`, or from pure noise. A last step in pixel space brings the
    image to the noise level of the data, so the decoder's error never stays in the result.

    Kim, Chung, Park, Ye: Regularization by Texts for Latent Diffusion Inverse Solvers, ICLR 2025, arXiv 2311.15658.
    Adaptive negation of the empty prompt is not part of this preset.
    """

    name: ClassVar[str] = "treg"
    needs_prior: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    start: str = setting("classical", choices=("classical", "noise"), help="initial latent")
    start_timestep: int = setting(150, minimum=1, maximum=999, help="timestep the classical start is noised to")
    steps: int = setting(8, minimum=1, maximum=1000, help="diffusion steps")
    guidance_scale: float = setting(1.0, minimum=0.0, maximum=30.0, help="w of classifier-free guidance")
    data_every: int = setting(1, minimum=1, help="a data step every that many diffusion steps")
    trust: float = setting(1.0, above=0.0, help="multiplies the prior's error tau_t: larger trusts the data more")
    noise_memory: float | None = setting(None, minimum=0.0, maximum=1.0, help="share c_n of predicted noise kept; None is sqrt(1 - a')")
    phase_width: float = setting(4.0, minimum=0.0, help="low-pass width of the phase in pixels")
    data_iterations: int = setting(8, minimum=1, help="conjugate-gradient iterations of a data step")
    use_prior: bool = setting(True, help="False is the control: the same pipeline with the network removed")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        prior: Prior = problem.prior
        image = _classical_start(problem)
        codec = ImageCodec(tuple(problem.operator.domain_shape), prior.image_multiple, 1 / _upper_level(image.abs()))
        data = PhaseAwareDataStep(problem.operator, problem.y, problem.noise_std, max_iter=self.data_iterations)
        phase = smooth_phase(image, self.phase_width)
        across = _quadrature_std(image, phase)
        condition = self._conditions(problem, prior, codec.encode(image.abs()).shape[0])
        timesteps = self._timesteps()
        latent = self._initial_latent(problem, prior, codec, _along(image, phase), timesteps[0])
        magnitude = _along(image, phase)
        for step, (now, after) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
            clean, noise = self._prior_step(problem, prior, latent, now, condition, magnitude, codec)
            magnitude = codec.decode(prior.decode(clean), problem.batch_shape)
            tau = self.trust * prior.error_std(now) / 2 / torch.as_tensor(codec.scale)
            if step % self.data_every == 0 or after is None:
                image = data(magnitude, phase, tau, torch.maximum(across, 0.05 * tau))
                phase = smooth_phase(image, self.phase_width)
                magnitude = _along(image, phase)
            problem.log("treg", step + 1, len(timesteps), timestep=now, residual=problem.residual(image))
            if after is not None:
                latent = self._renoise(problem, prior, codec, magnitude, clean, noise, after)
        return _to_noise_level(problem, data, magnitude, phase, image, across)

    def _timesteps(self) -> list[int]:
        first = self.start_timestep if self.start == "classical" else 999
        return [max(int(round(first * (1 - i / self.steps))), 1) for i in range(self.steps)]

    def _conditions(self, problem: Problem, prior: Prior, count: int) -> tuple[Tensor, Tensor]:
        text, null = prior.embed([problem.text or "", ""]).to(problem.y.device).unsqueeze(1).unbind()
        for message in getattr(prior, "text_warnings", lambda _: ())(problem.text or ""):
            problem.warn(message)
        return text.expand(count, *text.shape[1:]), null.expand(count, *null.shape[1:])

    def _initial_latent(self, problem: Problem, prior: Prior, codec: ImageCodec, magnitude: Tensor, timestep: int) -> Tensor:
        clean = prior.encode(codec.encode(magnitude))
        alpha = float(prior.alphas_cumprod[timestep])
        noise = _shared_noise(clean, problem.generator)
        return noise if self.start == "noise" else alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise

    def _prior_step(
        self, problem: Problem, prior: Prior, latent: Tensor, timestep: int, condition: tuple[Tensor, Tensor], magnitude: Tensor, codec: ImageCodec
    ) -> tuple[Tensor, Tensor]:
        """Clean latent and noise; the control passes the current image on instead."""
        if not self.use_prior:
            clean = prior.encode(codec.encode(magnitude))
            return clean, torch.zeros_like(clean)
        problem.nfe += 1 if self.guidance_scale in (0, 1) else 2
        prediction = guided_prediction(prior, latent, timestep, *condition, self.guidance_scale)
        return prediction.clean, prediction.noise

    def _renoise(self, problem: Problem, prior: Prior, codec: ImageCodec, magnitude: Tensor, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        alpha = float(prior.alphas_cumprod[timestep])
        mixed = alpha * prior.encode(codec.encode(magnitude)) + (1 - alpha) * clean
        memory = math.sqrt(1 - alpha) if self.noise_memory is None else self.noise_memory
        fresh = _shared_noise(clean, problem.generator)
        return alpha**0.5 * mixed + (1 - alpha) ** 0.5 * (memory * noise + math.sqrt(1 - memory**2) * fresh)


def _classical_start(problem: Problem) -> Tensor:
    """Two-stage total variation where the data are complex."""
    from treg_med.solvers.total_variation import TotalVariation

    return TotalVariation().solve(problem)


def _along(image: Tensor, phase: Tensor) -> Tensor:
    """Signed magnitude of a complex image along a phase."""
    return (image * apply_phase(torch.ones_like(phase), -phase)).real


def _quadrature_std(image: Tensor, phase: Tensor) -> Tensor:
    """Root-mean-square of the part of the image across the phase, per batch item."""
    across = (image * apply_phase(torch.ones_like(phase), -phase)).imag
    return across.square().mean((-2, -1)).sqrt()


def _upper_level(magnitude: Tensor) -> Tensor:
    """99.7 percentile of the object, the level that the training slices call one, per batch item."""
    flat = magnitude.flatten(-2)
    inside = flat > 0.1 * flat.amax(-1, keepdim=True)
    return torch.nanquantile(torch.where(inside, flat, torch.nan), 0.997, dim=-1)


def _shared_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """White noise that is the same for every item of a batch, so that no result depends on its neighbours."""
    noise = torch.randn((1, *like.shape[1:]), generator=generator, dtype=like.dtype, device=generator.device if generator else "cpu")
    return noise.to(like.device).expand_as(like)


def _to_noise_level(problem: Problem, data: PhaseAwareDataStep, magnitude: Tensor, phase: Tensor, image: Tensor, across: Tensor) -> Tensor:
    r"""Move the image towards the data until its residual is one noise unit (discrepancy principle).

    The proximal weight is found per batch item by bisection on its logarithm; an image that already fits better than
    the noise is left alone.
    """
    low = torch.full_like(problem.noise_std, -9.0)
    high = torch.full_like(problem.noise_std, 2.0)
    done = problem.residual(image) <= 1
    for step in range(7):
        middle = (low + high) / 2
        tau = torch.exp(middle)
        candidate = data(magnitude, phase, tau, torch.maximum(across, 0.05 * tau), start=image)
        residual = problem.residual(candidate)
        image = torch.where(per_image(done), image, candidate)
        low = torch.where(residual > 1, middle, low)
        high = torch.where(residual > 1, high, middle)
        problem.log("noise level", step + 1, 7, residual=residual)
    return image
