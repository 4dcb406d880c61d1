"""The tidy table summed up by patient: means with intervals, paired comparisons, and whether the text helped."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from treg_med.errors import ConfigError
from treg_med.evaluation.comparisons import Bootstrap, Comparison, Pair, compare
from treg_med.evaluation.metric_names import METRICS, metric
from treg_med.evaluation.regions import BOX, FEWEST_CASES
from treg_med.evaluation.statistics import LEVEL, RESAMPLES, Interval, standard_error
from treg_med.evaluation.subject_values import Group, MetricValues, Row, SubjectValues, Variant

__all__ = ["SUMMARY_VERSION", "main_arm", "summarise"]

SUMMARY_VERSION = 1

Summary = dict[str, Any]


def summarise(
    rows: Iterable[Row],
    *,
    compare_to: str | None = None,
    metrics: Sequence[str] | None = None,
    methods: Iterable[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Summary:
    """Sum up the rows of an evaluation as plain JSON data.

    The unit is the subject: slices are averaged within a volume, seeds within a scan, scans within a subject. Values
    that are NaN or infinite are left out of means and counted (``nan``, of them ``nan_predictions`` with NaN in the
    image itself, the others with nothing to score); a subject enters a comparison only where both of its
    values are means over the same slices. Each group is one dataset, scenario, protocol, version, level, metric and,
    for rows that are about one, region::

        {"dataset", "scenario", "protocol", "protocol_version", "level", "region", "metric", "better", "conditions",
         "cells": [{"method", "arm", "control", "control_of", "n", "rows", "nan", "nan_predictions", "mean",
                    "standard_error", "interval", "subjects"}],
         "comparisons": [{"kind", "method", "arm", "against_method", "against_arm", "n", "left_out",
                          "mean_difference", "interval", "p", "p_holm", "exact", "zeros", "effect_size", "verdict",
                          "note", "sentence", "differences"}]}

    Differences are the first minus the second. Kinds of comparisons: ``reference`` (every method and arm against
    `compare_to`), ``control`` (against the method's own control) and ``prompt`` (the right text against each other
    one); Holm's correction is over families within a group (see `compare`). Boxes of a label that fewer than
    `FEWEST_CASES` scans have make no group; they are listed in ``suppressed`` with their number of cases.

    Parameters
    ----------
    rows : iterable of mappings
        The tidy table; read once, row by row.
    compare_to : str, optional
        Label of the reference. By default a method with a control of its own has that, and all others have the first
        method of the table.
    metrics : sequence of str, optional
        By default all of the table.
    methods : iterable of str
        Labels that `compare_to` may name though no row has them, since all of their volumes failed.
    seed : int
        Of the bootstrap.
    resamples : int
        Of the bootstrap.
    level : float
        Of the intervals; one minus it is the error of a verdict.

    Raises
    ------
    ConfigError
        For no rows, an unknown `compare_to` or metric, or rows that must not be averaged (see `SubjectValues`).
    FormatError
        For a row that lacks a column.
    """
    table = SubjectValues(rows, metrics)
    if not table.rows:
        raise ConfigError("expected at least one row to sum up, got none; no volume was scored")
    labels = dict.fromkeys((*table.methods, *methods))
    if compare_to is not None and compare_to not in labels:
        close = difflib.get_close_matches(compare_to, labels, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"expected compare_to to be one of {', '.join(labels)}, got {compare_to!r}{hint}")
    bootstrap = Bootstrap(resamples, level, seed)
    known = [name for name in METRICS if name in table.metrics]
    names = list(metrics) if metrics is not None else known + sorted(set(table.metrics) - set(known))
    rare = [group for group in table.groups if _is_rare(table, group)]
    kept = [group for group in table.groups if group not in rare]
    groups = (_group(table, group, name, compare_to, bootstrap) for group in kept for name in names)
    return {
        "version": SUMMARY_VERSION,
        "rows": table.rows,
        "compare_to": compare_to,
        "statistics": {
            "unit": "subject",
            "interval": "BCa bootstrap of the mean over subjects",
            "level": level,
            "resamples": resamples,
            "seed": seed,
            "test": "two-sided Wilcoxon signed rank, exact up to 200 subjects, zeros by Pratt",
            "correction": "Holm over one kind of comparison in one group, other texts than the right one apart from "
            "the methods proper",
            "effect_size": "matched-pairs rank-biserial correlation",
        },
        "methods": {
            label: {
                "solver": facts.solver,
                "preset": facts.preset,
                "control": facts.control,
                "control_of": control_of(label, table),
            }
            for label, facts in table.methods.items()
        },
        "groups": [group for group in groups if group["cells"]],
        "suppressed": [
            {
                "dataset": group.dataset,
                "scenario": group.scenario,
                "protocol": group.protocol,
                "region": group.region,
                "cases": table.cases(group),
            }
            for group in rare
        ],
    }


def _is_rare(table: SubjectValues, group: Group) -> bool:
    return (group.region or "").startswith(BOX) and table.cases(group) < FEWEST_CASES


def main_arm(arms: Iterable[str]) -> str:
    """Return the arm that stands for a method: no text, else the right one, else the first."""
    found = list(arms)
    return next((arm for arm in ("none", "right") if arm in found), found[0])


def control_of(label: str, table: SubjectValues) -> str | None:
    """Return the method whose control this is: ``treg`` for ``treg-control``; None for what is no control."""
    if not table.methods[label].control:
        return None
    owners = [each for each in table.methods if label.startswith(f"{each}-")]
    return max(owners, key=len, default=None)


def _group(
    table: SubjectValues, group: Group, name: str, compare_to: str | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    found = {variant: table.values(group, variant, name) for variant in table.variants(group)}
    values = {variant: each for variant, each in found.items() if each is not None}
    pairs = [(pair, values[pair.first], values[pair.second]) for pair in _pairs(table, list(values), compare_to)]
    return {
        "dataset": group.dataset,
        "scenario": group.scenario,
        "protocol": group.protocol,
        "protocol_version": group.protocol_version,
        "level": group.level,
        "region": group.region,
        "metric": name,
        "better": metric(name).better,
        "conditions": [{"crop": crop, "mask": mask} for crop, mask in table.conditions(group)],
        "cells": [_cell(table, variant, each, bootstrap) for variant, each in values.items()],
        "comparisons": [_plain(each) for each in compare(pairs, metric(name), bootstrap)],
    }


def _pairs(table: SubjectValues, variants: Sequence[Variant], compare_to: str | None) -> list[Pair]:
    arms: dict[str, list[str]] = {}
    for variant in variants:
        arms.setdefault(variant.method, []).append(variant.arm)
    controls = {owner: label for label in arms if (owner := control_of(label, table)) is not None}

    def main(method: str) -> Variant:
        return Variant(method, main_arm(arms[method]))

    pairs = []
    for variant in variants:
        control = controls.get(variant.method)
        # Without a stated reference a method's own control is its reference, and is not compared twice.
        reference = compare_to or (None if control else next(iter(arms)))
        if reference in arms and reference != variant.method:
            pairs.append(Pair("reference", variant, main(reference)))
        if control is not None:
            pairs.append(Pair("control", variant, main(control)))
        if variant.arm not in ("none", "right") and "right" in arms[variant.method]:
            pairs.append(Pair("prompt", Variant(variant.method, "right"), variant))
    return pairs


def _cell(table: SubjectValues, variant: Variant, values: MetricValues, bootstrap: Bootstrap) -> dict[str, Any]:
    numbers = list(values.by_subject.values())
    return {
        "method": variant.method,
        "arm": variant.arm,
        "control": table.methods[variant.method].control,
        "control_of": control_of(variant.method, table),
        "n": len(numbers),
        "rows": values.rows,
        "nan": values.not_finite,
        "nan_predictions": values.broken,
        "mean": math.fsum(numbers) / len(numbers) if numbers else None,
        "standard_error": standard_error(numbers) if len(numbers) > 1 else None,
        "interval": _ends(bootstrap.interval(numbers)),
        "subjects": values.by_subject,
    }


def _plain(comparison: Comparison) -> dict[str, Any]:
    pair = comparison.pair
    return {
        "kind": pair.kind,
        "method": pair.first.method,
        "arm": pair.first.arm,
        "against_method": pair.second.method,
        "against_arm": pair.second.arm,
        "n": len(comparison.differences),
        "left_out": comparison.left_out,
        "mean_difference": comparison.mean,
        "interval": _ends(comparison.interval),
        "p": comparison.p,
        "p_holm": comparison.p_holm,
        "exact": comparison.exact,
        "zeros": comparison.zeros,
        "effect_size": comparison.effect_size,
        "verdict": comparison.verdict,
        "note": comparison.note,
        "sentence": comparison.sentence,
        "differences": comparison.differences,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
