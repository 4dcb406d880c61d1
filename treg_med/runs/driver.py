"""Volumes through an executor: plan, solve slice by slice, assemble; what fails is set aside and the rest goes on.

Nothing is lost when it stops, however it stops: finished slices and finished volumes are files, and the same call goes
on where the last one ended. Where a slice is computed, in which order and next to which others has no influence on it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from treg_med.data import software_versions
from treg_med.errors import ResourceError, TregMedError
from treg_med.runs.executors import ExecutorKind, make_executor
from treg_med.runs.index import RunIndex
from treg_med.runs.locks import OutputLock
from treg_med.runs.machine import chosen_devices, default_workers, task_slices
from treg_med.runs.plan import VolumeJob, VolumeOutcome, VolumePlan
from treg_med.runs.prior_source import PriorSource
from treg_med.runs.records import RecordStore
from treg_med.runs.tasks import Executor, Failure, Outcome, Task, describe_failure
from treg_med.runs.tree import OutputTree
from treg_med.runs.volume_files import index_facts
from treg_med.runs.volume_worker import Assemble, Assembled, Plan, Solve, Solved, WorkerSettings

if TYPE_CHECKING:
    from treg_med.solvers.problem import Callback

__all__ = ["RunProgress", "drive", "run_volumes"]

# Volumes that are open at once, per worker: enough that none waits, few enough that half-done work stays small.
_OPEN_PER_SLOT = 2


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Parameters
    ----------
    volumes, volumes_total
        Ended and known volumes.
    slices, slices_total
        Solved slices, and those of all volumes opened so far.
    label
        What was worked on last.
    """

    volumes: int
    volumes_total: int
    slices: int
    slices_total: int
    label: str


def run_volumes(
    jobs: Iterable[VolumeJob],
    *,
    prior: Path | None = None,
    adapters: Sequence[Path] = (),
    executor: str = "local",
    workers: int | None = None,
    device: str | None = None,
    threads: int = 1,
    batch: int | None = None,
    overwrite: bool = False,
    retries: int = 1,
    watch: Callable[[RunProgress], None] | None = None,
    follow: Callable[[str], Callback] | None = None,
) -> Iterator[VolumeOutcome]:
    """Reconstruct volumes and give the outcome of each as it ends.

    In a script, call it below ``if __name__ == "__main__":``, as workers import the script again.

    Parameters
    ----------
    jobs
        What to do; taken from as work proceeds.
    prior, adapters
        As in `LatentPrior.from_pretrained`.
    executor
        ``"local"``, processes of this machine; or ``"ray"``.
    workers
        Processes; None: one for each accelerator, else one for each CPU core that memory allows.
    device
        None: all accelerators, else the CPU.
    threads
        CPU threads of each worker. The last bits of a result depend on it, and on nothing else that is chosen here.
    batch
        Slices in flight at once in a worker on an accelerator; None is 8.
    overwrite
        Do again what is there, and replace outputs of other work.
    retries
        Further attempts after a worker was lost.
    watch
        Told how far the run is.
    follow
        With one local worker: called before each slice; returns the callback of its solver.

    Raises
    ------
    ConfigError
        For a run that cannot be set up.
    ResourceError
        If there is no such device.
    """
    devices = chosen_devices(device)
    count = workers or default_workers(devices)
    here = executor == "local" and count == 1
    settings = WorkerSettings(PriorSource(prior, tuple(adapters)), batch, follow if here else None)
    kind = cast(ExecutorKind, executor)  # checked there
    with make_executor(
        kind, settings, devices=devices, workers=count, threads=threads, retries=retries
    ) as engine:
        yield from drive(jobs, engine, chunk=task_slices(devices[0], batch), overwrite=overwrite, watch=watch)


def drive(
    jobs: Iterable[VolumeJob],
    executor: Executor,
    *,
    chunk: int = 1,
    overwrite: bool = False,
    watch: Callable[[RunProgress], None] | None = None,
) -> Iterator[VolumeOutcome]:
    """Send volumes through an executor whose workers are `VolumeWorker`.

    Parameters
    ----------
    jobs, overwrite, watch
        As in `run_volumes`.
    executor
        Open executor.
    chunk
        Slices of a task.
    """
    waiting = iter(jobs)
    run = _Run(executor, chunk, overwrite, watch)
    try:
        while True:
            for job in islice(waiting, max(0, _OPEN_PER_SLOT * executor.slots - len(run.open))):
                run.start(job)
            if not run.open and not run.ready:
                return
            yield from run.step()
    finally:
        run.close()


@dataclass(eq=False)
class _Volume:
    """A volume under way."""

    number: int
    job: VolumeJob
    plan: VolumePlan | None = None
    lock: OutputLock | None = None
    running: int = 0
    left: int = 0
    failure: Failure | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    events: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def remaining(self) -> VolumePlan:
        """The plan without the methods that failed."""
        assert self.plan is not None  # noqa: S101 - asked for after planning only
        return self.plan.without(self.failures)


class _Run:
    """The volumes under way and what is known of them."""

    def __init__(
        self,
        executor: Executor,
        chunk: int,
        overwrite: bool,
        watch: Callable[[RunProgress], None] | None,
    ) -> None:
        self._executor = executor
        self._chunk = chunk
        self._overwrite = overwrite
        self._watch = watch
        self._trees: dict[Path, OutputTree] = {}
        self._listed: defaultdict[Path, set[str]] = defaultdict(set)
        self._versions = software_versions()
        self._started = self._ended = self._slices = self._slices_total = 0
        self.ready: list[VolumeOutcome] = []
        self.open: dict[int, _Volume] = {}

    def start(self, job: VolumeJob) -> None:
        """Take up a job."""
        volume = _Volume(self._started, job)
        self._started += 1
        self.open[volume.number] = volume
        try:
            self._tree(job)
        except TregMedError as error:
            self._fail(volume, describe_failure(error))
            return
        self._submit(volume, "plan", Plan(job))

    def step(self) -> Iterator[VolumeOutcome]:
        """Wait for a task to end and give the volumes that ended with it."""
        if not self.ready:
            outcome = self._executor.next()
            volume = self.open[int(outcome.task.key.split("/")[0])]
            volume.running -= 1
            try:
                self._handle(volume, outcome)
            except TregMedError as error:
                self._fail(volume, describe_failure(error))
            self._tell(volume.job.input.name)
        ready, self.ready = self.ready, []
        yield from ready

    def close(self) -> None:
        """Give up what is open; finished slices stay."""
        for volume in self.open.values():
            if volume.lock is not None:
                volume.lock.release()
        for tree in self._trees.values():
            tree.tidy()

    def _handle(self, volume: _Volume, outcome: Outcome) -> None:
        failure = volume.failure or outcome.failure
        if failure is not None:
            self._fail(volume, failure)
        elif isinstance(outcome.value, VolumePlan):
            self._planned(volume, outcome.value)
        elif isinstance(outcome.value, Solved):
            self._solved(volume, outcome.value)
        elif isinstance(outcome.value, Assembled):
            self._assembled(volume, outcome.value)
        else:
            raise TypeError(f"expected a result of a worker, got {type(outcome.value).__name__}")

    def _planned(self, volume: _Volume, plan: VolumePlan) -> None:
        lock = self._tree(volume.job).lock(plan.name.base)
        volume.lock = OutputLock(lock, f"{plan.name.base!r}").acquire()
        # Another run may have finished it between the look of the worker and our lock.
        volume.plan = plan.renewed(overwrite=self._overwrite)
        volume.failures = {
            each.method.label: describe_failure(
                ResourceError(
                    f"{each.stem!r} exists already, from other settings, data or another version, and is kept; "
                    "choose another output folder, or allow overwriting"
                )
            )
            for each in volume.plan.methods
            if each.state == "other"
        }
        plan = volume.remaining
        if not plan.methods:
            self._fail(volume, next(iter(volume.failures.values())))
            return
        if plan.done:
            self._end(volume, "skipped")
            return
        if self._overwrite:
            for each in plan.methods:
                RecordStore(self._tree(volume.job).records(each.record_key)).clear()
        chunks = [plan.indices[k : k + self._chunk] for k in range(0, len(plan.indices), self._chunk)]
        if not plan.todo:
            self._submit(volume, "assemble", Assemble(plan))
            return
        self._slices_total += len(plan.indices)
        volume.left = len(chunks)
        for k, indices in enumerate(chunks):
            self._submit(volume, f"solve-{k}", Solve(plan, indices))

    def _solved(self, volume: _Volume, solved: Solved) -> None:
        self._slices += solved.slices
        volume.events += solved.events
        volume.left -= 1
        volume.failures = {**solved.failures, **volume.failures}
        remaining = volume.remaining
        if solved.failures:
            self._continue_with(volume, remaining)
        if not remaining.methods:
            self._fail(volume, next(iter(volume.failures.values())))
        elif volume.left == 0 and remaining.todo:
            # Before the slices of later volumes: what is finished should be there.
            self._submit(volume, "assemble", Assemble(remaining), front=True)
        elif volume.left == 0:
            self._end(volume, "done")

    def _continue_with(self, volume: _Volume, remaining: VolumePlan) -> None:
        """Change the tasks in the queue to what remains of the plan; remove them where nothing does."""
        queued = self._take_back(volume)
        if remaining.todo:
            for task in reversed(queued):
                self._submit(volume, task.key.split("/")[1], replace(task.payload, plan=remaining), front=True)
        else:
            volume.left -= len(queued)

    def _take_back(self, volume: _Volume) -> list[Task]:
        """Remove the tasks of a volume that are still in the queue."""
        taken: list[Task] = []

        def matches(task: Task) -> bool:
            ours = task.key.startswith(f"{volume.number}/")
            taken.extend([task] * ours)
            return ours

        volume.running -= self._executor.discard(matches)
        return taken

    def _assembled(self, volume: _Volume, assembled: Assembled) -> None:
        self._end(volume, "done", {str(entry["label"]): entry for entry in assembled.entries})

    def _list(self, volume: _Volume, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Append what was written to the index, and what a run wrote that was killed before it had listed it."""
        index, listed, plan = RunIndex(self._tree(volume.job)), self._listed[volume.job.out], volume.remaining
        for each in plan.methods:
            facts = entries.get(each.method.label)
            if facts is None:
                if each.run_hash not in listed:
                    listed |= index.run_hashes()
                if each.run_hash in listed:
                    continue
                facts = index_facts(plan, each)
            index.append(
                {
                    "status": "done",
                    "output": (plan.name.folder / f"{each.stem}.nii.gz").as_posix(),
                    "input": volume.job.input.name,
                    **facts,
                    "compute": plan.compute,
                    "events": volume.events,
                    "versions": self._versions,
                }
            )
            listed.add(each.run_hash)

    def _list_failure(self, volume: _Volume, failure: Failure, **facts: str) -> None:
        with contextlib.suppress(ResourceError):  # a full disk must not stop the run over a line of the index
            RunIndex(self._tree(volume.job)).append(
                {
                    "status": "failed",
                    "input": volume.job.input.name,
                    **facts,
                    "error": failure.kind,
                    "message": failure.message,
                    "versions": self._versions,
                }
            )

    def _fail(self, volume: _Volume, failure: Failure) -> None:
        """Set a volume aside once none of its tasks is running."""
        volume.failure = failure
        self._take_back(volume)
        if volume.running:
            return
        self._list_failure(volume, failure)
        self._end(volume, "failed")

    def _end(self, volume: _Volume, status: str, entries: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        entries = entries or {}
        if status != "failed":
            self._list(volume, entries)
            for label, failure in volume.failures.items():
                self._list_failure(volume, failure, label=label)
        if status == "skipped":
            for each in volume.remaining.methods:  # left by a run that was killed between its last two steps
                RecordStore(self._tree(volume.job).records(each.record_key)).clear()
        if volume.lock is not None:
            volume.lock.release()
        del self.open[volume.number]
        self._ended += 1
        self.ready.append(_outcome(volume, status, entries))

    def _submit(self, volume: _Volume, what: str, payload: Any, *, front: bool = False) -> None:
        volume.running += 1
        self._executor.submit(Task(f"{volume.number}/{what}", payload), front=front)

    def _tree(self, job: VolumeJob) -> OutputTree:
        if job.out not in self._trees:
            tree = OutputTree(job.out)
            tree.prepare()
            RunIndex(tree).repair()
            self._trees[job.out] = tree
        return self._trees[job.out]

    def _tell(self, label: str) -> None:
        if self._watch is not None:
            self._watch(RunProgress(self._ended, self._started, self._slices, self._slices_total, label))


def _outcome(volume: _Volume, status: str, entries: Mapping[str, Mapping[str, Any]]) -> VolumeOutcome:
    plan, failure = volume.plan, volume.failure
    complete = volume.remaining if status != "failed" else None
    failures = volume.failures if complete else {}
    if failures:
        status = "incomplete"
        label, first = next(iter(failures.items()))
        failure = replace(first, message=f"{label}: {first.message}")
    warnings = (*(plan.warnings if plan else ()), *(w for entry in entries.values() for w in entry["warnings"]))
    return VolumeOutcome(
        job=volume.job,
        status=status,
        failure=failure,
        failures=failures,
        outputs={each.method.label: complete.sidecar(each) for each in complete.methods} if complete else {},
        page=complete.page if complete else None,
        figure=complete.figure if complete else None,
        seconds={label: float(entry["seconds"]) for label, entry in entries.items()},
        residuals={label: float(entry["residual_noise_units"]) for label, entry in entries.items()},
        evaluations={label: int(entry["network_evaluations"]) for label, entry in entries.items()},
        domain_distances={
            label: float(entry["domain_distance"])
            for label, entry in entries.items()
            if entry.get("domain_distance") is not None
        },
        slices=len(plan.indices) if plan else 0,
        notes=plan.notes if plan else (),
        warnings=warnings,
    )
