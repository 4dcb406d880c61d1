"""What an adaptation minimises, on batches that depend on the generator alone."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.priors.latent import LatentPrior
from treg_med.training.augmentation import augment, random_crops
from treg_med.training.noise_draw import draw_crop_timesteps, draw_timesteps
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import swap_sides

if TYPE_CHECKING:
    from treg_med.training.adaptation.run import AdaptationSettings

__all__ = ["Errors", "autoencoder_errors", "denoiser_errors", "shortened"]

_SHORTENED_SHARE = 0.3
_TRAINING_STEPS = 1000


class Errors(NamedTuple):
    """Loss to minimise, squared errors and timesteps per sample ``(n,)``."""

    loss: Tensor
    squares: Tensor
    timesteps: Tensor


def autoencoder_errors(
    prior: LatentPrior, slices: CaptionedSlices, settings: AdaptationSettings, generator: torch.Generator
) -> Errors:
    r"""Round trip of random crops.

    .. math:: L = \mathrm{mean} |D(E(x)) - x| + 10\, \mathrm{mean} (D(E(x)) - x)^2

    It is scored some pixels inside the crop, so that padding never counts.
    """
    images, masks, _, _ = _drawn(prior, slices, settings.batch, generator)
    side = _crop_side(prior, settings.crop, images)
    target = random_crops(images, masks, side, generator)[0] * 2 - 1
    with torch.no_grad():
        latent = prior.encode(target)
    edge = prior.vae_factor if min(target.shape[-2:]) > 4 * prior.vae_factor else 0
    inside = (..., slice(edge, target.shape[-2] - edge), slice(edge, target.shape[-1] - edge))
    error = (prior.decode(latent) - target)[inside]
    squares = error.detach().square().mean((1, 2, 3))
    return Errors(error.abs().mean() + 10 * error.square().mean(), squares, torch.zeros(len(squares)))


def denoiser_errors(
    prior: LatentPrior, slices: CaptionedSlices, settings: AdaptationSettings, step: int, generator: torch.Generator
) -> Errors:
    r"""Error of what the network predicts: noise, clean latent or v, as the prior's schedule tells.

    .. math::
        z_t = \sqrt{\bar\alpha}\, z + \sqrt{1 - \bar\alpha}\, \epsilon, \qquad
        v = \sqrt{\bar\alpha}\, \epsilon - \sqrt{1 - \bar\alpha}\, z, \qquad
        L = (1 + w\, m)\, \|v_\theta(z_t, t, c) - v\|^2

    with the lesion mask m. Every other step shows crops at low noise, the others whole slices at every level.
    """
    count = settings.batch
    images, masks, captions, rng = _drawn(prior, slices, count, generator)
    window = None
    if settings.shows_crops(step):
        images, masks, window = random_crops(images, masks, _crop_side(prior, settings.crop, images), generator)
        steps = draw_crop_timesteps(count, settings.crop_timesteps, generator)
    else:
        steps = draw_timesteps(count, settings.low_noise_share, settings.high_noise_share, generator)
    steps = (steps * len(prior.alphas_cumprod) // _TRAINING_STEPS).to(prior.device)
    captions = ["" if rng.random() < settings.caption_dropout else shortened(text, rng) for text in captions]
    with torch.no_grad():
        latent = prior.encode(images * 2 - 1)
        condition = prior.embed(captions)
    noise = torch.randn(latent.shape, generator=generator).to(latent)
    alpha = prior.alphas_cumprod[steps].view(-1, 1, 1, 1).to(latent)
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    estimate = prior.predict(signal * latent + spread * noise, steps, condition, window=window)
    # The estimates are linear in the network's output: these differences are its own error.
    if prior.prediction_type == "epsilon":
        error = estimate.noise - noise
    elif prior.prediction_type == "sample":
        error = estimate.clean - latent
    else:
        error = signal * (estimate.noise - noise) - spread * (estimate.clean - latent)
    squares = error.square()
    weight = 1 + settings.lesion_weight * functional.adaptive_max_pool2d(masks, latent.shape[-2:])
    loss = (weight * squares).mean()
    return Errors(loss, squares.detach().mean((1, 2, 3)).cpu(), steps.cpu())


def shortened(caption: str, rng: random.Random) -> str:
    """Caption without some of its clauses, now and then: users write fewer words than a data set does."""
    if rng.random() >= _SHORTENED_SHARE:
        return caption
    return re.split(r"[,;.]", caption, maxsplit=1)[0].strip() or caption


def _drawn(
    prior: LatentPrior, slices: CaptionedSlices, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, list[str], random.Random]:
    """Augmented images in [0, 1], masks and captions that know whether their image was mirrored."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - no secrets
    chosen = slices.draw(count, generator)
    images, masks, mirrored = augment(
        slices.images[chosen].to(prior.device).float() / 255, slices.masks[chosen].to(prior.device).float(), generator
    )
    captions = [slices.captions[int(i)] for i in chosen]
    captions = [swap_sides(text) if m else text for text, m in zip(captions, mirrored.tolist(), strict=True)]
    return images, masks, captions, rng


def _crop_side(prior: LatentPrior, wanted: int, images: Tensor) -> int:
    """Side of a crop that the networks take: a multiple, at most the image."""
    multiple = prior.image_multiple
    return min(max(wanted // multiple, 1) * multiple, *images.shape[-2:])
