"""How often a scorer of images and texts tells the right words from wrong ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from treg_med.assessment.statistics import Rate, win
from treg_med.assessment.words import exchange_weights, exchanged_captions, exchanged_words
from treg_med.guidance import JointScorer
from treg_med.priors.image_text_scorer import agreement
from treg_med.training.slices import CaptionedSlices

__all__ = ["EXCHANGED", "scorer_wins"]

#: Attributes that a wrong caption is wrong in.
EXCHANGED = ("contrast", "plane", "finding", "side", "territory")


@torch.no_grad()
def scorer_wins(
    scorer: JointScorer,
    embed: Callable[[Sequence[str]], Tensor],
    slices: CaptionedSlices,
    attributes: Sequence[str] = EXCHANGED,
    *,
    seed: int = 0,
) -> dict[str, Rate]:
    """Return how often a slice agrees better with its caption than with the same one with one word exchanged.

    Rates are balanced over pairs of words, as those of `report.words`.

    Parameters
    ----------
    scorer : JointScorer
    embed : callable
        States ``(n, tokens, width)`` of texts.
    slices : CaptionedSlices
    attributes : sequence of str
        ``contrast``, ``plane``, ``finding``, ``side``, ``territory``; those that no caption says are left out.
    seed : int
        Of the choice among several wrong words.
    """
    wins: dict[str, list[float]] = {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    wrong_captions = exchanged_captions(slices, attributes, random.Random(seed))  # noqa: S311 - words, not secrets
    for row, wrong in enumerate(wrong_captions):
        texts = [slices.captions[row], *wrong.values()]
        right, *others = agreement(scorer, slices.images[row : row + 1] / 127.5 - 1, embed(texts), texts)[0].tolist()
        for attribute, score in zip(wrong, others, strict=True):
            wins.setdefault(attribute, []).append(win(-right, -score))
            pairs.setdefault(attribute, []).append(
                exchanged_words(slices.attributes[row], wrong[attribute], attribute)
            )
    return {name: Rate.of(won, exchange_weights(pairs[name])) for name, won in wins.items()}
