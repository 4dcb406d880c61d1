"""Words of a prompt that a prior does not know, or is known not to follow, by its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from treg_med.words.captions import mentioned_attributes, words_of

__all__ = ["word_warnings"]

#: What a sentence calls the attributes of the text test.
_NAMES = {"contrast": "contrast", "plane": "the plane", "finding": "lesions", "side": "side", "territory": "territory"}


def word_warnings(card: Mapping[str, Any], text: str) -> tuple[str, ...]:
    """Sentences about words of `text`: those never trained on, and those that were measured to do nothing.

    Parameters
    ----------
    card : Mapping
        Content of ``prior.json``: ``words`` of the training captions, and ``understanding`` as
        ``treg-med prior-report --write-card`` records it. What is missing is not warned of.
    text : str
        The prompt.
    """
    return (*_unseen(card.get("words"), text), *_not_followed(card.get("understanding"), text))


def _unseen(known: Any, text: str) -> tuple[str, ...]:
    if not known:
        return ()
    strange = sorted(words_of([text]) - set(known))
    return ("the prior was never trained on these words: " + ", ".join(strange),) if strange else ()


def _not_followed(understanding: Any, text: str) -> tuple[str, ...]:
    if not isinstance(understanding, Mapping):
        return ()
    mentioned = mentioned_attributes(text)
    out = []
    for attribute, name in _NAMES.items():
        found = understanding.get(attribute)
        if attribute in mentioned and isinstance(found, Mapping) and not found.get("follows", True):
            share, count = float(found.get("wins") or 0), found.get("slices", 0)
            out.append(
                f"the prior is known not to follow words about {name} "
                f"(right beats wrong on {100 * share:.0f} % of {count} slices)"
            )
    return tuple(out)
