"""(g) Whether the prior gives its training slices back: samples and validation slices beside their nearest ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.assessment.drawn_slices import drawn_slices
from treg_med.assessment.figures import histograms, picture_grid
from treg_med.codec import even_margins
from treg_med.errors import ConfigError
from treg_med.priors.base import Prior
from treg_med.training.slices import CaptionedSlices

__all__ = ["MemorisationAudit", "Nearest", "memorisation_audit", "nearest_slices"]

#: Largest shift of the alignment, as a share of the side: 8 of 256 pixels.
_REACH = 1 / 32
_COARSE, _FINE = 64, 128
# Candidates of the coarse search: half a coarse pixel of shift costs less correlation than separates them.
_CANDIDATES = 12
_QUERIES = 8
_GALLERY = 2048
_PICTURED = 4


@dataclass(frozen=True)
class Nearest:
    """For every query the row of the nearest slice of a gallery, and their correlation after alignment."""

    rows: tuple[int, ...]
    correlations: tuple[float, ...]


@dataclass(frozen=True)
class MemorisationAudit:
    """Correlation with the nearest training slice, of samples and of validation slices.

    Attributes
    ----------
    samples, validation : int
        How many were compared.
    training : int
        With how many.
    sample_correlations, validation_correlations : tuple of float
        In the order of the slices.
    bar : float
        Of the nearest validation slice.
    copies : tuple of int
        Samples that are nearer than that.
    met : bool
        Whether there are none.
    histogram_picture, nearest_picture : str
        Both distributions; the nearest samples beside their training slices. PNG in base64.
    """

    samples: int
    validation: int
    training: int
    sample_correlations: tuple[float, ...]
    validation_correlations: tuple[float, ...]
    bar: float
    copies: tuple[int, ...]
    met: bool
    histogram_picture: str
    nearest_picture: str


@torch.no_grad()
def memorisation_audit(
    prior: Prior,
    train: CaptionedSlices,
    validation: CaptionedSlices,
    count: int = 200,
    *,
    samples: CaptionedSlices | None = None,
    steps: int = 20,
    guidance_scale: float = 2.0,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> MemorisationAudit:
    """Compare samples with the training slices, and validation slices of other subjects as the measure of near.

    A sample that is nearer to a training slice than any slice of an unseen subject is may be a copy of it.

    Parameters
    ----------
    prior : Prior
        Must take text.
    train, validation : CaptionedSlices
        What it was trained on; slices of other subjects, of which at most `count` are compared, evenly spaced.
    count : int
        Samples.
    samples : CaptionedSlices, optional
        From `drawn_slices`; None draws them.
    steps, guidance_scale
        Of the sampler.
    seed : int
        Of captions and noises.
    advance : callable
        Told the samples drawn and their number.

    Raises
    ------
    ConfigError
        If there is nothing to compare.

    Carlini et al.: Extracting Training Data from Diffusion Models, USENIX Security 2023, arXiv 2301.13188. Dar et al.:
    Investigating Data Memorization in 3D Latent Diffusion Models for Medical Image Synthesis, arXiv 2307.01148.
    """
    if not len(train) or not len(validation):
        raise ConfigError(
            f"expected training and validation slices to compare with, got {len(train)} and {len(validation)}"
        )
    if samples is None:
        samples = drawn_slices(
            prior, train, count, steps=steps, guidance_scale=guidance_scale, seed=seed, advance=advance
        )
    held = validation.evenly(count)
    drawn, unseen = nearest_slices(samples.images, train.images), nearest_slices(held.images, train.images)
    bar = max(unseen.correlations)
    copies = tuple(k for k, value in enumerate(drawn.correlations) if value > bar)
    return MemorisationAudit(
        len(samples),
        len(held),
        len(train),
        drawn.correlations,
        unseen.correlations,
        bar,
        copies,
        not copies,
        histograms(
            {"samples": drawn.correlations, "validation slices": unseen.correlations},
            "correlation with the nearest training slice",
            level=bar,
            level_name="nearest validation slice",
        ),
        _nearest_picture(samples, train, drawn),
    )


def nearest_slices(queries: Tensor, gallery: Tensor) -> Nearest:
    r"""Return the nearest slices by normalised correlation after alignment by a shift and a mirror.

    .. math:: c(a, b) = \max_{T} \frac{\langle T a - \bar a, b - \bar b \rangle}{\|a - \bar a\|\, \|b - \bar b\|}

    T is a circular shift by at most 1/32 of the side (8 of 256 pixels) along each axis, with or without a mirror from
    left to right. All pairs are compared at 64 x 64 pixels, the best ones again at 128 x 128. For so few shifts one
    product with all shifted copies is the same sum as a correlation by FFT, and faster.

    Parameters
    ----------
    queries, gallery : Tensor ``(n, 1, H, W)``, ``(m, 1, H, W)``
        Of any scale, background zero; sides may differ.
    """
    count = min(_CANDIDATES, len(gallery))
    best = _coarse_candidates(_small(queries, _COARSE), _small(gallery, _COARSE), count)
    fine = _small(queries, _FINE)
    rows, values = [], []
    for query, candidates in zip(fine, best, strict=True):
        others = _normalised(_small(gallery[candidates], _FINE).flatten(1))
        found = (_aligned(query[None]) @ others.T).amax(0)
        k = int(found.argmax())
        rows.append(int(candidates[k]))
        values.append(float(found[k]))
    return Nearest(tuple(rows), tuple(values))


def _coarse_candidates(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Rows ``(n, count)`` of the gallery with the highest correlations."""
    found = []
    for start in range(0, len(queries), _QUERIES):
        part = queries[start : start + _QUERIES]
        copies = _aligned(part)
        values = torch.cat(
            [
                (copies @ _normalised(some.flatten(1)).T).unflatten(0, (-1, len(part))).amax(0)
                for some in gallery.split(_GALLERY)
            ],
            dim=1,
        )
        found.append(values.topk(count, dim=1).indices)
    return torch.cat(found)


def _small(images: Tensor, side: int) -> Tensor:
    """Return ``(n, side, side)`` of the square around the images."""
    height, width = images.shape[-2:]
    margins = even_margins(height, width, max(height, width))
    # A few at a time: thousands of slices as floats would fill the memory.
    parts = [
        functional.interpolate(functional.pad(some.float(), margins), size=(side, side), mode="area")[:, 0]
        for some in images.split(_GALLERY // 4)
    ]
    return torch.cat(parts)


def _aligned(images: Tensor) -> Tensor:
    """Return all shifted and mirrored copies of ``(n, side, side)``, normalised, ``(copies n, pixels)``."""
    reach = max(1, round(_REACH * images.shape[-1]))
    shifts = range(-reach, reach + 1)
    copies = [
        turned.roll((row, column), (-2, -1))
        for turned in (images, images.flip(-1))
        for row in shifts
        for column in shifts
    ]
    return _normalised(torch.cat(copies).flatten(1))


def _normalised(rows: Tensor) -> Tensor:
    """Return rows of mean zero and length one; those of constant images are zero and correlate with nothing."""
    return functional.normalize(rows - rows.mean(1, keepdim=True), dim=1, eps=1e-6)


def _nearest_picture(samples: CaptionedSlices, train: CaptionedSlices, nearest: Nearest) -> str:
    order = sorted(range(len(samples)), key=lambda k: -nearest.correlations[k])[:_PICTURED]
    pairs = [[samples.images[k, 0] / 255, train.images[nearest.rows[k], 0] / 255] for k in order]
    titles = ["sample", "nearest training slice"]
    return picture_grid(pairs, titles, [f"{nearest.correlations[k]:.3f}" for k in order])
