"""Rows of the tidy table to one value per subject, with sums only: memory grows with volumes, not with slices.

Within a group (one dataset, scenario, protocol, version and level, and one region where rows are about one) a
subject's value is the mean over its scans of the mean over seeds of the mean over slices. Rows that must not be
averaged are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treg_med.errors import ConfigError, FormatError
from treg_med.evaluation.regions import PROTOCOL as REGION

__all__ = ["ARMS", "COLUMNS", "Group", "MethodFacts", "Row", "SubjectValues", "Variant"]

#: Prompt arms in the order of a table; "none" is a method that reads no text.
ARMS = ("none", "right", "empty", "wrong", "shuffled")
_NEEDED = (
    "dataset", "subject", "scan", "scenario", "method", "control", "arm", "protocol", "protocol_version", "level",
)  # fmt: skip
#: Columns that are no metrics.
COLUMNS = frozenset((
    *_NEEDED, "session", "solver", "preset", "text", "seed", "slice", "data_range", "crop", "mask", "nan_pixels",
    "run_hash", "note",
))  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Rows that may be averaged; `region` is None where rows are not about one."""

    dataset: str
    scenario: str
    protocol: str
    protocol_version: int
    level: str
    region: str | None = None

    def __str__(self) -> str:
        """Name it in a message."""
        protocol = f"{self.protocol} version {self.protocol_version}" + (f", {self.region}" if self.region else "")
        return f"{self.dataset}, {self.scenario}, {protocol}, {self.level} level"


@dataclass(frozen=True)
class Variant:
    """A method with one kind of prompt."""

    method: str
    arm: str


@dataclass(frozen=True)
class MethodFacts:
    """What is the same in all rows of a method."""

    control: bool
    solver: str | None
    preset: str | None


@dataclass
class _Sum:
    """A metric over the slices of a volume; `slices` has a bit for every slice with a finite value."""

    total: float = 0.0
    count: int = 0
    slices: int = 0
    not_finite: int = 0
    broken: int = 0


@dataclass
class _Volume:
    """One reconstruction: `slices` has a bit for every slice seen (a whole volume is bit 0)."""

    slices: int = 0
    data_range: float = 0.0
    conditions: set[tuple[Any, Any]] = field(default_factory=set)
    metrics: dict[str, _Sum] = field(default_factory=dict)


#: subject, session, scan
_Scan = tuple[str, str, str]
_Volumes = dict[tuple[_Scan, int], _Volume]


@dataclass(frozen=True)
class MetricValues:
    """One value per subject, and which rows it is the mean of: only subjects of equal `coverage` can be paired.

    Of the rows that are not finite, some have nothing to score (an empty slice); in `broken` ones the prediction is
    to blame: it has pixels that are NaN.
    """

    by_subject: dict[str, float]
    coverage: dict[str, tuple[Any, ...]]
    rows: int
    not_finite: int
    broken: int


class SubjectValues:
    """Sums of the rows of an evaluation.

    Parameters
    ----------
    rows : iterable of mappings
        Rows of the tidy table; read once. Every column that is not in `COLUMNS` and holds numbers is a metric.
    metrics : sequence of str, optional
        The metrics to keep; all by default.

    Raises
    ------
    FormatError
        For a row without a needed column, or a metric that is no number.
    ConfigError
        For rows that cannot stand in one table: two versions of a protocol, a volume's row among slices, the same row
        twice, one label for two methods, methods scored against different targets; or for a metric that no row has.
    """

    def __init__(self, rows: Iterable[Row], metrics: Sequence[str] | None = None) -> None:
        self.rows = 0
        self.metrics: list[str] = []
        self.methods: dict[str, MethodFacts] = {}
        self._groups: dict[Group, dict[Variant, _Volumes]] = {}
        self._wanted = None if metrics is None else tuple(metrics)
        for row in rows:
            self._add(row)
        missing = [name for name in self._wanted or () if name not in self.metrics]
        if missing:
            known = ", ".join(self.metrics) or "none"
            raise ConfigError(f"expected metrics of the table ({known}), got {missing[0]!r}, which no row has")
        self._refuse_two_versions()
        for group, variants in self._groups.items():
            _refuse_different_targets(group, variants)

    @property
    def groups(self) -> list[Group]:
        """Groups in the order in which they first appeared."""
        return list(self._groups)

    def variants(self, group: Group) -> list[Variant]:
        """Methods of a group in the order in which they first appeared, each with its arms in the order of `ARMS`."""
        methods = list(self.methods)
        return sorted(self._groups[group], key=lambda v: (methods.index(v.method), ARMS.index(v.arm)))

    def values(self, group: Group, variant: Variant, metric: str) -> MetricValues | None:
        """Return the values of subjects, or None where no row of the variant has the metric."""
        scans: dict[_Scan, list[_Sum]] = {}
        for (scan, _), volume in self._groups[group][variant].items():
            if metric in volume.metrics:
                scans.setdefault(scan, []).append(volume.metrics[metric])
        if not scans:
            return None
        means: dict[str, list[float]] = {}
        coverage: dict[str, list[Any]] = {}
        for (subject, session, name), sums in sorted(scans.items()):
            of_seeds = [each.total / each.count for each in sums if each.count]
            if of_seeds:
                means.setdefault(subject, []).append(math.fsum(of_seeds) / len(of_seeds))
                coverage.setdefault(subject, []).append((session, name, frozenset(each.slices for each in sums)))
        every = [each for sums in scans.values() for each in sums]
        return MetricValues(
            {subject: math.fsum(each) / len(each) for subject, each in means.items()},
            {subject: tuple(each) for subject, each in coverage.items()},
            sum(each.count + each.not_finite for each in every),
            sum(each.not_finite for each in every),
            sum(each.broken for each in every),
        )

    def conditions(self, group: Group) -> list[tuple[Any, Any]]:
        """Crops and masks of a group."""
        found = {c for volumes in self._groups[group].values() for v in volumes.values() for c in v.conditions}
        return sorted(found, key=str)

    def cases(self, group: Group) -> int:
        """Return the number of scans in a group."""
        return len({scan for volumes in self._groups[group].values() for scan, _ in volumes})

    def _add(self, row: Row) -> None:
        self.rows += 1
        missing = [name for name in _NEEDED if row.get(name) in (None, "")]
        if missing:
            raise FormatError(f"expected a value of {missing[0]!r} in every row of the table, row {self.rows} has none")
        group = Group(
            str(row["dataset"]), str(row["scenario"]), str(row["protocol"]), int(row["protocol_version"]),
            str(row["level"]), str(row.get("mask")) if row["protocol"] == REGION else None,
        )  # fmt: skip
        variant = Variant(str(row["method"]), str(row["arm"]))
        if variant.arm not in ARMS:
            raise FormatError(f"expected an arm of {', '.join(ARMS)}, got {variant.arm!r} in row {self.rows}")
        self._check_method(row, variant.method)
        place = _place(row, group, self.rows)
        scan = (str(row["subject"]), str(row.get("session") or ""), str(row["scan"]))
        volumes = self._groups.setdefault(group, {}).setdefault(variant, {})
        volume = volumes.setdefault((scan, int(row.get("seed") or 0)), _Volume())
        if volume.slices & place:
            raise ConfigError(
                f"expected every row once, got slice {row.get('slice')} of {row['scan']} ({variant.method}, "
                f"{variant.arm}; {group}) twice, the second time in row {self.rows}; score again"
            )
        volume.slices |= place
        volume.conditions.add((row.get("crop"), row.get("mask")))
        volume.data_range += math.nan if row.get("data_range") is None else float(row["data_range"])
        for name in row.keys() - COLUMNS if self._wanted is None else self._wanted:
            value = row.get(name)
            if value is not None:
                # Where nobody counted the pixels, the prediction is not given the benefit of the doubt.
                self._add_value(volume, name, value, place, row.get("nan_pixels") != 0)

    def _add_value(self, volume: _Volume, name: str, value: Any, place: int, nan_pixels: bool) -> None:
        # Numpy's numbers are no int and no float.
        if isinstance(value, (str, bool)) or not hasattr(value, "__float__"):
            if self._wanted is None:
                return
            raise FormatError(f"expected numbers in column {name!r}, got {value!r} in row {self.rows}")
        if name not in self.metrics:
            self.metrics.append(name)
        found, number = volume.metrics.setdefault(name, _Sum()), float(value)
        if math.isfinite(number):
            found.total += number
            found.count += 1
            found.slices |= place
        else:
            found.not_finite += 1
            found.broken += nan_pixels

    def _check_method(self, row: Row, method: str) -> None:
        facts = MethodFacts(bool(row["control"]), row.get("solver"), row.get("preset"))
        known = self.methods.setdefault(method, facts)
        if known != facts:
            raise ConfigError(
                f"expected one method behind the label {method!r}, got {known} and, in row {self.rows}, {facts}; "
                "give each its own label"
            )

    def _refuse_two_versions(self) -> None:
        versions: dict[tuple[str, str, str, str], int] = {}
        for group in self._groups:
            key = (group.dataset, group.scenario, group.protocol, group.level)
            first = versions.setdefault(key, group.protocol_version)
            if first != group.protocol_version:
                raise ConfigError(
                    f"expected one version of protocol {group.protocol!r} for {group.dataset}, {group.scenario}, got "
                    f"{first} and {group.protocol_version}, which cannot be averaged or compared; score all again"
                )


def _place(row: Row, group: Group, number: int) -> int:
    position = row.get("slice")
    if group.level not in ("volume", "slice") or (position is None) != (group.level == "volume"):
        raise ConfigError(
            "expected rows of level 'slice' with a slice number and rows of level 'volume' without one, got level "
            f"{group.level!r} with slice {position} in row {number}"
        )
    return 1 if position is None else 1 << int(position)


def _refuse_different_targets(group: Group, variants: Mapping[Variant, _Volumes]) -> None:
    """Rows of one scan and the same slices have one target: range, crop and mask must agree."""
    first: dict[tuple[_Scan, int], tuple[Variant, _Volume]] = {}
    for variant, volumes in variants.items():
        for (scan, _), volume in volumes.items():
            other, known = first.setdefault((scan, volume.slices), (variant, volume))
            apart = abs(known.data_range - volume.data_range) > 1e-6 * abs(known.data_range)
            if apart or known.conditions != volume.conditions:
                raise ConfigError(
                    f"expected one target for all methods, got data range, crop and mask {_target(known)} for "
                    f"{other.method} ({other.arm}) and {_target(volume)} for {variant.method} ({variant.arm}) on "
                    f"{scan[2]}; {group}; score them against the same file"
                )


def _target(volume: _Volume) -> str:
    return f"{volume.data_range / volume.slices.bit_count():.6g}, {sorted(volume.conditions, key=str)}"
