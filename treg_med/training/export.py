"""Assemble trained parts into a prior folder with its card (``prior.json``)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from treg_med.assessment.agreement import EXCHANGED, scorer_wins
from treg_med.assessment.card import understanding
from treg_med.assessment.one_step import denoising_error
from treg_med.assessment.slice_sets import phantom_slices
from treg_med.assessment.words import word_tests
from treg_med.data.whole_folder import whole_folder
from treg_med.notice import RESEARCH_ONLY
from treg_med.priors.card import PRIOR_CARD, write_card
from treg_med.priors.domain_guard import DOMAIN, calibrate_domain
from treg_med.priors.latent import LatentPrior
from treg_med.priors.weights import save_component
from treg_med.training.config import PriorFacts
from treg_med.training.phantoms import PATIENT_LEFT_IS, draw_attributes
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import render_caption, words_of

__all__ = ["export_prior"]

_WORD_LEVELS = (145, 487, 850, 999)
_WORD_SLICES = 64
_GROUP_SLICES = 24
_SCORER_PHANTOMS = 200
_TRIPS = ("round_trip_psnr_db", "round_trip_psnr_db_linear_decoder")


def export_prior(
    parts: Mapping[str, Path],
    checkpoint: Path,
    target: Path,
    facts: PriorFacts,
    train: CaptionedSlices,
    validation: CaptionedSlices,
) -> dict[str, Any]:
    """Write ``target`` as a half-precision prior folder and return its card.

    Parameters
    ----------
    parts : Mapping of str to Path
        Folders of ``vae``, ``text_encoder`` and ``tokenizer``, and of a ``scorer`` where there is one.
    checkpoint : Path
        Of the denoiser; its averaged weights are taken.
    target : Path
        Folder to write; an earlier prior there is replaced when the new one is complete.
    facts : PriorFacts
        What the card says and nobody can measure.
    train, validation : CaptionedSlices
        For the list of known words (train), and the metrics and the limits of the prior's domain (validation).

    Raises
    ------
    ResourceError
        If ``target`` holds something else, or cannot be written.
    """
    with whole_folder(target, PRIOR_CARD) as staging:
        training = _save_half(parts, checkpoint, staging)
        prior = LatentPrior.from_pretrained(staging)
        domain = calibrate_domain(prior, validation)
        card = {
            "format": 1,
            "name": facts.name,
            "summary": facts.summary,
            "image": {
                "size": validation.images.shape[-1],
                "range": [-1, 1],
                "background": -1,
                "one": "99.7 percentile of the head (MR), upper end of the window (CT)",
                "patient_left_is": PATIENT_LEFT_IS,
            },
            "training": training,
            "data": facts.data,
            "metrics": _metrics(prior, validation),
            "understanding": understanding(
                word_tests(prior, validation.evenly(_WORD_SLICES), EXCHANGED, "validation", levels=_WORD_LEVELS)
            ),
            "words": _words(train),
            **({} if domain is None else {DOMAIN: domain}),
            "limits": f"{RESEARCH_ONLY} {facts.limits}".strip(),
        }
        write_card(staging, card)
    return card


def _save_half(parts: Mapping[str, Path], checkpoint: Path, staging: Path) -> dict[str, float]:
    """Write the components and return the numbers of the denoiser's training."""
    from transformers import AutoTokenizer, CLIPTextModel

    from treg_med.priors.autoencoder import NullSpaceAutoencoder
    from treg_med.priors.image_text_scorer import ImageTextScorer
    from treg_med.training.denoiser import averaged_denoiser, build_scheduler

    denoiser, training = averaged_denoiser(checkpoint)

    # The patch basis must stay orthonormal to working precision: the autoencoder is small and is kept in float32.
    save_component(NullSpaceAutoencoder.from_pretrained(parts["vae"], torch_dtype=torch.float32), staging / "vae")
    save_component(denoiser.half(), staging / "unet", max_shard_size="15MB")
    encoder = CLIPTextModel.from_pretrained(parts["text_encoder"]).half()
    save_component(encoder, staging / "text_encoder", max_shard_size="15MB")
    AutoTokenizer.from_pretrained(parts["tokenizer"]).save_pretrained(staging / "tokenizer")
    build_scheduler().save_pretrained(staging / "scheduler")
    if "scorer" in parts:
        save_component(ImageTextScorer.from_pretrained(parts["scorer"]).half(), staging / "scorer")
    return training


def _scorer_metrics(prior: LatentPrior, validation: CaptionedSlices) -> dict[str, Any]:
    """Return how often the scorer tells right words from wrong ones, by attribute; nothing where there is none."""
    if prior.scorer is None:
        return {}
    generator = torch.Generator().manual_seed(0)
    phantoms = phantom_slices(_SCORER_PHANTOMS, validation.images.shape[-1], 1, generator, lesion_share=0.7)
    found = {
        source: scorer_wins(prior.scorer, prior.embed, slices)
        for source, slices in (("validation", validation), ("phantoms", phantoms))
    }
    return {
        "scorer_right_wins": {
            source: {name: round(rate.wins, 3) for name, rate in rates.items()} for source, rates in found.items()
        }
    }


def _metrics(prior: LatentPrior, validation: CaptionedSlices) -> dict[str, Any]:
    groups = {name: _group_metrics(prior, group.evenly(_GROUP_SLICES)) for name, group in validation.by_group().items()}
    return {
        "validation_slices": len(validation),
        **_over_groups(list(groups.values())),
        "by_group": groups,
        **_scorer_metrics(prior, validation),
    }


def _group_metrics(prior: LatentPrior, slices: CaptionedSlices) -> dict[str, Any]:
    """Round trip of the autoencoder, trained and linear, and error of the denoiser."""
    from treg_med.training.autoencoder import round_trip_psnr

    trips = zip(_TRIPS, round_trip_psnr(prior.vae, slices.images.float() / 255), strict=True)
    return {
        "slices": len(slices),
        **{name: {"mean": round(float(x.mean()), 2), "worst": round(float(x.min()), 2)} for name, x in trips},
        "denoising_error_std": {str(t): round(e, 5) for t, e in denoising_error(prior, slices).items()},
    }


def _over_groups(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the same numbers of the slices of all groups."""
    weights = [group["slices"] / sum(g["slices"] for g in groups) for group in groups]

    def mean(values: Iterable[float]) -> float:
        return sum(w * value for w, value in zip(weights, values, strict=True))

    errors = [group["denoising_error_std"] for group in groups]
    return {
        **{
            name: {
                "mean": round(mean(group[name]["mean"] for group in groups), 2),
                "worst": min(group[name]["worst"] for group in groups),
            }
            for name in _TRIPS
        },
        "denoising_error_std": {t: round(mean(e[t] ** 2 for e in errors) ** 0.5, 5) for t in errors[0]},
    }


def _words(train: CaptionedSlices) -> list[str]:
    """Words of the training sentences, published, rendered and of phantoms, numbers left out."""
    rng = random.Random(0)  # noqa: S311 - sentences, not secrets
    texts = [*train.captions]
    for _ in range(5000):
        attributes = draw_attributes(rng) if rng.random() < 0.5 else rng.choice(train.attributes)
        texts.append(render_caption(attributes, rng)[0])
    return sorted(words_of(texts))
