"""(c) The one-step text test: the right caption against the same caption with one word exchanged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.assessment.bars import WORD_BARS
from treg_med.assessment.one_step import noised, prior_images, usable_levels
from treg_med.assessment.statistics import Rate, win
from treg_med.priors.base import Prior
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import SliceAttributes, counterfactuals, plain_contrast, read_attributes

__all__ = [
    "AROUND_LESION",
    "LEVELS",
    "OF_LESION",
    "WHOLE_IMAGE",
    "WordRow",
    "WordTest",
    "exchange_weights",
    "exchanged_captions",
    "exchanged_words",
    "word_tests",
]

#: The words matter where the data are lost, so the levels reach the end of the schedule.
LEVELS = (69, 145, 487, 700, 850, 950, 999)
WHOLE_IMAGE, AROUND_LESION = "whole image", "around the lesion"
# Pixels around a lesion mask that count with it: the blur of one latent pixel and the oedema that a mask leaves out.
_MARGIN = 8
#: Attributes that change the picture around a lesion only.
OF_LESION = ("finding", "side", "territory")


@dataclass(frozen=True)
class WordTest:
    """How often the right word of one attribute denoises better than a wrong one.

    Attributes
    ----------
    attribute, source, region : str
        What was exchanged, on which slices, and where the error was taken.
    levels : dict of int to Rate
        By timestep.
    overall : Rate
        Over the levels: errors divided by the mean error of their level, then added.
    values, subjects : dict of str to Rate
        The same by value of the attribute and by subject (real slices), every slice counting alike.
    two_sided : bool
        Whether some pair of words was exchanged in both directions; if none was, a prior that merely prefers one word
        cannot be told from one that understands it.
    gap : float
        Mean over slices of (wrong - right) / right, errors added as in `overall`.
    unchanged : float
        Share of slices on which the exchanged word changed nothing at all.
    bar : float
        What the project asks.
    met, follows : bool
        Whether the rate reaches the bar; whether its interval lies above chance.
    rows : tuple of WordRow
        The errors themselves.
    """

    attribute: str
    source: str
    region: str
    levels: dict[int, Rate]
    overall: Rate
    values: dict[str, Rate]
    subjects: dict[str, Rate]
    two_sided: bool
    gap: float
    unchanged: float
    bar: float
    met: bool
    follows: bool
    rows: tuple[WordRow, ...]


@dataclass(frozen=True)
class WordRow:
    """One slice: its subject, the right value and the wrong one, and the squared errors by level."""

    subject: str
    value: str
    instead: str
    right: tuple[float, ...]
    wrong: tuple[float, ...]


def word_tests(
    prior: Prior,
    slices: CaptionedSlices,
    attributes: Sequence[str],
    source: str,
    *,
    levels: tuple[int, ...] = LEVELS,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[WordTest, ...]:
    r"""Exchange one word of every caption and compare the errors of the one-step clean estimate under the same noise.

    A slice is won where :math:`\sum_t (e_t^{wrong} - e_t^{right}) / \bar e_t^{right} > 0`, with e the squared error in
    the latent and :math:`\bar e` its mean over slices. Of several wrong words one is drawn per slice. Rates are
    balanced over pairs of words: "axial" instead of "coronal" counts as much as "coronal" instead of "axial", so that a
    prior that merely prefers some words stays at chance, whatever the slices show most.

    Parameters
    ----------
    prior : Prior
        Must take text.
    slices : CaptionedSlices
        Captions say the attributes.
    attributes : sequence of str
        ``contrast``, ``plane``, ``finding``, ``side``, ``territory``.
    source : str
        Name of the slices in the result.
    levels : tuple of int
        Timesteps of a schedule of 1000.
    seed : int
        Of the noise and the wrong words.
    advance : callable
        Told the slices done and their number.

    Returns
    -------
    tuple of WordTest
        One per attribute that any caption says; two, for the whole image and around the lesion, where masks tell.
    """
    images = prior_images(slices)
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311 - words, not secrets
    timesteps = usable_levels(prior, levels, prior.encode(images[:1]))
    exchanged = exchanged_captions(slices, attributes, rng)
    rows: dict[tuple[str, str], list[WordRow]] = {}
    for row, wrong in enumerate(exchanged):
        latent = prior.encode(images[row : row + 1])
        condition = prior.embed([slices.captions[row], *wrong.values()])
        window = _window(slices.masks[row : row + 1], latent)
        maps = [_squared_errors(prior, latent, t, condition, generator) for t in timesteps]
        for number, attribute in enumerate(wrong, 1):
            regions = {WHOLE_IMAGE: torch.ones_like(window)}
            if attribute in OF_LESION and bool(slices.masks.any()):
                # Without a lesion the wrong word may put one anywhere.
                regions[AROUND_LESION] = window if bool(window.any()) else torch.ones_like(window)
            for region, weight in regions.items():
                rows.setdefault((attribute, region), []).append(
                    WordRow(
                        slices.subjects[row],
                        _value(slices.attributes[row], attribute),
                        _value(read_attributes(wrong[attribute]), attribute),
                        tuple(_mean(m[0], weight) for m in maps),
                        tuple(_mean(m[number], weight) for m in maps),
                    )
                )
        advance(row + 1, len(exchanged))
    return tuple(
        _judge(attribute, source, region, rows[attribute, region], timesteps)
        for attribute in attributes
        for region in (WHOLE_IMAGE, AROUND_LESION)
        if (attribute, region) in rows
    )


@torch.no_grad()
def _squared_errors(
    prior: Prior, latent: Tensor, timestep: int, condition: Tensor, generator: torch.Generator
) -> Tensor:
    """Error maps ``(texts, h, w)`` of one latent ``(1, c, h, w)`` under one noise."""
    noisy = noised(prior, latent, timestep, generator).expand(len(condition), -1, -1, -1)
    return (prior.predict(noisy, timestep, condition).clean - latent).square().mean(1)


def exchanged_captions(slices: CaptionedSlices, attributes: Sequence[str], rng: random.Random) -> list[dict[str, str]]:
    """Attribute -> wrong caption, for every slice."""
    out = []
    for caption in slices.captions:
        options = {name: counterfactuals(caption, name) for name in attributes}
        out.append({name: rng.choice(wrong) for name, wrong in options.items() if wrong})
    return out


def exchanged_words(right: SliceAttributes, wrong: str, attribute: str) -> tuple[str, str]:
    """Return what a slice shows and what the wrong caption says instead."""
    return _word(_value(right, attribute)), _word(_value(read_attributes(wrong), attribute))


def _value(said: SliceAttributes, attribute: str) -> str:
    if attribute == "finding":
        return "present" if said.finding == "present" else "absent"
    return str(getattr(said, attribute))


def _window(mask: Tensor, latent: Tensor) -> Tensor:
    """Latent pixels ``(h, w)`` that a lesion or its margin touches."""
    near = functional.max_pool2d((mask > 0).float(), 2 * _MARGIN + 1, 1, _MARGIN)
    return functional.adaptive_max_pool2d(near, list(latent.shape[-2:]))[0, 0].to(latent)


def _mean(values: Tensor, weight: Tensor) -> float:
    return float((values * weight).sum() / weight.sum())


def _judge(attribute: str, source: str, region: str, rows: list[WordRow], timesteps: tuple[int, ...]) -> WordTest:
    right, wrong = (torch.tensor([getattr(row, side) for row in rows]).double() for side in ("right", "wrong"))
    scale = right.mean(0).clamp_min(1e-30)
    summed = [((e / scale).sum(1)).tolist() for e in (right, wrong)]
    wins = [win(a, b) for a, b in zip(*summed, strict=True)]
    gaps = [(b - a) / max(a, 1e-30) for a, b in zip(*summed, strict=True)]
    weights = exchange_weights([(_word(row.value), _word(row.instead)) for row in rows])
    overall = Rate.of(wins, weights)
    subjects = [row.subject for row in rows]
    bar = WORD_BARS[attribute]
    return WordTest(
        attribute,
        source,
        region,
        {
            t: Rate.of([win(a, b) for a, b in zip(right[:, i].tolist(), wrong[:, i].tolist(), strict=True)], weights)
            for i, t in enumerate(timesteps)
        },
        overall,
        _grouped(wins, [row.value for row in rows]),
        _grouped(wins, subjects) if len(set(subjects)) < len(subjects) else {},
        weights is not None,
        sum(gaps) / len(gaps),
        wins.count(0.5) / len(wins),
        bar,
        overall.wins >= bar,
        overall.above_chance and weights is not None,
        tuple(rows),
    )


def _word(value: str) -> str:
    """Return what is exchanged against others: T1 with and without contrast agent count as one contrast."""
    return plain_contrast(value)


def exchange_weights(exchanges: list[tuple[str, str]]) -> list[float] | None:
    """Weights, of sum one, that give both directions of a pair of words the same; None where no pair has both.

    Pairs weigh as the inverse variance of their rate, :math:`n_{ab} n_{ba} / (n_{ab} + n_{ba})`.
    """
    counts = Counter(exchanges)
    shares = {(a, b): n * counts[b, a] / (n + counts[b, a]) / n for (a, b), n in counts.items()}
    total = sum(shares[pair] for pair in exchanges)
    return [shares[pair] / total for pair in exchanges] if total > 0 else None


def _grouped(wins: list[float], labels: list[str]) -> dict[str, Rate]:
    return {
        name: Rate.of([w for w, label in zip(wins, labels, strict=True) if label == name])
        for name in sorted(set(labels))
    }
