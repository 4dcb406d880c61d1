"""Several methods over the slices of a scan: a volume with its sidecar for each, and one figure of them all.

All files of a run appear together at its end; an error or Ctrl-C leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treg_med.data import Measurement, Reconstruction, VolumeWriter
from treg_med.data.atomic import StagedFiles
from treg_med.reconstruction import reconstruct
from treg_med.solvers import solver_class

if TYPE_CHECKING:
    from treg_med.data.source import SliceSource
    from treg_med.priors import LatentPrior
    from treg_med.solvers.base import Callback

__all__ = ["Method", "MethodResult", "VolumeRun", "output_stem", "reconstruct_volume", "with_controls"]

_LONGEST_STEM = 80


@dataclass(frozen=True)
class Method:
    """A solver with its settings and text; everything but the data.

    Parameters
    ----------
    label
        Name in tables and file names: letters, digits, ``.``, ``-``, ``_``.
    solver, preset, settings
        As in `treg_med.get_solver`.
    text
        Prompt; None is the empty prompt.
    samples
        Posterior samples to average.
    """

    label: str
    solver: str
    preset: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    samples: int = 1

    @property
    def needs_prior(self) -> bool:
        """Whether the solver needs a diffusion prior."""
        return solver_class(self.solver).needs_prior

    @property
    def has_control(self) -> bool:
        """Whether the solver can run the same pipeline with the prior removed."""
        return "use_prior" in {entry.name for entry in dataclasses.fields(solver_class(self.solver, self.preset))}


@dataclass(frozen=True)
class MethodResult:
    """What one method made of the slices.

    Parameters
    ----------
    label
        Of the method.
    residuals
        Residual of each slice in noise units.
    seconds, nfe
        Wall time and network evaluations of all slices.
    image_path, sidecar_path
        The files.
    """

    label: str
    residuals: tuple[float, ...]
    seconds: float
    nfe: int
    image_path: Path
    sidecar_path: Path

    @property
    def residual(self) -> float:
        """Mean residual of the slices."""
        return sum(self.residuals) / len(self.residuals)


@dataclass(frozen=True)
class VolumeRun:
    """All methods on the same slices.

    Parameters
    ----------
    results
        One for each method, in the order given.
    figure_path
        The methods side by side, at the middle slice.
    shown
        The reconstructions in the figure.
    warnings
        Everything that belongs beside the images.
    """

    results: tuple[MethodResult, ...]
    figure_path: Path
    shown: tuple[Reconstruction, ...]
    warnings: tuple[str, ...]


def with_controls(method: Method, classical: str = "tv") -> tuple[Method, ...]:
    """Put the comparisons of a learned method before it: its classical start, itself without prior.

    A method that uses no prior stands alone. The classical start of CT is ``"pwls-tv"``.
    """
    if not method.needs_prior:
        return (method,)
    start = Method(classical, classical)
    if not method.has_control:
        return (start, method)
    settings = {**method.settings, "use_prior": False}
    return (start, replace(method, label=f"{method.label}-control", settings=settings, samples=1), method)


def output_stem(path: Path) -> str:
    """Return the first part of output names: that of the input in safe characters, without extension."""
    name = re.sub(r"\.(nii\.gz|nii|h5|hdf5)$", "", path.name, flags=re.IGNORECASE)
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")
    return safe[:_LONGEST_STEM] or "scan"


def reconstruct_volume(
    scan: SliceSource,
    methods: Sequence[Method],
    folder: Path,
    stem: str,
    *,
    indices: Sequence[int],
    prior: LatentPrior | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    watch: Callable[[str], Callback] | None = None,
) -> VolumeRun:
    """Reconstruct slices with every method and write ``<stem>_rec-<label>.nii.gz``, ``.json`` and ``.png``.

    Parameters
    ----------
    scan
        Open scan.
    methods
        What to run; the last one gives the figure its name.
    folder
        Existing folder for the files.
    stem
        First part of their names.
    indices
        Increasing, evenly spaced slice numbers.
    prior
        For methods that need one.
    seed
        Seed of the run; `reconstruct` makes one for every slice of it.
    device
        Where to compute; None is the best available.
    overwrite
        Replace files that exist, once the new ones are complete.
    watch
        Called with a description before each reconstruction; returns its callback.

    Raises
    ------
    TregMedError
        If the data, the settings or the folder cannot be used; no file is left behind.
    """
    figure_path = folder / f"{stem}_rec-{methods[-1].label}.png"
    run = _Run(scan, methods, indices, prior, seed, device, watch)
    with StagedFiles(overwrite=overwrite) as figure_file:
        staged_figure = figure_file.path(figure_path)
        with ExitStack() as stack:
            writers = [stack.enter_context(_writer(m, folder, stem, seed, prior, overwrite)) for m in methods]
            shown = run.fill(writers)
            _save_figure(shown, staged_figure)
        # The volumes are in place now; the picture of them comes last.
        figure_file.commit()
    return VolumeRun(run.results(writers), figure_path, tuple(shown), tuple(run.warnings))


class _Run:
    """The loop over slices and methods; keeps sums and the slice of the figure, not every image."""

    def __init__(
        self,
        scan: SliceSource,
        methods: Sequence[Method],
        indices: Sequence[int],
        prior: LatentPrior | None,
        seed: int,
        device: str | None,
        watch: Callable[[str], Callback] | None,
    ) -> None:
        self._scan = scan
        self._methods = methods
        self._indices = indices
        self._prior = prior
        self._seed = seed
        self._device = device
        self._watch = watch
        self._tallies = [_Tally() for _ in methods]
        self.warnings: dict[str, None] = {}

    def fill(self, writers: Sequence[VolumeWriter]) -> list[Reconstruction]:
        """Give every result to its writer; return those of the middle slice."""
        shown: list[Reconstruction] = []
        middle = self._indices[len(self._indices) // 2]
        for position, index in enumerate(self._indices):
            measurement = self._scan[index]
            self.warnings.update(dict.fromkeys(measurement.warnings))
            for method, writer, tally in zip(self._methods, writers, self._tallies, strict=True):
                label = f"slice {position + 1}/{len(self._indices)}, {method.label}"
                result = self._reconstruct(measurement, method, label)
                writer.add(result, index)
                tally.add(result)
                self.warnings.update(dict.fromkeys(result.warnings))
                if index == middle:
                    # The label tells a method from its control, which is the same solver.
                    shown.append(replace(result, solver=method.label))
        return shown

    def results(self, writers: Sequence[VolumeWriter]) -> tuple[MethodResult, ...]:
        """Return the sums of every method."""
        rows = zip(self._methods, self._tallies, writers, strict=True)
        return tuple(tally.result(method.label, writer) for method, tally, writer in rows)

    def _reconstruct(self, measurement: Measurement, method: Method, label: str) -> Reconstruction:
        return reconstruct(
            measurement,
            text=method.text,
            solver=method.solver,
            prior=self._prior if method.needs_prior else None,
            seed=self._seed,
            device=self._device,
            preset=method.preset,
            samples=method.samples,
            callback=self._watch(label) if self._watch else None,
            **method.settings,
        )


class _Tally:
    """Sums over slices, so that no more than one slice is kept."""

    def __init__(self) -> None:
        self.residuals: list[float] = []
        self.seconds = 0.0
        self.nfe = 0

    def add(self, result: Reconstruction) -> None:
        self.residuals.append(result.residual)
        self.seconds += result.seconds
        self.nfe += result.nfe

    def result(self, label: str, writer: VolumeWriter) -> MethodResult:
        residuals = tuple(self.residuals)
        return MethodResult(label, residuals, self.seconds, self.nfe, writer.image_path, writer.sidecar_path)


def _writer(
    method: Method, folder: Path, stem: str, seed: int, prior: LatentPrior | None, overwrite: bool
) -> VolumeWriter:
    used = prior if method.needs_prior and method.settings.get("use_prior", True) else None
    return VolumeWriter(
        folder,
        f"{stem}_rec-{method.label}",
        overwrite=overwrite,
        text=method.text,
        seed=seed,
        prior_sha256=used.sha256 if used else None,
        prior_name=_prior_name(used),
        extra={
            "method": {"label": method.label, "preset": method.preset, "samples": method.samples},
            **({"adapters": used.card["adapters"]} if used and "adapters" in used.card else {}),
        },
    )


def _prior_name(prior: LatentPrior | None) -> str | None:
    """Return ``default`` or the last part of the folder: a whole path may name a person."""
    return None if prior is None else Path(prior.source).name


def _save_figure(shown: Sequence[Reconstruction], path: Path) -> None:
    """Draw the last method first, so that the grey scale is its own and not that of a blurred image."""
    figure = shown[-1].compare(shown[-2::-1]) if len(shown) > 1 else shown[0].show()
    figure.savefig(path, dpi=150, format="png")
