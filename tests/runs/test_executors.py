"""One battery for all executors, and what each of them promises beyond it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from tests.runs import workloads
from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.runs.executors import make_executor
from treg_med.runs.local_executor import LocalExecutor
from treg_med.runs.tasks import WORKER_DIED, Executor, Factory, Outcome, Slot, Task, describe_failure

# Whether a process is alive is read there.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Executor]

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray, the extra [distributed]")
with_processes = pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
with_all = pytest.mark.parametrize("engine", ["in-process", "local", pytest.param("ray", marks=needs_ray)])


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One cluster for the module: starting it takes seconds."""
    from treg_med.runs.ray_executor import connect

    assert connect(cpus=4, gpus=1)
    yield
    import ray

    ray.shutdown()


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
        # A process that nobody has waited for is still listed, as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


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

    def test_discarded_tasks_do_not_run(self, make: Make) -> None:
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
        pid = _read_pid(tmp_path / "pid")
        began = time.monotonic()
        executor.close()
        assert time.monotonic() - began < 3
        assert wait_until(lambda: not alive(pid), 3)
        assert executor.pending == 0

    @pytest.mark.slow
    def test_workers_end_with_a_driver_that_was_killed(self, make: Make, engine: str, tmp_path: Path) -> None:
        driver = _start_driver(engine, ("spin", str(tmp_path / "busy")), ("pid", None))
        pid = _read_pid(tmp_path / "busy")
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


def _start_driver(engine: str, *payloads: tuple[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, engine, *map(repr, payloads)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def _read_pid(file: Path) -> int:
    assert wait_until(lambda: file.exists() and file.read_text() != "", 60)
    return int(file.read_text())


class TestLocal:
    def test_devices_are_dealt_in_turn(self) -> None:
        with make_executor("local", workloads.workshop, devices=["cpu", "meta"], workers=3, threads=1) as executor:
            assert executor.slots == 3
            submit(executor, *(("slot", 0.2) for _ in range(12)))
            slots = {outcome.value for outcome in collect(executor).values()}
        assert slots <= {Slot(0, "cpu", 1), Slot(1, "meta", 1), Slot(2, "cpu", 1)}
        assert len(slots) >= 2

    def test_the_message_says_how_a_worker_ended(self) -> None:
        with make_executor("local", workloads.workshop, devices=["cpu"], workers=2, threads=1, retries=0) as executor:
            submit(executor, ("poison", None), ("end", 139))
            outcomes = collect(executor)
        messages = [outcomes[f"task {number}"].failure.message for number in range(2)]  # type: ignore[union-attr]
        assert "was killed by SIGKILL" in messages[0]
        assert "ended with exit code 139" in messages[1]

    def test_a_worker_killed_while_idle_costs_no_attempt(self) -> None:
        with make_executor("local", workloads.workshop, devices=["cpu"], workers=2, threads=1, retries=0) as executor:
            pid = run_one(executor, "pid").value
            os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: not alive(pid), 5)
            submit(executor, *(("echo", number) for number in range(4)))
            assert all(outcome.ok for outcome in collect(executor).values())

    def test_a_task_can_clean_up_when_the_executor_is_closed(self, tmp_path: Path) -> None:
        with make_executor("local", workloads.workshop, devices=["cpu"], workers=2, threads=1) as executor:
            assert run_one(executor, "echo", "ready").ok
            executor.submit(Task("long", ("sleep with file", str(tmp_path / "file"))))
            pid = _read_pid(tmp_path / "file")
        assert not (tmp_path / "file").exists()
        assert not alive(pid)

    def test_interrupting_the_terminal_ends_all_and_only_the_driver_says_so(self, tmp_path: Path) -> None:
        driver = _start_driver("local", ("sleep with file", str(tmp_path / "file")), ("pid", None))
        busy = _read_pid(tmp_path / "file")
        idle = int(driver.stdout.readline())  # type: ignore[union-attr]
        os.killpg(driver.pid, signal.SIGINT)
        _, said = driver.communicate(timeout=10)
        assert driver.returncode in (130, -signal.SIGINT)
        assert said.count("Traceback") == 1
        assert not alive(busy) and not alive(idle)
        assert not (tmp_path / "file").exists()

    def test_a_script_can_define_its_own_factory(self, tmp_path: Path) -> None:
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
        done = _run([sys.executable, str(script)])
        assert done.stdout == "42\n", done.stderr

    def test_an_executor_that_nobody_closed_does_not_keep_the_interpreter(self) -> None:
        code = DRIVER.replace("with make", "executor = make").replace(" as executor:", "\nif True:")
        done = _run([sys.executable, "-c", code, "local", "('echo', 1)", "('echo', 1)"])
        assert (done.stdout, done.returncode) == ("1\n1\n", 0), done.stderr


@needs_ray
class TestRay:
    def test_the_cluster_asks_for_a_token(self, ray_session: None) -> None:
        import ray

        address = ray.get_runtime_context().gcs_address
        # Not with ray.init, which tries for 20 seconds.
        code = f"from ray._raylet import GcsClient; GcsClient({address!r}); print('in')"
        stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        stranger["RAY_AUTH_MODE"], stranger["RAY_AUTH_TOKEN"] = "token", "a guess"
        done = _run([sys.executable, "-c", code], stranger)
        assert "in" not in done.stdout.split()
        assert "AuthenticationError" in done.stderr

    def test_more_than_the_cluster_has_is_refused(self, ray_session: None) -> None:
        with pytest.raises(ResourceError, match="expected 64 CPUs and 0 GPUs"):
            make_executor("ray", workloads.workshop, devices=["cpu"], workers=32, threads=2)
        with pytest.raises(ResourceError, match="2 GPUs"):
            make_executor("ray", workloads.workshop, devices=["cuda:0", "cuda:1"], workers=2, threads=1)

    def test_a_gpu_worker_has_one_gpu_and_calls_it_the_first(self, ray_session: None) -> None:
        with make_executor("ray", workloads.workshop, devices=["cuda:3"], workers=1, threads=1) as executor:
            submit(executor, ("slot", 0), ("variable", "CUDA_VISIBLE_DEVICES"))
            outcomes = collect(executor)
        assert outcomes["task 0"].value == Slot(0, "cuda:0", 1)
        assert outcomes["task 1"].value == "0"


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


def test_ray_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from treg_med.runs import ray_executor

    def missing(name: str) -> str:
        raise ray_executor.PackageNotFoundError(name)

    monkeypatch.setattr(ray_executor, "version", missing)
    with pytest.raises(ConfigError, match=r"treg-med\[distributed\]"):
        make_executor("ray", workloads.workshop, devices=["cpu"], workers=2, threads=1)


def test_ray_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from treg_med.runs import ray_executor

    monkeypatch.setattr(ray_executor, "version", lambda _: "2.51.1")
    with pytest.raises(ConfigError, match=r"ray >= 2\.52"):
        make_executor("ray", workloads.workshop, devices=["cpu"], workers=2, threads=1)


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
