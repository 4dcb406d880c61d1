"""Differences by subject as small inline SVG: dots, their mean and interval, and the line of no difference."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treg_med.evaluation.metric_names import Metric

__all__ = ["difference_chart"]

_WIDTH, _ROW, _TOP, _AXIS, _MARGIN = 560, 30, 8, 40, 14
_LETTER = 6.6
_COLOURS = {"better": "#1e6b34", "worse": "#a61c00", "higher": "#0b5394", "lower": "#0b5394"}
_OPEN, _FAINT, _LINE = "#3a3a3f", "#6b6b70", "#d9d9de"


def difference_chart(shown: Metric, labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Draw a row for each comparison that has pairs; of none, nothing.

    Parameters
    ----------
    shown : Metric
    labelled : sequence of (str, mapping)
        A name and a comparison as in the summary.
    """
    rows = [(label, each) for label, each in labelled if each["differences"]]
    if not rows:
        return ""
    left = _MARGIN + _LETTER * max(len(label) for label, _ in rows)
    numbers = [d for _, each in rows for d in each["differences"].values()]
    numbers += [end for _, each in rows for end in each["interval"] or ()]
    ticks = _ticks(min(0.0, *numbers), max(0.0, *numbers))
    names = [_tick_name(tick, ticks) for tick in ticks]
    # Half of the last name hangs over the end of the axis.
    right = _WIDTH - max(_MARGIN, _LETTER * len(names[-1]) / 2 + 2)

    def place(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    bottom = _TOP + _ROW * len(rows)
    name = html.escape(f"Differences of {shown.label} by subject")
    parts = [f'<svg viewBox="0 0 {_WIDTH} {bottom + _AXIS}" role="img" aria-label="{name}">']
    for tick, tick_name in zip(ticks, names, strict=True):
        x, colour = place(tick), _OPEN if tick == 0 else _LINE
        parts.append(_line(x, _TOP, x, bottom, colour, 1.2 if tick == 0 else 0.8))
        parts.append(_text(x, bottom + 15, tick_name, "middle"))
    parts.append(_text((left + right) / 2, bottom + 33, f"difference of {shown.heading}", "middle"))
    for index, (label, each) in enumerate(rows):
        parts += _row(label, each, _TOP + _ROW * (index + 0.5), left, place)
    return "".join([*parts, "</svg>"])


def _row(label: str, each: Mapping[str, Any], y: float, left: float, place: Callable[[float], float]) -> list[str]:
    colour = _COLOURS.get(each["verdict"], _OPEN)
    parts = [_text(left - 8, y + 4, label, "end")]
    parts += [
        f'<circle cx="{place(d):.1f}" cy="{y + 5:.1f}" r="2.6" fill="{colour}" fill-opacity="0.35"/>'
        for d in each["differences"].values()
    ]
    if each["interval"] is not None:
        low, high = map(place, each["interval"])
        parts.append(_line(low, y - 4, high, y - 4, colour, 2.4))
    x = place(each["mean_difference"])
    parts.append(f'<rect x="{x - 3:.1f}" y="{y - 7:.1f}" width="6" height="6" fill="{colour}"/>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_FAINT}">{html.escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from below `low` to above `high`, zero among them."""
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _tick_name(tick: float, ticks: Sequence[float]) -> str:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    sign = "−" if tick < 0 else "+" if tick > 0 else ""
    return f"{sign}{abs(tick):.{digits}f}"
