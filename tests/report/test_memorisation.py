"""Samples beside their nearest training slices, of priors that copy and of priors that do not."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.report.scorer import tiny_scorer
from treg_med.assessment.drawn_slices import drawn_slices, varied_rows
from treg_med.assessment.memorisation import memorisation_audit, nearest_slices
from treg_med.assessment.sample_quality import precision_and_recall, sample_quality
from treg_med.assessment.slice_sets import phantom_slices
from treg_med.errors import ConfigError
from treg_med.priors import LatentPrior
from treg_med.training.slices import CaptionedSlices

SIZE = 64


def phantoms(count: int, seed: int) -> CaptionedSlices:
    return phantom_slices(count, SIZE, 8, torch.Generator().manual_seed(seed), 0.5)


class Draws(LatentPrior):
    """A prior whose samples all are one image ``(1, 1, H, W)``: the tiny autoencoder itself keeps too little."""

    shown: Tensor

    def decode(self, latent: Tensor) -> Tensor:
        return self.shown.expand(len(latent), -1, -1, -1)


@pytest.fixture
def prior(tiny_prior_folder: Path) -> Draws:
    return Draws.from_pretrained(tiny_prior_folder)  # type: ignore[return-value]


def test_a_prior_that_returns_a_training_slice_is_caught(prior: Draws) -> None:
    train, validation = phantoms(12, 0), phantoms(6, 1)
    # Moved and mirrored: a copy all the same.
    prior.shown = train.images[5:6].flip(-1).roll((2, -2), (-2, -1)).float() / 127.5 - 1
    told: list[tuple[int, int]] = []
    audit = memorisation_audit(
        prior, train, validation, 5, steps=2, advance=lambda done, total: told.append((done, total))
    )
    assert not audit.met and audit.copies == tuple(range(5))
    assert min(audit.sample_correlations) > 0.97 > audit.bar == max(audit.validation_correlations)
    assert (audit.samples, audit.validation, audit.training) == (5, 5, 12)
    assert told[-1] == (5, 5)
    for picture in (audit.histogram_picture, audit.nearest_picture):
        assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_a_prior_that_returns_noise_is_not(prior: Draws) -> None:
    prior.shown = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    audit = memorisation_audit(prior, phantoms(12, 0), phantoms(6, 1), 3, steps=2)
    assert audit.met and not audit.copies and max(audit.sample_correlations) < audit.bar


def test_the_nearest_slice_is_found_among_many_whatever_its_grey_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.interpolate(torch.rand(300, 1, 12, 12, generator=generator), size=(128, 128))
    rows = torch.randperm(300, generator=generator)[:9].tolist()
    queries = 3 * gallery[rows].roll((3, -4), (-2, -1)) + 7
    queries[::2] = queries[::2].flip(-1)
    found = nearest_slices(queries, gallery)
    assert found.rows == tuple(rows)
    assert found.correlations == pytest.approx([1] * 9, abs=1e-5)


def test_what_is_moved_further_or_constant_is_no_copy() -> None:
    gallery = torch.zeros(2, 1, 128, 128)
    gallery[0, 0, 20:40, 50:70], gallery[1, 0, 80:90, 20:30] = 1, 1
    far = gallery[:1].roll(40, -2)
    assert nearest_slices(far, gallery).correlations[0] < 0.3
    assert nearest_slices(torch.ones(1, 1, 128, 128), gallery).correlations == (0.0,)
    assert nearest_slices(gallery[:1, :, :, 10:110], gallery).correlations[0] > 0.9, "padded to its square"


def test_samples_are_reproducible_and_each_has_a_noise_of_its_own(tiny_prior_folder: Path) -> None:
    prior, train = LatentPrior.from_pretrained(tiny_prior_folder), phantoms(6, 0)
    one, two = (drawn_slices(prior, train, 5, steps=2, guidance_scale=1.0, seed=3) for _ in range(2))
    assert torch.equal(one.images, two.images) and one.captions == two.captions
    assert one.images.shape == (5, 1, SIZE, SIZE) and one.images.dtype == torch.uint8
    assert len(one.images.unique(dim=0)) == 5
    assert all(a.modality == "MRI" for a in one.attributes)


def test_every_kind_of_slice_is_asked_for_alike() -> None:
    slices = phantoms(1, 0).take([0] * 100)
    rare = replace(slices.attributes[0], contrast="PDw")
    slices.attributes[7] = rare
    rows = varied_rows(slices, 40, torch.Generator().manual_seed(0))
    assert 10 <= rows.count(7) <= 30


def test_nothing_to_compare_with_is_refused(prior: Draws) -> None:
    train = phantoms(4, 0)
    with pytest.raises(ConfigError, match="validation"):
        memorisation_audit(prior, train, train.take([]), 2)


def test_precision_and_recall_of_known_sets() -> None:
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert precision_and_recall(features, features) == (1.0, 1.0)
    assert precision_and_recall(features, features + 100) == (0.0, 0.0)
    # Samples that know one of two modes are precise and cover half.
    modes = torch.cat([features, features + 100])
    assert precision_and_recall(modes, features) == (1.0, 0.5)
    assert precision_and_recall(features, modes) == (0.5, 1.0)
    with pytest.raises(ConfigError, match="3"):
        precision_and_recall(features[:3], features)


def test_samples_are_scored_by_their_captions(tiny_prior_folder: Path) -> None:
    prior, slices = LatentPrior.from_pretrained(tiny_prior_folder), phantoms(8, 0)
    with pytest.raises(ConfigError, match="scorer"):
        sample_quality(prior, slices, slices, slices)
    prior.scorer = tiny_scorer()
    found = sample_quality(prior, slices, replace(slices, subjects=["other"] * 8), phantoms(9, 1))
    assert (found.precision, found.recall) == (1.0, 1.0)
    assert set(found.attributes) <= {"contrast", "plane", "finding", "side"} and found.attributes
    assert all(0 <= rate.wins <= 1 for rate in found.attributes.values())
    assert (found.samples, found.validation) == (8, 8)
