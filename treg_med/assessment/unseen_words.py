"""(e) Words of radiology that the prior was never trained on, and what each costs in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from treg_med.words.vocabulary import ORGANS, PHRASES, vocabulary

__all__ = ["UnseenWords", "general_words", "unseen_words"]


@dataclass(frozen=True)
class UnseenWords:
    """Known and unknown words of the general list, with the tokens that each costs.

    Attributes
    ----------
    recorded : bool
        Whether the card says what the prior was trained on; without it nothing can be called unseen.
    tested : int
        Words in the general list.
    unseen, seen : dict of str to int
        Word -> tokens; 0 where the prior has no tokenizer.
    """

    recorded: bool
    tested: int
    unseen: dict[str, int]
    seen: dict[str, int]


def general_words() -> list[str]:
    """Words a user may write: the general list and every word of the caption grammar, lower case, without numbers."""
    phrases = [p for table in PHRASES.values() for entries in table.values() for p in entries]
    phrases += [p for entries in ORGANS.values() for p in entries]
    words = {w.strip(".,;:()").lower() for text in (*vocabulary(), *phrases) for w in text.split()}
    return sorted(w for w in words if w and not w.isdigit())


def unseen_words(prior: Any) -> UnseenWords:
    """Compare the card's words with the general list.

    Parameters
    ----------
    prior
        Its ``card`` may hold ``words``; its ``tokenizer`` may be None.
    """
    card = getattr(prior, "card", {})
    tokenizer = getattr(prior, "tokenizer", None)
    known = set(card.get("words", ()))

    def cost(word: str) -> int:
        return len(tokenizer(word, add_special_tokens=False).input_ids) if tokenizer is not None else 0

    words = general_words()
    # Words with digits (T2-FLAIR, 3T) are never listed in a card, so nothing can be said of them.
    listed = [w for w in words if not any(c.isdigit() for c in w)]
    unseen = {w: cost(w) for w in listed if w not in known} if known else {}
    return UnseenWords(bool(known), len(listed), unseen, {w: cost(w) for w in listed if known and w in known})
