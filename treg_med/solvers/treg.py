"""TReg: regularisation by text of a latent diffusion prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from treg_med.codec import ImageCodec
from treg_med.guidance import guided_prediction
from treg_med.priors.base import Prediction, Prior
from treg_med.solvers.base import Problem, Solver, per_image, setting
from treg_med.solvers.data_step import CarriedPhase, PhaseAwareDataStep
from treg_med.solvers.total_variation import TotalVariation

__all__ = ["TReg"]

_BISECTIONS = 8


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

    Kim, Park, Chung, Ye: Regularization by Texts for Latent Diffusion Inverse Solvers, ICLR 2025, arXiv 2311.15658.
    Adaptive negation of the empty prompt is not part of this preset.
    """

    name: ClassVar[str] = "treg"
    needs_prior: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        # What the words draw where the data leave room; a sample, not an estimate.
        "generative": {
            "start_timestep": 250,
            "steps": 20,
            "guidance_scale": 2.0,
            "prior_weight": 1.0,
            "injected_noise": 1.0,
            "trust": 1.0,
        },
    }

    start: str = setting("classical", choices=("classical", "noise"), help="initial latent")
    start_timestep: int = setting(
        12, minimum=1, maximum=999, help="timestep the classical start is noised to"
    )
    steps: int = setting(4, minimum=1, maximum=1000, help="diffusion steps")
    guidance_scale: float = setting(1.0, minimum=0.0, maximum=30.0, help="w of classifier-free guidance")
    prior_weight: float = setting(
        0.5,
        above=0.0,
        maximum=1.0,
        help="share of the prior's estimate in each step; the rest is the current image",
    )
    data_every: int = setting(1, minimum=1, help="a data step every that many diffusion steps")
    trust: float = setting(
        0.3, above=0.0, help="multiplies the prior's error tau_t: larger trusts the data more"
    )
    noise_memory: float | None = setting(
        None, minimum=0.0, maximum=1.0, help="share c_n of predicted noise kept; None is sqrt(1 - a')"
    )
    injected_noise: float = setting(
        0.0,
        minimum=0.0,
        maximum=1.0,
        help="scales all noise added to the latent; 0 is deterministic plug-and-play",
    )
    phase_width: float = setting(4.0, minimum=0.0, help="low-pass width of the phase in pixels")
    data_iterations: int = setting(8, minimum=1, help="conjugate-gradient iterations of a data step")
    use_prior: bool = setting(True, help="False is the control: the same pipeline with the network removed")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether any noise is drawn."""
        return self.start == "noise" or self.injected_noise > 0

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        prior: Prior = problem.prior
        classical = TotalVariation().solve_phased(problem)
        image, phase = classical.image, CarriedPhase.of(classical, self.phase_width)
        codec = _codec(problem, prior, image.abs())
        data = PhaseAwareDataStep(problem, max_iter=self.data_iterations)
        magnitude = phase.along(image)
        condition = self._conditions(problem, prior)
        timesteps = self._timesteps()
        current = codec.encode(magnitude)
        known = prior.encode(current)
        latent = self._initial_latent(problem, prior, known, timesteps[0])
        for step, (now, after) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
            prediction = self._prior_step(problem, prior, latent, now, condition, known)
            # What the autoencoder cannot represent stays as it is: only the latent part is the prior's to change.
            unseen = current - prior.decode(known)
            magnitude = codec.decode(prior.decode(prediction.clean) + unseen, problem.batch_shape)
            if after is None:
                break
            if step % self.data_every == 0:
                image = data(
                    magnitude, phase, self.trust * prior.error_std(now) / 2 / torch.as_tensor(codec.scale)
                )
                phase = phase.refined(image)
                magnitude = phase.along(image)
            problem.log("treg", step + 1, len(timesteps), timestep=now, residual=problem.residual(image))
            current = codec.encode(magnitude)
            known = prior.encode(current)
            latent = self._renoise(problem, prior, known, prediction, after)
        return _to_noise_level(problem, data, magnitude, phase)

    def _timesteps(self) -> list[int]:
        first = self.start_timestep if self.start == "classical" else 999
        return [max(int(round(first * (1 - i / self.steps))), 1) for i in range(self.steps)]

    def _conditions(self, problem: Problem, prior: Prior) -> tuple[Tensor, Tensor]:
        text, null = prior.embed([problem.text or "", ""]).to(problem.y.device).unsqueeze(1).unbind()
        for message in prior.text_warnings(problem.text or ""):
            problem.warn(message)
        count = math.prod(problem.batch_shape)
        return text.expand(count, *text.shape[1:]), null.expand(count, *null.shape[1:])

    def _initial_latent(self, problem: Problem, prior: Prior, clean: Tensor, timestep: int) -> Tensor:
        alpha = float(prior.alphas_cumprod[timestep])
        noise = _shared_noise(clean, problem.generator)
        if self.start == "noise":
            return noise
        return alpha**0.5 * clean + self.injected_noise * (1 - alpha) ** 0.5 * noise

    def _prior_step(
        self,
        problem: Problem,
        prior: Prior,
        latent: Tensor,
        timestep: int,
        condition: tuple[Tensor, Tensor],
        known: Tensor,
    ) -> Prediction:
        """Noise and clean latent; the control passes the latent of the current image on instead."""
        if not self.use_prior:
            return Prediction(torch.zeros_like(known), known)
        problem.nfe += 1 if self.guidance_scale in (0, 1) else 2
        noise, clean = guided_prediction(prior, latent, timestep, *condition, self.guidance_scale)
        return Prediction(noise, torch.lerp(known, clean, self.prior_weight))

    def _renoise(
        self, problem: Problem, prior: Prior, known: Tensor, prediction: Prediction, timestep: int
    ) -> Tensor:
        alpha = float(prior.alphas_cumprod[timestep])
        mixed = alpha * known + (1 - alpha) * prediction.clean
        memory = math.sqrt(1 - alpha) if self.noise_memory is None else self.noise_memory
        fresh = _shared_noise(mixed, problem.generator)
        spread = self.injected_noise * (1 - alpha) ** 0.5
        return alpha**0.5 * mixed + spread * (memory * prediction.noise + math.sqrt(1 - memory**2) * fresh)


def _codec(problem: Problem, prior: Prior, magnitude: Tensor) -> ImageCodec:
    """Codec that shows the prior an upright image of the level it was trained on."""
    height, width = problem.operator.domain_shape
    codec = ImageCodec((height, width), prior.image_multiple, 1 / _upper_level(magnitude))
    geometry = problem.geometry
    if geometry is None:
        return codec
    return replace(codec, to_upright=geometry.to_display, from_upright=geometry.from_display)


def _upper_level(magnitude: Tensor) -> Tensor:
    """99.7 percentile of the object, the level that the training slices call one, per batch item."""
    flat = magnitude.flatten(-2)
    inside = flat > 0.1 * flat.amax(-1, keepdim=True)
    return torch.nanquantile(torch.where(inside, flat, torch.nan), 0.997, dim=-1)


def _shared_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """White noise that is the same for every item of a batch, so that no result depends on its neighbours."""
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn((1, *like.shape[1:]), generator=generator, dtype=like.dtype, device=device)
    return noise.to(like.device).expand_as(like)


def _to_noise_level(
    problem: Problem, data: PhaseAwareDataStep, magnitude: Tensor, phase: CarriedPhase
) -> Tensor:
    r"""Move the prior's image towards the data until its residual is one noise unit (discrepancy principle).

    The proximal weight is found per batch item by bisection on its logarithm; an image that already fits the data to
    the noise is left alone, because fitting it closer would only copy noise.
    """
    image = magnitude * phase.rotation
    fits = problem.residual(image) <= 1
    low, high = torch.full_like(problem.noise_std, -9.0), torch.full_like(problem.noise_std, 2.0)
    for step in range(_BISECTIONS):
        if bool(fits.all()):
            break
        middle = (low + high) / 2
        candidate = data(magnitude, phase, torch.exp(middle), start=image)
        residual = problem.residual(candidate)
        image = torch.where(per_image(fits), image, candidate)
        low, high = torch.where(residual > 1, middle, low), torch.where(residual > 1, high, middle)
        problem.log("noise level", step + 1, _BISECTIONS, residual=residual)
    return image
