"""Writing what was measured into a prior's own card, so that every later run can warn of words that do nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treg_med.assessment.words import AROUND_LESION, WordTest
from treg_med.data.atomic import StagedFiles
from treg_med.errors import FormatError, ResourceError

__all__ = ["record_understanding", "understanding"]

_REAL_FIRST = "phantoms"


def understanding(tests: Sequence[WordTest]) -> dict[str, dict[str, Any]]:
    """Attribute -> wins, slices, interval and whether it follows, as a card holds them.

    Contrast and plane are those of the real slices where there are any. Lesion and side are those around the lesion,
    where the word has something to say. A word that was exchanged in one direction only is left out.
    """
    chosen: dict[str, WordTest] = {}
    for test in sorted(tests, key=lambda t: (t.source == _REAL_FIRST, t.region != AROUND_LESION)):
        if test.two_sided:
            chosen.setdefault(test.attribute, test)
    return {
        name: {
            "wins": round(test.overall.wins, 4),
            "slices": test.overall.slices,
            "interval": [round(test.overall.low, 4), round(test.overall.high, 4)],
            "follows": test.follows,
            "source": test.source,
            "region": test.region,
        }
        for name, test in chosen.items()
    }


def record_understanding(prior_folder: Path, results: dict[str, dict[str, Any]]) -> Path:
    """Put `results` under "understanding" into the prior's ``prior.json``; it changes completely or not at all.

    Parameters
    ----------
    prior_folder : Path
        Folder of the prior; a card is made where there is none.
    results : dict
        From `understanding`.

    Raises
    ------
    ResourceError
        If the folder is not there or cannot be written to.
    FormatError
        If the card that is there is not a JSON object.
    """
    path = prior_folder / "prior.json"
    if not prior_folder.is_dir():
        raise ResourceError(f"expected the folder of a prior, got {str(prior_folder)!r}, which is not there")
    card: Any = {"format": 1}
    if path.is_file():
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(f"expected JSON in {path.name}, got {error}; copy the prior again") from error
    if not isinstance(card, dict):
        raise FormatError(f"expected a JSON object in {path.name}, got {type(card).__name__}; copy the prior again")
    card["understanding"] = results
    try:
        with StagedFiles(overwrite=True) as staged:
            staged.path(path).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
            staged.commit()
    except OSError as error:
        raise ResourceError(f"writing {path.name} failed: {error}; the old card was kept") from error
    return path
