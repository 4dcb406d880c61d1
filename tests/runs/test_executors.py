"""One battery for all executors, and what each of them promises beyond it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from tests.runs import workloads
from tests.runs.driving import (
    alive,
    collect,
    needs_proc,
    needs_ray,
    read_pid,
    run_one,
    start_driver,
    submit,
    wait_until,
)
from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.runs.executors import make_executor
from treg_med.runs.local_executor import LocalExecutor
from treg_med.runs.tasks import WORKER_DIED, Executor, Factory, Slot, Task, describe_failure

pytestmark = needs_proc
Make = Callable[..., Executor]

with_processes = pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
with_all = pytest.mark.parametrize("engine", ["in-process", "local", pytest.param("ray", marks=needs_ray)])


@pytest.fixture
def make(engine: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes executors of one engine and closes them."""
    if engine == "ray":
        request.getfixturevalue("ray_session")
    made: list[Executor] = []

    def build(
        factory: Factory = workloads.workshop, *, workers: int = 2, threads: int = 1, retries: int = 1
    ) -> Executor:
        if engine == "in-process":
            made.append(make_executor("local", factory, devices=["cpu"], workers=1, threads=threads, retries=retries))
        elif engine == "local":
            # Not by name: for one worker that is the driver's own process.
            made.append(LocalExecutor(factory, [Slot(n, "cpu", threads) for n in range(workers)], retries))
        else:
            made.append(
                make_executor("ray", factory, devices=["cpu"], workers=workers, threads=threads, retries=retries)
            )
        return made[-1]

    yield build
    for executor in made:
        executor.close()


@with_all
class TestBattery:
    def test_every_task_has_one_outcome(self, make: Make) -> None:
        executor = make()
        submit(executor, *(("echo", number) for number in range(20)))
        assert executor.pending == 20
        outcomes = collect(executor)
        assert {key: outcome.value for key, outcome in outcomes.items()} == {f"task {n}": n for n in range(20)}
        assert all(outcome.ok and outcome.attempts == 1 for outcome in outcomes.values())

    def test_tasks_can_follow_from_outcomes(self, make: Make) -> None:
        executor = make()
        submit(executor, ("echo", 0), ("echo", 0))
        values = []
        while executor.pending:
            outcome = executor.next()
            values.append(outcome.value)
            if outcome.value < 3:
                executor.submit(Task(f"{outcome.task.key}+", ("echo", outcome.value + 1)))
        assert sorted(values) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_a_task_in_front_is_the_next(self, make: Make) -> None:
        executor = make(workers=1)
        submit(executor, ("sleep", 0.1), ("echo", "later"))
        executor.submit(Task("urgent", ("echo", "now")), front=True)
        order = [executor.next().task.key for _ in range(3)]
        assert order.index("urgent") < order.index("task 1")

    def test_discarded_tasks_do_notrun(self, make: Make) -> None:
        executor = make(workers=1)
        submit(executor, *(("echo", number) for number in range(6)))
        assert executor.discard(lambda task: task.payload[1] in (3, 5)) == 2
        assert set(collect(executor)) == {"task 0", "task 1", "task 2", "task 4"}

    def test_an_exception_is_a_typed_failure_and_is_not_tried_again(self, make: Make) -> None:
        executor = make()
        submit(executor, ("raise", FormatError("no header")), ("raise", KeyError("x")), ("echo", 1), ("exit", 3))
        outcomes = collect(executor)
        first, second, _, last = (outcomes[f"task {number}"] for number in range(4))
        assert first.failure is not None
        assert (first.failure.kind, first.failure.message, first.failure.exit_code) == ("FormatError", "no header", 3)
        assert "_raise" in first.failure.traceback
        assert second.failure is not None and (second.failure.kind, second.failure.exit_code) == ("KeyError", 1)
        assert last.failure is not None and last.failure.kind == "SystemExit"
        assert outcomes["task 2"].value == 1
        assert all(outcome.attempts == 1 for outcome in outcomes.values())

    def test_exhausted_memory_is_a_resource_error(self, make: Make) -> None:
        executor = make(workers=1)
        failure = run_one(executor, "raise", MemoryError()).failure
        assert failure is not None
        assert (failure.kind, failure.exit_code) == ("ResourceError", 5)
        assert "out of memory" in failure.message

    def test_waiting_for_nothing_is_refused(self, make: Make) -> None:
        executor = make()
        with pytest.raises(RuntimeError, match="submit one first"):
            executor.next()
        executor.close()
        with pytest.raises(RuntimeError, match="closed"):
            submit(executor, ("echo", 1))

    def test_what_the_factory_raises_reaches_the_driver(self, make: Make) -> None:
        executor = make(workloads.broken_workshop)
        submit(executor, ("echo", 1), ("echo", 2))
        with pytest.raises(FormatError, match="expected weights on cpu"):
            executor.next()

    def test_an_exception_that_cannot_be_pickled(self, make: Make) -> None:
        failure = run_one(make(), "raise unpicklable").failure
        assert failure is not None
        assert (failure.kind, failure.message) == ("UnpicklableError", "holds a lock")


@with_processes
class TestProcesses:
    def test_a_killed_worker_is_replaced_and_its_task_done(self, make: Make, tmp_path: Path) -> None:
        executor = make()
        submit(executor, *(("kill once", str(tmp_path / "killed")) if n == 3 else ("echo", n) for n in range(12)))
        outcomes = collect(executor)
        assert len(outcomes) == 12
        assert all(outcome.ok for outcome in outcomes.values())
        assert (outcomes["task 3"].value, outcomes["task 3"].attempts) == ("survived", 2)
        assert sum(outcome.attempts for outcome in outcomes.values()) == 13

    def test_a_task_that_always_kills_its_worker_fails_alone(self, make: Make) -> None:
        executor = make()
        submit(executor, *(("poison", None) if n == 2 else ("echo", n) for n in range(8)))
        outcomes = collect(executor)
        failed = outcomes.pop("task 2")
        assert len(outcomes) == 7
        assert all(outcome.ok for outcome in outcomes.values())
        assert failed.failure is not None
        assert (failed.failure.kind, failed.failure.exit_code, failed.attempts) == (WORKER_DIED, 5, 2)
        assert "2 times" in failed.failure.message

    def test_no_retries_where_none_are_asked_for(self, make: Make, tmp_path: Path) -> None:
        outcome = run_one(make(workers=1, retries=0), "kill once", str(tmp_path / "killed"))
        assert outcome.failure is not None
        assert (outcome.failure.kind, outcome.attempts) == (WORKER_DIED, 1)

    def test_the_factory_is_called_once_in_every_process(self, make: Make) -> None:
        executor = make()
        submit(executor, *(("preparations", None) for _ in range(10)))
        answers = {outcome.value for outcome in collect(executor).values()}
        assert {count for _, count in answers} == {1}
        assert os.getpid() not in {pid for pid, _ in answers}
        assert 1 <= len(answers) <= 2

    def test_both_workers_work_at_the_same_time(self, make: Make, tmp_path: Path) -> None:
        executor = make()
        here, there = str(tmp_path / "here"), str(tmp_path / "there")
        submit(executor, ("meet", (here, there)), ("meet", (there, here)))
        assert all(outcome.value for outcome in collect(executor).values())

    def test_the_number_of_threads_is_as_asked(self, make: Make) -> None:
        before = os.environ.get("OMP_NUM_THREADS")
        executor = make(workloads.torch_workshop, workers=1, threads=2)
        executor.submit(Task("only", None))
        assert executor.next().value == (2, "2", Slot(0, "cpu", 2))
        assert os.environ.get("OMP_NUM_THREADS") == before

    def test_a_worker_that_dies_while_it_starts_is_not_started_forever(self, make: Make) -> None:
        executor = make(workloads.dying_workshop, workers=1)
        submit(executor, ("echo", 1))
        with pytest.raises(ResourceError, match="expected a worker on cpu to start"):
            executor.next()

    def test_values_larger_than_a_pipe(self, make: Make) -> None:
        executor = make()
        submit(executor, ("large", 5_000_000), ("echo", bytes(5_000_000)))
        assert [len(outcome.value) for outcome in collect(executor).values()] == [5_000_000] * 2

    def test_values_that_cannot_be_pickled(self, make: Make) -> None:
        executor = make(workers=1)
        submit(executor, ("lock", None), ("unpicklable here", None), ("echo", Lock()), ("echo", "fine"))
        outcomes = collect(executor)
        assert outcomes.pop("task 3").value == "fine"
        for outcome in outcomes.values():
            assert outcome.failure is not None
            assert outcome.failure.kind == "TypeError"
            assert "pickled" in outcome.failure.message

    def test_a_factory_that_cannot_be_pickled(self, make: Make) -> None:
        with pytest.raises(ConfigError, match="other processes can import"):
            make(_HoldsLock())

    def test_closing_ends_a_running_task(self, make: Make, tmp_path: Path) -> None:
        executor = make(workers=1)
        assert run_one(executor, "echo", "ready").ok
        executor.submit(Task("endless", ("spin", str(tmp_path / "pid"))))
        pid = read_pid(tmp_path / "pid")
        began = time.monotonic()
        executor.close()
        assert time.monotonic() - began < 3
        assert wait_until(lambda: not alive(pid), 3)
        assert executor.pending == 0

    @pytest.mark.slow
    def test_workers_end_with_a_driver_that_was_killed(self, make: Make, engine: str, tmp_path: Path) -> None:
        driver = start_driver(engine, ("spin", str(tmp_path / "busy")), ("pid", None))
        pid = read_pid(tmp_path / "busy")
        idle = int(driver.stdout.readline())  # type: ignore[union-attr]
        assert alive(pid) and alive(idle)
        driver.kill()
        driver.wait()
        assert wait_until(lambda: not alive(pid) and not alive(idle), 3)


class _HoldsLock:
    def __init__(self) -> None:
        self.lock = Lock()

    def __call__(self, slot: Slot) -> Callable[[Any], Any]:
        return lambda _: slot


def test_torch_in_the_driver_has_its_threads_back_at_the_end() -> None:
    def factory(slot: Slot) -> Callable[[Any], int]:
        return lambda _: torch.get_num_threads()

    before = torch.get_num_threads()
    with make_executor("local", factory, devices=["cpu"], workers=1, threads=2) as executor:
        executor.submit(Task("only", None))
        assert executor.next().value == 2
    assert torch.get_num_threads() == before


def test_ctrl_c_passes_through_the_driver_s_own_executor() -> None:
    with make_executor("local", workloads.workshop, devices=["cpu"], workers=1, threads=1) as executor:
        submit(executor, ("raise", KeyboardInterrupt()), ("echo", 1))
        with pytest.raises(KeyboardInterrupt):
            executor.next()


def test_memory_of_a_device_is_a_resource_error_too() -> None:
    failure = describe_failure(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))
    assert (failure.kind, failure.exit_code) == ("ResourceError", 5)
    assert "20 GiB" in failure.message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "dask"}, "local, ray"),
        ({"workers": 0}, "workers >= 1"),
        ({"threads": 0}, "threads >= 1"),
        ({"retries": -1}, "retries >= 0"),
        ({"devices": []}, "at least one device"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"kind": "local", "devices": ["cpu"], "workers": 2, "threads": 1, "retries": 1}
    settings |= changed
    with pytest.raises(ConfigError, match=message):
        make_executor(settings.pop("kind"), workloads.workshop, **settings)
