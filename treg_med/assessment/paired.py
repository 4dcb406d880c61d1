"""(d) Paired samples: the same starting noise and one changed word, and whether the picture changes as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.assessment.figures import picture_grid
from treg_med.assessment.statistics import Rate
from treg_med.priors.base import Prior
from treg_med.sampling import draw_samples
from treg_med.training.phantoms import PATIENT_LEFT_IS

__all__ = ["PairedSamples", "paired_samples"]

CONTRAST_TEXTS = {
    "T1w": "Axial T1-weighted brain MRI, skull-stripped.",
    "T1w+Gd": "Axial contrast-enhanced T1-weighted brain MRI, skull-stripped.",
    "T2w": "Axial T2-weighted brain MRI, skull-stripped.",
    "FLAIR": "Axial T2-FLAIR brain MRI, skull-stripped.",
}
_SIMULATED = "Simulated axial T2-FLAIR brain MRI, skull-stripped, upper third of the stack"
SIDE_TEXTS = {
    "left": f"{_SIMULATED}; large infarct in the left parietal lobe.",
    "right": f"{_SIMULATED}; large infarct in the right parietal lobe.",
    "none": f"{_SIMULATED}; no lesion.",
}
# Pixels darker than this in all samples of a noise are air.
_AIR = 0.1
_PICTURED = 3


@dataclass(frozen=True)
class PairedSamples:
    """What changed with the word, over `noises` starting noises.

    Attributes
    ----------
    correlation : dict of str to dict of str to float
        Mean correlation inside the head between the samples of two contrasts.
    contrast_order : Rate
        T1 with and without contrast agent are more alike than T1 and T2.
    contrast_change : float
        Mean rms difference between the samples of two contrasts.
    side : Rate
        "left" minus "right": on the image's half of the patient's left the difference is larger than on the other.
    side_change : float
        Rms difference between the two samples.
    finding : Rate
        A bright lesion against none: the named half gains more than the other.
    finding_change : float
        Rms difference between the two samples.
    """

    noises: int
    size: int
    steps: int
    guidance_scale: float
    patient_left_is: str
    texts: dict[str, str]
    correlation: dict[str, dict[str, float]]
    contrast_order: Rate
    contrast_change: float
    side: Rate
    side_change: float
    finding: Rate
    finding_change: float
    contrast_picture: str
    side_picture: str


def paired_samples(
    prior: Prior,
    size: int,
    *,
    noises: int = 8,
    contrast_noises: int | None = None,
    steps: int = 20,
    guidance_scale: float = 2.0,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> PairedSamples:
    """Draw samples that differ in one word and compare them.

    Parameters
    ----------
    prior : Prior
        Must take text.
    size : int
        Side of the samples in pixels; filled up to what the prior takes.
    noises, contrast_noises : int
        Starting noises of the lesion test and of the contrast test (default: half as many).
    steps, guidance_scale
        Of the sampler.
    seed : int
        Of the starting noises.
    advance : callable
        Told the noises done and their number.
    """
    contrast_noises = -(-noises // 2) if contrast_noises is None else contrast_noises
    side = -(-size // prior.image_multiple) * prior.image_multiple
    with torch.no_grad():
        like = prior.encode(torch.full((1, 1, side, side), -1.0))
    generator = torch.Generator().manual_seed(seed)
    contrasts, lesions = [], []
    for k in range(max(noises, contrast_noises)):
        noise = torch.randn(like.shape, generator=generator).to(like)

        def draw(texts: dict[str, str], noise: Tensor = noise) -> Tensor:
            return draw_samples(prior, noise, list(texts.values()), steps=steps, guidance_scale=guidance_scale).cpu()

        if k < contrast_noises:
            contrasts.append(draw(CONTRAST_TEXTS))
        if k < noises:
            lesions.append(draw(SIDE_TEXTS))
        advance(k + 1, max(noises, contrast_noises))
    names = list(CONTRAST_TEXTS)
    matrices = torch.stack([_correlation(images) for images in contrasts])
    mean = matrices.mean(0)
    t1, gd, t2 = (names.index(n) for n in ("T1w", "T1w+Gd", "T2w"))
    moves = [images[0] - images[1] for images in lesions]
    gains = [(images[0] - images[2], images[1] - images[2]) for images in lesions]
    shown = [f"noise {k + 1}" for k in range(_PICTURED)]
    return PairedSamples(
        noises,
        side,
        steps,
        guidance_scale,
        PATIENT_LEFT_IS,
        {**CONTRAST_TEXTS, **SIDE_TEXTS},
        {a: {b: float(mean[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        Rate.of([_sign(float(m[t1, gd] - m[t1, t2])) for m in matrices]),
        _rms([a - b for images in contrasts for i, a in enumerate(images) for b in images[:i]]),
        Rate.of([_sign(_leftward(move)) for move in moves]),
        _rms(moves),
        # A pair's two lesions share noise and background: one vote together.
        Rate.of([(_sign(_leftward(left)) + _sign(-_leftward(right))) / 2 for left, right in gains]),
        _rms([change for pair in gains for change in pair]),
        picture_grid([list(images) for images in contrasts[:_PICTURED]], names, shown[: len(contrasts)]),
        picture_grid(
            [[*images, 3 * move] for images, move in zip(lesions[:_PICTURED], moves[:_PICTURED], strict=True)],
            ["infarct, left", "infarct, right", "no lesion", "left - right, x 3"],
            shown[: len(lesions)],
            signed=(3,),
        ),
    )


def _correlation(images: Tensor) -> Tensor:
    """Correlation ``(n, n)`` of images ``(n, H, W)`` over the pixels that are not air in all of them."""
    inside = images.amax(0) > _AIR
    return torch.corrcoef(images[:, inside]) if int(inside.sum()) > 1 else torch.eye(len(images))


def _leftward(change: Tensor) -> float:
    """Mean of a change ``(H, W)`` on the half of the patient's left minus that on the other."""
    half = change.shape[-1] // 2
    left, right = float(change[:, :half].mean()), float(change[:, -half:].mean())
    return right - left if PATIENT_LEFT_IS == "right" else left - right


def _sign(value: float) -> float:
    return 0.5 if value == 0 else float(value > 0)


def _rms(changes: list[Tensor]) -> float:
    return float(torch.stack(changes).square().mean().sqrt())
