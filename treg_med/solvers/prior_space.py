"""A measurement as a diffusion prior sees it: real images in its range, and data in the units that go with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from treg_med.codec import ImageCodec, SoftClip
from treg_med.errors import NumericsError
from treg_med.guidance import Guidance, guided_prediction, single_pass
from treg_med.operators import conjugate_gradient
from treg_med.priors.base import Prediction, Prior
from treg_med.solvers.ddim import DDIMStep
from treg_med.solvers.noise_levels import encoder_gain
from treg_med.solvers.problem import Problem, per_image

__all__ = ["PriorSpace", "codec_for", "real_noise", "shared_noise"]


class PriorSpace:
    r"""The inverse problem :math:`b = B(x) + n` for a real image x ``(n, 1, H', W')`` in [-1, 1].

    With the codec's geometry C (turn upright, pad), its scale s and the phase :math:`\phi` carried beside the
    magnitude, :math:`B(x) - b = 2 s\, (A(e^{i\phi} C^{-1} (x + 1) / (2 s)) - y)`. B has the norm of A, so the constants
    of publications that measure images in [-1, 1] keep their meaning. B is affine whatever the networks of the prior
    see: a soft clip of the codec lies between them and x, in `encode` and `decode`. The leading dimensions of the
    problem are flattened into n, and nothing here mixes the items of a batch.

    Parameters
    ----------
    problem : Problem
        Data and forward model, linear or not, in working units.
    prior : Prior
        The diffusion prior.
    codec : ImageCodec
        Between magnitudes in working units and images of the prior.
    rotation : Tensor ``(*batch, H, W)`` complex, optional
        Phase factor; None for operators on real images.
    start : Tensor ``(n, 1, H', W')``, optional
        Classical reconstruction.

    Attributes
    ----------
    noise_std : Tensor ``(n,)``
        Noise of one real number of b.
    numbers : int
        Measured real numbers of one image: twice the samples where they are complex.
    """

    def __init__(
        self,
        problem: Problem,
        prior: Prior,
        codec: ImageCodec,
        rotation: Tensor | None = None,
        start: Tensor | None = None,
    ) -> None:
        self.problem, self.prior, self.codec, self.rotation = problem, prior, codec, rotation
        self.start = start
        self.operator = problem.operator
        self.batch_shape = problem.batch_shape
        self.count = math.prod(self.batch_shape)
        scale = torch.as_tensor(codec.scale, device=problem.y.device, dtype=problem.noise_std.dtype)
        self._units = (2 * scale).expand(self.batch_shape)
        self.noise_std = (real_noise(problem) * self._units).reshape(-1)
        self.numbers = self.operator.n_measured() * (2 if problem.y.is_complex() else 1)
        self.step = 0
        self._conditions: dict[str, Tensor] = {}
        self._gain: float | None = None

    def misfit(self, image: Tensor) -> Tensor:
        """Return ``B(x) - b``, ``(n, *range)``; differentiable."""
        data = self.operator(self.image(image))
        events = len(self.operator.range_shape)
        away = (data - self.problem.y) * per_image(self._units, events)
        return away.reshape(-1, *self.operator.range_shape)

    def misfit_norm(self, image: Tensor) -> Tensor:
        """Return ``||B(x) - b||`` of every item, ``(n,)``; differentiable, also where it is zero."""
        energy = self.misfit(image).abs().square().flatten(1).sum(1)
        return energy.clamp_min(1e-20).sqrt()

    def residual(self, image: Tensor) -> Tensor:
        """Return the root-mean-square misfit in units of the noise, ``(n,)``."""
        return self.misfit_norm(image) / (self.noise_std * math.sqrt(self.numbers))

    def backproject(self, data: Tensor) -> Tensor:
        """Return ``B^T r`` of data ``(n, *range)``, ``(n, 1, H', W')``; for linear operators."""
        image = self.problem.linear.adjoint(data.reshape(*self.batch_shape, *data.shape[1:]))
        if self.rotation is not None:
            image = image * self.rotation.conj()
        return self.codec.pad(image.real if image.is_complex() else image)

    def gram(self, image: Tensor) -> Tensor:
        """Return ``B^T B x`` without the offset of the range; for linear operators."""
        cropped = self.codec.unpad(image, self.batch_shape)
        turned = self.problem.linear.gram(cropped if self.rotation is None else cropped * self.rotation)
        if self.rotation is not None:
            turned = (turned * self.rotation.conj()).real
        return self.codec.pad(turned)

    def norm(self) -> float:
        """Return the largest gain of B, for which that of A is taken."""
        return self.operator.norm()

    def data_step(
        self, image: Tensor, weight: float | Tensor, *, max_iter: int, rtol: float = 1e-4
    ) -> Tensor:
        r"""Return the image between the data and a given one, by Hermitian conjugate gradients.

        .. math:: \arg\min_x \tfrac12 \|B x - b\|^2 + \tfrac{w}{2} \|x - x_0\|^2

        `weight` is a number or ``(n,)``; zero gives the image nearest to `image` among those that fit best. Items stop
        by themselves at the relative residual `rtol` or after `max_iter` iterations.
        """
        column = weight if not isinstance(weight, Tensor) else per_image(weight, 3)
        rhs = -self.backproject(self.misfit(image))
        step = conjugate_gradient(
            lambda x: self.gram(x) + column * x, rhs, max_iter=max_iter, rtol=rtol, event_ndim=3
        )
        return image + step.x

    def predict(
        self,
        latent: Tensor,
        step: DDIMStep,
        guidance: float | Guidance = 1.0,
        *,
        text: Tensor | None = None,
        null: Tensor | None = None,
    ) -> Prediction:
        """Return the guided estimates of the prior; counts the evaluations per image.

        The conditions ``(n, ...)`` are those of the problem's text and of the empty text where none are given. Latents
        may hold several copies of the batch, ``(k n, c, h, w)``.
        """
        self.step = step.index + 1
        guidance = Guidance.of(guidance)
        scale = guidance.at(step.index, step.total)
        limit = guidance.limit(self.codec)
        copies = len(latent) // self.count
        self.problem.nfe += copies * (1 if single_pass(scale, guidance.renoise, limit) else 2)
        text = self.condition(self.problem.text or "") if text is None else text
        null = self.condition("") if null is None else null
        text, null = (torch.cat([states] * copies) for states in (text, null))
        timestep = step.timestep.repeat(copies)
        prediction = guided_prediction(self.prior, latent, timestep, text, null, scale, guidance.renoise, limit)
        self._check(prediction.clean, "denoiser")
        return prediction

    def differentiated(
        self,
        latent: Tensor,
        step: DDIMStep,
        guidance: float | Guidance,
        objective: Callable[[Tensor, Tensor], Tensor],
        *,
        null: Tensor | None = None,
    ) -> tuple[Prediction, Tensor, Tensor]:
        """Return the estimates at a noisy latent, the image, and the gradient of an objective through both networks.

        `objective` maps clean latents and images to one number per item ``(n,)``.
        """
        with torch.enable_grad():
            latent = latent.detach().requires_grad_()
            prediction = self.predict(latent, step, guidance, null=null)
            image = self.decode(prediction.clean)
            (gradient,) = torch.autograd.grad(objective(prediction.clean, image).sum(), latent)
        return Prediction(prediction.noise.detach(), prediction.clean.detach()), image.detach(), gradient

    def encode(self, image: Tensor) -> Tensor:
        """Return latents of images."""
        return self._check(self.prior.encode(self.codec.compress(image)), "encoder")

    def decode(self, latent: Tensor) -> Tensor:
        """Return images of latents."""
        return self._check(self.codec.expand(self.prior.decode(latent)), "decoder")

    def image(self, image: Tensor) -> Tensor:
        """Return a prior image as the image ``(*batch, H, W)`` of the problem, in working units."""
        magnitude = self.codec.decode(image, self.batch_shape)
        return magnitude if self.rotation is None else magnitude * self.rotation

    def noise_like(self, latent: Tensor) -> Tensor:
        """Draw white noise of the shape of latents, the same for every item of the batch."""
        return shared_noise(latent, self.problem.generator)

    def fresh_noise(self, latent: Tensor, eta: float | None) -> Tensor | None:
        """Draw the fresh noise of a DDIM step, none where eta is zero."""
        return None if eta == 0 else self.noise_like(latent)

    def blank_latent(self) -> Tensor:
        """Return the latents ``(n, c, h, w)`` of grey images."""
        grey = torch.zeros(*self.batch_shape, *self.codec.shape, device=self.problem.y.device)
        return self.encode(self.codec.pad(grey.to(self.noise_std.dtype)))

    @property
    def gain(self) -> float:
        """Latent noise per unit of white image noise."""
        # No cached_property: before Python 3.12 its lock is held while the network is asked, for all slices in flight.
        if self._gain is None:
            self._gain = encoder_gain(self.prior, self.decode(self.blank_latent()))
        return self._gain

    def image_noise(self, step: DDIMStep) -> Tensor:
        """Return the noise of the image behind a latent of the step's level, ``(n,)``."""
        return step.noise_ratio.flatten() / self.gain

    def misfit_variance(self, step: DDIMStep, error: float | Tensor) -> Tensor:
        r"""Return :math:`\sigma^2 + \|B\|^2 r_t^2` ``(n,)``, of the misfit of an estimate that errs by :math:`r_t`."""
        return self.noise_std.square() + (self.norm() * error * self.image_noise(step)).square()

    def noise_weight(self, step: DDIMStep, error: float = 1.0) -> Tensor:
        r"""Return :math:`\sigma^2 / r_t^2` ``(n,)`` for an estimate that errs by :math:`r_t`, `error` times that noise.

        The weight of the estimate against the data in a least-squares step that knows the noise :math:`\sigma` of both.
        """
        return (self.noise_std / (error * self.image_noise(step))).square()

    def condition(self, text: str) -> Tensor:
        """Return the prior's condition of a text, ``(n, ...)``; a text it does not follow is warned of."""
        if text not in self._conditions:
            self._conditions[text] = self.prior.embed(text).to(self.problem.y.device)
            for message in self.prior.text_warnings(text) if text else ():
                self.problem.warn(message)
        known = self._conditions[text]
        return known.expand(self.count, *known.shape[1:])

    def log(self, stage: str, step: DDIMStep, image: Tensor) -> None:
        """Record a step with the residual of its image in noise units."""
        shown = self.image(image)
        self.problem.log(
            stage,
            step.index + 1,
            step.total,
            image=shown,
            timestep=step.timestep.reshape(self.batch_shape),
            residual=self.problem.residual(shown),
        )

    def _check(self, value: Tensor, component: str) -> Tensor:
        if not bool(torch.isfinite(value).all()):
            raise NumericsError(
                f"step {self.step}: the {component} gave NaN or Inf; lower the step sizes or check the data's scale"
            )
        return value


def codec_for(problem: Problem, prior: Prior, magnitude: Tensor | None = None) -> ImageCodec:
    """Return a codec that shows the prior an upright image of the level it was trained on.

    Where the attenuation of water is known that is the window from -1000 to 1000 HU, with a soft clip for bone and
    metal: ``encoded = HU / 1000``. Else it is the upper level of a first image, or without one the working units, in
    which the maximum is about one.
    """
    height, width = problem.operator.domain_shape
    if problem.mu_water is not None:
        soft_clip = SoftClip()
        codec = ImageCodec((height, width), prior.image_multiple, 1 / (2 * problem.mu_water * problem.scale))
        codec = replace(codec, soft_clip=soft_clip)
        problem.note(codec={"window_hu": [-1000, 1000], "mu_water": problem.mu_water, **asdict(soft_clip)})
    else:
        scale = 1.0 if magnitude is None else 1 / _upper_level(magnitude)
        codec = ImageCodec((height, width), prior.image_multiple, scale)
    geometry = problem.geometry
    if geometry is None:
        return codec
    return replace(codec, to_upright=geometry.to_display, from_upright=geometry.from_display)


def _upper_level(magnitude: Tensor) -> Tensor:
    """99.7 percentile of the object, the level that the training slices call one, per batch item."""
    flat = magnitude.flatten(-2)
    inside = flat > 0.1 * flat.amax(-1, keepdim=True)
    return torch.nanquantile(torch.where(inside, flat, torch.nan), 0.997, dim=-1)


def real_noise(problem: Problem) -> Tensor:
    """Return the standard deviation of the data's noise per real number, in working units ``(*batch,)``."""
    return problem.noise_std / math.sqrt(2) if problem.y.is_complex() else problem.noise_std


def shared_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """White noise that is the same for every item of a batch, so that no result depends on its neighbours."""
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn((1, *like.shape[1:]), generator=generator, dtype=like.dtype, device=device)
    return noise.to(like.device).expand_as(like)
