"""Guidance by text: how far words pull the prediction, and when, where and in what they may."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from treg_med.codec import ImageCodec
from treg_med.errors import ConfigError, GeometryError
from treg_med.priors.base import Prediction, Prior
from treg_med.settings import check_settings, setting

__all__ = ["AdaptiveNegation", "Guidance", "JointScorer", "guided_prediction", "single_pass"]

# Adam's guard against division by zero, part of the published update.
_ADAM_EPSILON = 1e-8


def guided_prediction(
    prior: Prior,
    latent: Tensor,
    timestep: int | Tensor,
    text: Tensor,
    null: Tensor,
    guidance_scale: float,
    renoise: str = "guided",
    limit: Callable[[Tensor], Tensor] | None = None,
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
    renoise : str
        ``"guided"``, or ``"empty"`` to return the noise of the empty text beside the guided clean estimate (CFG++).
    limit : callable, optional
        Restricts what the text changes, R, an image ``(n, 1, H', W')``: the clean estimate is
        :math:`E(D(z_\varnothing) + w R(D(z_c) - D(z_\varnothing)))`, and the noise what it leaves in the latent.

    Ho, Salimans: Classifier-Free Diffusion Guidance, arXiv 2207.12598. Chung et al.: CFG++, ICLR 2025,
    arXiv 2406.08070.
    """
    if single_pass(guidance_scale, renoise, limit):
        return prior.predict(latent, timestep, text if guidance_scale else null)
    twice = timestep.repeat(2) if isinstance(timestep, Tensor) else timestep
    both = prior.predict(torch.cat([latent, latent]), twice, torch.cat([null, text]))
    noise_null, noise_text = both.noise.chunk(2)
    clean_null, clean_text = both.clean.chunk(2)
    noise = noise_null + guidance_scale * (noise_text - noise_null)
    clean = clean_null + guidance_scale * (clean_text - clean_null)
    if limit is not None:
        empty = prior.decode(clean_null)
        clean = prior.encode(empty + guidance_scale * limit(prior.decode(clean_text) - empty))
        alpha = prior.alphas_cumprod.to(latent)[timestep].reshape(-1, 1, 1, 1)
        noise = (latent - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    return Prediction(noise if renoise == "guided" else noise_null, clean)


def single_pass(guidance_scale: float, renoise: str, limit: Callable[[Tensor], Tensor] | None) -> bool:
    """Whether `guided_prediction` needs one network pass instead of two."""
    return guidance_scale == 0 or (guidance_scale == 1 and renoise == "guided" and limit is None)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    r"""Guidance along the loop: scale w inside a window of it and `outside` elsewhere.

    With u from 0 to 1 through the window the shape ``"cosine"`` rises and falls as
    :math:`w_o + (w - w_o) \sin^2(\pi u)`. A solver takes one in place of a number.

    A region and an annulus limit what the words may change: the difference that they make to the clean estimate is
    multiplied by the one, then filtered to the frequencies of the other. With limits every step is two network passes.
    """

    scale: float = setting(1.0, minimum=0.0, maximum=30.0, help="w")
    outside: float = setting(1.0, minimum=0.0, maximum=30.0, help="w outside the window")
    start: float = setting(0.0, minimum=0.0, maximum=1.0, help="share of the loop where the window opens")
    stop: float = setting(1.0, minimum=0.0, maximum=1.0, help="share of the loop where it closes")
    shape: str = setting("constant", choices=("constant", "cosine"), help="inside the window")
    renoise: str = setting("guided", choices=("guided", "empty"), help="whose noise is kept; empty is CFG++")
    region: Tensor | None = field(default=None, compare=False)
    """Where the words act, ``(H, W)`` of the reconstructed image, values from 0 to 1; None is everywhere."""
    annulus: tuple[float, float] | None = None
    """Frequencies on which the words act, cycles per pixel, from the first up to the second; None is all."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises
        ------
        ConfigError
            For a value out of range, a window that closes before it opens, or limits that leave nothing.
        """
        check_settings(self)
        if self.region is not None and not (
            self.region.ndim == 2 and bool(((self.region >= 0) & (self.region <= 1)).all()) and bool(self.region.any())
        ):
            raise ConfigError("expected a region (H, W) of values from 0 to 1, not all zero")
        if self.annulus is not None and not 0 <= self.annulus[0] < self.annulus[1]:
            raise ConfigError(f"expected an annulus of two frequencies, 0 <= low < high; got {self.annulus}")
        if self.stop <= self.start:
            raise ConfigError(f"expected a guidance window with start < stop, got {self.start} to {self.stop}")

    @classmethod
    def of(cls, scale: float | Guidance) -> Guidance:
        """Return a guidance as it is, and a number as the same scale everywhere."""
        return scale if isinstance(scale, Guidance) else Guidance(scale=scale, outside=scale)

    def limit(self, codec: ImageCodec) -> Callable[[Tensor], Tensor] | None:
        """Return the restriction of what the text changes, on prior images ``(n, 1, H', W')``; None if there is none.

        Raises
        ------
        GeometryError
            If the region has not the shape of the image.
        """
        if self.region is None and self.annulus is None:
            return None
        if self.region is not None and tuple(self.region.shape) != tuple(codec.shape):
            raise GeometryError(f"expected a region of shape {codec.shape}, got {tuple(self.region.shape)}")

        def restricted(change: Tensor) -> Tensor:
            if self.region is not None:
                change = change * codec.pad(self.region.to(change))
            return change if self.annulus is None else _band(change, *self.annulus)

        return restricted

    def at(self, step: int, total: int) -> float:
        """Return the scale of a step, counted from zero."""
        share = step / max(total - 1, 1)
        if not self.start <= share <= self.stop:
            return self.outside
        if self.shape == "constant":
            return self.scale
        through = (share - self.start) / (self.stop - self.start)
        return self.outside + (self.scale - self.outside) * math.sin(math.pi * through) ** 2


def _band(image: Tensor, low: float, high: float) -> Tensor:
    """Keep the frequencies of a real image ``(..., H, W)`` from `low` up to `high` cycles per pixel."""
    rows, columns = image.shape[-2:]
    radius = torch.hypot(
        torch.fft.fftfreq(rows, device=image.device)[:, None], torch.fft.rfftfreq(columns, device=image.device)
    )
    inside = (radius >= low) & (radius < high)
    return torch.fft.irfft2(torch.fft.rfft2(image) * inside, s=(rows, columns))


@runtime_checkable
class JointScorer(Protocol):
    """Images and texts as directions in one space, where their cosine says how well they agree."""

    def image_features(self, image: Tensor) -> Tensor:
        """Return unit vectors ``(n, d)`` of prior images ``(n, 1, H, W)`` in [-1, 1]."""
        ...

    def text_features(self, states: Tensor, text: str) -> Tensor:
        """Return unit vectors ``(n, d)`` of states ``(n, tokens, width)`` of `text`; differentiable in the states."""
        ...


@dataclass
class AdaptiveNegation:
    r"""Move the negative condition away from what the image shows, so that guidance points elsewhere.

    ``"treg"`` is the published step: K steps of Adam on the mean inner product of the image features f with every
    token :math:`c_j`. That loss is linear, so its gradient is constant and the steps have the closed form

    .. math:: c_j \leftarrow c_j - K \eta\, g / (|g| + 10^{-8}), \qquad g = f / n_{tokens}:

    the sign of f, without bound, and only where both have one width. ``"bounded"`` descends the cosine between the
    image and the pooled, projected text, for texts of any width, and stays in the ball
    :math:`\|c - c^{(0)}\| \le r \|c^{(0)}\|`.

    Kim, Park, Chung, Ye: Regularization by Texts for Latent Diffusion Inverse Solvers, ICLR 2025, arXiv 2311.15658.

    Parameters
    ----------
    scorer : JointScorer
        Features of images and texts.
    text : str
        The negative prompt.
    mode : str
        ``"treg"`` or ``"bounded"``.
    rate, steps : float, int
        :math:`\eta` and K.
    radius : float
        r; for ``"bounded"``.

    Attributes
    ----------
    drift : list of float
        Largest :math:`\|c - c^{(0)}\| / \|c^{(0)}\|` of a batch after each call.
    """

    scorer: JointScorer
    text: str = ""
    mode: str = "treg"
    rate: float = 1e-3
    steps: int = 10
    radius: float = 0.1
    drift: list[float] = field(default_factory=list)
    _first: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the mode."""
        if self.mode not in ("treg", "bounded"):
            raise ConfigError(f"adaptive negation: expected mode 'treg' or 'bounded', got {self.mode!r}")

    @classmethod
    def of(cls, prior: Prior, text: str, mode: str, *, rate: float, steps: int) -> Self | None:
        """Return the negation of a prior that brings a scorer, and None for any other."""
        scorer = getattr(prior, "scorer", None)
        return None if scorer is None or steps == 0 else cls(scorer, text, mode, rate, steps)

    def __call__(self, image: Tensor, null: Tensor) -> Tensor:
        """Return the negative condition ``(n, tokens, width)`` after prior images ``(n, 1, H, W)``."""
        first = self._first = null if self._first is None else self._first
        features = self.scorer.image_features(image).detach()
        moved = self._published(features, null) if self.mode == "treg" else self._bounded(features, null, first)
        away = (moved - first).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)
        self.drift.append(float(away.max()))
        return moved

    def _published(self, features: Tensor, null: Tensor) -> Tensor:
        if features.shape[-1] != null.shape[-1]:
            raise ConfigError(
                f"adaptive negation as published needs image features as wide as the text states, got "
                f"{features.shape[-1]} and {null.shape[-1]}; use mode 'bounded'"
            )
        gradient = features[:, None] / null.shape[1]
        return null - self.steps * self.rate * gradient / (gradient.abs() + _ADAM_EPSILON)

    def _bounded(self, features: Tensor, null: Tensor, first: Tensor) -> Tensor:
        size = first.flatten(1).norm(dim=1)[:, None, None]
        for _ in range(self.steps):
            with torch.enable_grad():
                null = null.detach().requires_grad_()
                cosine = (features * self.scorer.text_features(null, self.text)).sum()
                (gradient,) = torch.autograd.grad(cosine, null)
            length = gradient.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-20)
            away = null.detach() - self.rate * size * gradient / length - first
            shrink = (self.radius * size / away.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-20)).clamp_max(1)
            null = first + shrink * away
        return null
