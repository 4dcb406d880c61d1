"""Paired comparisons of methods and of prompts over subjects: difference, interval, test, verdict, sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from treg_med.evaluation.metric_names import Metric
from treg_med.evaluation.statistics import Interval, bca_interval, holm, paired_wilcoxon, rank_biserial
from treg_med.evaluation.subject_values import MetricValues, Variant

__all__ = ["PROMPT_NAMES", "Bootstrap", "Comparison", "Kind", "Pair", "compare"]

#: "reference": against the method of `compare_to`; "control": against the same pipeline with the prior removed;
#: "prompt": the right text against another one.
Kind = Literal["reference", "control", "prompt"]
Verdict = Literal["better", "worse", "higher", "lower", "not distinguishable", "identical", "n too small", "no pairs"]

PROMPT_NAMES = {
    "none": "no text",
    "right": "the right text",
    "empty": "an empty text",
    "wrong": "a wrong text",
    "shuffled": "another subject's text",
}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    resamples: int
    level: float
    seed: int

    def interval(self, values: Sequence[float]) -> Interval | None:
        """Return the BCa interval of a mean, None for fewer than two values."""
        return bca_interval(values, resamples=self.resamples, level=self.level, seed=self.seed) if values else None


@dataclass(frozen=True)
class Pair:
    """What is compared: the first minus the second."""

    kind: Kind
    first: Variant
    second: Variant


@dataclass(frozen=True)
class Comparison:
    """Differences over subjects, first minus second, in the unit of the metric.

    `left_out` subjects have only one of both values, or values over different slices. `p_holm` holds for all
    comparisons of a family together. A verdict of a difference needs `p_holm` below one minus the level and an interval
    without zero; `note` says why there is no verdict at all.
    """

    pair: Pair
    metric: Metric
    level: float
    differences: dict[str, float]
    left_out: int
    mean: float | None
    interval: Interval | None
    p: float | None
    p_holm: float | None
    zeros: int
    exact: bool
    effect_size: float | None
    note: str

    @property
    def verdict(self) -> Verdict:
        """What can be said of the first."""
        if self.mean is None:
            return "no pairs"
        if not any(self.differences.values()):
            return "identical"
        if self.note or self.p_holm is None or self.interval is None:
            return "n too small"
        apart = self.interval.low > 0 or self.interval.high < 0
        if not apart or self.p_holm >= 1 - self.level:
            return "not distinguishable"
        above = self.mean > 0
        if self.metric.better is None:
            return "higher" if above else "lower"
        return "better" if above == (self.metric.better == "higher") else "worse"

    @property
    def sentence(self) -> str:
        """Say the comparison in plain words."""
        first, second = _names(self.pair)
        label, verdict = self.metric.label, self.verdict
        if self.pair.kind == "prompt":
            label = f"{self.pair.first.method}, {label}"
        if self.mean is None:
            return f"{label}: no subject has values both {first} and {second} over the same slices."
        if verdict == "identical":
            return f"{label} is the same {first} and {second} for each of {len(self.differences)} subjects."
        facts = self._facts()
        change = self._unit(self.metric.format(self.mean, signed=True))
        if verdict == "n too small":
            interval = f" ({facts[0]})" if self.interval is not None else ""
            return f"{label} {first} minus {second}: {change}{interval}; {self.note}."
        if verdict == "not distinguishable":
            return (
                f"{label} {first} is not distinguishable from that {second}: the difference is {change} "
                f"({', '.join(facts)})."
            )
        way = "higher" if self.mean > 0 else "lower"
        judged = "" if self.metric.better is None else f" ({verdict})"
        size = self._unit(self.metric.format(abs(self.mean)))
        return f"{label} is {size} {way}{judged} {first} than {second} ({', '.join(facts)})."

    def _unit(self, number: str) -> str:
        return f"{number} {self.metric.unit}".rstrip()

    def _facts(self) -> list[str]:
        facts = []
        if self.interval is not None:
            low, high = (self.metric.format(end, signed=True) for end in (self.interval.low, self.interval.high))
            facts.append(f"{100 * self.level:g} % interval {low} to {high}")
        facts.append(f"n = {len(self.differences)} subjects")
        if self.p_holm is not None:
            facts.append("p < 0.001 after Holm" if self.p_holm < 0.001 else f"p = {self.p_holm:.3f} after Holm")
        return facts


def compare(
    pairs: Sequence[tuple[Pair, MetricValues, MetricValues]], metric: Metric, bootstrap: Bootstrap
) -> list[Comparison]:
    """Compare all pairs of one table and metric.

    Holm's correction is over families: the pairs of one kind, those of other texts than the right one (against a
    reference or control) apart from the methods proper. Where even a difference of one sign in every subject would not
    survive it, the note says that n is too small.

    Parameters
    ----------
    pairs : sequence of (Pair, MetricValues, MetricValues)
        What is compared, with the values of the first and of the second.
    metric : Metric
    bootstrap : Bootstrap
    """
    compared = [_tested(pair, first, second, metric, bootstrap) for pair, first, second in pairs]
    families: dict[tuple[Kind, bool], dict[int, float]] = {}
    for i, each in enumerate(compared):
        if each.p is not None:
            families.setdefault((each.pair.kind, each.pair.first.arm in ("none", "right")), {})[i] = each.p
    for family in families.values():
        most = max(len(compared[i].differences) for i in family)
        least = len(family) * 2.0 ** (1 - most)
        note = ""
        if least >= 1 - bootstrap.level:
            note = (
                f"n too small for {len(family)} comparisons together (n = {most} subjects: at best p = "
                f"{min(1.0, least):.2g} after Holm)"
            )
        for i, p_holm in zip(family, holm(list(family.values())), strict=True):
            compared[i] = replace(compared[i], p_holm=p_holm, note=note)
    return compared


def _tested(
    pair: Pair, first: MetricValues, second: MetricValues, metric: Metric, bootstrap: Bootstrap
) -> Comparison:
    every = dict.fromkeys([*first.by_subject, *second.by_subject])
    differences = {
        subject: first.by_subject[subject] - second.by_subject[subject]
        for subject in every
        if subject in first.coverage and first.coverage[subject] == second.coverage.get(subject)
    }
    left_out = len(every) - len(differences)
    if not differences:
        return Comparison(
            pair, metric, bootstrap.level, {}, left_out, None, None, None, None, 0, False, None, "no subject has both"
        )
    values = list(differences.values())
    test = paired_wilcoxon(values)
    return Comparison(
        pair,
        metric,
        bootstrap.level,
        differences,
        left_out,
        sum(values) / len(values),
        bootstrap.interval(values),
        test.p,
        None,
        test.zeros,
        test.exact,
        rank_biserial(values),
        test.note,
    )


def _names(pair: Pair) -> tuple[str, str]:
    if pair.kind == "prompt":
        return f"with {PROMPT_NAMES[pair.first.arm]}", f"with {PROMPT_NAMES[pair.second.arm]}"
    first, second = (
        f"for {each.method}" + ("" if each.arm == "none" else f" with {PROMPT_NAMES[each.arm]}")
        for each in (pair.first, pair.second)
    )
    return first, second
