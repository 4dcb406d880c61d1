"""Prompt arms: the same reconstruction with the right text, none, a wrong one and that of another subject.

"Does text help" is answered by all four only: a text that merely guides the prior somewhere would do as well wrong or
shuffled as right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from treg_med.words.captions import counterfactuals

__all__ = ["ARMS", "ArmTexts", "arm_texts", "contradiction", "derangement"]

#: In the order of tables.
ARMS = ("right", "empty", "wrong", "shuffled")

# What is scanned, and what a wrong text says instead: something that looks different.
_ORGANS = {
    "brain": "knee", "cranial": "knee", "head": "abdomen", "neck": "pelvis", "shoulders": "head", "spine": "brain",
    "knee": "brain", "breast": "brain", "prostate": "brain", "heart": "knee", "chest": "head", "thorax": "head",
    "lung": "brain", "lungs": "brain", "abdomen": "head", "liver": "brain", "kidney": "brain", "pelvis": "head",
}  # fmt: skip
_ORGAN = re.compile(rf"\b({'|'.join(sorted(_ORGANS, key=len, reverse=True))})\b", re.IGNORECASE)
# Larger than any sum of the others: never one's own text, and an equal one only where nothing else is left.
_OWN, _EQUAL = 1e9, 1e3


@dataclass(frozen=True)
class ArmTexts:
    """The texts of every scan and what to say about them.

    Parameters
    ----------
    by_scan
        For every scan, in their order: arm -> text.
    notes
        Arms that were left out, and why; for the report.
    """

    by_scan: tuple[Mapping[str, str], ...]
    notes: tuple[str, ...]


def arm_texts(
    subjects: Sequence[str], texts: Sequence[str | None], arms: Sequence[str], seed: int, dataset: str
) -> ArmTexts:
    """Return the text of every scan in every arm that can be made.

    Parameters
    ----------
    subjects
        Who was scanned, one for every scan.
    texts
        The right text of every scan; None where nothing is known, so that only the empty prompt can be run.
    arms
        Which of `ARMS` are wanted.
    seed
        Of the shuffle.
    dataset
        For the notes.
    """
    notes: list[str] = []
    found: list[dict[str, str]] = [{} for _ in texts]
    known = [i for i, text in enumerate(texts) if text]
    unknown = len(texts) - len(known)
    if unknown and set(arms) != {"empty"}:
        notes.append(f"{dataset}: no text is known for {unknown} of {len(texts)} scans, run with the empty prompt only")
    shuffled: dict[int, str] = {}
    if "shuffled" in arms and known:
        shuffled, note = _shuffled([subjects[i] for i in known], [texts[i] or "" for i in known], seed)
        shuffled = {known[position]: text for position, text in shuffled.items()}
        notes += [f"{dataset}: {note}"] if note else []
    unspoken = 0
    for i, text in enumerate(texts):
        if not text:
            found[i]["empty"] = ""
            continue
        wrong = contradiction(text) if "wrong" in arms else None
        unspoken += "wrong" in arms and wrong is None
        made = {"right": text, "empty": "", "wrong": wrong, "shuffled": shuffled.get(i)}
        found[i] = {arm: made[arm] or "" for arm in ARMS if arm in arms and made[arm] is not None}
    if unspoken:
        notes.append(
            f"{dataset}: the wrong prompt was left out for {unspoken} of {len(texts)} scans, whose text names neither "
            "a contrast nor an organ that is known"
        )
    return ArmTexts(tuple(found), tuple(notes))


def contradiction(text: str) -> str | None:
    """Return the text with its contrast replaced by another, else its organ; None where it names neither."""
    others = counterfactuals(text, "contrast")
    if others:
        return others[0]
    match = _ORGAN.search(text)
    if match is None:
        return None
    # One organ for another throughout: "brain MRI of the head" is otherwise half right.
    other = _ORGANS[match[0].lower()]
    return _ORGAN.sub(lambda m: other.capitalize() if m[0][0].isupper() else other, text)


def derangement(costs: np.ndarray, seed: int) -> list[int]:
    """Return a random permutation of least cost in which nothing stays at its place.

    Parameters
    ----------
    costs
        (n, n), >= 0: of giving row i what belongs to j; ties are broken at random. n >= 2.
    seed
        Of the random numbers.
    """
    noise = np.random.default_rng(seed).random(costs.shape)
    total = _EQUAL * costs + noise
    np.fill_diagonal(total, _OWN)
    return [int(j) for j in linear_sum_assignment(total)[1]]


def _shuffled(subjects: Sequence[str], texts: Sequence[str], seed: int) -> tuple[dict[int, str], str | None]:
    """Give every subject's scans the texts of one other subject; also what to say about it."""
    owners = list(dict.fromkeys(subjects))
    own = {owner: [i for i, subject in enumerate(subjects) if subject == owner] for owner in owners}
    if len(owners) < 2:
        return {}, "the shuffled prompt was left out: it needs at least two subjects with a text"
    if len(set(texts)) == 1:
        return {}, "the shuffled prompt was left out: all subjects have the same text"

    def given(owner: str, other: str) -> list[str]:
        # The n-th scan gets the text of the n-th one, which in most studies is of the same kind.
        return [texts[own[other][n % len(own[other])]] for n in range(len(own[owner]))]

    costs = np.array(
        [[sum(t == texts[i] for t, i in zip(given(a, b), own[a], strict=True)) for b in owners] for a in owners], float
    )
    order = derangement(costs, seed)
    result: dict[int, str] = {}
    for owner, position in zip(owners, order, strict=True):
        result.update(zip(own[owner], given(owner, owners[position]), strict=True))
    equal = sum(result[i] == texts[i] for i in result)
    if not equal:
        return result, None
    return result, f"{equal} of {len(texts)} shuffled prompts are equal to the right one, as too many texts are"
