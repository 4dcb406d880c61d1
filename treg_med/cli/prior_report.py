"""``treg-med prior-report``: the model card of a prior as HTML and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from treg_med.cli.console import print_json, print_warnings, progress_bar, stdout
from treg_med.cli.options import make_folder
from treg_med.errors import ConfigError
from treg_med.notice import RESEARCH_ONLY

if TYPE_CHECKING:
    from treg_med.assessment.build import PriorReport

__all__ = ["run"]

_STEM = "prior-report"


def run(
    prior: Path | None,
    adapters: Sequence[Path],
    out: Path,
    slices: Path | None,
    split: str,
    *,
    quick: bool,
    seed: int,
    threads: int | None,
    write_card: bool,
    as_json: bool,
) -> None:
    """Measure, write the page and its numbers, and print the summary."""
    if write_card and adapters:
        raise ConfigError(
            "expected --write-card for a prior by itself, got an adapter on it, whose numbers its card must not hold; "
            "merge the adapter into a folder of its own"
        )
    import torch

    from treg_med.assessment.build import ReportSettings, build_report
    from treg_med.assessment.card import record_understanding
    from treg_med.data.atomic import StagedFiles
    from treg_med.priors import DEFAULT_PRIOR
    from treg_med.report.html import render
    from treg_med.runs.prior_source import PriorSource

    if threads is not None:
        torch.set_num_threads(threads)
    source = PriorSource(prior, adapters)
    opened, messages = source.load("cpu"), list(source.warnings())
    folder = make_folder(out)
    settings = ReportSettings.quick() if quick else ReportSettings()
    with progress_bar() as watch:
        report = build_report(opened, slices, split, settings=settings, seed=seed, watch=watch)
    page, numbers = folder / f"{_STEM}.html", folder / f"{_STEM}.json"
    with StagedFiles(overwrite=True) as staged:
        staged.path(numbers).write_text(json.dumps(report.numbers(), indent=1) + "\n", encoding="utf-8")
        staged.path(page).write_text(render(report), encoding="utf-8")
        staged.commit()
    written = [page, numbers]
    if write_card:
        written.append(record_understanding(DEFAULT_PRIOR if prior is None else prior, report.understanding))
    _print(report, written, as_json=as_json)
    print_warnings(messages)


def _print(report: PriorReport, written: list[Path], *, as_json: bool) -> None:
    if as_json:
        print_json(report.numbers() | {"files": written})
        return
    table = Table(title=f"prior {report.prior['source']}")
    for heading in ("what is asked", "bar", "measured", "verdict"):
        table.add_column(heading, justify="left" if heading == "what is asked" else "right")
    for verdict in report.verdicts:
        table.add_row(verdict.name, verdict.asked, verdict.measured, "met" if verdict.met else "not met")
    console = stdout()
    console.print(table)
    for note in report.notes:
        console.print(note, markup=False)
    for path in written:
        console.print(str(path), markup=False)
    console.print(RESEARCH_ONLY)
