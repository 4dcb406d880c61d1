"""Heads with exact words from every source there is: label maps, real slices with a transplanted lesion, phantoms."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from treg_med.training.config import DrawnShares
from treg_med.training.phantoms import PhantomBatch, draw_phantoms
from treg_med.training.slices import CaptionedSlices
from treg_med.training.transplants import Transplants

__all__ = ["DrawnHeads", "HeadSource"]


class HeadSource(Protocol):
    """Draws heads, and twins of them that differ in one word, as `draw_phantoms` does."""

    def __call__(
        self,
        count: int,
        size: tuple[int, int],
        generator: torch.Generator,
        *,
        device: torch.device | str = "cpu",
        twins: bool = False,
    ) -> PhantomBatch:
        """Draw `count` heads, and with `twins` as many twins after them."""
        ...


class DrawnHeads:
    """Heads of several sources, drawn by share; what a source lacks goes to the phantoms.

    Parameters
    ----------
    slices : CaptionedSlices
        Real slices, for transplants.
    shares : DrawnShares
        How often each source is drawn.
    label_heads : HeadSource, optional
        Of label maps.
    """

    def __init__(self, slices: CaptionedSlices, shares: DrawnShares, label_heads: HeadSource | None = None) -> None:
        transplants = Transplants(slices) if shares.transplants else None
        self.sources: list[tuple[HeadSource, float]] = []
        if label_heads is not None and shares.label_maps:
            self.sources.append((label_heads, shares.label_maps))
        if transplants:
            self.sources.append((transplants.draw, shares.transplants))

    def __call__(
        self,
        count: int,
        size: tuple[int, int],
        generator: torch.Generator,
        *,
        device: torch.device | str = "cpu",
        twins: bool = False,
    ) -> PhantomBatch:
        """Draw `count` heads and, with `twins`, as many twins after them; sources in a fixed order."""
        u = torch.rand(count, generator=generator)
        parts: list[PhantomBatch] = []
        below, left = 0.0, count
        for source, share in self.sources:
            some = int(((u >= below) & (u < below + share)).sum())
            below, left = below + share, left - some
            if some:
                parts.append(source(some, size, generator, device=device, twins=twins))
        if left:
            parts.append(draw_phantoms(left, size, generator, device=device, twins=twins))
        return _joined(parts) if twins else _in_order(parts)


def _in_order(parts: list[PhantomBatch]) -> PhantomBatch:
    images, masks = (torch.cat([getattr(p, name) for p in parts]) for name in ("images", "masks"))
    return PhantomBatch(images, masks, [a for p in parts for a in p.attributes])


def _joined(parts: list[PhantomBatch]) -> PhantomBatch:
    """Heads of all parts, then their twins."""
    halves = [_half(part, which) for which in (0, 1) for part in parts]
    return _in_order(halves)


def _half(part: PhantomBatch, which: int) -> PhantomBatch:
    count = len(part.attributes) // 2
    rows = slice(which * count, (which + 1) * count)
    cut: list[Tensor] = [part.images[rows], part.masks[rows]]
    return PhantomBatch(cut[0], cut[1], part.attributes[rows])
