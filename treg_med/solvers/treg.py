"""TReg: regularisation by text of a latent diffusion prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.guidance import Guidance
from treg_med.priors.base import Prediction, Prior
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.data_step import CarriedPhase, PhaseAwareDataStep, to_noise_level
from treg_med.solvers.grid_shifts import Shift, grid_shifts, moved
from treg_med.solvers.noise_levels import NoiseLevel, noise_levels
from treg_med.solvers.prior_space import PriorSpace, codec_for, shared_noise
from treg_med.solvers.problem import Problem, per_image
from treg_med.solvers.total_variation import TotalVariation

__all__ = ["TReg"]

# Measured on training slices (multiple sclerosis, strokes, volunteers): at R=8, 0.3 is 0.2 to 0.3 dB better than 0.15
# and 1.0 is worse; at R=4 with eight coils 0.2 and 0.3 lose 0.1 and 0.2 dB.
_START_PER_ACCELERATION = 0.15 / 4
_USUAL_START = 0.15
_LEAST_START, _HIGHEST_START = 0.1, 0.45


class Estimate(NamedTuple):
    """What the prior makes of an image on one grid: latents ``(k n, ...)``, their image D(z_0), the next image d."""

    shift: Shift
    latent: Prediction
    decoded: Tensor
    denoised: Tensor


@dataclass(frozen=True, kw_only=True)
class TReg(Solver):
    r"""Alternate a text-conditioned latent prior step with a data step in image space.

    At each noise level :math:`\sigma_k` of the image, with a timestep of that level, :math:`a = \bar\alpha_t`,
    prompt c, decoder D and encoder E:

    .. math::
        \hat z &= a\, E(|x|_\phi) + (1 - a)\, z_0^{(k-1)} \\
        z_t &= \sqrt{a}\, \hat z + \sqrt{1-a}\, \sqrt{1 - \nu_k^2/\sigma_k^2}\;
            (c_n \epsilon^{(k-1)} + \sqrt{1 - c_n^2}\, n), \qquad n \sim N(0, I) \\
        \epsilon &= \epsilon_\varnothing + w (\epsilon_c - \epsilon_\varnothing), \qquad
        z_0 = (z_t - \sqrt{1-a}\,\epsilon) / \sqrt{a} \\
        d &= D(z_0) + S_{\nu_k}(|x|_\phi - D(E(|x|_\phi))) \\
        x &= \arg\min_x \|A x - y\|^2 / \sigma^2 + \|x - (|x|_\phi + r (d - |x|_\phi)) e^{i\phi}\|^2 / \tau_k^2

    The network is told the noise it gets: of the level :math:`\sigma_k` only that part is added which the image does
    not hold already, :math:`\nu_k` being what the last data step let in. What the autoencoder cannot represent is
    kept where it stands above that noise (soft threshold S). :math:`\phi` is the phase carried beside the magnitude,
    :math:`\tau_k` = `prior_error` :math:`\sigma_k`, r = `relaxation` and :math:`c_n` = `noise_memory` (``sqrt(1 -
    a)`` in the publication). With `antithetic` the clean estimate is the mean over n and -n. With `cycle_spinning` E
    and D stand on another grid in every step, moved by a part of a latent pixel, and the last step takes the mean over
    all four; :math:`z_0^{(k-1)}` is carried over through the image. The loop starts from the classical reconstruction,
    or from pure noise; a last step in pixel space brings the image to the noise level of the data.

    Kim, Park, Chung, Ye: Regularization by Texts for Latent Diffusion Inverse Solvers, ICLR 2025, arXiv 2311.15658.
    Noise levels of a plug-and-play loop: Zhu et al., DiffPIR, CVPR workshops 2023, arXiv 2305.08995. Adaptive negation
    of the empty prompt is not part of these presets.
    """

    name: ClassVar[str] = "treg"
    needs_prior: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {"trust": "prior_error", "own_noise": "image_noise"}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        # The start by weighted total variation is nearer the truth than that of MR, and detail that projections hardly
        # see is noisier than their noise. Measured: 57.2 HU against 58.1 HU with the default (four slices of other
        # patients than those of the prior, 60 views, 4e3 photons; weighted total variation 66.4 HU).
        "ct": {"start_noise": 0.05, "end_noise": 3.0, "relaxation": 1.7},
        # What the words draw where the data leave room; a sample, not an estimate.
        "generative": {
            "start_noise": 0.3,
            "guidance_scale": 2.0,
            "relaxation": 1.0,
            "image_noise": 0.0,
            "antithetic": False,
            "noise_memory": None,
            "cycle_spinning": False,
        },
    }

    start: str = setting("classical", choices=("classical", "noise"), help="initial image")
    start_noise: float | None = setting(
        None,
        above=0.0,
        maximum=100.0,
        help="first noise level of a classical start, share of the image's upper level; None: by the acceleration",
    )
    end_noise: float = setting(0.75, above=0.0, help="last noise level, in units of the data's noise per real part")
    steps: int = setting(24, minimum=1, maximum=1000, help="diffusion steps")
    guidance_scale: float | Guidance = setting(1.0, minimum=0.0, maximum=30.0, help="w of classifier-free guidance")
    relaxation: float = setting(
        1.9, above=0.0, maximum=2.0, help="step towards the prior's estimate; 1 takes it whole, as the last step does"
    )
    data_every: int = setting(1, minimum=1, help="a data step every that many diffusion steps")
    prior_error: float = setting(
        3.0, above=0.0, help="error tau_k of the prior's estimate per noise level: larger follows the data more"
    )
    image_noise: float = setting(
        1.1, minimum=0.0, help="noise in an image fitted to the data, in units of the data's noise per real part"
    )
    noise_memory: float | None = setting(
        0.0, minimum=0.0, maximum=1.0, help="share c_n of predicted noise kept; None is sqrt(1 - a)"
    )
    antithetic: bool = setting(True, help="average the clean estimate over each noise and its negative")
    cycle_spinning: bool = setting(True, help="move the autoencoder's grid from step to step; needs noise_memory 0")
    phase_width: float = setting(4.0, minimum=0.0, help="low-pass width of the phase in pixels")
    data_iterations: int = setting(12, minimum=1, help="conjugate-gradient iterations of a data step")
    use_prior: bool = setting(True, help="False is the control: the classical image in place of the estimate")

    def __post_init__(self) -> None:
        """Check the settings, also against each other."""
        super().__post_init__()
        if self.cycle_spinning and self.noise_memory != 0:
            raise ConfigError(
                f"expected noise_memory 0 with cycle_spinning, got {self.noise_memory}: noise stays on its grid; "
                "set cycle_spinning to false"
            )

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""
        prior: Prior = problem.prior
        classical = TotalVariation().solve_phased(problem)
        phase = CarriedPhase.of(classical, self.phase_width)
        magnitude = phase.along(classical.image)
        codec = codec_for(problem, prior, classical.image.abs())
        range_per_unit = 2 * torch.as_tensor(codec.scale, device=magnitude.device)  # of the prior, per working unit
        data = PhaseAwareDataStep(problem, max_iter=self.data_iterations)
        space = PriorSpace(problem, prior, codec)
        current = denoised = codec.encode(magnitude)
        levels = self._levels(space)
        if self.start == "noise":
            current = space.decode(torch.zeros_like(space.encode(current)))
        noise_held = torch.zeros_like(levels[0].std)
        shifts = grid_shifts(prior) if self.cycle_spinning else ((0, 0),)
        before: Estimate | None = None
        for step, level in enumerate(levels):
            last = step == len(levels) - 1
            if self.use_prior:
                chosen = shifts if last else (shifts[step % len(shifts)],)
                found = [self._estimate(space, current, before, level, noise_held, shift) for shift in chosen]
                before = found[-1]
                denoised = torch.stack([estimate.denoised for estimate in found]).mean(0)
            if last:
                magnitude = codec.decode(denoised, problem.batch_shape)
                break
            magnitude = codec.decode(torch.lerp(current, denoised, self.relaxation), problem.batch_shape)
            if step % self.data_every == 0:
                prior_error = (self.prior_error * level.std).reshape(problem.batch_shape) / range_per_unit
                image = data(magnitude, phase, prior_error)
                phase = phase.refined(image)
                magnitude = phase.along(image)
                noise_held = torch.minimum(self._image_noise(space, prior_error), level.std)
            image = magnitude * phase.rotation
            problem.log(
                "treg",
                step + 1,
                len(levels),
                image=image,
                timestep=level.timestep.reshape(problem.batch_shape),
                residual=problem.residual(image),
            )
            current = codec.encode(magnitude)
        return to_noise_level(
            problem,
            magnitude * phase.rotation,
            lambda error, image: data(magnitude, phase, error, start=image),
        )

    def _start_noise(self, problem: Problem) -> float:
        """First noise level, of the size of the errors of the classical image, which grow with the acceleration."""
        if self.start_noise is not None:
            return self.start_noise
        acceleration = problem.operator.facts().get("acceleration")
        if acceleration is None:
            return _USUAL_START
        chosen = min(max(_START_PER_ACCELERATION * float(acceleration), _LEAST_START), _HIGHEST_START)
        problem.note(start_noise=chosen)
        return chosen

    def _levels(self, space: PriorSpace) -> list[NoiseLevel]:
        """Noise levels from the start to the noise of the data, both in the prior's image units."""
        last = self.end_noise * space.noise_std
        start = 2 * self._start_noise(space.problem) if self.start == "classical" else math.inf
        return noise_levels(space.prior, space.gain, last.clamp_min(start), last, self.steps)

    def _estimate(
        self,
        space: PriorSpace,
        current: Tensor,
        before: Estimate | None,
        level: NoiseLevel,
        noise_held: Tensor,
        shift: Shift,
    ) -> Estimate:
        """Estimate the image behind the current one with the autoencoder's grid moved by a shift."""
        encoded = space.encode(moved(current, shift))
        if before is not None and before.shift != shift:
            carried = space.encode(moved(before.decoded, shift))
            before = before._replace(latent=before.latent._replace(clean=self._copies(carried)))
        latent = self._noised(space.problem, space.prior, encoded, before and before.latent, level, noise_held)
        found = space.predict(latent, level.step, self.guidance_scale)
        decoded = moved(space.decode(found.clean.unflatten(0, (-1, len(encoded))).mean(0)), shift, -1)
        not_represented = current - moved(space.decode(encoded), shift, -1)
        return Estimate(shift, found, decoded, decoded + _soft_threshold(not_represented, noise_held))

    def _copies(self, latent: Tensor) -> Tensor:
        """Latents ``(n, ...)`` or their antithetic copies ``(2 n, ...)``."""
        return latent.repeat(2 if self.antithetic else 1, 1, 1, 1)

    def _image_noise(self, space: PriorSpace, prior_error: Tensor) -> Tensor:
        """Noise of the data in the image after a data step that weighed the prior by sigma^2 / tau^2."""
        share = 1 / (1 + (space.problem.noise_std / prior_error).square())
        return self.image_noise * space.noise_std * share.reshape(-1)

    def _noised(
        self,
        problem: Problem,
        prior: Prior,
        encoded: Tensor,
        before: Prediction | None,
        level: NoiseLevel,
        noise_held: Tensor,
    ) -> Tensor:
        """Latents of the current image at a noise level, ``(n, ...)`` or the antithetic ``(2 n, ...)``."""
        fresh = shared_noise(encoded, problem.generator)
        noise = torch.cat([fresh, -fresh]) if self.antithetic else fresh
        copies = len(noise) // len(fresh)
        encoded = self._copies(encoded)
        alpha = prior.alphas_cumprod[level.timestep].to(encoded)
        missing = (1 - (noise_held / level.std).square()).clamp_min(0).sqrt().to(encoded)
        alpha, spread = (per_image(v.repeat(copies), 3) for v in (alpha, (1 - alpha).sqrt() * missing))
        if before is None:
            return alpha.sqrt() * encoded + spread * noise
        memory = (1 - alpha).sqrt() if self.noise_memory is None else torch.full_like(alpha, self.noise_memory)
        mixed = alpha * encoded + (1 - alpha) * before.clean
        return alpha.sqrt() * mixed + spread * (memory * before.noise + (1 - memory**2).sqrt() * noise)


def _soft_threshold(image: Tensor, threshold: Tensor) -> Tensor:
    """Shrink every pixel of ``(n, 1, H, W)`` towards zero by the threshold ``(n,)`` of its image."""
    return image.sgn() * (image.abs() - per_image(threshold.to(image), 3)).clamp_min(0)
