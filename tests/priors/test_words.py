"""Warnings about words, from the card alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from treg_med.priors.words import word_warnings


def card(**follows: bool) -> dict[str, Any]:
    return {"understanding": {name: {"wins": 0.5, "slices": 40, "follows": f} for name, f in follows.items()}}


@pytest.mark.parametrize(
    ("text", "attribute", "said"),
    [
        ("axial T2-FLAIR brain MRI", "contrast", "contrast"),
        ("coronal brain MRI", "plane", "the plane"),
        ("brain MRI, no lesion", "finding", "lesions"),
        ("brain MRI with a large infarct", "finding", "lesions"),
        ("brain MRI, left hemisphere", "side", "side"),
    ],
)
def test_an_attribute_that_is_not_followed_is_warned_of_where_it_is_said(text: str, attribute: str, said: str) -> None:
    (message,) = word_warnings(card(**{attribute: False}), text)
    assert message == f"the prior is known not to follow words about {said} (right beats wrong on 50 % of 40 slices)"
    assert word_warnings(card(**{attribute: True}), text) == ()
    assert word_warnings(card(**{attribute: False}), "knee") == ()


def test_words_never_seen_and_words_not_followed() -> None:
    messages = word_warnings({"words": ["brain", "left"], **card(side=False)}, "left aquarium brain, 3T")
    assert len(messages) == 2
    assert messages[0] == "the prior was never trained on these words: aquarium"


@pytest.mark.parametrize("broken", [None, [], "yes", {"side": 1}, {"side": {"wins": None}}])
def test_a_card_that_says_nothing_useful_warns_of_nothing(broken: Any) -> None:
    assert word_warnings({"understanding": broken}, "left") == ()


def test_import_is_light() -> None:
    code = "import treg_med.words, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
