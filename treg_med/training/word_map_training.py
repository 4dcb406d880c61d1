"""Training of the word map: latents and lesions regressed on the words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.word_map import WordMap, placed
from treg_med.training.batches import TextStates
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.config import WordMapSettings
from treg_med.training.journal import Journal
from treg_med.training.slices import CaptionedSlices
from treg_med.training.word_map_examples import WordMapBatch, WordMapExamples, map_size, reduced

__all__ = ["explained_by_words", "train_word_map"]

_SECONDS_BETWEEN_SAVES = 60.0


def train_word_map(
    slices: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    checkpoint: Path,
    settings: WordMapSettings,
    *,
    seed: int = 0,
    seconds: float = float("inf"),
    journal: Journal | None = None,
) -> WordMap | None:
    r"""Train to a number of samples; returns the averaged model, or None when time ran out.

    .. math::
        L = \|m_z(c) - z\|^2 (1 + w\, l) + w_l\, \mathrm{BCE}(m_l(c), l) + w_2\, \|(m_z - z) - (m_z' - z')\|^2

    with the lesion mask l and, primed, the twin of a phantom: the head that the two share cancels in the last term.
    Every step is seeded by the samples seen: a run that was stopped and resumed equals one that was not.

    Parameters
    ----------
    slices : CaptionedSlices
        To train on.
    autoencoder : NullSpaceAutoencoder
        Frozen; gives the latents.
    texts : TextStates
        Of the frozen text encoder.
    checkpoint : Path
        Resumed from when it is there.
    settings : WordMapSettings
        Of the run.
    seed : int
        Of every random number.
    seconds : float
        Time budget of this call.
    journal : Journal, optional
        Receives the progress.
    """
    journal = journal or Journal(None, lambda _: None)
    torch.manual_seed(seed)  # first weights
    model = WordMap(autoencoder.config.latent_channels, texts.encoder.config.hidden_size)
    ema = Ema(model)
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate)
    numbers: dict[str, Any] = {"samples": 0, "seconds": 0.0}
    if checkpoint.exists():
        numbers = load_state(checkpoint, model, ema, optimizer)
    begun, before, saved = time.monotonic(), numbers["seconds"], time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    journal.say(f"drawing {settings.slices} slices and {settings.phantoms} pairs of phantoms")
    examples = WordMapExamples(slices, autoencoder, model.side, settings, generator)
    journal.begin(settings.samples, numbers["samples"])
    while numbers["samples"] < settings.samples and time.monotonic() - begun < seconds:
        share = settings.schedule(int(numbers["samples"]))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * share
        generator.manual_seed(seed + numbers["samples"] * 1_000_003)
        batch = examples.draw(generator)
        squares, loss = _errors(model, texts(batch.captions), batch, settings)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        numbers["samples"] += settings.batch
        numbers["seconds"] = before + time.monotonic() - begun
        journal.step(numbers, torch.full((len(squares),), 999), squares, float(norm), share)
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            saved = time.monotonic()
            save_state(checkpoint, model, ema, optimizer, numbers)
    save_state(checkpoint, model, ema, optimizer, numbers)
    if numbers["samples"] < settings.samples:
        return None
    ema.copy_to(model)
    return model.eval()


@torch.no_grad()
def explained_by_words(
    model: WordMap, slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: TextStates
) -> float:
    r"""Share of the latents' error without words that the captions take away, :math:`1 - e(c) / e(\emptyset)`."""
    size = map_size(slices, model.side)
    sums = torch.zeros(2)
    for start in range(0, len(slices), 32):
        part = slice(start, start + 32)
        latents = reduced(autoencoder, slices.images[part].float() / 255, slices.masks[part].float(), size)[:, :-1]
        captions = slices.captions[part]
        for i, said in enumerate((captions, [""] * len(captions))):
            sums[i] += (placed(model(texts(said))[0], size) - latents.float()).square().sum()
    return float(1 - sums[0] / sums[1])


def _errors(model: WordMap, states: Tensor, batch: WordMapBatch, settings: WordMapSettings) -> tuple[Tensor, Tensor]:
    """Squared error of the expected latent per sample ``(n,)`` and the loss."""
    size = (batch.latents.shape[-2], batch.latents.shape[-1])
    latent, logit = (placed(drawn, size) for drawn in model(states))
    error = latent - batch.latents
    loss = (error.square() * (1 + settings.lesion_weight * batch.lesions)).mean()
    loss = loss + settings.lesion_map_weight * functional.binary_cross_entropy_with_logits(logit, batch.lesions)
    if batch.pairs:
        twins = error[-batch.pairs :]
        heads = error[-2 * batch.pairs : -batch.pairs]
        loss = loss + settings.twin_weight * (heads - twins).square().mean()
    return error.detach().square().mean((1, 2, 3)), loss
