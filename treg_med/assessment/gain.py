r"""(f) Go or no-go, first half: denoising gain over classical methods on the same noisy image.

The image noise of timestep t is the latent's, mapped by the encoder's gain g:
:math:`\sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t} / g`. The prior sees
:math:`z_t = \sqrt{\bar\alpha_t}\, E(x + \sigma_t n)`, the others :math:`x + \sigma_t n`. For an orthonormal encoder
white image noise is white latent noise, so that both see what they are made for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from treg_med.assessment.bars import GAIN_BARS
from treg_med.assessment.classical import Image, block_matching, non_local_means, psnr, total_variation, tuned_weight
from treg_med.assessment.figures import picture_row
from treg_med.assessment.one_step import prior_images
from treg_med.assessment.statistics import mean_and_error
from treg_med.priors.base import Prior
from treg_med.solvers.noise_levels import encoder_gain
from treg_med.training.slices import CaptionedSlices

__all__ = ["LEVELS", "DenoisingGain", "GainLevel", "denoising_gain"]

LEVELS = (100, 200, 300, 500, 700)
_TUNED = {"total variation": total_variation, "non-local means": non_local_means}
# It takes seconds an image.
_MOST_BLOCK_MATCHING = 4
_PICTURED = 300


@dataclass(frozen=True)
class GainLevel:
    """One noise level.

    Attributes
    ----------
    timestep : int
        Of the prior.
    noise_std : float
        Of the image in [0, 1].
    psnr_db : dict of str to float
        Mean PSNR by method, data range 1, estimates clipped to [0, 1].
    gain_db : dict of str to tuple of float
        Prior with the right text minus a method: mean over slices and its standard error.
    weights : dict of str to float
        Tuned weights, in units of the noise.
    bar_db : float or None
        Least gain over total variation that the project asks at this level.
    met : bool or None
        Whether it is reached.
    """

    timestep: int
    noise_std: float
    psnr_db: dict[str, float]
    gain_db: dict[str, tuple[float, float]]
    weights: dict[str, float]
    bar_db: float | None
    met: bool | None


@dataclass(frozen=True)
class DenoisingGain:
    """All levels; `block_matching` says how BM3D took part."""

    source: str
    slices: int
    tuning_slices: int
    encoder_gain: float
    block_matching: str
    levels: tuple[GainLevel, ...]
    picture: str


@torch.no_grad()
def denoising_gain(
    prior: Prior,
    scored: CaptionedSlices,
    tuning: CaptionedSlices,
    source: str,
    *,
    levels: tuple[int, ...] = LEVELS,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> DenoisingGain:
    """Denoise `scored` with the prior and with classical methods whose weights were tuned on `tuning`."""
    generator = torch.Generator().manual_seed(seed)
    images = prior_images(scored)
    gain = encoder_gain(prior, images[:1])
    bm3d = block_matching()
    measured, picture = [], ""
    for number, t in enumerate(levels):
        alpha = float(prior.alphas_cumprod[t])
        std = ((1 - alpha) / alpha) ** 0.5 / gain  # of an image in [-1, 1]
        noisy = images + std * torch.randn(images.shape, generator=generator)
        train = prior_images(tuning)
        train_noisy = train + std * torch.randn(train.shape, generator=generator)
        clean_arrays, noisy_arrays = _arrays(images), _arrays(noisy)
        estimates = {
            "prior": _arrays(_estimates(prior, noisy, t, scored.captions)),
            "prior, empty text": _arrays(_estimates(prior, noisy, t, [""] * len(scored))),
        }
        estimates = {name: [np.clip(e, 0, 1) for e in result] for name, result in estimates.items()}
        weights = {}
        for name, method in _TUNED.items():
            weights[name], _ = tuned_weight(method, _arrays(train_noisy), _arrays(train), std / 2)
            estimates[name] = [method(y, weights[name], std / 2) for y in noisy_arrays]
        if bm3d is not None:
            estimates["BM3D"] = [bm3d(y, std / 2) for y in noisy_arrays[:_MOST_BLOCK_MATCHING]]
        scores = {
            name: [psnr(e, x) for e, x in zip(result, clean_arrays, strict=False)] for name, result in estimates.items()
        }
        gains = {
            name: mean_and_error([a - b for a, b in zip(scores["prior"], others, strict=False)])
            for name, others in scores.items()
            if name != "prior"
        }
        bar = GAIN_BARS.get(t)
        measured.append(
            GainLevel(
                t,
                std / 2,
                {name: sum(values) / len(values) for name, values in scores.items()},
                gains,
                weights,
                bar,
                None if bar is None else gains["total variation"][0] >= bar,
            )
        )
        if t == _PICTURED or not picture:
            picture = _picture(clean_arrays, noisy_arrays, estimates)
        advance(number + 1, len(levels))
    used = "not installed" if bm3d is None else f"on the first {min(_MOST_BLOCK_MATCHING, len(scored))} slices"
    return DenoisingGain(source, len(scored), len(tuning), gain, used, tuple(measured), picture)


def _estimates(prior: Prior, noisy: Tensor, timestep: int, texts: list[str]) -> Tensor:
    signal = float(prior.alphas_cumprod[timestep]) ** 0.5
    out = []
    for start in range(0, len(noisy), 4):
        latent = signal * prior.encode(noisy[start : start + 4])
        clean = prior.predict(latent, timestep, prior.embed(texts[start : start + 4])).clean
        out.append(prior.decode(clean))
    return torch.cat(out)


def _arrays(images: Tensor) -> list[Image]:
    """Images in [0, 1] as arrays ``(H, W)``, unclipped."""
    return [np.asarray(image, dtype=np.float32) for image in ((images[:, 0] + 1) / 2).cpu().numpy()]


def _picture(clean: list[Image], noisy: list[Image], estimates: dict[str, list[Image]]) -> str:
    row = len(clean) // 2 if "BM3D" not in estimates else min(len(clean) // 2, len(estimates["BM3D"]) - 1)
    shown = {"slice": clean, "noisy": noisy} | {n: e for n, e in estimates.items() if n != "prior, empty text"}
    titles = [
        name if name in ("slice", "noisy") else f"{name}\n{psnr(images[row], clean[row]):.1f} dB"
        for name, images in shown.items()
    ]
    return picture_row([torch.from_numpy(images[row]) for images in shown.values()], titles)
