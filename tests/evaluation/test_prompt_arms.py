"""The texts of the prompt arms: wrong ones contradict, shuffled ones are somebody else's."""

from __future__ import annotations

import numpy as np
import pytest

from treg_med.evaluation.prompt_arms import arm_texts, contradiction, derangement
from treg_med.words.captions import read_attributes

ALL = ("right", "empty", "wrong", "shuffled")


def test_every_arm_of_two_subjects() -> None:
    texts = ["axial T1-weighted brain MRI", "axial T2-weighted brain MRI"]
    made = arm_texts(["a", "b"], texts, ALL, 0, "brain")
    assert made.notes == ()
    assert made.by_scan[0] == {
        "right": texts[0],
        "empty": "",
        "wrong": "axial T2-weighted brain MRI",
        "shuffled": texts[1],
    }
    assert made.by_scan[1]["shuffled"] == texts[0]
    assert list(arm_texts(["a", "b"], texts, ("wrong", "right"), 0, "brain").by_scan[0]) == ["right", "wrong"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("axial T2-FLAIR brain MRI", "axial T1-weighted brain MRI"),
        ("Axial CT slice of the chest, no intravenous contrast", "Axial CT slice of the head, no intravenous contrast"),
        ("sagittal knee MRI", "sagittal brain MRI"),
        ("Head MRI, brain", "Abdomen MRI, abdomen"),
        ("a picture", None),
        ("Chesterfield", None),
    ],
)
def test_a_wrong_text_names_another_contrast_or_organ(text: str, wrong: str | None) -> None:
    assert contradiction(text) == wrong


def test_a_wrong_text_never_says_the_same_contrast() -> None:
    for contrast in ("T1-weighted", "T2-weighted", "T2-FLAIR", "proton-density-weighted"):
        text = f"axial {contrast} brain MRI"
        assert read_attributes(contradiction(text) or text).contrast != read_attributes(text).contrast


def test_texts_that_cannot_be_contradicted_are_noted_and_only_that_arm_is_left_out() -> None:
    made = arm_texts(["a", "b"], ["a picture", "axial T1w brain MRI"], ALL, 0, "brain")
    assert set(made.by_scan[0]) == {"right", "empty", "shuffled"}
    assert "wrong" in made.by_scan[1]
    assert made.notes == (
        "brain: the wrong prompt was left out for 1 of 2 scans, whose text names neither a contrast nor an organ that "
        "is known",
    )


def test_scans_without_text_are_run_with_the_empty_prompt() -> None:
    made = arm_texts(["a", "b", "c"], [None, "x T1w", "y T2w"], ("right", "shuffled"), 0, "brain")
    assert made.by_scan[0] == {"empty": ""}
    assert made.by_scan[1] == {"right": "x T1w", "shuffled": "y T2w"}
    assert "1 of 3 scans" in made.notes[0]
    assert arm_texts(["a"], [None], ("empty",), 0, "brain").notes == ()


def test_no_subject_gets_a_text_of_its_own() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        n = int(rng.integers(2, 12))
        subjects = [f"p{i // 2}" for i in range(2 * n)]
        texts = [f"text {i}" for i in range(2 * n)]
        made = arm_texts(subjects, texts, ("shuffled",), seed, "brain")
        owner = dict(zip(texts, subjects, strict=True))
        given = [t["shuffled"] for t in made.by_scan]
        assert all(owner[text] != subject for text, subject in zip(given, subjects, strict=True))
        assert len(set(given)) == 2 * n  # a permutation: every text is used once
        # Both scans of a subject get the texts of one other subject, in order.
        assert all(owner[a] == owner[b] for a, b in zip(given[::2], given[1::2], strict=True))


def test_shuffles_follow_the_seed() -> None:
    subjects = [str(i) for i in range(12)]
    texts = [f"text {i}" for i in subjects]
    orders = {seed: arm_texts(subjects, texts, ("shuffled",), seed, "d").by_scan for seed in range(4)}
    assert orders[0] == arm_texts(subjects, texts, ("shuffled",), 0, "d").by_scan
    assert len({str(order) for order in orders.values()}) == 4


def test_equal_texts_are_avoided_where_possible() -> None:
    subjects = [str(i) for i in range(6)]
    made = arm_texts(subjects, ["T1"] * 3 + ["T2"] * 3, ("shuffled",), 0, "d")
    assert [t["shuffled"] for t in made.by_scan] == ["T2"] * 3 + ["T1"] * 3
    assert made.notes == ()
    made = arm_texts(subjects, ["T1"] * 5 + ["T2"], ("shuffled",), 0, "d")
    assert sum(t["shuffled"] == "T2" for t in made.by_scan) == 1
    assert made.by_scan[5]["shuffled"] == "T1"
    assert "4 of 6 shuffled prompts are equal" in made.notes[0]


@pytest.mark.parametrize(
    ("subjects", "texts", "why"),
    [(["a", "b"], ["T1", "T1"], "the same text"), (["a", "a"], ["T1", "T2"], "at least two subjects")],
)
def test_a_shuffle_that_says_nothing_is_left_out(subjects: list[str], texts: list[str], why: str) -> None:
    made = arm_texts(subjects, texts, ("right", "shuffled"), 0, "brain")
    assert all(set(t) == {"right"} for t in made.by_scan)
    assert why in made.notes[0]


def test_a_derangement_of_least_cost() -> None:
    costs = np.ones((4, 4))
    costs[[0, 1, 2, 3], [2, 3, 1, 0]] = 0
    assert derangement(costs, 0) == [2, 3, 1, 0]
