"""The tables, the summary and the report of an evaluation, made from the scores that were kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from treg_med.data.atomic import StagedFiles, writing
from treg_med.data.plain import plain
from treg_med.errors import TregMedError
from treg_med.evaluation.case_images import CaseImages
from treg_med.evaluation.config import ConfigFile
from treg_med.evaluation.figures import comparison_figure
from treg_med.evaluation.plan import Case, Problem
from treg_med.evaluation.region_scores import counted
from treg_med.evaluation.regions import BOX, FEWEST_CASES
from treg_med.evaluation.report import render
from treg_med.evaluation.requirements import Requirement, Result, check
from treg_med.evaluation.score_file import rows_of
from treg_med.evaluation.summary import summarise
from treg_med.evaluation.table import TableWriter, read_rows

__all__ = ["Scored", "as_used", "draw_figures", "write_report", "write_table"]

_MOST_FIGURES = 6


@dataclasses.dataclass(frozen=True)
class Scored:
    """A case, where its scores are, which of its variants have one, and the sidecars of these where they are known."""

    case: Case
    file: Path
    labels: AbstractSet[str]
    outputs: Mapping[str, Path] | None

    @property
    def variants(self) -> Case:
        """The case without what has no score."""
        kept = tuple(variant for variant in self.case.variants if variant.label in self.labels)
        return dataclasses.replace(self.case, variants=kept)


def write_table(out: Path, scored: Sequence[Scored], protocols: Sequence[str]) -> int:
    """Write ``metrics.csv`` and ``metrics.parquet``; return the number of rows.

    Raises
    ------
    ResourceError
        If they cannot be written.
    """
    with TableWriter(out) as table:
        for each in scored:
            for row in rows_of(each.variants, protocols, each.file):
                table.add(row)
        return table.count


def write_report(
    out: Path,
    config: ConfigFile,
    requirements: Sequence[Requirement],
    figures: Sequence[tuple[str, bytes]],
    problems: Sequence[Problem],
    notes: Sequence[str],
) -> tuple[dict[str, Any], list[Result]]:
    """Sum up ``metrics.parquet`` in ``summary.json`` and ``report.html``; return the summary and the requirements.

    Raises
    ------
    ConfigError
        For rows that must not be averaged.
    ResourceError
        If the files cannot be written.
    """
    settings = config.settings
    reference, notes = settings.compare_to, counted(notes)
    if reference is not None and not any(row["method"] == reference for row in read_rows(out / "metrics.parquet")):
        notes.append(f"{reference} has no scores, so that methods are compared with their control or the first method")
        reference = None
    labels = [method.label for method in settings.methods] + [entry.label for entry in settings.predictions]
    summary = summarise(
        read_rows(out / "metrics.parquet"),
        compare_to=reference,
        methods=[*labels, *(f"{method.label}-control" for method in settings.methods if method.control)],
        seed=settings.statistics.seed,
        resamples=settings.statistics.resamples,
    )
    notes += _suppressed(summary)
    results = check(
        requirements,
        summary,
        methods=labels,
        scenarios=[scenario.name for scenario in settings.scenarios],
    )
    facts = {
        "notes": notes,
        "requirements": [dataclasses.asdict(result) for result in results],
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }
    page = render(
        summary,
        title=f"Evaluation: {config.path.stem}",
        figures=figures,
        failures=problems,
        configuration=as_used(config),
        requirements=results,
        notes=notes,
    )
    _write(
        out,
        {
            "config.yaml": as_used(config),
            "summary.json": json.dumps(plain({**summary, **facts}), indent=2, allow_nan=False) + "\n",
            "report.html": page,
        },
    )
    return summary, results


def _suppressed(summary: Mapping[str, Any]) -> list[str]:
    """Say which labels have too few cases for a mean."""
    rare: dict[tuple[str, str], list[str]] = {}
    for each in summary["suppressed"]:
        label = f"{each['region'].removeprefix(BOX)} ({each['cases']})"
        rare.setdefault((each["dataset"], each["scenario"]), []).append(label)
    return [
        f"{dataset}, {scenario}: no means of labels with fewer than {FEWEST_CASES} cases, which are in the table only: "
        f"{', '.join(labels)}"
        for (dataset, scenario), labels in rare.items()
    ]


def _write(out: Path, texts: Mapping[str, str]) -> None:
    with writing("writing the report"), StagedFiles(overwrite=True) as staged:
        for name, text in texts.items():
            staged.path(out / name).write_text(text, encoding="utf-8")
        staged.commit()


def as_used(config: ConfigFile) -> str:
    """Return the text of the configuration, and as comments what the command line may have changed."""
    settings = config.settings
    used = {"protocols": settings.protocols, "require": settings.require}
    lines = "".join(f"# as used: {name}: {json.dumps(value)}\n" for name, value in used.items())
    return config.text.rstrip("\n") + "\n" + lines


def draw_figures(scored: Sequence[Scored]) -> list[tuple[str, bytes]]:
    """Return a picture of each dataset and scenario, at most six: the middle slice of the first volume with all scores.

    Where no volume has all of them, the first that has any is shown.
    """
    first: dict[tuple[str, str], Scored] = {}
    for each in scored:
        kind = (each.case.scan.dataset, each.case.scenario)
        if each.labels and len(each.labels) > len(first[kind].labels if kind in first else ()):
            first[kind] = each
    figures = []
    for each in list(first.values())[:_MOST_FIGURES]:
        try:
            figures.append(_figure(each))
        except TregMedError:
            continue  # a picture is not worth an evaluation
    return figures


def _figure(scored: Scored) -> tuple[str, bytes]:
    case = scored.variants
    shown = [variant for variant in case.variants if variant.arm in ("none", "right")] or list(case.variants)
    with CaseImages(case, scored.outputs) as images:
        reference = images.reference
        position = len(reference.images) // 2
        pictures = {v.label: images.images(v, images.stored(v))[position] for v in shown}
        picture = comparison_figure(reference, position, pictures)
    where = f"{case.scan.dataset}, {case.scenario}: {case.scan.name}, slice {reference.grid.indices[position]}"
    return f"{where}, and below each image its absolute error", picture
