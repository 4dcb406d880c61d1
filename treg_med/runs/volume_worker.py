"""What a worker does with a volume: plan it, solve slices of it, put it together.

Each of the three is a task of its own, and slices are kept as they are finished, so that any worker can go on where
another one ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treg_med.data import Measurement, Reconstruction, VolumeWriter, open_scan
from treg_med.data.slice_record import SliceRecord
from treg_med.data.source import SliceSource
from treg_med.reconstruction import reconstruct
from treg_med.runs.batching import AdaptiveBatch
from treg_med.runs.kept_slices import KeptSlices, record_store
from treg_med.runs.method import Method
from treg_med.runs.plan import MethodPlan, VolumeJob, VolumePlan, plan_volume
from treg_med.runs.prior_source import PriorSource
from treg_med.runs.tasks import Failure, Slot, describe_failure
from treg_med.runs.volume_files import index_facts, write_figure, write_page

if TYPE_CHECKING:
    from treg_med.priors.base import Prior
    from treg_med.solvers.problem import Callback

__all__ = ["Assemble", "Assembled", "Plan", "Solve", "Solved", "VolumeWorker", "WorkerSettings"]


@dataclass(frozen=True)
class WorkerSettings:
    """What all workers of a run share, and a factory of them.

    Parameters
    ----------
    prior
        Where the prior comes from.
    batch
        Slices in flight at once on an accelerator; None is 8. On a CPU it is 1: more gain nothing there.
    follow
        Called with a description before each slice, returns the callback of its solver; only within this process.
    scan
        The one scan of all jobs, open already; only within this process.
    """

    prior: PriorSource = field(default_factory=PriorSource)
    batch: int | None = None
    follow: Callable[[str], Callback] | None = None
    scan: SliceSource | None = None

    def __call__(self, slot: Slot) -> VolumeWorker:
        """Return the worker of a slot."""
        return VolumeWorker(self, slot)


@dataclass(frozen=True)
class Plan:
    """Open a scan and plan its job."""

    job: VolumeJob


@dataclass(frozen=True)
class Solve:
    """Solve some slices of a volume."""

    plan: VolumePlan
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Assemble:
    """Put a volume together from its slices."""

    plan: VolumePlan


@dataclass(frozen=True)
class Solved:
    """Slices of a volume were solved and kept.

    Parameters
    ----------
    slices
        How many.
    events
        What was done when memory ran out.
    failures
        Why methods failed, by their labels.
    """

    slices: int
    events: tuple[Mapping[str, Any], ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)


@dataclass(frozen=True)
class Assembled:
    """A volume is complete.

    Parameters
    ----------
    entries
        Facts of each output written, for the index.
    """

    entries: tuple[Mapping[str, Any], ...]


class VolumeWorker:
    """One process of a run: holds the prior and the scan it last worked on.

    Parameters
    ----------
    settings
        What all workers share.
    slot
        Where this one computes.
    """

    def __init__(self, settings: WorkerSettings, slot: Slot) -> None:
        self._settings = settings
        self._slot = slot
        self._scan: tuple[tuple[Path, str], SliceSource] | None = None
        self._kind = slot.device.split(":")[0]
        self._batch = AdaptiveBatch(settings.batch, device=slot.device)
        # What the hashes hold; it is smaller only where memory ran out, which the index tells.
        self._network_batch = self._batch.network_batch

    def __call__(self, task: Plan | Solve | Assemble) -> VolumePlan | Solved | Assembled:
        """Do one task."""
        if isinstance(task, Plan):
            return self.plan(task.job, self._open(task.job))
        scan = self._open(task.plan.job)
        return self.solve(task, scan) if isinstance(task, Solve) else self.assemble(task.plan, scan)

    def plan(self, job: VolumeJob, scan: SliceSource) -> VolumePlan:
        """Plan a job on its open scan."""
        threads = self._slot.threads if self._kind == "cpu" else None
        compute = {"device": self._kind, "threads": threads, "network_batch": self._network_batch}
        plan = plan_volume(job, scan, partial(self._settings.prior.load, self._slot.device), compute)
        return replace(plan, warnings=(*self._settings.prior.warnings(), *plan.warnings))

    def solve(self, task: Solve, scan: SliceSource) -> Solved:
        """Solve slices, several at a time, while the next ones are read; those that are there already are skipped.

        A method that fails on a slice is given up; the others go on.
        """
        plan = task.plan
        before = len(self._batch.events)
        stores = {each.stem: record_store(plan, each) for each in plan.todo}
        missing = {stem: {i for i in task.indices if not store.has(i)} for stem, store in stores.items()}
        failures: dict[str, Failure] = {}
        wanted = [i for i in task.indices if any(i in some for some in missing.values())]
        for group in _read_ahead(scan, wanted, self._batch.size):
            for each in (some for some in plan.todo if some.method.label not in failures):
                chosen = [(i, m) for i, m in group if i in missing[each.stem]]
                began = time.perf_counter()
                results = self._run(each.method, chosen, plan)
                # Slices in flight together take turns: none has a time of its own.
                seconds = (time.perf_counter() - began) / max(1, len(chosen))
                for (index, _), result in zip(chosen, results, strict=True):
                    if isinstance(result, Reconstruction):
                        stores[each.stem].put(SliceRecord.of(replace(result, seconds=seconds), index))
                    else:
                        failures.setdefault(each.method.label, describe_failure(result))
        return Solved(len(task.indices), tuple(self._batch.events[before:]), failures)

    def assemble(self, plan: VolumePlan, scan: SliceSource) -> Assembled:
        """Write the volumes, then the picture and the page of them; then forget the slices."""
        plan.folder.mkdir(parents=True, exist_ok=True)
        entries = [self._write(plan, each) for each in plan.todo]
        scratch = record_store(plan, plan.methods[-1]).make()
        slices = KeptSlices(plan, scan)
        if plan.figure is not None:
            write_figure(plan, slices, plan.figure, scratch)
        if plan.page is not None:
            write_page(plan, slices, plan.page, scratch)
        for each in plan.methods:
            record_store(plan, each).clear()
        return Assembled(tuple(entries))

    def _open(self, job: VolumeJob) -> SliceSource:
        """Open a scan, or return it where it is the last one: what is done once per scan is done once."""
        if self._settings.scan is not None:
            return self._settings.scan
        key = (job.input, repr(sorted(job.reader.items())))
        if self._scan is None or self._scan[0] != key:
            if self._scan is not None:
                self._scan[1].close()
            self._scan = None
            self._scan = (key, open_scan(job.input, **job.reader))
        return self._scan[1]

    def _run(
        self, method: Method, slices: Sequence[tuple[int, Measurement]], plan: VolumePlan
    ) -> list[Reconstruction | Exception]:
        prior = self._settings.prior.load(self._slot.device) if method.needs_prior else None
        follow = self._settings.follow

        def solve_one(item: tuple[int, Measurement], given: Prior | None) -> Reconstruction:
            index, measurement = item
            label = f"slice {plan.indices.index(index) + 1}/{len(plan.indices)}, {method.label}"
            return reconstruct(
                measurement,
                text=method.text,
                solver=method.solver,
                prior=given,
                seed=plan.job.seed,
                device=self._slot.device,
                preset=method.preset,
                samples=method.samples,
                callback=follow(label) if follow else None,
                **method.settings,
            )

        return self._batch.run(slices, solve_one, prior)

    def _write(self, plan: VolumePlan, each: MethodPlan) -> dict[str, Any]:
        store, method = record_store(plan, each), each.method
        prior = self._settings.prior.load(self._slot.device) if method.uses_prior else None
        card = prior.card if prior is not None else {}
        writer = VolumeWriter(
            plan.folder,
            each.stem,
            overwrite=True,
            text=method.text,
            seed=plan.job.seed,
            prior_sha256=prior.sha256 if prior is not None else None,
            # A whole path may name a person.
            prior_name=None if prior is None else Path(prior.source).name,
            extra={
                "run_hash": each.run_hash,
                "method": {"label": method.label, "preset": method.preset, "samples": method.samples},
                "compute": plan.compute,
                **({"adapters": card["adapters"]} if "adapters" in card else {}),
            },
            scratch=store.folder,
        )
        seconds = peak = 0.0
        with writer:
            for index in plan.indices:
                record = store.get(index)
                writer.add_record(record)
                seconds += record.cost.get("seconds") or 0.0
                peak = max(peak, record.cost.get("peak_memory_mb") or 0.0)
        return index_facts(plan, each) | {"seconds": seconds, "peak_memory_mb": peak}


def _read_ahead(
    scan: SliceSource, indices: Sequence[int], size: int
) -> Iterator[list[tuple[int, Measurement]]]:
    """Give slices in groups; the next group is read while the last one is worked on."""
    groups = [indices[k : k + size] for k in range(0, len(indices), size)]

    def read(group: Sequence[int]) -> list[tuple[int, Measurement]]:
        return [(i, scan[i]) for i in group]

    if len(groups) < 2:
        yield from (read(group) for group in groups)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(read, groups[0])
        for following in [*groups[1:], None]:
            ready = coming.result()
            if following is not None:
                coming = pool.submit(read, following)
            yield ready
