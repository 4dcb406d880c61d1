"""Paired samples of exact priors: the picture changes where the word says, or does not, by construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.report.exact import SIDE, CaptionReader
from treg_med.assessment.paired import CONTRAST_TEXTS, SIDE_TEXTS, paired_samples
from treg_med.sampling import draw_samples
from treg_med.training.phantoms import PATIENT_LEFT_IS
from treg_med.words.captions import read_attributes

STD = 0.05


def means() -> dict[str, Tensor]:
    """Tissue and fluid in four contrasts, and a bright blob on the patient's left or right."""
    tissue = torch.full((SIDE, SIDE), -0.2, dtype=torch.float64)
    tissue[8:16, 8:16] = 0.4
    contrasts = {"T1w": tissue, "T1w+Gd": 0.9 * tissue, "T2w": -tissue, "FLAIR": tissue.T.roll(2, 0)}
    empty = torch.full((SIDE, SIDE), -0.2, dtype=torch.float64)
    left, right = empty.clone(), empty.clone()
    left[8:14, 15:20], right[8:14, 4:9] = 0.6, 0.6
    if PATIENT_LEFT_IS == "left":
        left, right = right, left
    return {**contrasts, "left": left, "right": right, "none": empty}


def picture_of(caption: str) -> str:
    said = read_attributes(caption)
    if said.origin != "simulated":
        return said.contrast
    return "none" if said.lesions == "none" else said.side


def test_texts_say_what_they_are_for() -> None:
    assert [picture_of(text) for text in CONTRAST_TEXTS.values()] == list(CONTRAST_TEXTS)
    assert [picture_of(text) for text in SIDE_TEXTS.values()] == list(SIDE_TEXTS)


def test_a_prior_that_follows_changes_the_picture_as_it_says() -> None:
    told = []
    found = paired_samples(
        CaptionReader(means(), STD, picture_of), SIDE, noises=4, steps=8, advance=lambda *now: told.append(now)
    )
    assert found.side.wins == found.finding.wins == found.contrast_order.wins == 1
    assert (found.side.slices, found.contrast_order.slices) == (4, 2)
    assert found.correlation["T1w"]["T1w+Gd"] > 0.9 and found.correlation["T1w"]["T2w"] < -0.5
    assert found.side_change > 0.1 and found.contrast_change > 0.1
    assert told[-1] == (4, 4)


def test_left_and_right_exchanged_is_seen() -> None:
    other = {"left": "right", "right": "left"}
    prior = CaptionReader(means(), STD, lambda caption: other.get(picture_of(caption), picture_of(caption)))
    found = paired_samples(prior, SIDE, noises=3, steps=8)
    assert found.side.wins == found.finding.wins == 0


def test_a_word_that_does_nothing_moves_nothing() -> None:
    found = paired_samples(CaptionReader(means(), STD, lambda caption: "none"), SIDE, noises=2, steps=4)
    assert found.side_change == found.finding_change == found.contrast_change == 0
    assert found.side.wins == found.finding.wins == 0.5
    assert not found.side.above_chance


def test_samples_have_the_mean_and_spread_of_the_prior() -> None:
    prior = CaptionReader(means(), 0.2, picture_of)
    generator = torch.Generator().manual_seed(3)
    text = SIDE_TEXTS["none"]
    drawn = torch.stack(
        [
            draw_samples(prior, torch.randn(1, 1, SIDE, SIDE, generator=generator), [text], steps=60, guidance_scale=1)
            for _ in range(24)
        ]
    )
    assert float(drawn.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(drawn.std(0).mean()) == pytest.approx(0.1, rel=0.15)
