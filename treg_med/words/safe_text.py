"""From a sentence to a warning: what is too long, and what may name a person."""

from __future__ import annotations

import re
from collections.abc import Iterable

from treg_med.errors import ConfigError

__all__ = ["MAX_TEXT_LENGTH", "check_text", "excerpt"]

#: Longest text accepted, in characters; text encoders read 77 tokens, so anything near this is a mistake.
MAX_TEXT_LENGTH = 2000

_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "a date",
        re.compile(
            r"\b(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
            r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
            rf"|\d{{1,2}}\.?\s+(?:{_MONTHS})[a-z]*\.?,?\s+\d{{2,4}}"
            rf"|(?:{_MONTHS})[a-z]*\.?\s+\d{{1,2}},?\s+\d{{4}})\b",
            re.IGNORECASE,
        ),
    ),
    (
        "a record number",
        re.compile(
            r"\b(?:(?:mrn|patient\s*id|record|accession|id|no)[\s.:#]*\d{3,}|[A-Z]{0,3}\d{6,})\b",
            re.IGNORECASE,
        ),
    ),
    (
        "a name",
        re.compile(
            r"\b(?:Mr|Mrs|Ms|Dr|Prof)\.?\s+[A-Z][a-z]+|\b[A-Z][A-Za-z'-]+\^[A-Z]"
            r"|\b(?:[Pp]atient|[Nn]ame)\b(?:\s+[Nn]ame)?\s*[:=]?\s+[A-Z][a-z]+\s+[A-Z][a-z]+"
        ),
    ),
)
# Two capitalised words in a row are a name unless medicine capitalises them.
_TWO_CAPITALS = re.compile(r"\b([A-Z][a-z]{2,})[ ,]+([A-Z][a-z]{2,})\b")
_CAPITALISED_TERMS = frozenset(
    "Axial Coronal Sagittal Magnetic Resonance Imaging Computed Tomography Multiple Sclerosis Brain "
    "Knee Chest Spin Echo Turbo Fast Gradient Inversion Recovery Proton Density Weighted Contrast "
    "Enhanced Head Neck Image Scan Slice Healthy Volunteer Left Right Upper Lower Middle White Matter "
    "Grey Gray Low High Grade Post Pre With Without Alzheimer Parkinson Chiari Virchow Robin Schwann "
    "Dandy Walker".split()
)


def check_text(text: str | None) -> tuple[str, ...]:
    """Check a user's text; return warnings where it seems to hold personal data.

    The text reaches the sidecar of every output, so a name, a date or a record number in it would too. None,
    no text, is fine.

    Raises
    ------
    ConfigError
        If the text is not a string or longer than 2000 characters.
    """
    if text is None:
        return ()
    if not isinstance(text, str):
        raise ConfigError(
            f"expected the text to be a string, got {type(text).__name__}; pass a sentence or None"
        )
    if len(text) > MAX_TEXT_LENGTH:
        raise ConfigError(
            f"expected a text of at most {MAX_TEXT_LENGTH} characters, got {len(text)}; "
            "describe the scan in one sentence, for example 'axial T2-FLAIR brain MRI'"
        )
    found = [what for what, pattern in _PATTERNS if pattern.search(text)]
    if "a name" not in found and _looks_like_a_name(_TWO_CAPITALS.findall(text)):
        found.append("a name")
    return tuple(
        f"the text seems to hold {what}; it is stored in the output's sidecar, so remove personal data"
        for what in found
    )


def _looks_like_a_name(pairs: Iterable[tuple[str, str]]) -> bool:
    return any(a not in _CAPITALISED_TERMS and b not in _CAPITALISED_TERMS for a, b in pairs)


def excerpt(value: object) -> str:
    """Return a value for a message, cut to forty characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
