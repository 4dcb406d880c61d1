"""Training of the word map: latents and lesions regressed on sentences about them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.codec import even_margins
from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.word_map import WordMap
from treg_med.training.batches import TextStates
from treg_med.training.config import WordMapSettings
from treg_med.training.drawn_heads import HeadSource
from treg_med.training.examples import draw_examples, half_states
from treg_med.training.phantoms import draw_phantoms
from treg_med.training.slices import CaptionedSlices

__all__ = ["explained_by_words", "train_word_map"]

#: Examples that the principal components are made of.
_FOR_BASIS = 4000


class _Examples(NamedTuple):
    """Latents ``(n, c s s)``, lesions ``(n, s s)`` and states ``(n, sentences, ...)``, in half precision."""

    latents: Tensor
    lesions: Tensor
    states: Tensor


def train_word_map(
    slices: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    settings: WordMapSettings,
    *,
    drawn: HeadSource = draw_phantoms,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> WordMap:
    r"""Regress on augmented slices and phantoms, which are drawn once, and sentences about them.

    .. math:: L = \|E_\theta[z \mid c] - z\|^2 + w\, \mathrm{BCE}(P_\theta(\text{lesion} \mid c), l)

    Words tell nothing of most of a latent, so that the loss of a denoiser hardly feels them; a regression without noise
    and convolutions finds in minutes what they do tell.

    Parameters
    ----------
    slices : CaptionedSlices
        To train on; they tell the size of the phantoms.
    autoencoder : NullSpaceAutoencoder
        Frozen; gives the latents.
    texts : TextStates
        Of the frozen text encoder.
    settings : WordMapSettings
        Of the training.
    drawn : HeadSource, optional
        Source of the heads with exact words; by default geometric phantoms.
    seed : int
        Of every random number.
    log : callable
        Receives a line now and then.
    """
    torch.manual_seed(seed)  # first weights, and the search for principal components
    model = WordMap(autoencoder.config.latent_channels, texts.encoder.config.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    examples = _draw(slices, drawn, autoencoder, texts, model.config.side, settings, generator, log)
    model.set_basis(*_principal_components(examples.latents, model.config.components, generator))
    targets = torch.cat([(part.float() - model.mean) @ model.basis.T for part in examples.latents.split(500)])
    pixels = examples.latents.shape[1]
    silence = texts([""])[0].cpu()
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * settings.schedule(step)
        rows = torch.randint(len(targets), (settings.batch,), generator=generator)
        which = torch.randint(settings.sentences, (settings.batch,), generator=generator)
        states = examples.states[rows, which].float()
        states[torch.rand(settings.batch, generator=generator) < settings.caption_dropout] = silence
        coefficients, logits = model.components(states)
        latent = (coefficients - targets[rows]).square().sum(1).mean() / pixels
        lesion = functional.binary_cross_entropy_with_logits(logits, examples.lesions[rows].float())
        loss = latent + settings.lesion_weight * lesion
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            log(f"word map step {step}: latent {latent.item():.4f} lesion {lesion.item():.4f}")
    return model.eval()


@torch.no_grad()
def explained_by_words(
    model: WordMap, slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: TextStates
) -> float:
    r"""Share of the latents' error without words that the captions take away, :math:`1 - e(c) / e(\emptyset)`."""
    sums = torch.zeros(2)
    for start in range(0, len(slices), 32):
        part = slice(start, start + 32)
        latents, _ = _reduced(autoencoder, slices.images[part].float() / 255, slices.masks[part], model.config.side)
        captions = slices.captions[part]
        for i, said in enumerate((captions, [""] * len(captions))):
            sums[i] += (model(texts(said))[:, :-1].flatten(1) - latents.float()).square().sum()
    return float(1 - sums[0] / sums[1])


def _draw(
    slices: CaptionedSlices,
    drawn: HeadSource,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    side: int,
    settings: WordMapSettings,
    generator: torch.Generator,
    log: Callable[[str], None],
) -> _Examples:
    """Draw slices, then phantoms, and write sentences about each."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - sentences, not secrets
    log(f"drawing {settings.slices} slices and {settings.phantoms} phantoms")
    maps: list[tuple[Tensor, Tensor]] = []
    captions: list[str] = []
    for part in draw_examples(slices, drawn, settings.slices, settings.phantoms, settings.sentences, generator, rng):
        maps.append(_reduced(autoencoder, part.images, part.masks, side))
        captions += [caption for said in part.captions for caption in said]
    log(f"reading {settings.sentences} sentences about each")
    states = half_states(texts, captions)
    latents, lesions = (torch.cat(part) for part in zip(*maps, strict=True))
    return _Examples(latents, lesions, states.unflatten(0, (-1, settings.sentences)))


@torch.no_grad()
def _reduced(autoencoder: NullSpaceAutoencoder, images: Tensor, masks: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Latents ``(n, c s s)`` and lesions ``(n, s s)`` of images in [0, 1], which the field of view holds whole."""
    height, width = images.shape[-2:]
    margins = even_margins(height, width, max(height, width))
    images, masks = (functional.pad(x.float(), margins) for x in (images, masks))
    latents = autoencoder.coefficients(images * 2 - 1) * autoencoder.config.scaling_factor
    return (
        functional.adaptive_avg_pool2d(latents, side).flatten(1).half(),
        functional.adaptive_max_pool2d(masks, side).flatten(1).half(),
    )


def _principal_components(latents: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, components ``(k, c s s)`` and standard deviations of some of the latents."""
    some = latents[torch.randperm(len(latents), generator=generator)[:_FOR_BASIS]].float()
    mean = some.mean(0)
    known = min(count, len(some) - 1)
    _, values, vectors = torch.svd_lowrank(some - mean, q=min(known + 20, len(some)), niter=4)
    basis, deviation = torch.zeros(count, latents.shape[1]), torch.ones(count)
    basis[:known], deviation[:known] = vectors[:, :known].T, values[:known] / len(some) ** 0.5
    return mean, basis, deviation
