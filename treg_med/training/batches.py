"""Training batches: augmented slices and phantoms with a caption each, on the training device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from treg_med.training.augmentation import augment, random_crops
from treg_med.training.config import DenoiserSettings
from treg_med.training.drawn_heads import HeadSource
from treg_med.training.noise_draw import above, draw_crop_timesteps, draw_timesteps
from treg_med.training.phantoms import draw_phantoms
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import render_caption, swap_sides

__all__ = ["Batch", "CaptionedBatches", "TextStates", "slice_caption"]

#: Of the captions shown, the share that is the published sentence word for word.
_PUBLISHED_SHARE = 0.2
_MOST_TEXTS = 20_000


class Batch(NamedTuple):
    """Images ``(n, 1, H, W)`` in [0, 1], lesion masks, timesteps ``(n,)`` and text states ``(n, tokens, width)``.

    Crops have windows ``(n, 4)`` in the field of view (see `treg_med.priors.word_map.placed`). The last 2 `pairs` are
    drawn heads and, in the same order, their twins: one attribute differs.
    """

    images: Tensor
    masks: Tensor
    timesteps: Tensor
    text: Tensor
    pairs: int = 0
    windows: Tensor | None = None


class TextStates:
    """Last hidden states of a frozen text encoder, remembered per sentence."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder: CLIPTextModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self.device = next(encoder.parameters()).device
        self.max_tokens = int(encoder.config.max_position_embeddings)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """States ``(n, tokens, width)`` of sentences."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > _MOST_TEXTS:
            self._known.clear()
            new = list(dict.fromkeys(texts))
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            tokens = self.tokenizer(
                part, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            states = self.encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()
            self._known.update(zip(part, states, strict=True))
        return torch.stack([self._known[text] for text in texts])


class CaptionedBatches:
    """Draws batches: crops at low noise, or whole slices and drawn heads at every noise level.

    Slices of coarse scans teach only the levels whose noise hides what they lack (see `native_resolution`), and
    crops are cut from the others.
    """

    def __init__(
        self,
        slices: CaptionedSlices,
        texts: TextStates,
        settings: DenoiserSettings,
        device: torch.device,
        *,
        drawn: HeadSource = draw_phantoms,
        least: Tensor | None = None,
    ) -> None:
        self.slices, self.texts, self.settings, self.device = slices, texts, settings, device
        self.drawn = drawn
        self.least = torch.zeros(len(slices), dtype=torch.long) if least is None else least
        fine = slices.weights * (self.least == 0)
        self._for_crops = replace(slices, weights=fine) if bool(fine.any()) else slices

    def draw(self, count: int, crops: bool, generator: torch.Generator) -> Batch:
        """Draw `count` samples; the same state of the generator gives the same batch."""
        settings = self.settings
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - no secrets
        simulated = int((torch.rand(count, generator=generator) < settings.phantom_share).sum())
        windows = None
        pairs = 0 if crops else min(simulated, count - 1) // 2  # one real slice tells the size
        simulated = 2 * pairs
        chosen = (self._for_crops if crops else self.slices).draw(count - simulated, generator)
        images, masks, mirrored = augment(
            self.slices.images[chosen].to(self.device).float() / 255,
            self.slices.masks[chosen].to(self.device).float(),
            generator,
        )
        captions = [slice_caption(self.slices, int(i), m, rng) for i, m in zip(chosen, mirrored.tolist(), strict=True)]
        if crops:
            images, masks, windows = random_crops(images, masks, settings.crop, generator)
            windows = windows.to(self.device)
            steps = draw_crop_timesteps(count, settings.crop_timesteps, generator)
        else:
            steps = draw_timesteps(count - simulated, settings.low_noise_share, settings.high_noise_share, generator)
            steps = above(steps, self.least[chosen])
        if pairs:
            size = (images.shape[-2], images.shape[-1])
            phantoms = self.drawn(pairs, size, generator, device=self.device, twins=True)
            images = torch.cat([images, phantoms.images])
            masks = torch.cat([masks, phantoms.masks])
            captions += [render_caption(a, rng, rng.uniform(0, 0.3))[0] for a in phantoms.attributes]
            # Drawn heads are there for the words, which matter where the picture is lost in the noise; some show it
            # clear, or the denoiser would go on believing words there against what it sees.
            shown = draw_timesteps(
                pairs, settings.phantom_low_noise_share, settings.phantom_high_noise_share, generator
            )
            shown[torch.rand(pairs, generator=generator) < settings.phantom_blind_share] = 999
            steps = torch.cat([steps, shown, shown])
        captions = ["" if rng.random() < settings.caption_dropout else caption for caption in captions]
        text = self.texts(captions).to(self.device)
        return Batch(images, masks, steps.to(self.device), text, pairs, windows)


def slice_caption(slices: CaptionedSlices, index: int, mirrored: bool, rng: random.Random) -> str:
    """Take the published caption, or write one, from full sentences to a bare "FLAIR brain MRI": users do both."""
    if rng.random() < _PUBLISHED_SHARE:
        caption = slices.captions[index]
        return swap_sides(caption) if mirrored else caption
    attributes = slices.attributes[index]
    return render_caption(attributes.mirrored() if mirrored else attributes, rng, rng.uniform(0, 0.8))[0]
