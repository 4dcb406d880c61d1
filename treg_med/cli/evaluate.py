"""``treg-med evaluate``: a configuration to reconstructions, scores, tables, statistics and a report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from treg_med.cli.console import print_json, print_warnings, run_bar, stdout
from treg_med.cli.failures import NOT_MET, SOME_FAILED
from treg_med.cli.inputs import parse_shard
from treg_med.cli.options import make_folder
from treg_med.errors import ConfigError
from treg_med.notice import RESEARCH_ONLY

if TYPE_CHECKING:
    from treg_med.evaluation.config import ConfigFile
    from treg_med.evaluation.pipeline import EvaluationResult
    from treg_med.evaluation.plan import EvaluationPlan
    from treg_med.runs.driver import RunProgress

__all__ = ["Job", "run"]

_MOST_SHOWN = 10


@dataclass(frozen=True)
class Job:
    """The options of the command."""

    config: Path
    out: Path
    rescore: bool
    protocols: tuple[str, ...]
    require: tuple[str, ...]
    dry_run: bool
    executor: str
    workers: int | None
    device: str | None
    threads: int
    batch: int | None
    shard: str | None
    overwrite: bool


def run(job: Job, *, as_json: bool) -> None:
    """Evaluate and say what came of it."""
    from treg_med.evaluation.config import read_config
    from treg_med.evaluation.pipeline import RunSettings, check_names, run_evaluation
    from treg_med.evaluation.plan import make_plan

    if job.rescore and job.overwrite:
        raise ConfigError("expected --rescore or --overwrite, got both; --rescore reconstructs nothing")
    shard = None if job.shard is None else parse_shard(job.shard)
    config = _with_options(read_config(job.config), job)
    check_names(config)
    plan = make_plan(config, job.out.absolute(), reconstruct=not job.rescore)
    if job.dry_run:
        _show_plan(config, plan, as_json=as_json)
        return
    out = make_folder(job.out).absolute()
    settings = RunSettings(
        executor=cast(Literal["local", "ray"], job.executor),
        workers=job.workers,
        device=job.device,
        threads=job.threads,
        batch=job.batch,
        shard=shard,
        rescore=job.rescore,
        overwrite=job.overwrite,
    )
    first, step = shard or (0, 1)
    volumes = len(plan.cases[first::step])
    with run_bar(volumes) as (watch, _), _lines(volumes) as (tell, tell_scores):
        result = run_evaluation(
            config, out, settings, plan=plan, watch=_both(watch, tell), watch_scores=tell_scores
        )
    _report(result, config, as_json=as_json, share=job.shard)
    if not result.passed:
        raise typer.Exit(NOT_MET)
    if result.problems:
        raise typer.Exit(SOME_FAILED)


def _with_options(config: ConfigFile, job: Job) -> ConfigFile:
    settings = config.settings
    changed: dict[str, Any] = {"require": [*settings.require, *job.require]}
    if job.protocols:
        changed["protocols"] = list(dict.fromkeys(job.protocols))
    return dataclasses.replace(config, settings=settings.model_copy(update=changed))


def _both(
    first: Callable[[RunProgress], None], second: Callable[[RunProgress], None]
) -> Callable[[RunProgress], None]:
    def tell(progress: RunProgress) -> None:
        first(progress)
        second(progress)

    return tell


@contextmanager
def _lines(volumes: int) -> Iterator[tuple[Callable[[RunProgress], None], Callable[[int, int], None]]]:
    """Give what tells of progress beside the bar: a line per volume where there is none, and how many are scored."""
    console = Console(stderr=True, highlight=False)
    said = 0

    def tell(progress: RunProgress) -> None:
        nonlocal said
        if not console.is_terminal and progress.volumes > said:
            said = progress.volumes
            console.print(f"reconstructed {said}/{volumes}", soft_wrap=True)

    def tell_scores(done: int, total: int) -> None:
        if console.is_terminal:
            console.print(f"scored {done}/{total}", end="\r" if done < total else "\n")

    yield tell, tell_scores


def _show_plan(config: ConfigFile, plan: EvaluationPlan, *, as_json: bool) -> None:
    settings = config.settings
    counts = Counter((case.scan.dataset, case.scenario) for case in plan.cases)
    rows = [
        {
            "dataset": dataset,
            "scenario": scenario,
            "subjects": len({c.scan.subject for c in plan.cases if c.scan.dataset == dataset}),
            "scans": len({c.scan.path for c in plan.cases if c.scan.dataset == dataset}),
            "volumes": count,
            "methods": list(
                dict.fromkeys(v.label for c in plan.cases if (c.scan.dataset, c.scenario) == (dataset, scenario)
                              for v in c.variants)
            ),
        }
        for (dataset, scenario), count in counts.items()
    ]  # fmt: skip
    slices = {dataset.name: dataset.slices or "all" for dataset in settings.datasets}
    facts = {
        "plan": rows,
        "slices": slices,
        "seeds": settings.seeds,
        "protocols": settings.protocols,
        "reconstructions": plan.outputs,
        "images_to_score": sum(len(case.variants) for case in plan.cases),
        "notes": plan.notes,
        "problems": [dataclasses.asdict(problem) for problem in plan.problems],
    }
    if as_json:
        print_json(facts)
        return
    table = Table(title=f"{config.path.name}: what would be done")
    for heading in ("dataset", "scenario", "subjects", "scans", "volumes", "methods and prompts"):
        table.add_column(heading, justify="right" if heading in ("subjects", "scans", "volumes") else "left")
    for row in rows:
        cells = (row["dataset"], row["scenario"], row["subjects"], row["scans"], row["volumes"])
        table.add_row(*map(str, cells), ", ".join(cast(list[str], row["methods"])))
    console = stdout()
    console.print(table)
    console.print(
        f"{facts['reconstructions']} reconstructed volumes, {facts['images_to_score']} volumes to score under "
        f"{', '.join(settings.protocols)}; slices: {', '.join(f'{k}: {v}' for k, v in slices.items())}; "
        f"seeds: {', '.join(map(str, settings.seeds))}",
        markup=False,
    )  # fmt: skip
    print_warnings([*plan.notes, *(problem.message for problem in plan.problems)])


def _report(result: EvaluationResult, config: ConfigFile, *, as_json: bool, share: str | None) -> None:
    problems = [dataclasses.asdict(problem) for problem in result.problems]
    if as_json:
        print_json(
            {
                "notice": RESEARCH_ONLY,
                "volumes": result.cases,
                "reconstructed": result.reconstructed,
                "skipped": result.skipped,
                "scored": result.measured,
                "scores_kept": result.kept,
                "rows": result.rows,
                "problems": problems,
                "notes": result.notes,
                "requirements": [dataclasses.asdict(each) for each in result.requirements],
                "files": result.files,
            }
        )
        return
    console = stdout()
    if result.summary is not None:
        for table in _tables(result.summary, config.settings.protocols):
            console.print(table)
    console.print(
        f"{result.cases} volumes: {result.reconstructed} reconstructed, {result.skipped} there already; "
        f"{result.measured} images scored, {result.kept} scores kept; {result.rows} rows"
    )
    for each in result.requirements:
        console.print(str(each), markup=False)
    for path in result.files:
        console.print(str(path), markup=False)
    if share is not None:
        console.print(f"share {share} is done; the same command without --shard makes the tables", markup=False)
    console.print(RESEARCH_ONLY)
    print_warnings(result.notes)
    for problem in result.problems[:_MOST_SHOWN]:
        who = problem.method or "all methods"
        typer.echo(
            f"no score: {problem.dataset}, {problem.scenario}, {problem.scan}, {who}: {problem.kind}: "
            f"{' '.join(problem.message.split())}",
            err=True,
        )
    if len(result.problems) > _MOST_SHOWN:
        typer.echo(f"and {len(result.problems) - _MOST_SHOWN} others; the report has all", err=True)


def _tables(summary: Any, protocols: Sequence[str]) -> Iterator[Table]:
    """Give a table of means for each dataset and scenario under the first protocol, by volume where it has volumes."""
    from treg_med.evaluation.metric_names import metric

    groups = [g for g in summary["groups"] if g["protocol"] == protocols[0] and g["metric"] != "residual"]
    by_volume = any(group["level"] == "volume" for group in groups)
    groups = [group for group in groups if group["level"] == "volume" or not by_volume]
    for place in dict.fromkeys((group["dataset"], group["scenario"]) for group in groups):
        here = [group for group in groups if (group["dataset"], group["scenario"]) == place]
        table = Table(title=f"{place[0]}, {place[1]}, {protocols[0]}: mean over subjects")
        for heading in ("method", "subjects", *(metric(group["metric"]).heading for group in here)):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        cells = {(c["method"], c["arm"]): c["n"] for group in here for c in group["cells"]}
        for (method, arm), n in cells.items():
            name = method if arm in ("none", "right") else f"{method}, {arm} text"
            means = [
                metric(group["metric"]).format(
                    next((c["mean"] for c in group["cells"] if (c["method"], c["arm"]) == (method, arm)), None)
                )
                for group in here
            ]
            table.add_row(name, str(n), *means)
        yield table
