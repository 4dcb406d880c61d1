"""Running tasks one after the other in the driver's own process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from treg_med.runs.tasks import Factory, Outcome, Slot, Task, Work, describe_failure

__all__ = ["InProcessExecutor"]


class InProcessExecutor:
    """An `Executor` with one slot; `next` does the task.

    Torch uses ``slot.threads`` threads from the first task until `close`, which restores the number.

    Parameters
    ----------
    factory
        Prepares the work; called before the first task.
    slot
        Where to compute.
    """

    slots = 1

    def __init__(self, factory: Factory, slot: Slot) -> None:
        self._factory = factory
        self._slot = slot
        self._queue: deque[Task] = deque()
        self._work: Work | None = None
        self._threads_before: int | None = None
        self._closed = False

    @property
    def pending(self) -> int:
        """Tasks whose outcome was not given yet."""
        return len(self._queue)

    def submit(self, task: Task, *, front: bool = False) -> None:
        """Append a task to the queue, or put it first."""
        if self._closed:
            raise RuntimeError("expected an open executor, got a closed one; make another")
        (self._queue.appendleft if front else self._queue.append)(task)

    def next(self) -> Outcome:
        """Do the first task of the queue and return its outcome.

        Raises
        ------
        RuntimeError
            If nothing is pending.
        """
        if not self._queue:
            raise RuntimeError("expected a pending task to do, got an empty queue; submit one first")
        if self._work is None:
            self._work = self._prepare()
        task = self._queue.popleft()
        try:
            return Outcome(task, self._work(task.payload))
        except (Exception, SystemExit) as error:
            return Outcome(task, failure=describe_failure(error))

    def _prepare(self) -> Work:
        import torch

        if self._threads_before is None:
            self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._slot.threads)
        return self._factory(self._slot)

    def discard(self, matches: Callable[[Task], bool]) -> int:
        """Remove the queued tasks that match, and return how many."""
        kept = [task for task in self._queue if not matches(task)]
        removed = len(self._queue) - len(kept)
        self._queue = deque(kept)
        return removed

    def close(self) -> None:
        """Forget the queue and what the factory made, and restore torch's number of threads."""
        self._closed = True
        self._queue.clear()
        self._work = None
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
