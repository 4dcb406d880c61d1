"""What the word map is trained on: slices and phantoms that are drawn once and described anew in every step."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.training.batches import slice_caption
from treg_med.training.captions import SliceAttributes, render_caption
from treg_med.training.config import WordMapSettings
from treg_med.training.phantoms import draw_phantoms
from treg_med.training.slices import CaptionedSlices, augment

__all__ = ["WordMapBatch", "WordMapExamples", "map_size", "reduced"]

_AT_ONCE = 20


class WordMapBatch(NamedTuple):
    """Captions, latents ``(n, c, h, w)`` and where a lesion is ``(n, 1, h, w)``.

    The last 2 `pairs` are phantoms and, in the same order, their twins.
    """

    captions: list[str]
    latents: Tensor
    lesions: Tensor
    pairs: int


class WordMapExamples:
    """Augmented slices and phantoms with their twins, kept as latents at the resolution of the maps.

    Drawing a phantom takes longer than a step of so small a network, and its sentences differ in every step.

    Parameters
    ----------
    slices : CaptionedSlices
        To draw from; they tell the size of the phantoms.
    autoencoder : NullSpaceAutoencoder
        Gives the latents.
    side : int
        Pixels of a map along the longer side of an image.
    settings : WordMapSettings
        How many, and how they are mixed.
    generator : torch.Generator
        Source of randomness.
    """

    def __init__(
        self,
        slices: CaptionedSlices,
        autoencoder: NullSpaceAutoencoder,
        side: int,
        settings: WordMapSettings,
        generator: torch.Generator,
    ) -> None:
        self.slices, self.settings = slices, settings
        height, width = (int(n) for n in slices.images.shape[-2:])
        size = map_size(slices, side)
        self._real: list[tuple[int, bool]] = []
        self._phantoms: list[tuple[SliceAttributes, SliceAttributes]] = []
        maps = []
        for start in range(0, settings.slices, _AT_ONCE):
            chosen = slices.draw(min(_AT_ONCE, settings.slices - start), generator)
            images, masks, mirrored = augment(
                slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator
            )
            self._real += zip(chosen.tolist(), mirrored.tolist(), strict=True)
            maps.append(reduced(autoencoder, images, masks, size))
        self._real_maps = torch.cat(maps)
        maps = []
        for start in range(0, settings.phantoms, _AT_ONCE):
            count = min(_AT_ONCE, settings.phantoms - start)
            drawn = draw_phantoms(count, (height, width), generator, twins=True)
            self._phantoms += zip(drawn.attributes[:count], drawn.attributes[count:], strict=True)
            maps.append(reduced(autoencoder, drawn.images, drawn.masks, size).unflatten(0, (2, count)).transpose(0, 1))
        self._phantom_maps = torch.cat(maps)

    def draw(self, generator: torch.Generator) -> WordMapBatch:
        """Draw a batch; the same state of the generator gives the same one."""
        settings = self.settings
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - no secrets
        pairs = round(settings.batch * settings.phantom_share / 2)
        real = torch.randint(len(self._real), (settings.batch - 2 * pairs,), generator=generator)
        phantoms = torch.randint(len(self._phantoms), (pairs,), generator=generator)
        shown = [self._real[row] for row in real.tolist()]
        captions = [slice_caption(self.slices, index, mirrored, rng) for index, mirrored in shown]
        captions += [
            render_caption(self._phantoms[row][twin], rng, rng.uniform(0, 0.3))[0]
            for twin in (0, 1)
            for row in phantoms.tolist()
        ]
        captions = ["" if rng.random() < settings.caption_dropout else caption for caption in captions]
        twins = self._phantom_maps[phantoms].transpose(0, 1).flatten(0, 1)
        maps = torch.cat([self._real_maps[real], twins]).float()
        return WordMapBatch(captions, maps[:, :-1], maps[:, -1:], pairs)


def map_size(slices: CaptionedSlices, side: int) -> tuple[int, int]:
    """Pixels of the maps of slices whose longer side has `side`."""
    height, width = (int(n) for n in slices.images.shape[-2:])
    scale = side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


@torch.no_grad()
def reduced(autoencoder: NullSpaceAutoencoder, images: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents and lesions of images in [0, 1] as half-precision maps ``(n, c + 1, h, w)``."""
    latents = autoencoder.coefficients(images * 2 - 1) * autoencoder.config.scaling_factor
    pooled = functional.adaptive_avg_pool2d(latents, size), functional.adaptive_max_pool2d(masks, size)
    return torch.cat(pooled, 1).half()
