"""An evaluation from its configuration to its tables: reconstruct, score, sum up, draw; each part goes on where it was.

Reconstructions are in ``recon/``, the scores of every volume in ``scores/``. The tables are made anew from these at the
end, row by row, so that neither images nor rows are held, and their order does not depend on which worker was faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from treg_med.errors import ConfigError
from treg_med.evaluation.config import ConfigFile
from treg_med.evaluation.gather import Scored, draw_figures, write_report, write_table
from treg_med.evaluation.metric_names import METRICS
from treg_med.evaluation.plan import Case, EvaluationPlan, Problem, make_plan
from treg_med.evaluation.protocols import protocol_units
from treg_med.evaluation.requirements import Requirement, Result
from treg_med.evaluation.scoring import ScoreReport, ScoreTask, problem_of, scorer
from treg_med.runs.driver import RunProgress, run_volumes
from treg_med.runs.executors import make_executor
from treg_med.runs.locks import OutputLock
from treg_med.runs.machine import default_workers
from treg_med.runs.tasks import Task

__all__ = ["EvaluationResult", "RunSettings", "check_names", "run_evaluation"]
# Starting a process takes as long as scoring so many volumes.
_TASKS_PER_WORKER = 20


@dataclass(frozen=True)
class RunSettings:
    """How an evaluation is run; nothing here changes a number but `threads`, in its last bits.

    Parameters
    ----------
    executor, workers, device, threads, batch
        As in `runs.driver.run_volumes`.
    shard
        (i, n): only every n-th volume from the i-th, and no tables; a last run without it makes them.
    rescore
        Reconstruct nothing; what is there is scored.
    overwrite
        Reconstruct again what is there.
    """

    executor: Literal["local", "ray"] = "local"
    workers: int | None = None
    device: str | None = None
    threads: int = 1
    batch: int | None = None
    shard: tuple[int, int] | None = None
    rescore: bool = False
    overwrite: bool = False


@dataclass
class EvaluationResult:
    """What came of an evaluation.

    Parameters
    ----------
    cases
        Volumes of this run: scans x scenarios x seeds.
    reconstructed, skipped
        Volumes reconstructed now, and those that were there.
    measured, kept
        Images scored now, and those whose scores were there.
    rows
        Of the table.
    problems
        What has no score.
    notes
        What a reader must know.
    requirements
        Whether they are met.
    summary
        As `summarise` returns it; None where nothing was scored, or for a share.
    files
        What was written.
    """

    cases: int = 0
    reconstructed: int = 0
    skipped: int = 0
    measured: int = 0
    kept: int = 0
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    requirements: list[Result] = field(default_factory=list)
    summary: Mapping[str, Any] | None = None
    files: list[Path] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every requirement is met."""
        return all(result.passed for result in self.requirements)


def check_names(config: ConfigFile) -> list[Requirement]:
    """Refuse protocols and requirements that do not exist, before anything runs; return the requirements.

    Raises
    ------
    ConfigError
        With the closest known name.
    """
    settings = config.settings
    for i, protocol in enumerate(settings.protocols):
        try:
            protocol_units(protocol)
        except ConfigError as error:
            raise ConfigError(f"protocols[{i}]: {error}") from error
    requirements = [Requirement.parse(text) for text in settings.require]
    methods = [method.label for method in settings.methods]
    methods += [f"{method.label}-control" for method in settings.methods if method.control]
    methods += [prediction.label for prediction in settings.predictions]
    for requirement in requirements:
        requirement.check_names(methods, [scenario.name for scenario in settings.scenarios], METRICS)
    return requirements


def run_evaluation(
    config: ConfigFile,
    out: Path,
    run: RunSettings,
    *,
    plan: EvaluationPlan | None = None,
    watch: Callable[[RunProgress], None] | None = None,
    watch_scores: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Do what is not done yet and write the tables.

    Parameters
    ----------
    config
        The configuration.
    out
        Existing folder; ``metrics.csv``, ``metrics.parquet``, ``summary.json``, ``report.html`` and ``config.yaml`` are
        written there.
    run
        Where and what to run.
    plan
        As `make_plan` returns it, if it is there already.
    watch
        Told how far the reconstruction is.
    watch_scores
        Told how many of how many volumes are scored.

    Raises
    ------
    ConfigError
        For a configuration that cannot be used.
    ResourceError
        If the folder cannot be written to.
    """
    requirements = check_names(config)
    plan = plan or make_plan(config, out, reconstruct=not run.rescore)
    first, step = run.shard or (0, 1)
    cases = plan.cases[first::step]
    result = EvaluationResult(cases=len(cases), problems=list(plan.problems))
    outputs = None if run.rescore else _reconstruct(cases, config, run, result, watch)
    scored, notes = _score(list(_to_score(cases, outputs)), config, out, run, result, watch_scores)
    # In the order of the plan, whatever order the volumes ended in.
    order = {(c.scan.dataset, c.scenario, c.scan.name): i for i, c in enumerate(plan.cases)}
    result.problems.sort(key=lambda p: (order.get((p.dataset, p.scenario, p.scan), -1), p.method or ""))
    result.notes = [*plan.notes, *sorted(notes)]
    if run.shard is not None:
        return result
    with OutputLock(out / ".tables.lock", "the tables", wait=True):
        result.rows = write_table(out, scored, config.settings.protocols)
        result.files = [out / "metrics.csv", out / "metrics.parquet"]
        if result.rows:
            figures = draw_figures(scored)
            result.summary, result.requirements = write_report(
                out, config, requirements, figures, result.problems, result.notes
            )
            result.files += [out / name for name in ("summary.json", "report.html", "config.yaml")]
    return result


def _id(case: Case) -> Path:
    return case.place / case.scan.name


def _reconstruct(
    cases: Sequence[Case],
    config: ConfigFile,
    run: RunSettings,
    result: EvaluationResult,
    watch: Callable[[RunProgress], None] | None,
) -> dict[Path, Mapping[str, Path]]:
    """Reconstruct what is not there; return the sidecars of every case that has any."""
    settings = config.settings
    by_job = {(case.job.out, case.job.name): case for case in cases if case.job is not None}
    outputs: dict[Path, Mapping[str, Path]] = {}
    outcomes = run_volumes(
        (case.job for case in cases if case.job is not None),
        prior=None if settings.prior is None else config.resolve(settings.prior),
        adapters=[config.resolve(adapter) for adapter in settings.adapters],
        executor=run.executor,
        workers=run.workers,
        device=run.device,
        threads=run.threads,
        batch=run.batch,
        overwrite=run.overwrite,
        watch=watch,
    )
    for outcome in outcomes:
        case = by_job[outcome.job.out, outcome.job.name]
        for label, failure in outcome.failures.items():
            result.problems.append(problem_of(case, label, failure.kind, failure.message))
        if not outcome.outputs:
            assert outcome.failure is not None  # noqa: S101
            result.problems.append(problem_of(case, None, outcome.failure.kind, outcome.failure.message))
            continue
        outputs[_id(case)] = outcome.outputs
        result.reconstructed += outcome.status in ("done", "incomplete")
        result.skipped += outcome.status == "skipped"
    return outputs


def _to_score(
    cases: Sequence[Case], outputs: Mapping[Path, Mapping[str, Path]] | None
) -> Iterator[tuple[Case, Mapping[str, Path] | None]]:
    """Give what can be scored: what was reconstructed, and the volumes made elsewhere."""
    for case in cases:
        if outputs is None or case.job is None:
            yield case, None if outputs is None else {}
            continue
        there = outputs.get(_id(case), {})
        variants = tuple(v for v in case.variants if v.label in there or v.label in case.predictions)
        if variants:
            yield dataclasses.replace(case, variants=variants), there


def _score(
    cases: Sequence[tuple[Case, Mapping[str, Path] | None]],
    config: ConfigFile,
    out: Path,
    run: RunSettings,
    result: EvaluationResult,
    watch: Callable[[int, int], None] | None,
) -> tuple[list[Scored], set[str]]:
    """Score the cases; return those that have scores, in their order, and what there is to know."""
    protocols = tuple(config.settings.protocols)
    tasks = {str(_id(case)): ScoreTask(case, protocols, _score_file(out, case), outputs) for case, outputs in cases}
    devices = (run.device or "cpu",)
    workers = min(run.workers or default_workers(devices), max(1, len(tasks) // _TASKS_PER_WORKER))
    reports: dict[str, ScoreReport] = {}
    notes: set[str] = set()
    with make_executor(run.executor, scorer, devices=devices, workers=workers, threads=run.threads) as executor:
        for key, task in tasks.items():
            executor.submit(Task(key, task))
        for done in range(1, len(tasks) + 1):
            outcome = executor.next()
            key, failure = outcome.task.key, outcome.failure
            if failure is not None:
                result.problems.append(problem_of(tasks[key].case, None, failure.kind, failure.message))
            else:
                reports[key] = report = outcome.value
                result.measured += report.measured
                result.kept += len(report.labels) - report.measured
                result.problems += report.problems
                notes.update(report.notes)
            if watch is not None:
                watch(done, len(tasks))
    scored = [
        Scored(task.case, task.file, reports[key].labels, task.outputs) for key, task in tasks.items() if key in reports
    ]
    return scored, notes


def _score_file(out: Path, case: Case) -> Path:
    return out / "scores" / case.place / f"{case.scan.name}.json"
