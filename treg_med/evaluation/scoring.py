"""Scores of the finished volumes of one case; nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from treg_med.errors import TregMedError
from treg_med.evaluation.case_images import CaseImages, StoredVolume
from treg_med.evaluation.plan import Case, Problem
from treg_med.evaluation.protocols import evaluate, protocol_units
from treg_med.evaluation.region_scores import no_region_note, region_score
from treg_med.evaluation.score_file import read_scores, stored_scores, versioned, write_scores
from treg_med.evaluation.slice_grid import Images
from treg_med.runs.tasks import Slot, Work

__all__ = ["ScoreReport", "ScoreTask", "problem_of", "score_case", "scorer"]


@dataclass(frozen=True)
class ScoreTask:
    """What to score.

    Parameters
    ----------
    case
        The scan, how it was measured, and what is compared.
    protocols
        Names.
    file
        Where the scores are kept.
    outputs
        Sidecars of what was reconstructed, by label; None to look for them.
    """

    case: Case
    protocols: tuple[str, ...]
    file: Path
    outputs: Mapping[str, Path] | None = None


@dataclass(frozen=True)
class ScoreReport:
    """How it went.

    Parameters
    ----------
    labels
        Variants that have scores.
    measured
        How many of these were measured now.
    notes
        What is to be known.
    problems
        What has no score.
    """

    labels: frozenset[str] = frozenset()
    measured: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def scorer(slot: Slot) -> Work:
    """Prepare a worker that scores: a factory of an executor."""
    return partial(score_case, device=None if slot.device == "cpu" else slot.device)


def score_case(task: ScoreTask, device: str | None = None) -> ScoreReport:
    """Score what was not scored before; one volume that cannot be scored does not keep the others from it.

    Neither does a mask or a box that does not fit the scan: there are no rows of regions then.

    Parameters
    ----------
    task
        What to score.
    device
        As in `protocols.evaluate`.

    Raises
    ------
    TregMedError
        If the scores cannot be kept.
    """
    known = read_scores(task.file)
    problems: list[Problem] = []
    notes: dict[str, None] = {}
    scored: dict[str, Any] = {}
    measured = 0
    with CaseImages(task.case, task.outputs) as images:
        for variant in task.case.variants:
            before = known.get(variant.label, {})
            try:
                stored = images.stored(variant)
                prediction = cache(partial(images.images, variant, stored))
                entry = _scored(task, images, stored, prediction, before, device)
            except TregMedError as error:
                problems.append(problem_of(task.case, variant.method, type(error).__name__, str(error)))
                continue
            notes.update(dict.fromkeys(entry["notes"]))
            if task.case.scan.has_regions:
                try:
                    entry = _with_regions(entry, task.case, images, prediction)
                    notes.update(dict.fromkeys(entry["regions"]["notes"]))
                except TregMedError as error:
                    problem = problem_of(task.case, None, type(error).__name__, f"regions: {error}")
                    problems += [] if problem in problems else [problem]
            scored[variant.label] = entry
            measured += entry != before
    if scored != known:
        write_scores(task.file, scored)
    return ScoreReport(frozenset(scored), measured, tuple(notes), tuple(problems))


def problem_of(case: Case, method: str | None, kind: str, message: str) -> Problem:
    """Return what the report says of a volume without a score."""
    return Problem(case.scan.dataset, case.scenario, case.scan.name, method, kind, message)


def _scored(
    task: ScoreTask,
    images: CaseImages,
    stored: StoredVolume,
    prediction: Callable[[], Images],
    known: Mapping[str, Any],
    device: str | None,
) -> dict[str, Any]:
    """Return the entry of a variant in the file of scores, with all protocols."""
    entry: dict[str, Any] = {"key": stored.key, "run_hash": stored.run_hash, "protocols": {}, "notes": []}
    if known.get("key") == stored.key:
        entry = dict(known)
    missing = [name for name in task.protocols if versioned(name) not in entry["protocols"]]
    if not missing:
        return entry
    reference = images.reference
    protocols, notes = dict(entry["protocols"]), dict.fromkeys(entry["notes"])
    for name in missing:
        protocols[versioned(name)] = []
        if reference.unit in protocol_units(name):
            scores = evaluate(prediction(), reference.images, name, unit=reference.unit, device=device)
            protocols[versioned(name)] = stored_scores(scores)
        else:
            notes[f"{task.case.scan.dataset}: {name} is not defined for {reference.unit} and was left out"] = None
    indices = reference.grid.indices
    residuals = [stored.residuals.get(index) for index in indices]
    return entry | {"protocols": protocols, "notes": list(notes), "indices": list(indices), "residuals": residuals}


def _with_regions(
    entry: dict[str, Any], case: Case, images: CaseImages, prediction: Callable[[], Images]
) -> dict[str, Any]:
    """Return the entry of a variant with its scores in the regions of the scan."""
    if entry.get("regions", {}).get("key") == images.region_key:
        return entry
    scores = [region_score(prediction(), images.reference, region) for region in images.regions]
    notes = [] if scores else [no_region_note(case.scan)]
    return entry | {"regions": {"key": images.region_key, "scores": stored_scores(scores), "notes": notes}}
