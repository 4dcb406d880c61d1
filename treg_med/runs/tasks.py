"""What a task, its outcome and an executor are; the engines know nothing of imaging.

An executor keeps its queue in the driver's process and gives every worker one task at a time, so that a worker
that dies takes at most one attempt of one task with it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from treg_med import errors
from treg_med.errors import ResourceError, TregMedError

__all__ = [
    "WORKER_DIED",
    "Executor",
    "Factory",
    "Failure",
    "Outcome",
    "Slot",
    "Task",
    "Work",
    "describe_failure",
    "failure_error",
]

#: `Failure.kind` of a task whose worker was lost at every attempt.
WORKER_DIED = "WorkerDied"


@dataclass(frozen=True)
class Slot:
    """Where one worker computes.

    Parameters
    ----------
    number
        Position among the slots, from 0.
    device
        The name of a torch device: ``"cpu"``, ``"cuda:1"``.
    threads
        CPU threads that torch may use there.
    """

    number: int
    device: str
    threads: int


#: Does one task: from the payload to a small picklable value.
Work = Callable[[Any], Any]
#: Prepares a worker, once in every process: loads what all tasks share and returns the function that uses it.
#: A function of a module, or a picklable object, since workers are other processes.
Factory = Callable[[Slot], Work]


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Parameters
    ----------
    key
        Name of the task, unique in a run.
    payload
        What the worker's function is called with; picklable.
    """

    key: str
    payload: Any


@dataclass(frozen=True)
class Failure:
    """Why a task has no value.

    Parameters
    ----------
    kind
        Name of the error's class (``"FormatError"``), or ``"WorkerDied"``.
    message
        One sentence for the user.
    exit_code
        What the command line would exit with.
    traceback
        Where it happened; empty where there is none.
    """

    kind: str
    message: str
    exit_code: int
    traceback: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one task ended: a value or a failure.

    Parameters
    ----------
    task
        The task, as it was submitted.
    value
        What the worker's function returned.
    failure
        Why there is no value.
    attempts
        Workers that began this task; more than one where a worker was lost.
    """

    task: Task
    value: Any = None
    failure: Failure | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """Whether the task succeeded."""
        return self.failure is None


class Executor(Protocol):
    """Runs submitted tasks and gives their outcomes in the order in which they end."""

    @property
    def slots(self) -> int:
        """Tasks that can run at the same time."""

    @property
    def pending(self) -> int:
        """Tasks whose outcome was not given yet: queued, running, or ended."""

    def submit(self, task: Task, *, front: bool = False) -> None:
        """Append a task to the queue, or put it first; never waits."""

    def next(self) -> Outcome:
        """Wait until a task has ended and return its outcome.

        Raises
        ------
        RuntimeError
            If nothing is pending.
        TregMedError
            If no worker can be prepared: a factory that fails once would fail in every worker.
        """

    def discard(self, matches: Callable[[Task], bool]) -> int:
        """Remove the queued tasks that match, and return how many; running ones go on."""

    def close(self) -> None:
        """Stop the workers now, whatever they do, and forget the queue."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def describe_failure(error: BaseException) -> Failure:
    """Return what a driver in another process must know of an exception.

    An exhausted memory, of the machine or of a device, becomes a ``ResourceError``.
    """
    trace = "".join(traceback.format_exception(error))
    # torch.OutOfMemoryError by name: the driver need not have imported torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        detail = " ".join(str(error).split())[:200] or "no details"
        message = f"out of memory ({detail}); use fewer samples, a smaller batch, or a machine with more memory"
        return Failure(ResourceError.__name__, message, ResourceError.exit_code, trace)
    code = error.exit_code if isinstance(error, TregMedError) else TregMedError.exit_code
    return Failure(type(error).__name__, str(error) or "no message", code, trace)


def failure_error(failure: Failure) -> Exception:
    """Return the exception of a failure: of the class it had if that is one of this package, else a RuntimeError.

    What happened in the worker is a note of it, which only a traceback shows.
    """
    known = getattr(errors, failure.kind, None) if failure.kind in errors.__all__ else None
    if failure.kind == WORKER_DIED:
        known = ResourceError
    error: Exception = known(failure.message) if known else RuntimeError(f"{failure.kind}: {failure.message}")
    error.add_note(f"In the worker:\n{failure.traceback}")
    return error
