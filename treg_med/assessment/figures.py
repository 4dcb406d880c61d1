"""Pictures of a report as PNG in base64: grey images in rows, and plain curves.

Figures are made as objects, without pyplot, so that nothing needs a display and no state is shared.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

__all__ = ["curves", "histograms", "picture_grid", "picture_row"]

_PANEL_INCHES = 2.3
_DPI = 110
_INK, _FAINT = "#222222", "#bbbbbb"
_COLOURS = ("#0b5394", "#b45f06", "#38761d", "#741b47", "#5f6a72", "#a61c00")
_MARKERS = "os^Dv*"
_BINS = 40


def picture_row(images: Sequence[Tensor], titles: Sequence[str], gains: Sequence[float] | None = None) -> str:
    """Draw images ``(H, W)`` in [0, 1] side by side; a gain brightens one of them."""
    return picture_grid([images], titles, [""], gains=gains)


def picture_grid(
    rows: Sequence[Sequence[Tensor]],
    titles: Sequence[str],
    names: Sequence[str],
    gains: Sequence[float] | None = None,
    signed: Sequence[int] = (),
) -> str:
    """Draw rows of images ``(H, W)``, titles above the columns, names beside the rows.

    Columns in `signed` are differences: blue below zero, red above.
    """
    height, width = rows[0][0].shape
    label = 0.3 if any(names) else 0.0
    # Wide figures are shrunk to the page, and their titles with them.
    letters = 9 * max(1.0, len(titles) / 3.5)
    size = (_PANEL_INCHES * len(titles) + label, (_PANEL_INCHES * height / width) * len(rows) + 0.3)
    figure = _figure(*size)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, images, name in zip(axes, rows, names, strict=True):
        for column, (ax, image) in enumerate(zip(line, images, strict=True)):
            gain = 1.0 if gains is None else gains[column]
            pixels = (image.detach().cpu().float() * gain).numpy()
            colours, black = ("RdBu_r", -1) if column in signed else ("gray", 0)
            ax.imshow(pixels, interpolation="nearest", cmap=colours, vmin=black, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, fontsize=letters, color=_INK)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=letters, color=_INK)
    return _png(figure)


def curves(
    series: Mapping[str, Mapping[float, float]],
    x_label: str,
    y_label: str,
    *,
    level: float | None = None,
    level_name: str = "",
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
) -> str:
    """Draw named curves, and a dashed line where a bar or chance lies."""
    figure = _figure(6.4, 3.1)
    ax: Axes = figure.add_subplot()
    if level is not None:
        ax.axhline(level, color=_FAINT, linestyle="--", linewidth=1)
        ax.annotate(level_name, (0.01, level), xycoords=("axes fraction", "data"), fontsize=8, color="#777777",
                    va="top")  # fmt: skip
    for (name, points), colour, marker in zip(series.items(), _COLOURS, _MARKERS, strict=False):
        xs = sorted(points)
        ax.plot(xs, [points[x] for x in xs], color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
    if log_y:
        ax.set_yscale("log")
        for axis_format in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis_format(FuncFormatter(lambda value, _: f"{value:g}"))
    if y_range is not None:
        ax.set_ylim(*y_range)
    ax.set_xlabel(x_label, fontsize=9, color=_INK)
    ax.set_ylabel(y_label, fontsize=9, color=_INK)
    ax.tick_params(which="both", labelsize=8, colors=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def histograms(
    series: Mapping[str, Sequence[float]], x_label: str, *, level: float | None = None, level_name: str = ""
) -> str:
    """Draw named distributions over one another as shares of their set, and a dashed line where a bar lies."""
    figure = _figure(6.4, 2.6)
    ax: Axes = figure.add_subplot()
    values = [value for some in series.values() for value in some]
    low, high = min(values), max(values)
    for (name, some), colour in zip(series.items(), _COLOURS, strict=False):
        shares = [1 / len(some)] * len(some)
        # Values that are all alike still need a range.
        limits = (low - 1e-6, high + 1e-6)
        ax.hist(some, _BINS, range=limits, weights=shares, color=colour, alpha=0.55, label=name)
    if level is not None:
        ax.axvline(level, color="#777777", linestyle="--", linewidth=1, label=level_name)
    ax.set_xlabel(x_label, fontsize=9, color=_INK)
    ax.set_ylabel("share", fontsize=9, color=_INK)
    ax.tick_params(which="both", labelsize=8, colors=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return base64.b64encode(stream.getvalue()).decode("ascii")
