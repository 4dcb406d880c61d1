"""An evaluation as one self-contained HTML page, and its tables as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from treg_med import __version__
from treg_med.environment import installed_version
from treg_med.evaluation.charts import difference_chart
from treg_med.evaluation.metric_names import Metric
from treg_med.evaluation.requirements import Result
from treg_med.evaluation.summary_tables import Cell, Section, ends, headline, sections, variant_name
from treg_med.notice import RESEARCH_ONLY

__all__ = ["Failed", "installed_versions", "markdown_table", "render"]

_PACKAGES = ("torch", "numpy", "scikit-image", "diffusers", "monai")
_OTHER_ARMS = ("empty", "wrong", "shuffled")

Comparison = Mapping[str, Any]


class Failed(Protocol):
    """A volume, or a method on it, without a score; `method` is None where no method has one."""

    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def scenario(self) -> str: ...  # noqa: D102
    @property
    def scan(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> str | None: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def message(self) -> str: ...  # noqa: D102


def installed_versions() -> dict[str, str]:
    """Return the versions of this package and of those that the numbers depend on."""
    found = {name: installed_version(name) for name in _PACKAGES}
    return {"treg_med": __version__, **{name: version for name, version in found.items() if version is not None}}


def render(
    summary: Mapping[str, Any],
    *,
    title: str,
    figures: Sequence[tuple[str, bytes]] = (),
    failures: Sequence[Failed] = (),
    configuration: str = "",
    requirements: Sequence[Result] = (),
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the page: no scripts, no links to anything outside, pictures inlined; the same input gives the same bytes.

    Parameters
    ----------
    summary : mapping
        As `summarise` returns it, or read back from its JSON.
    title : str
    figures : sequence of (str, bytes)
        Captions and PNG files.
    failures : sequence of Failed
    configuration : str
        The configuration as it was used.
    requirements : sequence of Result
        As `check` returns them.
    notes : sequence of str
        What a reader must know of the prompts, such as an arm that could not be made.
    versions : mapping, optional
        Package -> version; by default those installed now.
    """
    environment = Environment(
        loader=PackageLoader("treg_med.evaluation", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    tables = sections(summary)
    level = summary["statistics"]["level"]
    return environment.get_template("report.html.j2").render(
        title=title,
        notice=RESEARCH_ONLY,
        facts=_facts(summary, tables),
        level=f"{100 * level:g} %",
        error=f"{1 - level:g}",
        requirements=requirements,
        prompts=[_prompts(each) for each in tables if each.comparisons("prompt")],
        other_arms=_OTHER_ARMS,
        notes=notes,
        results=[_results(each) for each in tables],
        figures=[{"caption": caption, "source": _png(picture)} for caption, picture in figures],
        failures=failures,
        statistics=summary["statistics"],
        reference=summary["compare_to"] or "the first method",
        methods=summary["methods"],
        configuration=configuration,
        versions=installed_versions() if versions is None else versions,
    )


def markdown_table(summary: Mapping[str, Any]) -> str:
    """Return the tables of the page, and what it says of the text, as Markdown."""
    return "\n\n".join(_markdown(each) for each in sections(summary)) + "\n"


def _facts(summary: Mapping[str, Any], tables: Sequence[Section]) -> str:
    subjects: dict[str, set[str]] = {}
    for group in summary["groups"]:
        found = subjects.setdefault(group["dataset"], set())
        for cell in group["cells"]:
            found.update(cell["subjects"])
    counted = ", ".join(f"{name}: {len(each)} subject{'s' * (len(each) != 1)}" for name, each in subjects.items())
    protocols = ", ".join(dict.fromkeys(f"{each.protocol} (version {each.version})" for each in tables))
    return f"{counted} · {summary['rows']} rows · protocols {protocols}"


def _prompts(section: Section) -> dict[str, Any]:
    found = section.comparisons("prompt")
    shown = headline(section)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    glance: dict[str, dict[str, Any]] = {}
    for metric, each in found:
        method, arm = each["method"], each["against_arm"]
        cell = {
            "mean": metric.format(each["mean_difference"], signed=True),
            "interval": ends(metric, each["interval"], signed=True),
            "verdict": each["verdict"],
        }
        row = rows.setdefault((method, arm), {"method": method, "against_arm": arm, "n": each["n"], "cells": {}})
        row["cells"][metric.name] = cell
        if metric == shown[0]:
            glance.setdefault(method, {"method": method, "metric": metric.heading, "arms": {}})["arms"][arm] = cell
    for row in rows.values():
        row["cells"] = [row["cells"].get(metric.name) for metric in section.metrics]
    labels = [(metric, f"{each['method']}: right − {each['against_arm']}", each) for metric, each in found]
    return {
        "section": section,
        "sentences": [each["sentence"] for metric in shown for other, each in found if other == metric],
        "charts": _charts(shown, labels),
        "rows": list(rows.values()),
        "glance": list(glance.values()),
    }


def _results(section: Section) -> dict[str, Any]:
    shown = headline(section)
    charts = []
    for kind in ("reference", "control"):
        # Other texts than the right one have charts of their own.
        labels = [
            (metric, f"{each['method']} − {each['against_method']}", each)
            for metric, each in section.comparisons(kind)
            if each["arm"] in ("none", "right")
        ]
        charts += _charts(shown, labels)
    found = [pair for kind in ("reference", "control", "prompt") for pair in section.comparisons(kind)]
    return {"section": section, "charts": charts, "comparisons": [_listed(metric, each) for metric, each in found]}


def _charts(shown: Sequence[Metric], labelled: Sequence[tuple[Metric, str, Comparison]]) -> list[Markup]:
    charts = (
        difference_chart(metric, [(label, each) for other, label, each in labelled if other == metric])
        for metric in shown
    )
    return [Markup(chart) for chart in charts if chart]  # noqa: S704 - difference_chart escapes what it draws


def _listed(metric: Metric, each: Comparison) -> dict[str, Any]:
    return {
        "metric": metric.heading,
        "first": variant_name(each["method"], each["arm"]),
        "second": variant_name(each["against_method"], each["against_arm"]),
        "n": each["n"],
        "difference": metric.format(each["mean_difference"], signed=True),
        "interval": ends(metric, each["interval"], signed=True),
        "effect": "" if each["effect_size"] is None else f"{each['effect_size']:+.2f}".replace("-", "−"),
        "p": _p(each["p"]),
        "p_holm": _p(each["p_holm"]),
        "verdict": each["verdict"],
        "note": each["note"],
    }


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _png(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def _markdown(section: Section) -> str:
    heads = ["method", "text", "n"]
    for metric in section.metrics:
        heads += [metric.heading, "over control"] if section.has_gains else [metric.heading]
    lines = [f"### {section.title}", "", _line(heads), _line(["---", "---", *["---:"] * (len(heads) - 2)])]
    for row in section.rows:
        cells = [row.method, row.text, row.n]
        for cell in row.cells:
            cells += _markdown_cells(cell)[: 2 if section.has_gains else 1]
        lines.append(_line(cells))
    said = [f"- {note}" for note in (*section.conditions, *section.notes)]
    shown = headline(section)
    said += [f"- {each['sentence']}" for metric, each in section.comparisons("prompt") if metric in shown]
    return "\n".join([*lines, "", *said] if said else lines)


def _markdown_cells(cell: Cell | None) -> tuple[str, str]:
    if cell is None:
        return "–", ""
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    mean += f" ({cell.interval})" * bool(cell.interval) + f", {cell.nan} NaN" * bool(cell.nan)
    return mean, cell.gain + f" ({cell.gain_interval})" * bool(cell.gain_interval)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
