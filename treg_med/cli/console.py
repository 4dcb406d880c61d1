"""Tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from treg_med.solvers.base import Callback
    from treg_med.volume import MethodResult

__all__ = ["method_table", "print_json", "print_warnings", "progress_bar", "stdout", "training_bar"]


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


def method_table(title: str, rows: Sequence[MethodResult]) -> Table:
    """Return the comparison that commands print: one row per method."""
    table = Table(title=title)
    for heading in ("method", "residual (noise units)", "seconds", "network evaluations"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(row.label, f"{row.residual:.3f}", f"{row.seconds:.1f}", str(row.nfe))
    return table


def print_warnings(messages: Sequence[str]) -> None:
    """Print each warning once, in order, to stderr."""
    for message in dict.fromkeys(messages):
        typer.echo(f"warning: {message}", err=True)
