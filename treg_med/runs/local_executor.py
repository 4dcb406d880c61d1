"""One process per slot on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from treg_med.runs.tasks import Factory, Slot
from treg_med.runs.worker import STOP_GRACE, THREAD_VARIABLES, serve
from treg_med.runs.worker_pool import Lost, WorkerPool

__all__ = ["LocalExecutor"]

# A closed pipe comes a moment before the process has ended.
_ENDING = 5.0


@dataclass(frozen=True)
class _Process:
    process: BaseProcess
    pipe: Connection


class LocalExecutor(WorkerPool[_Process]):
    """An `Executor` with one process per slot, started afresh and not forked.

    A worker that dies is replaced; workers ignore Ctrl-C and end with the driver, however that ends. Closing
    sends SIGTERM, which a task sees as an exception and can clean up after, and SIGKILL a second later.
    Tasks cannot start processes through `multiprocessing`.

    Parameters
    ----------
    factory
        Prepares a worker; a function of a module, or a picklable object.
    slots
        Where workers compute.
    retries
        How often a task is tried again after its worker died.

    Raises
    ------
    ConfigError
        If the factory cannot be pickled.
    """

    def __init__(self, factory: Factory, slots: Sequence[Slot], retries: int = 1) -> None:
        super().__init__(factory, slots, retries)
        self._context = multiprocessing.get_context("spawn")

    def _start(self, slot: Slot) -> _Process:
        ours, theirs = self._context.Pipe()
        # Daemon: an executor that nobody closed must not keep the interpreter from ending.
        process = self._context.Process(
            target=serve, args=(theirs, self._factory, slot), name=f"worker-{slot.number}", daemon=True
        )
        with _threads_in_environment(slot.threads), _interrupts_blocked():
            process.start()
        # The worker's end stays open in the worker alone, so that its death closes the pipe.
        theirs.close()
        return _Process(process, ours)

    def _pack(self, payload: Any) -> bytes:
        return pickle.dumps(payload)

    def _is_alive(self, worker: _Process) -> bool:
        return worker.process.is_alive()

    def _send(self, worker: _Process, payload: bytes) -> None:
        with suppress(OSError):
            worker.pipe.send_bytes(payload)

    def _wait(self, workers: Sequence[_Process]) -> list[tuple[_Process, bytes | Lost]]:
        by_pipe = {worker.pipe: worker for worker in workers}
        by_sentinel = {worker.process.sentinel: worker for worker in workers}
        readable = wait([*by_pipe, *by_sentinel])
        talking = [by_pipe[item] for item in readable if isinstance(item, Connection)]
        # The last message of a worker is still in its pipe when the worker has ended.
        ended = [by_sentinel[item] for item in readable if isinstance(item, int) and by_sentinel[item] not in talking]
        return [(worker, self._receive(worker)) for worker in (*talking, *ended)]

    def _receive(self, worker: _Process) -> bytes | Lost:
        try:
            return worker.pipe.recv_bytes()
        except (EOFError, OSError):
            worker.process.join(_ENDING)
            reason = _how_it_ended(worker.process.exitcode)
            self._stop([worker])
            return Lost(reason)

    def _stop(self, workers: Sequence[_Process]) -> None:
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_GRACE
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


@contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """Tell the numerical libraries of a process that starts inside how many threads to use: they read it once."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let a process that starts inside inherit a blocked SIGINT: Ctrl-C must not stop its imports with a traceback.

    An interrupt that comes meanwhile reaches the driver afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting it later would unblock the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
