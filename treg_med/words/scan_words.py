"""From header fields to a sentence.

Only whitelisted words ever leave this file: a header field is looked up, never copied, so that a name, a date
or a record number in a header cannot reach a prompt, a log or a sidecar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from treg_med.errors import ConfigError
from treg_med.words.safe_text import excerpt
from treg_med.words.vocabulary import PHRASES

__all__ = ["ScanWords", "suggest_text", "words_from_label"]

# As the captions say it that the shipped prior learned, and what these do not know.
_CONTRAST_PHRASES = {value: phrases[0] for value, phrases in PHRASES["contrast"].items()} | {
    "PDw+FS": "fat-suppressed proton-density-weighted"
}
# What is said of CT, in the words of the captions that the shipped prior learned.
_CT_CONTRASTS = ("intravenous contrast", "no intravenous contrast")
_PLANES = tuple(PHRASES["plane"])
_ANATOMIES = ("brain", "knee", "breast", "prostate", "spine", "heart", "abdomen")
_CT_ANATOMIES = (
    "head", "neck", "shoulders", "chest", "lower chest", "upper abdomen", "abdomen", "lower abdomen", "pelvis",
    "abdomen and pelvis", "chest, abdomen and pelvis",
)  # fmt: skip
_WHITELIST = {
    "modality": ("MRI", "CT"),
    "anatomy": tuple(dict.fromkeys((*_ANATOMIES, *_CT_ANATOMIES))),
    "contrast": (*_CONTRAST_PHRASES, *_CT_CONTRASTS),
    "plane": _PLANES,
}
# Tokens of file names, upper case, that name a region of CT in other words.
_CT_ANATOMY_TOKENS = {
    **dict.fromkeys(("THORAX", "LUNG", "LUNGS"), "chest"),
    **dict.fromkeys(("BRAIN", "SKULL"), "head"),
    "ABDOMENPELVIS": "abdomen and pelvis",
}

# Tokens of acquisition labels and file names, upper case, that mean something.
_CONTRAST_TOKENS = {
    **dict.fromkeys(("T1", "T1W", "T1PRE", "MPRAGE"), "T1w"),
    **dict.fromkeys(("T1POST", "T1GD", "T1C", "T1CE"), "T1w+Gd"),
    **dict.fromkeys(("T2", "T2W"), "T2w"),
    **dict.fromkeys(("FLAIR", "T2FLAIR"), "FLAIR"),
    **dict.fromkeys(("PD", "PDW"), "PDw"),
    "PDFS": "PDw+FS",
}
_PLANE_TOKENS = {"AX": "axial", "TRA": "axial", "COR": "coronal", "SAG": "sagittal"} | {
    p.upper(): p for p in _PLANES
}


@dataclass(frozen=True)
class ScanWords:
    """The whitelisted facts that a prompt may be made of; None where unknown.

    Raises
    ------
    ConfigError
        If a value is not in the whitelist.
    """

    modality: str | None = None
    anatomy: str | None = None
    contrast: str | None = None
    plane: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _WHITELIST.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"expected {name} to be one of {', '.join(allowed)}, got {excerpt(value)}")

    @classmethod
    def from_header(cls, **fields: object) -> ScanWords:
        """Keep the whitelisted values of header fields and drop everything else."""
        kept: dict[str, str] = {}
        for name, allowed in _WHITELIST.items():
            value = fields.get(name)
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            match = {a.lower(): a for a in allowed}.get(text.strip().lower())
            if match is not None:
                kept[name] = match
        return cls(**kept)


def suggest_text(words: ScanWords) -> str | None:
    """Return a text such as "axial T1-weighted brain MRI" or "Axial CT slice of the chest".

    None if only the modality is known. The form is that of the captions the shipped prior learned.
    """
    if words.contrast is None and words.plane is None and words.anatomy is None:
        return None
    if words.modality == "CT":
        start = f"{words.plane.capitalize()} CT slice" if words.plane else "CT slice"
        place = f" of the {words.anatomy}" if words.anatomy else ""
        return start + place + (f", {words.contrast}" if words.contrast in _CT_CONTRASTS else "")
    phrase = _CONTRAST_PHRASES.get(words.contrast, words.contrast) if words.contrast else None
    return " ".join(part for part in (words.plane, phrase, words.anatomy, words.modality or "MRI") if part)


def words_from_label(label: str, *, modality: str | None = "MRI") -> ScanWords:
    """Look up the whitelisted words in an acquisition label (``AXT1POST``, ``CORPDFS_FBK``) or a file name.

    Unknown parts are ignored and never copied.
    """
    tokens = [t for t in re.split(r"[^A-Za-z0-9]+", label) if t]
    if modality == "CT":
        return _ct_words(tokens)
    plane, contrast, anatomy = None, None, None
    for token in (t.upper() for t in tokens):
        # A label such as AXT1POST glues the plane to the contrast.
        glued = (p for p in _PLANE_TOKENS if token.startswith(p) and token[len(p) :] in _CONTRAST_TOKENS)
        prefix = next(glued, None)
        plane = plane or (_PLANE_TOKENS[prefix] if prefix else _PLANE_TOKENS.get(token))
        contrast = contrast or _CONTRAST_TOKENS.get(token[len(prefix) :] if prefix else token)
        anatomy = anatomy or (token.lower() if token.lower() in _ANATOMIES else None)
    return ScanWords(modality=modality, anatomy=anatomy, contrast=contrast, plane=plane)


def _ct_words(tokens: list[str]) -> ScanWords:
    """Look up plane and region; "upper abdomen" is two tokens, and the longest match counts."""
    upper = [t.upper() for t in tokens]
    line = f" {' '.join(upper)} "
    named = [a for a in _CT_ANATOMIES if f" {a.upper().replace(',', '')} " in line]
    other = (_CT_ANATOMY_TOKENS[t] for t in upper if t in _CT_ANATOMY_TOKENS)
    anatomy = max(named, key=len) if named else next(other, None)
    plane = next((_PLANE_TOKENS[t] for t in upper if t in _PLANE_TOKENS), None)
    return ScanWords(modality="CT", anatomy=anatomy, plane=plane)
