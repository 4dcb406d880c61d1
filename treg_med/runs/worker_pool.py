"""The queue, the retries and the states of the workers, the same for every engine that has processes."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from treg_med.errors import ConfigError, ResourceError
from treg_med.runs.tasks import WORKER_DIED, Factory, Failure, Outcome, Slot, Task, describe_failure, failure_error
from treg_med.runs.worker import Reply

__all__ = ["Lost", "WorkerPool"]

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class Lost:
    """A worker that is gone, and how it ended."""

    reason: str


@dataclass
class _Attempt:
    task: Task
    number: int = 1


@dataclass
class _Seat(Generic[Handle]):
    """A slot and, where there is one, the worker in it."""

    slot: Slot
    worker: Handle | None = None
    ready: bool = False
    attempt: _Attempt | None = None
    lost_starts: int = 0

    @property
    def idle(self) -> bool:
        return self.ready and self.attempt is None

    @property
    def starting(self) -> bool:
        return self.worker is not None and not self.ready


class WorkerPool(ABC, Generic[Handle]):
    """An `Executor` with one worker in a slot and one task in a worker.

    Workers start when there is work for them. A task whose worker is lost goes back to the head of the queue
    until it was tried ``1 + retries`` times. Used from one thread.

    Parameters
    ----------
    factory
        Prepares a worker.
    slots
        Where workers compute.
    retries
        How often a task is tried again after its worker was lost, and a worker after it was lost while starting.

    Raises
    ------
    ConfigError
        If the factory cannot be pickled.
    """

    def __init__(self, factory: Factory, slots: Sequence[Slot], retries: int) -> None:
        try:
            self._factory = self._pack(factory)
        except Exception as error:
            raise ConfigError(
                f"expected a factory that other processes can import, got {factory!r}: {error}; "
                "define it at the top of a module"
            ) from error
        self._seats: list[_Seat[Handle]] = [_Seat(slot) for slot in slots]
        self._retries = retries
        self._queue: deque[_Attempt] = deque()
        self._ended: deque[Outcome] = deque()
        self._closed = False

    @abstractmethod
    def _start(self, slot: Slot) -> Handle:
        """Start a worker, without waiting; its first message says whether the factory succeeded."""

    @abstractmethod
    def _pack(self, payload: Any) -> bytes:
        """Return the pickled payload, or factory."""

    @abstractmethod
    def _is_alive(self, worker: Handle) -> bool:
        """Whether an idle worker is there, as far as can be told without waiting."""

    @abstractmethod
    def _send(self, worker: Handle, payload: bytes) -> None:
        """Give a packed payload to an idle worker; one that is gone is reported by `_wait`."""

    @abstractmethod
    def _wait(self, workers: Sequence[Handle]) -> list[tuple[Handle, bytes | Lost]]:
        """Wait for messages, pickled replies, of at least one worker."""

    @abstractmethod
    def _stop(self, workers: Sequence[Handle]) -> None:
        """End workers, whatever they do."""

    @property
    def slots(self) -> int:
        """Tasks that can run at the same time."""
        return len(self._seats)

    @property
    def pending(self) -> int:
        """Tasks whose outcome was not given yet."""
        return len(self._queue) + len(self._ended) + sum(seat.attempt is not None for seat in self._seats)

    def submit(self, task: Task, *, front: bool = False) -> None:
        """Append a task to the queue, or put it first."""
        if self._closed:
            raise RuntimeError("expected an open executor, got a closed one; make another")
        (self._queue.appendleft if front else self._queue.append)(_Attempt(task))
        self._advance()

    def next(self) -> Outcome:
        """Wait until a task has ended and return its outcome.

        Raises
        ------
        RuntimeError
            If nothing is pending.
        TregMedError
            What the factory raised; ResourceError if workers are lost again and again while they start.
        """
        if not self.pending:
            raise RuntimeError("expected a pending task to wait for, got an empty queue; submit one first")
        while not self._ended:
            by_worker = {id(seat.worker): seat for seat in self._seats if seat.worker is not None}
            workers = [seat.worker for seat in by_worker.values() if seat.worker is not None]
            for worker, message in self._wait(workers):
                self._take(by_worker[id(worker)], message)
            self._advance()
        return self._ended.popleft()

    def discard(self, matches: Callable[[Task], bool]) -> int:
        """Remove the queued tasks that match, and return how many; running ones go on."""
        kept = [attempt for attempt in self._queue if not matches(attempt.task)]
        removed = len(self._queue) - len(kept)
        self._queue = deque(kept)
        return removed

    def close(self) -> None:
        """Stop the workers now, whatever they do, and forget the queue."""
        self._closed = True
        self._queue.clear()
        self._ended.clear()
        workers = [seat.worker for seat in self._seats if seat.worker is not None]
        self._seats = [_Seat(seat.slot) for seat in self._seats]
        self._stop(workers)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers."""
        self.close()

    def _advance(self) -> None:
        for seat in self._seats:
            if seat.idle and self._queue:
                self._replace_if_dead(seat)
            while seat.idle and self._queue:
                self._give(seat, self._queue.popleft())
        starting = sum(seat.starting for seat in self._seats)
        for seat in self._seats:
            if seat.worker is None and starting < len(self._queue):
                seat.worker = self._start(seat.slot)
                starting += 1

    def _replace_if_dead(self, seat: _Seat[Handle]) -> None:
        """Keep a task from losing an attempt to a worker that died before."""
        if seat.worker is not None and not self._is_alive(seat.worker):
            self._stop([seat.worker])
            seat.worker, seat.ready = None, False

    def _give(self, seat: _Seat[Handle], attempt: _Attempt) -> None:
        assert seat.worker is not None  # noqa: S101 - an idle seat has a worker
        try:
            payload = self._pack(attempt.task.payload)
        except Exception as error:
            problem = TypeError(f"expected a payload that can be pickled, got {attempt.task.key!r}: {error}")
            self._ended.append(Outcome(attempt.task, failure=describe_failure(problem), attempts=attempt.number))
            return
        seat.attempt = attempt
        self._send(seat.worker, payload)

    def _take(self, seat: _Seat[Handle], message: bytes | Lost) -> None:
        if isinstance(message, Lost):
            self._vacate(seat, message)
            return
        reply = _unpack(message)
        if seat.attempt is not None:
            attempt, seat.attempt = seat.attempt, None
            self._ended.append(Outcome(attempt.task, reply.value, reply.failure, attempt.number))
        elif reply.failure is not None:
            raise failure_error(reply.failure)
        else:
            seat.ready, seat.lost_starts = True, 0

    def _vacate(self, seat: _Seat[Handle], lost: Lost) -> None:
        was_starting, attempt = seat.starting, seat.attempt
        seat.worker, seat.ready, seat.attempt = None, False, None
        if attempt is not None and attempt.number <= self._retries:
            self._queue.appendleft(_Attempt(attempt.task, attempt.number + 1))
        elif attempt is not None:
            self._ended.append(Outcome(attempt.task, failure=_died(attempt, lost), attempts=attempt.number))
        elif was_starting:
            seat.lost_starts += 1
            if seat.lost_starts > self._retries:
                raise ResourceError(
                    f"expected a worker on {seat.slot.device} to start, got one that {lost.reason}; free some memory, "
                    "ask for fewer workers, and in a script of your own guard the start with "
                    "'if __name__ == \"__main__\":'"
                )


def _unpack(message: bytes) -> Reply:
    try:
        return pickle.loads(message)  # noqa: S301 - from a process that this one started
    except Exception as error:
        problem = TypeError(f"expected a task's value that can be unpickled here, got {type(error).__name__}: {error}")
        return Reply(failure=describe_failure(problem))


def _died(attempt: _Attempt, lost: Lost) -> Failure:
    times = "once" if attempt.number == 1 else f"{attempt.number} times"
    message = (
        f"the worker on this task {lost.reason}, tried {times}; the task may need more memory than there is, or "
        "crash a library: run it alone on one worker to see"
    )
    return Failure(WORKER_DIED, message, ResourceError.exit_code)
