"""What a worker's process does: prepare once, then answer one task after the other; whatever engine started it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from treg_med.runs.tasks import Failure, Slot, Work, describe_failure

__all__ = ["STOP_GRACE", "THREAD_VARIABLES", "Reply", "answer", "prepare", "serve"]

#: Seconds between asking a worker to stop, so that it can remove its unfinished files, and killing it.
STOP_GRACE = 1.0
#: What the numerical libraries read at their import.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_DRIVER_CHECK = 0.5


@dataclass(frozen=True)
class Reply:
    """What a worker sends back."""

    value: Any = None
    failure: Failure | None = None


class _Stop(BaseException):
    """The driver has no more use for this worker; passes through every ``except Exception``."""


def prepare(factory: bytes, slot: Slot) -> tuple[Work | None, Reply]:
    """Return what the pickled factory makes, or the failure to report instead."""
    try:
        work = pickle.loads(factory)(slot)  # noqa: S301 - from the driver that started this process
    except (Exception, SystemExit) as error:
        return None, Reply(failure=describe_failure(error))
    # The environment has told torch already; a factory that changed the number does not get its way.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(slot.threads)
    return work, Reply()


def answer(work: Work, payload: bytes, dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """Return the pickled reply to a pickled payload; no exception of the task leaves this function."""
    try:
        value = work(pickle.loads(payload))  # noqa: S301 - from the driver that started this process
    except (Exception, SystemExit) as error:
        return pickle.dumps(Reply(failure=describe_failure(error)))
    try:
        return dumps(Reply(value))
    except Exception as error:
        problem = TypeError(f"expected a task's value that can be pickled, got {type(value).__name__}: {error}")
        return pickle.dumps(Reply(failure=describe_failure(problem)))


def serve(pipe: Connection, factory: bytes, slot: Slot) -> None:
    """Answer payloads from a pipe until it is closed, the driver is gone, or SIGTERM comes."""
    # A terminal sends Ctrl-C to all processes at once; what becomes of the workers is the driver's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_follow_driver, daemon=True).start()
    try:
        work, ready = prepare(factory, slot)
        pipe.send_bytes(pickle.dumps(ready))
        while work is not None:
            pipe.send_bytes(answer(work, pipe.recv_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except _Stop:
        # The task has cleaned up; taking down an interpreter that holds torch would take seconds more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + signal.SIGTERM)


def _stop(number: int, frame: object) -> None:
    # A second one, while a task cleans up, ends the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Stop


def _follow_driver() -> None:
    """End this process when the driver's has ended, even by SIGKILL and even in the middle of a task."""
    driver = parent_process()
    if driver is None:
        return
    # Both signs are needed: a process that the driver forked keeps the sentinel open, and Windows keeps the number.
    while os.getppid() == driver.pid and not wait([driver.sentinel], timeout=_DRIVER_CHECK):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE)
    os._exit(128 + signal.SIGTERM)
