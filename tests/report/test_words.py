"""The text test: exact priors win, lose or tie as they were made to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.report.exact import SIDE, CaptionReader, contrast_of, draw
from treg_med.assessment.card import understanding
from treg_med.assessment.statistics import Rate, mean_and_error, win
from treg_med.assessment.words import AROUND_LESION, WHOLE_IMAGE, WordTest, word_tests
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import read_attributes

CONTRASTS = {"T1w": -0.4, "T2w": 0.4, "FLAIR": 0.0}
LESION = "axial T2-FLAIR brain MRI; large infarct in the {} frontal lobe"
NONE = "axial T2-FLAIR brain MRI; no lesion"


def flat(value: float) -> Tensor:
    return torch.full((SIDE, SIDE), value, dtype=torch.float64)


def blob(side: str) -> Tensor:
    image = flat(-0.2)
    if side in ("left", "right"):
        columns = slice(14, 20) if side == "left" else slice(4, 10)
        image[6:12, columns] = 0.6
    return image


def contrast_slices() -> CaptionedSlices:
    names = {"T1w": "T1-weighted", "T2w": "T2-weighted", "FLAIR": "T2-FLAIR"}
    order = [list(CONTRASTS)[i % 3] for i in range(18)]
    return draw([flat(CONTRASTS[c]) for c in order], [f"Axial {names[c]} brain MRI." for c in order])


def lesion_slices() -> CaptionedSlices:
    """Twelve with a lesion, four without."""
    sides = ["left", "right"] * 6 + ["none"] * 4
    masks = torch.stack([(blob(side) > 0).to(torch.uint8) for side in sides])[:, None]
    captions = [NONE if side == "none" else LESION.format(side) for side in sides]
    return draw([blob(side) for side in sides], captions, masks=masks)


def only(tests: tuple[WordTest, ...], region: str = WHOLE_IMAGE) -> WordTest:
    (found,) = [test for test in tests if test.region == region]
    return found


def test_a_prior_that_follows_wins_every_slice() -> None:
    prior = CaptionReader({c: flat(v) for c, v in CONTRASTS.items()}, 0.1, contrast_of)
    test = only(word_tests(prior, contrast_slices(), ["contrast"], "made up"))
    assert test.overall.wins == 1
    assert test.overall.slices == 18
    assert test.follows and test.met
    assert test.unchanged == 0
    assert test.gap > 1
    assert {name: rate.slices for name, rate in test.values.items()} == {"T1w": 6, "T2w": 6, "FLAIR": 6}
    assert {name: rate.slices for name, rate in test.subjects.items()} == {"subject 0": 9, "subject 1": 9}
    assert list(test.levels)[-1] == 999 and test.levels[999].wins == 1


def test_a_prior_whose_words_do_nothing_is_reported() -> None:
    prior = CaptionReader({"any": flat(0.0)}, 0.1, lambda caption: "any")
    test = only(word_tests(prior, contrast_slices(), ["contrast"], "made up"))
    assert test.overall.wins == 0.5
    assert test.unchanged == 1
    assert not test.follows and not test.met
    assert understanding([test])["contrast"]["follows"] is False


def test_a_prior_that_takes_the_words_the_wrong_way_round_loses() -> None:
    swapped = {"T1w": "T2w", "T2w": "FLAIR", "FLAIR": "T1w"}
    means = {c: flat(v) for c, v in CONTRASTS.items()}
    prior = CaptionReader(means, 0.1, lambda caption: swapped[contrast_of(caption)])
    assert only(word_tests(prior, contrast_slices(), ["contrast"], "made up")).overall.wins < 0.6


def test_side_is_seen_around_the_lesion() -> None:
    prior = CaptionReader(
        {side: blob(side) for side in ("left", "right", "none")},
        0.1,
        lambda caption: "none" if read_attributes(caption).lesions == "none" else read_attributes(caption).side,
    )
    tests = word_tests(prior, lesion_slices(), ["side"], "made up")
    assert {test.region for test in tests} == {WHOLE_IMAGE, AROUND_LESION}
    around = only(tests, AROUND_LESION)
    assert around.overall.wins == 1 and around.overall.slices == 12
    assert around.gap > only(tests).gap, "outside the lesion there is error that the word cannot change"
    assert understanding(tests)["side"]["region"] == AROUND_LESION


def test_preferring_one_sentence_does_not_count_as_understanding_it() -> None:
    """"No lesion" is always the better text of this prior, whatever is there."""
    prior = CaptionReader(
        {"good": flat(-0.2), "bad": flat(0.9)},
        0.1,
        lambda caption: "good" if read_attributes(caption).lesions == "none" else "bad",
    )
    test = only(word_tests(prior, lesion_slices(), ["finding"], "made up"), WHOLE_IMAGE)
    assert {name: (rate.wins, rate.slices) for name, rate in test.values.items()} == {
        "absent": (1, 4), "present": (0, 12)
    }  # fmt: skip
    assert test.overall.wins == pytest.approx(0.5)
    assert not test.follows


@pytest.mark.parametrize("order", [("T1w", "T2w", "FLAIR"), ("FLAIR", "T1w", "T2w"), ("T2w", "FLAIR", "T1w")])
def test_preferring_some_contrasts_stays_at_chance_whatever_is_shown_most(order: tuple[str, ...]) -> None:
    """All slices are alike; the prior's mean is nearer for words that come first in its order."""
    prior = CaptionReader({c: flat(0.3 * i) for i, c in enumerate(order)}, 0.1, contrast_of)
    names = {"T1w": "T1-weighted", "T2w": "T2-weighted", "FLAIR": "T2-FLAIR", "T1w+Gd": "contrast-enhanced T1-weighted"}
    shown = ["T1w"] * 24 + ["T1w+Gd"] * 12 + ["T2w"] * 9 + ["FLAIR"] * 9
    slices = draw([flat(0.0)] * len(shown), [f"Axial {names[c]} brain MRI." for c in shown])
    reading = dict.fromkeys(("T1w", "T1w+Gd"), "T1w")
    prior.rule = lambda caption: reading.get(contrast_of(caption), contrast_of(caption))
    test = only(word_tests(prior, slices, ["contrast"], "made up"))
    assert test.two_sided and not test.follows
    assert test.overall.slices == len(shown), "T1 with contrast agent counts as T1"
    assert test.overall.wins == pytest.approx(0.5)
    assert test.overall.low < 0.4


def test_one_contrast_alone_proves_nothing() -> None:
    prior = CaptionReader({c: flat(v) for c, v in CONTRASTS.items()}, 0.1, contrast_of)
    slices = draw([flat(0.0)] * 8, ["Axial T2-FLAIR brain MRI."] * 8)
    test = only(word_tests(prior, slices, ["contrast"], "made up"))
    assert test.overall.wins == 1
    assert not test.two_sided and not test.follows
    assert understanding([test]) == {}


def test_an_attribute_that_no_caption_says_is_left_out() -> None:
    prior = CaptionReader({"any": flat(0.0)}, 0.1, lambda caption: "any")
    assert word_tests(prior, contrast_slices(), ["side"], "made up") == ()


def test_same_seed_same_result() -> None:
    prior = CaptionReader({c: flat(v / 10) for c, v in CONTRASTS.items()}, 0.1, contrast_of)
    first, again, other = (
        only(word_tests(prior, contrast_slices(), ["contrast"], "x", seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (48, 48, 0.9259, 1.0), (0, 5, 0.0, 0.4345)]
)
def test_score_interval_as_published(wins: int, n: int, low: float, high: float) -> None:
    rate = Rate.of([1.0] * wins + [0.0] * (n - wins))
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=2e-4)
    assert rate.above_chance == (low > 0.5)


def test_nothing_measured_is_not_above_chance() -> None:
    rate = Rate.of([])
    assert math.isnan(rate.wins) and (rate.low, rate.high) == (0, 1) and not rate.above_chance


def test_weighted_rate() -> None:
    assert Rate.of([1, 0, 0], [0.5, 0.25, 0.25]).wins == 0.5
    assert Rate.of([1.0] * 4, [0.25] * 4) == Rate.of([1.0] * 4)
    assert Rate.of([1, 1, 0], [0.5, 0.5, 0.0]).slices == 2
    narrow, wide = Rate.of([1, 0, 1, 0]), Rate.of([1, 0, 1, 0], [0.48, 0.48, 0.02, 0.02])
    assert wide.high - wide.low > narrow.high - narrow.low


def test_ties_and_means() -> None:
    assert [win(1, 2), win(2, 1), win(1, 1 + 1e-9), win(0, 0)] == [1, 0, 0.5, 0.5]
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(mean_and_error([1.0])[1])
