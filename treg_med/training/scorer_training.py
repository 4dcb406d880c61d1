"""Training of the scorer of images and texts: right sentences against sentences that are known to be wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.assessment.agreement import EXCHANGED
from treg_med.priors.image_text_scorer import ImageTextScorer, shown_to_scorer
from treg_med.training.batches import TextStates
from treg_med.training.config import ScorerSettings
from treg_med.training.drawn_heads import HeadSource
from treg_med.training.examples import draw_examples, half_states
from treg_med.training.phantoms import draw_phantoms
from treg_med.training.precision import faster_precision
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import SliceAttributes, counterfactuals, plain_contrast, read_attributes
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["train_scorer"]

#: Shown to the network as reconstructions may be: with this much noise, and this little resolution.
_MOST_NOISE, _LEAST_SIDE, _GAMMA = 0.1, 0.3, 0.5
#: Share of the pictures without what surrounds the brain, and what counts as background.
_STRIPPED, _BACKGROUND = 0.3, 0.15
_FINDINGS = (UNKNOWN, "absent", "present")


class _Examples(NamedTuple):
    """Images ``(n, 1, s, s)`` uint8, facts shown and said ``(n, k)``, states of right and wrong sentences."""

    images: Tensor
    shown: Tensor
    said: Tensor
    right: Tensor
    wrong: Tensor
    has_wrong: Tensor


def train_scorer(
    slices: CaptionedSlices,
    texts: TextStates,
    settings: ScorerSettings,
    *,
    drawn: HeadSource = draw_phantoms,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> ImageTextScorer:
    r"""Contrast every picture with wrong sentences and every sentence with wrong pictures.

    .. math::
        L = -\log \frac{e^{\kappa s(x_i, c_i)}}{e^{\kappa s(x_i, c_i)} + \sum_{c \in W_i} e^{\kappa s(x_i, c)}} + \dots

    :math:`W_i` holds the sentences of the batch that contradict picture i in some attribute, and its own sentence with
    one word exchanged. A sentence of another picture that may be true of this one counts for nothing: "axial brain MRI"
    is not wrong because it was written about another slice.

    Parameters
    ----------
    slices : CaptionedSlices
        To train on; they tell the size of the phantoms.
    texts : TextStates
        Of the frozen text encoder.
    settings : ScorerSettings
        Of the training.
    drawn : HeadSource, optional
        Source of the heads with exact words; by default geometric phantoms.
    seed : int
        Of every random number.
    log : callable
        Receives a line now and then.

    Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, arXiv 2103.00020.
    """
    torch.manual_seed(seed)  # first weights
    model = ImageTextScorer(text_width=texts.encoder.config.hidden_size, features=texts.encoder.config.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    examples = _draw(slices, drawn, texts, model.config.side, settings, generator, log)
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=settings.weight_decay)
    fast = faster_precision(torch.device("cpu")) == "bfloat16"
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * settings.schedule(step)
        rows = torch.randint(len(examples.images), (settings.batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = _loss(model, _Examples(*(part[rows] for part in examples)), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            log(f"scorer step {step}: loss {loss.item():.4f}")
    return model.eval()


def _loss(model: ImageTextScorer, batch: _Examples, generator: torch.Generator) -> Tensor:
    images = model.image_features(_degraded(batch.images.float() / 255, generator) * 2 - 1)
    right, wrong = (model.text_features(states.float()) for states in (batch.right, batch.wrong))
    scale = model.sharpness()
    scores = scale * images @ right.T
    usable = _contradicts(batch.shown, batch.said) | torch.eye(len(images), dtype=torch.bool)
    scores = scores.masked_fill(~usable, -torch.inf)
    own = (scale * (images * wrong).sum(1)).masked_fill(~batch.has_wrong, -torch.inf)
    which = torch.arange(len(images))
    return functional.cross_entropy(torch.cat([scores, own[:, None]], 1), which) + functional.cross_entropy(
        scores.T, which
    )


def _degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(n, 1, s, s)`` in [0, 1] as other scanners and reconstructions would show them.

    All get another intensity curve and noise, every second one is blurred, and some lose what lies around the brain:
    few subjects are skull-stripped, and their contrasts must not be told by the skull.
    """
    side = images.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(len(images), generator=generator)).view(-1, 1, 1, 1)

    inner = images * _inner(images, uniform(0.7, 0.95))
    inner = inner / inner.amax((-2, -1), keepdim=True).clamp_min(_BACKGROUND)
    shown = torch.where(uniform(0, 1) < _STRIPPED, inner, images)
    coarse = max(int(side * float(uniform(_LEAST_SIDE, 1.0)[0])), 1)
    shown[::2] = functional.interpolate(
        functional.interpolate(shown[::2], size=(coarse, coarse), mode="bilinear", antialias=True),
        size=(side, side),
        mode="bilinear",
    )
    noise = uniform(0, _MOST_NOISE) * uniform(0, 1) * torch.randn(images.shape, generator=generator)
    return (uniform(0.85, 1.1) * shown ** torch.exp(uniform(-_GAMMA, _GAMMA)) + noise).clamp(0, 1)


def _inner(images: Tensor, share: Tensor) -> Tensor:
    """Ellipses ``(n, 1, s, s)`` inside the boxes around the heads, of a share of their size."""
    side = images.shape[-1]
    place = torch.arange(side, dtype=images.dtype)
    away = []
    for axis in (-1, -2):
        seen = (images > _BACKGROUND).any(axis).squeeze(1)
        low, high = seen.int().argmax(-1), side - 1 - seen.flip(-1).int().argmax(-1)
        middle, half = (low + high)[:, None] / 2, ((high - low)[:, None] / 2).clamp_min(1)
        away.append(((place - middle) / half).square())
    rows, columns = away
    return ((rows[:, None, :, None] + columns[:, None, None, :]) < share.square()).to(images.dtype)


def _draw(
    slices: CaptionedSlices,
    drawn: HeadSource,
    texts: TextStates,
    side: int,
    settings: ScorerSettings,
    generator: torch.Generator,
    log: Callable[[str], None],
) -> _Examples:
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - sentences, not secrets
    log(f"drawing {settings.slices} slices and {settings.phantoms} phantoms")
    images: list[Tensor] = []
    shown: list[list[int]] = []
    right: list[str] = []
    for part in draw_examples(slices, drawn, settings.slices, settings.phantoms, 1, generator, rng):
        seen = (shown_to_scorer(part.images * 2 - 1, side) + 1) / 2
        images.append((seen * 255).round().to(torch.uint8))
        shown += [_facts(a) for a in part.attributes]
        right += [said for (said,) in part.captions]
    wrong = [_wrong(caption, rng) for caption in right]
    log("reading the sentences")
    return _Examples(
        torch.cat(images),
        torch.tensor(shown),
        torch.tensor([_facts(read_attributes(caption)) for caption in right]),
        half_states(texts, right),
        half_states(texts, wrong),
        torch.tensor([bool(caption) for caption in wrong]),
    )


def _wrong(caption: str, rng: random.Random) -> str:
    """Return the caption with one attribute exchanged; empty where it says none."""
    options = [found for name in EXCHANGED if (found := counterfactuals(caption, name))]
    return rng.choice(rng.choice(options)) if options else ""


def _facts(attributes: SliceAttributes) -> list[int]:
    """Class of every attribute, zero where nothing is known, and whether there is a lesion."""
    known = replace(attributes, contrast=plain_contrast(attributes.contrast)).classes()
    return [*known, _FINDINGS.index(attributes.finding)]


def _contradicts(shown: Tensor, said: Tensor) -> Tensor:
    """Whether sentence j is wrong about picture i, ``(n, n)``, by facts ``(n, k)`` of which zeros are unknown."""
    a, b = shown[:, None], said[None]
    return ((a > 0) & (b > 0) & (a != b)).any(-1)
