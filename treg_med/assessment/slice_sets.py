"""The slices a prior is tested on: real ones of known subjects, and phantoms with exact labels."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import torch

from treg_med.errors import FormatError
from treg_med.training.phantoms import PhantomBatch, draw_phantoms
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import render_caption
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["phantom_slices", "real_slices"]

_UNKNOWN_SUBJECT = "unknown"
# As many phantoms are drawn for each one kept, so that every kind is there.
_POOL = 3


def real_slices(path: Path, split: str, multiple: int) -> CaptionedSlices:
    """Slices of one split, padded for the prior.

    Where subjects are known, slices of unknown ones are left out: their neighbours may have been trained on.

    Raises
    ------
    FormatError
        If the split is empty.
    """
    slices = CaptionedSlices.load(path, split)
    if len(slices) == 0:
        raise FormatError(f"expected slices of split {split!r} in {path.name}, got none; choose another --split")
    known = [i for i, subject in enumerate(slices.subjects) if not subject.startswith(_UNKNOWN_SUBJECT)]
    return (slices.take(known) if known else slices).padded(multiple)


def phantom_slices(
    count: int, size: int, multiple: int, generator: torch.Generator, lesion_share: float
) -> CaptionedSlices:
    """Phantoms whose captions say all that is known of them.

    A part `lesion_share` has a lesion on a side, as often the left as the right; the others have none.
    """
    side = -(-size // multiple) * multiple
    batch = draw_phantoms(_POOL * count, (side, side), generator, lesion_share=lesion_share)
    drawn = _captioned(batch, generator)
    each = round(count * lesion_share / 2)
    wanted = {"left": each, "right": each, UNKNOWN: count - 2 * each}
    rows: list[int] = []
    for kind, number in wanted.items():
        rows += [
            i for i, a in enumerate(drawn.attributes) if a.side == kind and (kind != UNKNOWN or a.lesions == "none")
        ][:number]
    spare = (i for i in range(len(drawn)) if i not in set(rows))
    return drawn.take(sorted([*rows, *itertools.islice(spare, count - len(rows))]))


def _captioned(batch: PhantomBatch, generator: torch.Generator) -> CaptionedSlices:
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - sentences, not secrets
    return CaptionedSlices(
        (batch.images.cpu() * 255).round().clamp(0, 255).to(torch.uint8),
        (batch.masks.cpu() > 0.5).to(torch.uint8),
        list(batch.attributes),
        [render_caption(a, rng, clause_dropout=0.0)[0] for a in batch.attributes],
        [f"phantom {i}" for i in range(len(batch.attributes))],
        torch.full((len(batch.attributes),), 1 / len(batch.attributes), dtype=torch.float64),
    )
