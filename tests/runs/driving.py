"""What the tests of the executors share: driving one here, and a driver in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treg_med.runs.tasks import Executor, Outcome, Task

ROOT = Path(__file__).resolve().parents[2]

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray, the extra [distributed]")
# Whether a process is alive is read there.
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def submit(executor: Executor, *payloads: tuple[str, Any]) -> None:
    for number, payload in enumerate(payloads):
        executor.submit(Task(f"task {number}", payload))


def collect(executor: Executor) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    while executor.pending:
        outcome = executor.next()
        assert outcome.task.key not in outcomes
        outcomes[outcome.task.key] = outcome
    return outcomes


def run_one(executor: Executor, name: str, argument: Any = None) -> Outcome:
    executor.submit(Task("only", (name, argument)))
    return executor.next()


def alive(pid: int) -> bool:
    try:
        # A process that nobody has waited for is still listed, as a zombie; so is one whose other threads are ending.
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return False
    return state != "Z" or int(facts[16]) > 1


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


DRIVER = """
import sys
from tests.runs.workloads import workshop
from treg_med.runs.executors import make_executor
from treg_med.runs.tasks import Task

with make_executor(sys.argv[1], workshop, devices=["cpu"], workers=2, threads=1) as executor:
    for number in range(2):
        executor.submit(Task(str(number), eval(sys.argv[2 + number])))
    while executor.pending:
        print(executor.next().value, flush=True)
"""


def start_driver(engine: str, *payloads: tuple[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, engine, *map(repr, payloads)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def read_pid(file: Path) -> int:
    assert wait_until(lambda: file.exists() and file.read_text() != "", 60)
    return int(file.read_text())
