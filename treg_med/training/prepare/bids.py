"""Anatomical MR scans of a BIDS folder, captioned from whitelisted words.

Read are ``sub-*/[ses-*/]anat/*.nii[.gz]`` and the JSON sidecars beside them; ``participants.tsv`` is not. Every field
is looked up in the whitelist of `treg_med.words` and never copied.

Source: Gorgolewski et al., Scientific Data 2016, doi 10.1038/sdata.2016.44.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from treg_med.errors import FormatError
from treg_med.training.prepare.scan_entry import ScanEntry, SliceText, guessed_subject
from treg_med.words.scan_words import ScanWords, words_from_label

__all__ = ["is_bids", "read_bids"]

_LONGEST_SIDECAR = 4 * 2**20
_HEAD_PARTS = frozenset(("brain", "head", "skull"))


def is_bids(folder: Path) -> bool:
    """Whether a folder holds anatomical scans laid out as BIDS."""
    return bool(_scans(folder))


def read_bids(folder: Path) -> tuple[list[ScanEntry], list[str]]:
    """Return one entry per anatomical scan of known contrast, and warnings with their counts.

    Raises
    ------
    FormatError
        If a sidecar is no JSON object, or no scan has a contrast that is known.
    """
    entries, unknown = [], []
    for path in _scans(folder):
        words = _words(path)
        if words.contrast is None or "_part-phase" in path.name:
            unknown.append(path.name)
            continue
        name = path.relative_to(folder).as_posix()
        entries.append(ScanEntry(path, name, guessed_subject(name), (SliceText(words=words),)))
    if not entries:
        raise FormatError(
            f"expected T1w, T2w, FLAIR or PDw scans in the anat folders, got {len(unknown)} others; describe them in "
            "captions.jsonl"
        )
    names = ", ".join(unknown[:3])
    left_out = f"{len(unknown)} scans of other kinds were left out ({names}); describe them in captions.jsonl"
    return entries, [left_out] if unknown else []


def _scans(folder: Path) -> list[Path]:
    patterns = ("sub-*/anat/*.nii*", "sub-*/ses-*/anat/*.nii*")
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _words(path: Path) -> ScanWords:
    """Whitelisted words of a scan: its suffix, its contrast-agent entity and its sidecar."""
    stem = path.name.split(".")[0]
    suffix = stem.rpartition("_")[2]
    sidecar = _sidecar(path.with_name(f"{stem}.json"))
    contrast = words_from_label(suffix).contrast
    agent = "_ce-" in stem or str(sidecar.get("ContrastBolusIngredient", "")).strip().upper() == "GADOLINIUM"
    if contrast == "T1w" and agent:
        contrast = "T1w+Gd"
    part = str(sidecar.get("BodyPartExamined") or "brain").strip().lower()
    # The format was made for the brain; other organs name themselves.
    anatomy = "brain" if part in _HEAD_PARTS else part
    return ScanWords.from_header(modality="MRI", anatomy=anatomy, contrast=contrast)


def _sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _LONGEST_SIDECAR:
        raise FormatError(f"expected a short JSON sidecar, got {path.name!r} of {path.stat().st_size} bytes; cut it")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"expected JSON in the sidecar {path.name!r}, got {error}; repair or delete it") from error
    if not isinstance(fields, dict):
        raise FormatError(f"expected a JSON object in the sidecar {path.name!r}, got {type(fields).__name__}")
    return fields
