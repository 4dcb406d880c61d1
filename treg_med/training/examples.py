"""Augmented slices and drawn heads with sentences about them, drawn once for the short trainings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from treg_med.training.augmentation import augment
from treg_med.training.batches import TextStates, slice_caption
from treg_med.training.drawn_heads import HeadSource
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import SliceAttributes, render_caption

__all__ = ["Examples", "draw_examples", "half_states"]

_AT_ONCE = 20
_READ_AT_ONCE = 64


class Examples(NamedTuple):
    """Images and lesion masks ``(n, 1, H, W)`` in [0, 1], what they show, and sentences about each."""

    images: Tensor
    masks: Tensor
    attributes: list[SliceAttributes]
    captions: list[list[str]]


def draw_examples(
    slices: CaptionedSlices,
    drawn: HeadSource,
    count: int,
    phantoms: int,
    sentences: int,
    generator: torch.Generator,
    rng: random.Random,
) -> Iterator[Examples]:
    """Draw slices, then heads of the same size, a few at a time, and write sentences about each.

    Parameters
    ----------
    slices : CaptionedSlices
        Drawn by their weights.
    drawn : HeadSource
        Source of the heads.
    count, phantoms : int
        How many of each.
    sentences : int
        About each of them.
    generator, rng
        Of the pictures, and of the sentences.
    """
    for start in range(0, count, _AT_ONCE):
        chosen = slices.draw(min(_AT_ONCE, count - start), generator)
        images, masks, mirrored = augment(slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator)
        which = list(zip(chosen.tolist(), mirrored.tolist(), strict=True))
        captions = [[slice_caption(slices, i, flipped, rng) for _ in range(sentences)] for i, flipped in which]
        shown = [slices.attributes[i].mirrored() if flipped else slices.attributes[i] for i, flipped in which]
        yield Examples(images, masks, shown, captions)
    for start in range(0, phantoms, _AT_ONCE):
        size = (slices.images.shape[-2], slices.images.shape[-1])
        heads = drawn(min(_AT_ONCE, phantoms - start), size, generator)
        captions = [
            [render_caption(shown, rng, rng.uniform(0, 0.3))[0] for _ in range(sentences)] for shown in heads.attributes
        ]
        yield Examples(heads.images, heads.masks, heads.attributes, captions)


def half_states(texts: TextStates, captions: Sequence[str]) -> Tensor:
    """Return the states of many sentences ``(n, tokens, width)`` in half precision, on the CPU."""
    parts = (captions[start : start + _READ_AT_ONCE] for start in range(0, len(captions), _READ_AT_ONCE))
    return torch.cat([texts(part).half().cpu() for part in parts])
