"""From a configuration to what is reconstructed and scored: datasets x scenarios x seeds x methods x prompt arms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treg_med.data import open_scan
from treg_med.errors import ConfigError, TregMedError
from treg_med.evaluation.config import ConfigFile, DatasetConfig, MethodConfig, ScenarioConfig
from treg_med.evaluation.datasets import ScanFile, find_predictions, find_scans
from treg_med.evaluation.prompt_arms import ArmTexts, arm_texts
from treg_med.runs.method import Method
from treg_med.runs.plan import VolumeJob
from treg_med.solvers.registry import get_solver
from treg_med.words.safe_text import check_text

__all__ = ["Case", "EvaluationPlan", "Problem", "Variant", "make_plan"]


@dataclass(frozen=True)
class Variant:
    """One family of rows: a method with one kind of prompt, or a volume from elsewhere.

    Parameters
    ----------
    label
        Name of the output among those of its volume.
    method, solver, preset, control, arm, text
        As in the table.
    """

    label: str
    method: str
    solver: str | None = None
    preset: str | None = None
    control: bool = False
    arm: str = "none"
    text: str | None = None


@dataclass(frozen=True)
class Problem:
    """A volume, or a method on it, without a score; for the report."""

    dataset: str
    scenario: str
    scan: str
    method: str | None
    kind: str
    message: str


@dataclass(frozen=True)
class Case:
    """One scan measured in one way, with one seed.

    Parameters
    ----------
    scan
        The file and who was scanned.
    scenario, reader
        Name, and options of `open_scan`.
    slices
        Slices as in Python; None is all.
    seed
        Seed of the methods.
    place
        Folder of its outputs below that of their kind: dataset, scenario and, where there are several, seed.
    job
        What is reconstructed; None where there are only predictions.
    variants
        What is scored.
    predictions
        Volumes made elsewhere, by label.
    """

    scan: ScanFile
    scenario: str
    reader: Mapping[str, Any]
    slices: str | None
    seed: int
    place: Path
    job: VolumeJob | None
    variants: tuple[Variant, ...]
    predictions: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything to do.

    Parameters
    ----------
    cases
        In the order of the table.
    notes
        What the reader of the report must know.
    problems
        Predictions that are missing.
    """

    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def jobs(self) -> list[VolumeJob]:
        """What is reconstructed."""
        return [case.job for case in self.cases if case.job is not None]

    @property
    def outputs(self) -> int:
        """Number of volumes that the jobs make."""
        return sum(len(case.job.methods) for case in self.cases if case.job and isinstance(case.job.methods, tuple))


@dataclass(frozen=True)
class _Entry:
    """A method of the configuration, checked, with the one that is its control."""

    settings: MethodConfig
    reads_text: bool
    stochastic: bool
    control: Method | None


def make_plan(config: ConfigFile, out: Path, *, reconstruct: bool = True) -> EvaluationPlan:
    """Expand a configuration.

    Methods that read no text, and controls, are run once with arm "none"; those that draw no random numbers with the
    first seed only. A scan is opened here for the text of its header where a method reads text and no caption is given.

    Parameters
    ----------
    config
        The configuration.
    out
        Folder of the evaluation.
    reconstruct
        False: only what was reconstructed is scored, and nothing is opened to find out whether it can be.

    Raises
    ------
    ConfigError
        For solvers, settings or reader options that cannot be used, and datasets without scans.
    """
    settings = config.settings
    entries = [_checked(entry, f"methods[{i}] ({entry.label})") for i, entry in enumerate(settings.methods)]
    cases: list[Case] = []
    notes: list[str] = []
    problems: list[Problem] = []
    for dataset in settings.datasets:
        scans = find_scans(dataset, config)
        notes += _without_region(dataset, scans)
        scenarios = [s for s in settings.scenarios if _applies(dataset.name, s.datasets)]
        used = [entry for entry in entries if _applies(dataset.name, entry.settings.datasets)]
        texts = _texts(dataset, scans, scenarios, used, settings.statistics.seed)
        notes += texts.notes
        for scenario in scenarios:
            if reconstruct:
                _check_reader(dataset, scenario, scans)
            predictions, missing = _predictions(scenario, dataset, scans, config)
            problems += missing
            for number, seed in enumerate(settings.seeds):
                place = Path(dataset.name, scenario.name, *([f"seed-{seed}"] if len(settings.seeds) > 1 else []))
                # What draws no random numbers, and what another program made, is the same for every seed.
                now = [entry for entry in used if number == 0 or entry.stochastic]
                for scan, by_arm in zip(scans, texts.by_scan, strict=True):
                    others = predictions[scan] if number == 0 else {}
                    case = _case(scan, scenario, dataset.slices, seed, place, now, by_arm, others, out, number == 0)
                    cases += [case] if case.variants else []
    if not cases:
        raise ConfigError("expected at least one volume to evaluate, got none; no method applies to any dataset")
    return EvaluationPlan(tuple(cases), tuple(dict.fromkeys(notes)), tuple(problems))


def _case(
    scan: ScanFile,
    scenario: ScenarioConfig,
    slices: str | None,
    seed: int,
    place: Path,
    entries: Sequence[_Entry],
    texts: Mapping[str, str],
    predictions: Mapping[str, Path],
    out: Path,
    controls: bool,
) -> Case:
    found = [pair for entry in entries for pair in _methods(entry, texts, controls)]
    job = None
    if found:
        methods = tuple(method for _, method in found)
        root = out / "recon" / place
        job = VolumeJob(scan.path, methods, root, scenario.reader, slices, seed, scan.name, report=False)
    variants = [variant for variant, _ in found] + [Variant(label, label) for label in predictions]
    return Case(scan, scenario.name, scenario.reader, slices, seed, place, job, tuple(variants), predictions)


def _without_region(dataset: DatasetConfig, scans: Sequence[ScanFile]) -> list[str]:
    missing = sum(not scan.has_regions for scan in scans)
    if not missing or (dataset.masks is None and dataset.boxes is None):
        return []
    return [f"{dataset.name}: {missing} of {len(scans)} scans have no mask or box, and no rows of regions"]


def _applies(dataset: str, only: Sequence[str] | None) -> bool:
    return only is None or dataset in only


def _checked(entry: MethodConfig, where: str) -> _Entry:
    """Build the solver once, so that a wrong setting is told before any work."""
    method = Method(entry.label, entry.solver, entry.preset, entry.settings, None, entry.samples)
    try:
        solver = get_solver(entry.solver, entry.preset, **entry.settings)
        control = None
        if entry.control and not (method.uses_prior and method.has_control):
            raise ConfigError(f"expected a solver whose prior can be removed for control: true, got {entry.solver!r}")
        if entry.control:
            without = {**entry.settings, "use_prior": False}
            control = dataclasses.replace(method, label=f"{entry.label}-control", settings=without, samples=1)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return _Entry(entry, method.uses_prior, solver.stochastic, control)


def _methods(entry: _Entry, texts: Mapping[str, str], controls: bool) -> Iterable[tuple[Variant, Method]]:
    """Give what is run of an entry on one scan: its control, then its arms."""
    settings = entry.settings
    method = Method(settings.label, settings.solver, settings.preset, settings.settings, None, settings.samples)
    if entry.control is not None and controls:
        yield Variant(entry.control.label, entry.control.label, settings.solver, settings.preset, True), entry.control
    if not entry.reads_text:
        yield Variant(settings.label, settings.label, settings.solver, settings.preset), method
        return
    # Of a scan about which nothing is known the empty prompt is all there is.
    arms = [arm for arm in texts if arm in settings.arms] or ["empty"]
    for arm in arms:
        label = settings.label if arm == "right" else f"{settings.label}-{arm}"
        text = texts.get(arm, "")
        yield (
            Variant(label, settings.label, settings.solver, settings.preset, False, arm, text),
            dataclasses.replace(method, label=label, text=text),
        )


def _texts(
    dataset: DatasetConfig,
    scans: Sequence[ScanFile],
    scenarios: Sequence[ScenarioConfig],
    entries: Sequence[_Entry],
    seed: int,
) -> ArmTexts:
    """Return the texts of all arms that any method of the dataset is run with."""
    arms = {arm for entry in entries if entry.reads_text for arm in entry.settings.arms}
    if not arms - {"empty"}:
        return arm_texts([s.subject for s in scans], [None] * len(scans), ("empty",), seed, dataset.name)
    reader = scenarios[0].reader if scenarios else {}
    texts = [scan.caption or _header_text(scan.path, reader) for scan in scans]
    for scan, text in zip(scans, texts, strict=True):
        try:
            check_text(text)
        except ConfigError as error:
            raise ConfigError(f"dataset {dataset.name!r}, {scan.path.name!r}: {error}") from error
    return arm_texts([scan.subject for scan in scans], texts, tuple(arms), seed, dataset.name)


def _header_text(path: Path, reader: Mapping[str, Any]) -> str | None:
    try:
        with open_scan(path, **reader) as scan:
            return scan.header.text
    except TregMedError:
        return None  # the run will say what is wrong with this file, and set it aside


def _check_reader(dataset: DatasetConfig, scenario: ScenarioConfig, scans: Sequence[ScanFile]) -> None:
    """Open the first scan that opens: an option that its reader does not have is told before any work."""
    where = f"dataset {dataset.name!r}, scenario {scenario.name!r}"
    for scan in scans:
        try:
            with open_scan(scan.path, **scenario.reader) as source:
                if dataset.target == "scan" and source[len(source) // 2].target is None:
                    raise ConfigError(
                        f"{scan.path.name!r} holds no reference to compare with: a measurement that was never complete "
                        "has none; name one with target"
                    )
            return
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except TregMedError:
            continue


def _predictions(
    scenario: ScenarioConfig, dataset: DatasetConfig, scans: Sequence[ScanFile], config: ConfigFile
) -> tuple[dict[ScanFile, dict[str, Path]], list[Problem]]:
    found: dict[ScanFile, dict[str, Path]] = {scan: {} for scan in scans}
    problems = []
    for entry in config.settings.predictions:
        if not _applies(dataset.name, entry.datasets) or (entry.scenarios and scenario.name not in entry.scenarios):
            continue
        files = find_predictions(entry, scenario.name, scans, dataset, config)
        for scan in scans:
            if scan in files:
                found[scan][entry.label] = files[scan]
            else:
                message = f"expected a volume of {entry.label} for {scan.path.name!r}, got none"
                problems.append(
                    Problem(dataset.name, scenario.name, scan.name, entry.label, "MissingPrediction", message)
                )
    return found, problems
