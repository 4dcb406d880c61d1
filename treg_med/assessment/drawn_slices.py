"""Samples of a prior with captions such as those it was trained on, kept as slices are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import torch

from treg_med.priors.base import Prior
from treg_med.sampling import draw_samples
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import render_caption

__all__ = ["drawn_slices", "varied_rows"]

_BATCH = 4


@torch.no_grad()
def drawn_slices(
    prior: Prior,
    train: CaptionedSlices,
    count: int,
    *,
    steps: int = 20,
    guidance_scale: float = 2.0,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> CaptionedSlices:
    """Draw samples of the size of the training slices, each from a noise of its own.

    Captions are rendered from all that is known of training slices drawn by `varied_rows`.

    Parameters
    ----------
    prior : Prior
        Must take text.
    train : CaptionedSlices
        Of sides that the prior takes.
    count : int
        How many.
    steps, guidance_scale
        Of the sampler.
    seed : int
        Of captions and noises.
    advance : callable
        Told the samples done and their number.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311 - sentences, not secrets
    rows = varied_rows(train, count, generator)
    rendered = [render_caption(train.attributes[row], rng, clause_dropout=0.0) for row in rows]
    texts = [text for text, _ in rendered]
    like = prior.encode(train.images[:1].float() / 127.5 - 1)
    noise = torch.randn((count, *like.shape[1:]), generator=generator).to(like)
    parts = []
    for start in range(0, count, _BATCH):
        part = slice(start, start + _BATCH)
        drawn = draw_samples(prior, noise[part], texts[part], steps=steps, guidance_scale=guidance_scale)
        parts.append((255 * drawn.cpu()).round().to(torch.uint8)[:, None])
        advance(min(start + _BATCH, count), count)
    images = torch.cat(parts)
    return CaptionedSlices(
        images,
        torch.zeros_like(images),
        [said for _, said in rendered],
        texts,
        [f"sample {k}" for k in range(count)],
        torch.full((count,), 1 / count, dtype=torch.float64),
    )


def varied_rows(slices: CaptionedSlices, count: int, generator: torch.Generator) -> list[int]:
    """Draw `count` rows with replacement, every kind of slice (modality, contrast, plane, disease) as often.

    Else a large collection of slices of which little is known would be nearly all that is asked for.
    """
    kinds = [(a.modality, a.contrast, a.plane, a.disease) for a in slices.attributes]
    slices_of = Counter(kinds)
    weights = torch.tensor([1 / slices_of[kind] for kind in kinds], dtype=torch.float64)
    rows: list[int] = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    return rows
