"""Processes of this machine: how they end, and how they start."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.runs import workloads
from tests.runs.driving import (
    DRIVER,
    alive,
    collect,
    needs_proc,
    read_pid,
    run,
    run_one,
    start_driver,
    submit,
    wait_until,
)
from treg_med.runs.executors import make_executor
from treg_med.runs.tasks import Slot, Task

pytestmark = needs_proc


def test_devices_are_dealt_in_turn() -> None:
    with make_executor("local", workloads.workshop, devices=["cpu", "meta"], workers=3, threads=1) as executor:
        assert executor.slots == 3
        submit(executor, *(("slot", 0.2) for _ in range(12)))
        slots = {outcome.value for outcome in collect(executor).values()}
    assert slots <= {Slot(0, "cpu", 1), Slot(1, "meta", 1), Slot(2, "cpu", 1)}
    assert len(slots) >= 2


def test_the_message_says_how_a_worker_ended() -> None:
    with make_executor("local", workloads.workshop, devices=["cpu"], workers=2, threads=1, retries=0) as executor:
        submit(executor, ("poison", None), ("end", 139))
        outcomes = collect(executor)
    messages = [outcomes[f"task {number}"].failure.message for number in range(2)]  # type: ignore[union-attr]
    assert "was killed by SIGKILL" in messages[0]
    assert "ended with exit code 139" in messages[1]


def test_a_worker_killed_while_idle_costs_no_attempt() -> None:
    with make_executor("local", workloads.workshop, devices=["cpu"], workers=2, threads=1, retries=0) as executor:
        pid = run_one(executor, "pid").value
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(pid), 5)
        submit(executor, *(("echo", number) for number in range(4)))
        assert all(outcome.ok for outcome in collect(executor).values())


def test_a_task_can_clean_up_when_the_executor_is_closed(tmp_path: Path) -> None:
    with make_executor("local", workloads.workshop, devices=["cpu"], workers=2, threads=1) as executor:
        assert run_one(executor, "echo", "ready").ok
        executor.submit(Task("long", ("sleep with file", str(tmp_path / "file"))))
        pid = read_pid(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert not alive(pid)


def test_interrupting_the_terminal_ends_all_and_only_the_driver_says_so(tmp_path: Path) -> None:
    driver = start_driver("local", ("sleep with file", str(tmp_path / "file")), ("pid", None))
    busy = read_pid(tmp_path / "file")
    idle = int(driver.stdout.readline())  # type: ignore[union-attr]
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=10)
    assert driver.returncode in (130, -signal.SIGINT)
    assert said.count("Traceback") == 1
    assert not alive(busy) and not alive(idle)
    assert not (tmp_path / "file").exists()


def test_a_script_can_define_its_own_factory(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from treg_med.runs.executors import make_executor\n"
        "from treg_med.runs.tasks import Task\n"
        "def double(number): return 2 * number\n"
        "def factory(slot): return double\n"
        "if __name__ == '__main__':\n"
        "    with make_executor('local', factory, devices=['cpu'], workers=2, threads=1) as executor:\n"
        "        executor.submit(Task('one', 21))\n"
        "        print(executor.next().value)\n"
    )
    done = run([sys.executable, str(script)])
    assert done.stdout == "42\n", done.stderr


def test_an_executor_that_nobody_closed_does_not_keep_the_interpreter() -> None:
    code = DRIVER.replace("with make", "executor = make").replace(" as executor:", "\nif True:")
    done = run([sys.executable, "-c", code, "local", "('echo', 1)", "('echo', 1)"])
    assert (done.stdout, done.returncode) == ("1\n1\n", 0), done.stderr
