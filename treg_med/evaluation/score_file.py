"""The small file that keeps the scores of one case, and the rows of the table that it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from treg_med.data.atomic import StagedFiles, writing
from treg_med.evaluation.plan import Case
from treg_med.evaluation.protocols import Score, protocol_version

__all__ = ["read_scores", "rows_of", "stored_scores", "versioned", "write_scores"]

_FILE_VERSION = 1
Row = dict[str, Any]


def versioned(protocol: str) -> str:
    """Return name and version of a protocol, under which its scores are kept."""
    return f"{protocol} {protocol_version(protocol)}"


def stored_scores(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return scores as JSON can hold them."""
    return [_stored(score) for score in scores]


def _stored(score: Score) -> dict[str, Any]:
    # Not asdict, which copies every value of ten thousands of rows.
    plain = vars(score) | {"data_range": _coded(score.data_range)}
    return plain | {"values": {name: _coded(value) for name, value in score.values.items()}}


def _coded(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def read_scores(file: Path) -> dict[str, Any]:
    """Return the entries of a file of scores by label; nothing where it is missing, damaged or of another version."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return dict(content["volumes"]) if content["version"] == _FILE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_scores(file: Path, volumes: Mapping[str, Any]) -> None:
    """Keep the entries of a case.

    Raises
    ------
    ResourceError
        If the disk is full or the folder cannot be written to.
    """
    with writing("keeping scores"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with StagedFiles(overwrite=True) as staged:
            text = json.dumps({"version": _FILE_VERSION, "volumes": dict(volumes)}, allow_nan=False)
            staged.path(file).write_text(text, encoding="utf-8")
            # What a power cut takes is measured again.
            staged.commit(durable=False)


def rows_of(case: Case, protocols: Sequence[str], file: Path) -> Iterator[Row]:
    """Give the rows of a case in the table, from its file of scores.

    A metric that a protocol does not define for a slice is empty, and its note says why; NaN stands for a prediction
    that is not finite.
    """
    volumes = read_scores(file)
    for variant in case.variants:
        entry = volumes.get(variant.label)
        if entry is None:
            continue
        facts = {
            "dataset": case.scan.dataset,
            "subject": case.scan.subject,
            "session": case.scan.session,
            "scan": case.scan.name,
            "scenario": case.scenario,
            "method": variant.method,
            "solver": variant.solver,
            "preset": variant.preset,
            "control": variant.control,
            "arm": variant.arm,
            "text": variant.text,
            "seed": case.seed,
            "run_hash": entry["run_hash"],
        }
        scores = [score for name in protocols for score in entry["protocols"].get(versioned(name), ())]
        if case.scan.has_regions:
            scores += entry.get("regions", {}).get("scores", ())
        for score in scores:
            yield facts | _measures(score, entry)


def _measures(score: Mapping[str, Any], entry: Mapping[str, Any]) -> Row:
    position = score["slice"]
    known = [value for value in entry["residuals"] if value is not None]
    residual = (sum(known) / len(known) if known else None) if position is None else entry["residuals"][position]
    failed = score["nan_pixels"] > 0
    values = {name: float(value) for name, value in score["values"].items()}
    return {
        "protocol": score["protocol"],
        "protocol_version": score["version"],
        "level": score["level"],
        "slice": None if position is None else entry["indices"][position],
        "data_range": float(score["data_range"]),
        "crop": None if score["crop"] is None else " x ".join(map(str, score["crop"])),
        # Without the number of pixels, which differs from volume to volume: the column says by which rule they count.
        "mask": None if score["mask"] is None else score["mask"].partition(";")[0],
        "nan_pixels": score["nan_pixels"],
        "note": score["note"],
        "residual": residual,
        **{name: None if math.isnan(value) and not failed else value for name, value in values.items()},
    }
