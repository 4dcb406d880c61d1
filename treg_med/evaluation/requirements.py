"""Requirements such as ``ssim>=0.85`` that an evaluation must meet, for use in CI."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treg_med.errors import ConfigError
from treg_med.evaluation.metric_names import METRICS, metric
from treg_med.evaluation.summary import main_arm

__all__ = ["Requirement", "Result", "check"]

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_FORM = re.compile(
    r"\s*(?:(?P<method>[^@:<>=\s]+)?(?:@(?P<scenario>[^@:<>=\s]+))?\s*:\s*)?"
    r"(?P<metric>[A-Za-z]\w*)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)


@dataclass(frozen=True)
class Requirement:
    """A bound on the mean of a metric, for one method and scenario or for all."""

    metric: str
    sign: str
    bound: float
    method: str | None = None
    scenario: str | None = None

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read ``ssim>=0.85``, ``treg:ssim>=0.85`` or ``treg@mc-r4:ssim>=0.85``.

        Raises
        ------
        ConfigError
            For anything else.
        """
        found = _FORM.fullmatch(text)
        if found is None or (":" in text and not (found["method"] or found["scenario"])):
            raise ConfigError(
                f"expected a requirement like 'ssim>=0.85', 'treg:psnr>30' or 'treg@mc-r4:rmse_hu<=70' with one of "
                f"{', '.join(_COMPARE)} and a number, got {text!r}"
            )
        return cls(found["metric"], found["sign"], float(found["bound"]), found["method"], found["scenario"])

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        scope = (self.method or "") + (f"@{self.scenario}" if self.scenario else "")
        return f"{scope}:" * bool(scope) + f"{self.metric}{self.sign}{self.bound:g}"

    def check_names(
        self, methods: Iterable[str], scenarios: Iterable[str], metrics: Iterable[str] = tuple(METRICS)
    ) -> None:
        """Refuse a method, scenario or metric that is not among those known; best before anything runs.

        Raises
        ------
        ConfigError
            With the closest known name.
        """
        asked = (("metric", self.metric, metrics), ("method", self.method, methods),
                 ("scenario", self.scenario, scenarios))  # fmt: skip
        for what, name, names in asked:
            known = sorted(set(names))
            if name is not None and name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(
                    f"expected a {what} of {', '.join(known) or 'which there are none'} in requirement '{self}', got "
                    f"{name!r}{hint}"
                )


@dataclass(frozen=True)
class Result:
    """A requirement against one number of the summary; `where` names the number, `reason` why it fails."""

    requirement: str
    passed: bool
    value: float | None
    where: str
    reason: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        outcome = "met" if self.passed else "NOT MET"
        return f"{self.requirement}: {outcome}" + f" ({self.where})" * bool(self.where) + f": {self._found}"

    @property
    def _found(self) -> str:
        return self.reason or f"{self.value:.6g}"


def check(
    requirements: Sequence[Requirement | str],
    summary: Mapping[str, Any],
    *,
    methods: Iterable[str] = (),
    scenarios: Iterable[str] = (),
) -> list[Result]:
    """Hold requirements against the means of a summary, one result for each number that one applies to.

    A requirement applies to every dataset, protocol and level that has its metric. Without a method it applies to all
    methods but controls. Of a method with prompt arms the right text counts, and where there is none the first arm.
    A requirement that applies to nothing fails, and so does one on a prediction with NaN.

    Parameters
    ----------
    requirements : sequence of Requirement or str
    summary : mapping
        As `summarise` returns it.
    methods, scenarios : iterable of str
        Names that may be asked for though no row has them, since all of their volumes failed.

    Raises
    ------
    ConfigError
        For a requirement that cannot be read, or an unknown metric, method or scenario.
    """
    known_methods = [*summary["methods"], *methods]
    known_scenarios = [*(group["scenario"] for group in summary["groups"]), *scenarios]
    known_metrics = [*METRICS, *(group["metric"] for group in summary["groups"])]
    results: list[Result] = []
    for each in requirements:
        asked = Requirement.parse(each) if isinstance(each, str) else each
        asked.check_names(known_methods, known_scenarios, known_metrics)
        found = [_result(asked, group, cell) for group, cell in _cells(asked, summary)]
        results += found or [Result(str(asked), False, None, "", "no number of the evaluation matches it")]
    return results


def _cells(asked: Requirement, summary: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for group in summary["groups"]:
        if group["metric"] != asked.metric or asked.scenario not in (None, group["scenario"]):
            continue
        arms: dict[str, dict[str, Mapping[str, Any]]] = {}
        for cell in group["cells"]:
            wanted = not cell["control"] if asked.method is None else cell["method"] == asked.method
            if wanted:
                arms.setdefault(cell["method"], {})[cell["arm"]] = cell
        for cells in arms.values():
            yield group, cells[main_arm(cells)]


def _result(asked: Requirement, group: Mapping[str, Any], cell: Mapping[str, Any]) -> Result:
    value = cell["mean"]
    version = f"{group['protocol']} {group['protocol_version']}"
    where = f"{cell['method']}, {group['dataset']}, {group['scenario']}, {version}, {group['level']}"
    where += f", {group['region']}" if group.get("region") else ""
    if cell["arm"] != "none":
        where += f", {cell['arm']} text"
    if value is None or not math.isfinite(value) or cell["nan_predictions"]:
        reason = f"{cell['nan_predictions'] or cell['nan']} of {cell['rows']} rows are NaN"
        return Result(str(asked), False, value, where, reason)
    if _COMPARE[asked.sign](value, asked.bound):
        return Result(str(asked), True, value, where)
    return Result(str(asked), False, value, where, f"the mean is {value:.6g} {metric(asked.metric).unit}".rstrip())
