"""Tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from treg_med.runs.driver import RunProgress
    from treg_med.runs.plan import VolumeOutcome
    from treg_med.solvers.problem import Callback

__all__ = ["method_table", "print_json", "print_warnings", "progress_bar", "run_bar", "stdout", "training_bar"]


def stdout() -> Console:
    """Return a console on the present standard output."""
    return Console(soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON document; numbers that JSON does not know become null."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


@contextmanager
def progress_bar() -> Iterator[Callable[[str], Callback]]:
    """Show a bar on a terminal; give a function that names the work and returns the callback of a solver.

    Where stderr is not a terminal each piece of work is announced by one plain line.
    """
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def start(label: str) -> Callback:
            if not console.is_terminal:
                console.print(label, markup=False, soft_wrap=True)
            bar.reset(task, description=label, total=None)
            return lambda step: bar.update(
                task, description=f"{label}: {step.stage}", completed=step.step, total=step.total
            )

        yield start


@contextmanager
def training_bar() -> Iterator[tuple[Callable[[str], None], Callable[[int, int, str], None] | None]]:
    """Give what a training tells: a function for lines, and one for the bar, None where stderr is no terminal."""
    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield say, None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=None)
        yield say, lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


@contextmanager
def run_bar(volumes: int) -> Iterator[tuple[Callable[[RunProgress], None], Callable[[str], Callback]]]:
    """Show how far a run over volumes is and when it will end; give what it is to be told with.

    The second function names a slice and returns the callback of its solver. Where stderr is not a terminal each slice
    that is solved in this process is announced by one plain line.
    """
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("slices", total=None)

        def watch(progress: RunProgress) -> None:
            # The slices of volumes that were not opened yet are guessed from those that were.
            known = max(1, progress.volumes_total)
            total = round(progress.slices_total * max(1.0, volumes / known))
            label = f"volume {min(progress.volumes + 1, volumes)}/{volumes}, slices"
            bar.update(task, description=label, completed=progress.slices, total=total or None)

        def follow(label: str) -> Callback:
            if not console.is_terminal:
                console.print(label, markup=False, soft_wrap=True)
            return lambda step: bar.update(task, description=f"{label}: {step.stage} {step.step}/{step.total}")

        yield watch, follow


def method_table(title: str, outcome: VolumeOutcome) -> Table:
    """Return the comparison that commands print: one row per method."""
    table = Table(title=title)
    distances = outcome.domain_distances
    headings = ["method", "residual (noise units)", "seconds", "network evaluations"]
    for heading in [*headings, *(["domain distance (limit 1)"] if distances else [])]:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for label, residual in outcome.residuals.items():
        cells = [label, f"{residual:.3f}", f"{outcome.seconds[label]:.1f}", str(outcome.evaluations[label])]
        if distances:
            cells.append(f"{distances[label]:.2f}" if label in distances else "–")
        table.add_row(*cells)
    return table


def print_warnings(messages: Sequence[str]) -> None:
    """Print each warning once, in order, to stderr."""
    for message in dict.fromkeys(messages):
        typer.echo(f"warning: {message}", err=True)
