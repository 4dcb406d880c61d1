"""Tables of a summary as text, before they become HTML or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treg_med.evaluation.comparisons import PROMPT_NAMES
from treg_med.evaluation.metric_names import Metric, metric

__all__ = ["Cell", "Section", "TableRow", "ends", "headline", "sections", "variant_name"]

# Shown in sentences and charts where a table has them; all metrics stand in the tables.
_HEADLINE = ("psnr", "ssim", "rmse_hu", "psnr_roi", "lesion_contrast")
# Metrics side by side where each has two columns.
_GAIN_METRICS = 4

Group = Mapping[str, Any]
_Key = tuple[str, str, str, int, str, str | None]


@dataclass(frozen=True)
class Cell:
    """A metric of a method; `gain` is the difference to its control, `verdict` what can be said of that."""

    mean: str
    interval: str
    n: int
    nan: int
    best: bool
    gain: str = ""
    gain_interval: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class TableRow:
    """A method with one kind of text; a metric that it does not have is None."""

    method: str
    arm: str
    control: bool
    cells: tuple[Cell | None, ...]

    @property
    def text(self) -> str:
        """What the method read."""
        return "" if self.arm == "none" else self.arm

    @property
    def n(self) -> str:
        """Numbers of subjects."""
        counts = sorted({cell.n for cell in self.cells if cell is not None})
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


@dataclass(frozen=True)
class Section:
    """All metrics of one dataset, scenario, protocol, level and region; `groups` are those of the summary."""

    dataset: str
    scenario: str
    protocol: str
    version: int
    level: str
    region: str | None
    conditions: tuple[str, ...]
    groups: tuple[Group, ...]
    metrics: tuple[Metric, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name of the section."""
        protocol = f"{self.protocol} (version {self.version})" + (f" · {self.region}" if self.region else "")
        return f"{self.dataset} · {self.scenario} · {protocol} · {self.level} level"

    @property
    def has_gains(self) -> bool:
        """Whether any method has a control."""
        return any(cell is not None and cell.gain for row in self.rows for cell in row.cells)

    @property
    def blocks(self) -> list[range]:
        """Columns in blocks that fit on a page."""
        width = _GAIN_METRICS if self.has_gains else 2 * _GAIN_METRICS
        count = len(self.metrics)
        return [range(start, min(start + width, count)) for start in range(0, count, width)]

    def comparisons(self, kind: str) -> list[tuple[Metric, Mapping[str, Any]]]:
        """Comparisons of a kind, metric by metric."""
        return [
            (shown, each)
            for group, shown in zip(self.groups, self.metrics, strict=True)
            for each in group["comparisons"]
            if each["kind"] == kind
        ]


def sections(summary: Mapping[str, Any]) -> list[Section]:
    """Return the tables of a summary, in its order; where volumes are one slice, that of the slices repeats theirs."""
    found: dict[_Key, list[Group]] = {}
    for group in summary["groups"]:
        found.setdefault(_key(group, group["level"]), []).append(group)
    return [
        _section(key, groups)
        for key, groups in found.items()
        if groups[0]["level"] == "volume" or _values(groups) != _values(found.get(_key(groups[0], "volume"), []))
    ]


def _key(group: Group, level: str) -> _Key:
    return group["dataset"], group["scenario"], group["protocol"], group["protocol_version"], level, group["region"]


def _values(groups: Sequence[Group]) -> list[tuple[str, Any]]:
    return [(group["metric"], group["cells"]) for group in groups]


def headline(section: Section) -> list[Metric]:
    """Return the metrics that sentences and charts show: at most two, of what the table has."""
    known = [shown for name in _HEADLINE for shown in section.metrics if shown.name == name]
    return known[:2] or list(section.metrics[:1])


def variant_name(method: str, arm: str) -> str:
    """Name a method and what it read."""
    return method if arm == "none" else f"{method}, {arm} text"


def ends(shown: Metric, interval: Sequence[float] | None, *, signed: bool = False) -> str:
    """Write an interval; where there is none, nothing."""
    if interval is None:
        return ""
    low, high = (shown.format(end, signed=signed) for end in interval)
    return f"{low} to {high}"


def _section(key: _Key, groups: Sequence[Group]) -> Section:
    variants = _ordered({(cell["method"], cell["arm"]): cell for group in groups for cell in group["cells"]})
    metrics = tuple(metric(group["metric"]) for group in groups)
    notes: list[str] = []
    columns = []
    for group, shown in zip(groups, metrics, strict=True):
        best, note = _best(group, shown)
        notes += [note] if note else []
        empty = max(cell["nan"] - cell["nan_predictions"] for cell in group["cells"])
        if empty:
            rows = max(cell["rows"] for cell in group["cells"])
            notes.append(f"{shown.label}: {empty} of {rows} rows have nothing to score and are left out of the means.")
        columns.append(_column(group, shown, best))
    rows = tuple(
        TableRow(method, arm, cell["control"], tuple(column.get((method, arm)) for column in columns))
        for (method, arm), cell in variants.items()
    )
    conditions = dict.fromkeys(
        f"{name}: {each[name]}" for group in groups for each in group["conditions"] for name in ("crop", "mask")
        if each[name] is not None
    )  # fmt: skip
    return Section(*key, tuple(conditions), tuple(groups), metrics, rows, tuple(notes))


def _ordered(cells: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Put every control behind its method."""
    methods: dict[str, int] = {}
    for method, _ in cells:
        methods.setdefault(method, len(methods))

    def place(key: tuple[str, str]) -> tuple[int, bool]:
        owner = cells[key]["control_of"]
        return methods.get(owner, methods[key[0]]), owner in methods

    return {key: cells[key] for key in sorted(cells, key=place)}


def _column(group: Group, shown: Metric, best: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Cell]:
    gains = {(each["method"], each["arm"]): each for each in group["comparisons"] if each["kind"] == "control"}
    column = {}
    for cell in group["cells"]:
        key = cell["method"], cell["arm"]
        gain = gains.get(key)
        has_gain = gain is not None and gain["mean_difference"] is not None
        column[key] = Cell(
            shown.format(cell["mean"]),
            ends(shown, cell["interval"]),
            cell["n"],
            cell["nan_predictions"],
            key in best,
            shown.format(gain["mean_difference"], signed=True) if gain and has_gain else "",
            ends(shown, gain["interval"], signed=True) if gain and has_gain else "",
            gain["verdict"] if gain else "",
        )
    return column


def _best(group: Group, shown: Metric) -> tuple[list[tuple[str, str]], str]:
    """Return what is marked as best, and a note where the best is nothing that a mark should praise."""
    cells = [cell for cell in group["cells"] if cell["mean"] is not None]
    if shown.better is None or len(cells) < 2:
        return [], ""
    shares = {(tuple(cell["subjects"]), cell["nan"] / cell["rows"]) for cell in cells}
    if len(shares) > 1:
        return [], f"{shown.label}: the means are over different subjects or slices, so no best one is marked."
    sign = 1 if shown.better == "higher" else -1
    top = max(sign * cell["mean"] for cell in cells)
    best = [cell for cell in cells if sign * cell["mean"] == top]
    for cell in best:
        if cell["control"]:
            return [], f"{shown.label}: the best mean is that of {cell['method']}, a control without the prior."
    proper = [cell for cell in best if cell["arm"] in ("none", "right")]
    if not proper:
        name = f"{best[0]['method']} with {PROMPT_NAMES[best[0]['arm']]}"
        return [], f"{shown.label}: the best mean is that of {name}, so none is marked."
    return [(cell["method"], cell["arm"]) for cell in proper], ""
