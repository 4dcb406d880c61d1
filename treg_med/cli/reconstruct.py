"""``treg-med reconstruct``: scans to a tree of volumes, sidecars, pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from treg_med.cli.console import method_table, print_json, print_warnings, run_bar, stdout
from treg_med.cli.failures import SOME_FAILED
from treg_med.cli.inputs import expand_inputs, parse_shard
from treg_med.cli.options import make_folder, parse_pairs, reader_options
from treg_med.notice import RESEARCH_ONLY

if TYPE_CHECKING:
    from treg_med.runs.plan import VolumeOutcome

__all__ = ["Job", "report", "run"]

# Starting processes takes longer than so few slices gain.
_FEW_SLICES = 4
_STATUSES = ("done", "skipped", "incomplete", "failed")


@dataclass(frozen=True)
class Job:
    """The options of the command."""

    inputs: tuple[Path, ...]
    out: Path
    text: str | None
    solver: str | None
    preset: str | None
    prior: Path | None
    adapters: tuple[Path, ...]
    settings: tuple[str, ...]
    reader: tuple[str, ...]
    steps: int | None
    seed: int
    slices: str | None
    volume: int | None
    device: str | None
    samples: int
    controls: bool
    overwrite: bool
    executor: str
    workers: int | None
    threads: int
    batch: int | None
    shard: str | None
    page: bool


def run(job: Job, *, as_json: bool) -> None:
    """Reconstruct, write and report."""
    from treg_med.runs.driver import run_volumes
    from treg_med.runs.method import MethodChoice
    from treg_med.runs.names import unique_labels
    from treg_med.runs.plan import VolumeJob
    from treg_med.runs.tasks import failure_error
    from treg_med.words.safe_text import check_text

    text_warnings = check_text(job.text)
    choice = MethodChoice(
        job.solver, job.preset, parse_pairs("--set", job.settings), job.steps, job.text, job.samples, job.controls
    )
    choice.check()
    options = reader_options(job.volume, parse_pairs("--reader", job.reader))
    inputs = expand_inputs(job.inputs)
    names = unique_labels(inputs)
    first, shards = parse_shard(job.shard)
    make_folder(job.out)
    jobs = [
        VolumeJob(path, choice, job.out, options, job.slices, job.seed, name, job.page)
        for path, name in zip(inputs, names, strict=True)
    ][first::shards]
    finished: list[VolumeOutcome] = []
    with run_bar(len(jobs)) as (watch, follow):
        for outcome in run_volumes(
            jobs,
            prior=job.prior,
            adapters=job.adapters,
            executor=job.executor,
            workers=job.workers or _workers(job, inputs, options),
            device=job.device,
            threads=job.threads,
            batch=job.batch,
            overwrite=job.overwrite,
            watch=watch,
            follow=follow,
        ):
            finished.append(outcome)
            if len(inputs) > 1 and not as_json:
                _tell(outcome, len(finished), len(jobs))
    place = {path: k for k, path in enumerate(inputs)}
    finished.sort(key=lambda outcome: place[outcome.job.input])
    failed = [outcome for outcome in finished if outcome.failure is not None]
    alone = failed[0].failure if len(inputs) == 1 and failed else None
    if alone is not None and not failed[0].outputs:
        raise failure_error(alone)
    for outcome in finished:
        _say_notes(outcome, named=len(inputs) > 1)
    report(finished, as_json=as_json)
    print_warnings([*text_warnings, *(w for outcome in finished for w in outcome.warnings)])
    if alone is not None:
        raise failure_error(alone)
    if failed:
        raise typer.Exit(SOME_FAILED)


def report(finished: Sequence[VolumeOutcome], *, as_json: bool, title: str | None = None) -> None:
    """Print what was written, as tables or as JSON."""
    if as_json:
        print_json({"notice": RESEARCH_ONLY, "volumes": [_as_dict(outcome) for outcome in finished]})
        return
    console = stdout()
    for outcome in finished if len(finished) == 1 else ():
        heading = title or f"{outcome.job.input.name}: {outcome.slices} slice{'s' * (outcome.slices != 1)}"
        if outcome.status == "skipped":
            console.print(f"{heading}: everything is there already (--overwrite does it again)", markup=False)
        elif outcome.seconds:
            console.print(method_table(heading, outcome))
        for sidecar in outcome.outputs.values():
            console.print(f"{sidecar.with_suffix('')}.nii.gz  (+ .json)", markup=False)
        for path in (outcome.figure, outcome.page):
            if path is not None:
                console.print(str(path), markup=False)
    if len(finished) > 1:
        counts = {status: sum(o.status == status for o in finished) for status in _STATUSES}
        # All three are said, none or not; that a method failed, only where one did.
        told = [f"{count} {status}" for status, count in counts.items() if count or status != "incomplete"]
        console.print(", ".join(told), markup=False)
    console.print(RESEARCH_ONLY)


def _workers(job: Job, inputs: Sequence[Path], options: dict[str, Any]) -> int | None:
    """Return 1 where starting processes would take longer than they save; None leaves it to the run."""
    from treg_med.data import open_scan
    from treg_med.errors import TregMedError
    from treg_med.runs.slice_range import parse_slices

    if len(inputs) > 1:
        return None
    if job.solver in ("zero-filled", "fbp"):
        return 1
    try:
        with open_scan(inputs[0], **options) as scan:
            return 1 if len(parse_slices(job.slices, len(scan))) < _FEW_SLICES else None
    except TregMedError:
        return 1  # the run will say what is wrong


def _tell(outcome: VolumeOutcome, number: int, total: int) -> None:
    reason = "" if outcome.failure is None else f": {outcome.failure.kind}: {outcome.failure.message}"
    line = " ".join(f"[{number}/{total}] {outcome.job.input.name}: {outcome.status}{reason}".split())
    typer.echo("".join(c if c.isprintable() else "?" for c in line), err=True)


def _say_notes(outcome: VolumeOutcome, *, named: bool) -> None:
    prefix = f"{outcome.job.input.name}: " if named else ""
    for note in outcome.notes:
        typer.echo(prefix + note, err=True)


def _as_dict(outcome: VolumeOutcome) -> dict[str, Any]:
    results = [
        {
            "label": label,
            "sidecar_path": sidecar,
            "image_path": sidecar.with_suffix(".nii.gz"),
            "residual": outcome.residuals.get(label),
            "domain_distance": outcome.domain_distances.get(label),
            "seconds": outcome.seconds.get(label),
            "nfe": outcome.evaluations.get(label),
        }
        for label, sidecar in outcome.outputs.items()
    ]
    return {
        "input": outcome.job.input.name,
        "status": outcome.status,
        "error": outcome.failure and {"kind": outcome.failure.kind, "message": outcome.failure.message},
        "slices": outcome.slices,
        "results": results,
        "figure": outcome.figure,
        "page": outcome.page,
        "notes": outcome.notes,
        "warnings": outcome.warnings,
    }
