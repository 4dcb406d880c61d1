"""What the workers of the tests do; a module of its own, since workers import it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from treg_med.errors import FormatError
from treg_med.runs.tasks import Slot, Work

prepared: list[Slot] = []


def workshop(slot: Slot) -> Work:
    """A task is the name of something below and its argument."""
    prepared.append(slot)

    def work(payload: tuple[str, Any]) -> Any:
        name, argument = payload
        return ACTIONS[name](argument)

    return work


def broken_workshop(slot: Slot) -> Work:
    raise FormatError(f"expected weights on {slot.device}, got none; train first")


def dying_workshop(slot: Slot) -> Work:
    os._exit(17)


def torch_workshop(slot: Slot) -> Work:
    import torch

    torch.set_num_threads(slot.threads + 3)
    return lambda _: (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], slot)


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class UnpicklableHere:
    """Pickles, but makes the reader fail."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("not a number",))


def _kill_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def _slot(seconds: float) -> Slot:
    time.sleep(seconds)
    return prepared[-1]


def _meet(files: tuple[str, str]) -> bool:
    """Wait for another task that waits for this one."""
    mine, other = map(Path, files)
    mine.touch()
    deadline = time.monotonic() + 60
    while not other.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return other.exists()


def _raise(error: BaseException) -> None:
    raise error


def _raise_unpicklable(_: object) -> None:
    raise UnpicklableError


def _sleep_with_file(path: str) -> None:
    """A long task that cleans up after itself."""
    Path(path).write_text(str(os.getpid()))
    try:
        time.sleep(60)
    finally:
        Path(path).unlink()


def _spin(path: str) -> None:
    """A long task without a pause."""
    Path(path).write_text(str(os.getpid()))
    while True:
        pass


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "echo": lambda value: value,
    "pid": lambda _: os.getpid(),
    "sleep": time.sleep,
    "slot": _slot,
    "variable": os.environ.get,
    "meet": _meet,
    "preparations": lambda _: (os.getpid(), len(prepared)),
    "kill once": _kill_once,
    "poison": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "end": os._exit,
    "exit": sys.exit,
    "raise": _raise,
    "raise unpicklable": _raise_unpicklable,
    "large": lambda size: bytes(size),
    "lock": lambda _: threading.Lock(),
    "unpicklable here": lambda _: UnpicklableHere(),
    "sleep with file": _sleep_with_file,
    "spin": _spin,
}
