"""What a run over volumes is made of: the job a user gives, and the plan that the open scan makes of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treg_med import __version__
from treg_med.data.plain import plain
from treg_med.data.source import SliceSource
from treg_med.data.writer import is_complete, is_reconstruction
from treg_med.errors import ConfigError
from treg_med.runs.method import Method, MethodChoice
from treg_med.runs.names import OutputName, output_name
from treg_med.runs.slice_range import parse_slices
from treg_med.runs.tasks import Failure
from treg_med.runs.tree import OutputTree

if TYPE_CHECKING:
    from treg_med.priors.latent import LatentPrior

__all__ = ["MethodPlan", "VolumeJob", "VolumeOutcome", "VolumePlan", "plan_volume"]


@dataclass(frozen=True)
class VolumeJob:
    """One scan to reconstruct.

    Parameters
    ----------
    input
        Scan file.
    methods
        What to run, or a choice that the scan completes; the last one is the main result.
    out
        Root of the output tree.
    reader
        Options of `treg_med.open_scan`.
    slices
        Slices as in Python, ``"3"``, ``"10:20"``, ``"::2"``; None is all.
    seed
        Seed of the run; every slice has one of its own made of it.
    name
        Name of the outputs in place of the input's.
    report
        Also make the figure and the HTML page.
    """

    input: Path
    methods: tuple[Method, ...] | MethodChoice
    out: Path
    reader: Mapping[str, Any] = field(default_factory=dict)
    slices: str | None = None
    seed: int = 0
    name: str | None = None
    report: bool = True


@dataclass(frozen=True)
class MethodPlan:
    """One method on one volume.

    Parameters
    ----------
    method
        What to run.
    stem
        Name of its outputs.
    work_hash
        Of everything that decides what a slice becomes; slices of the same hash are the same.
    run_hash
        Of everything that decides what the output is: the work and the slices.
    state
        "done": the output is complete; "other": an output of other work has the name; "open": there is none.
    """

    method: Method
    stem: str
    work_hash: str
    run_hash: str
    state: str

    @property
    def record_key(self) -> str:
        """Name of the folder of its finished slices: two files of the same content must not clear each other's."""
        return hashlib.sha256(f"{self.work_hash}/{self.stem}".encode()).hexdigest()


@dataclass(frozen=True)
class VolumePlan:
    """A job after its scan was opened.

    Parameters
    ----------
    job
        The job.
    name
        Parts of the output names.
    indices
        Slices, increasing and evenly spaced.
    methods
        What to run.
    folder
        Folder of the volumes.
    page, figure
        The HTML page and the picture; None where none is wanted.
    notes, warnings
        What was decided for the user, and what to be warned of.
    compute
        What the last bits depend on: kind of device, CPU threads, rows of a network evaluation.
    """

    job: VolumeJob
    name: OutputName
    indices: tuple[int, ...]
    methods: tuple[MethodPlan, ...]
    folder: Path
    page: Path | None
    figure: Path | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    compute: Mapping[str, Any]

    @property
    def todo(self) -> tuple[MethodPlan, ...]:
        """Methods whose output is not there."""
        return tuple(each for each in self.methods if each.state != "done")

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        pages = [path for path in (self.page, self.figure) if path is not None]
        return not self.todo and all(path.exists() for path in pages)

    def renewed(self, *, overwrite: bool) -> VolumePlan:
        """Return the plan after another look at the outputs; ``overwrite`` takes none of them as done."""

        def state(each: MethodPlan) -> str:
            return "open" if overwrite else _state(self.sidecar(each), each.run_hash)

        return replace(self, methods=tuple(replace(each, state=state(each)) for each in self.methods))

    def without(self, labels: Collection[str]) -> VolumePlan:
        """Return the plan without some methods; without the main one there is no picture and no page."""
        methods = tuple(each for each in self.methods if each.method.label not in labels)
        main = self.methods[-1] in methods
        return replace(
            self, methods=methods, page=self.page if main else None, figure=self.figure if main else None
        )

    def sidecar(self, each: MethodPlan) -> Path:
        """Sidecar of a method."""
        return self.folder / f"{each.stem}.json"

    def image(self, each: MethodPlan) -> Path:
        """Volume of a method."""
        return self.folder / f"{each.stem}.nii.gz"


@dataclass(frozen=True)
class VolumeOutcome:
    """How a job ended.

    Parameters
    ----------
    job
        The job.
    status
        "done", "skipped" (everything was there), "incomplete" (some methods failed) or "failed".
    failure
        Why it failed, or why the first method did.
    failures
        Why methods failed by method label, where others did not.
    outputs
        Sidecars by method label.
    page, figure
        The HTML page and the picture, where there are any.
    seconds
        Solver seconds of this run by method label.
    residuals
        Mean residual in noise units by method label.
    evaluations
        Network evaluations by method label.
    domain_distances
        Largest distance from the prior's domain by method label, where it is known; one is the limit.
    slices
        Slices in the volume.
    notes, warnings
        What was decided for the user, and what to be warned of.
    """

    job: VolumeJob
    status: str
    failure: Failure | None = None
    failures: Mapping[str, Failure] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    page: Path | None = None
    figure: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    residuals: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, int] = field(default_factory=dict)
    domain_distances: Mapping[str, float] = field(default_factory=dict)
    slices: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan_volume(
    job: VolumeJob, scan: SliceSource, load_prior: Callable[[], LatentPrior], compute: Mapping[str, Any]
) -> VolumePlan:
    """Decide what to do with an open scan.

    Parameters
    ----------
    job
        The job.
    scan
        Its scan.
    load_prior
        Gives the prior; called where a method needs one.
    compute
        What the last bits depend on (see `VolumePlan`).

    Raises
    ------
    ConfigError
        For settings or a text that cannot be used, and two methods of one name.
    GeometryError
        If no slices are picked, or unevenly.
    """
    methods, notes = job.methods.methods(scan.header) if isinstance(job.methods, MethodChoice) else (job.methods, ())
    prior = load_prior() if any(method.needs_prior for method in methods) else None
    indices = parse_slices(job.slices, len(scan))
    name = output_name(job.name or job.input.name, scan.header.words)
    tree = OutputTree(job.out)
    folder = tree.root / name.folder
    common = {
        "treg_med": __version__,
        "torch": torch.__version__,
        "input": _identity(scan, indices),
        "reader": job.reader,
        "seed": job.seed,
        "compute": compute,
    }
    plans = [_method_plan(method, common, indices, name, folder, prior) for method in methods]
    stems = [plan.stem for plan in plans]
    if not stems or len(set(stems)) < len(stems):
        raise ConfigError(f"expected at least one method and no two of one name, got {', '.join(stems) or 'none'}")
    main = plans[-1].stem
    return VolumePlan(
        job=job,
        name=name,
        indices=tuple(indices),
        methods=tuple(plans),
        folder=folder,
        page=tree.root / f"{main}.html" if job.report else None,
        figure=folder / f"{main}.png" if job.report else None,
        notes=notes,
        warnings=tuple(scan.header.warnings),
        compute=compute,
    )


def _method_plan(
    method: Method,
    common: Mapping[str, Any],
    indices: Sequence[int],
    name: OutputName,
    folder: Path,
    prior: LatentPrior | None,
) -> MethodPlan:
    used = prior if method.uses_prior else None
    if used is not None:
        used.embed(method.text or "")  # a text that the prior cannot read fails here, before any work
    work = {**common, **method.facts(), "prior": None if used is None else used.sha256}
    work_hash = _hash(work)
    run_hash = _hash({"work": work_hash, "label": method.label, "slices": list(indices)})
    stem = name.stem(method.label)
    return MethodPlan(method, stem, work_hash, run_hash, _state(folder / f"{stem}.json", run_hash))


def _state(sidecar: Path, run_hash: str) -> str:
    if not sidecar.exists():
        image = sidecar.with_suffix(".nii.gz")
        # A volume of ours without its sidecar was cut off between the two; any other is somebody's.
        return "open" if not os.path.lexists(image) or is_reconstruction(image) else "other"
    try:
        recorded = json.loads(sidecar.read_text(encoding="utf-8")).get("run_hash")
    except (OSError, ValueError, AttributeError):
        return "other"
    if recorded == run_hash:
        return "done" if is_complete(sidecar) else "open"
    return "other"


def _identity(scan: SliceSource, indices: Sequence[int]) -> str:
    """SHA-256 of the scan's file, or of the data where the scan is no file."""
    known = getattr(scan, "sha256", None)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    for index in indices:
        digest.update(scan[index].y.detach().cpu().resolve_conj().numpy().tobytes())
    return digest.hexdigest()


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(dict(facts)), sort_keys=True).encode()).hexdigest()
