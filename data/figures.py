"""Drawing reconstructions: upright, grey, all in one window, the misfit in the title.

Figures are made as objects, without pyplot, so that nothing needs a display and no state is shared.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from treg_med.data.records import RESEARCH_ONLY, Reconstruction
from treg_med.errors import GeometryError

__all__ = ["compare_reconstructions", "display_window", "html_picture", "show_reconstruction"]

# Part of the pixels that may be brighter than white.
_WINDOW_QUANTILE = 0.998
_PANEL_INCHES = 3.0
_HTML_WIDTH_INCHES = 2.4
# Errors are drawn this many times brighter than the images.
_DIFFERENCE_GAIN = 5.0


def display_window(image: Tensor) -> tuple[float, float]:
    """Return black and white level: 0 (or a negative minimum) and the 99.8th percentile."""
    values = image.detach().float().cpu().flatten()
    white = float(values.kthvalue(max(1, math.ceil(_WINDOW_QUANTILE * values.numel()))).values)
    black = min(0.0, float(values.min()))
    return black, white if white > black else black + 1.0


def _pixels(image: Tensor) -> npt.NDArray[np.float32]:
    if image.ndim != 2:
        raise GeometryError(
            f"expected one image (H, W) to draw, got {tuple(image.shape)}; pick one of the batch"
        )
    return np.asarray(image.detach().cpu().float().numpy())


def _draw(ax: Axes, image: Tensor, window: tuple[float, float], title: str, aspect: float) -> None:
    ax.imshow(
        _pixels(image), cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest", aspect=aspect
    )
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


class _NotebookFigure(Figure):
    """A figure that a notebook draws by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()


def _title(rec: Reconstruction) -> str:
    name = rec.solver or "reconstruction"
    return name if math.isnan(rec.residual) else f"{name}\nresidual {rec.residual:.2f} noise units"


def _aspect(rec: Reconstruction) -> float:
    """Height over width of a displayed pixel."""
    geometry = rec.measurement.geometry if rec.measurement is not None else None
    if geometry is None:
        return 1.0
    rows, columns, _ = geometry.spacing_mm
    return columns / rows if geometry.display_rot90 % 2 else rows / columns


def _new_figure(width: float, height: float) -> Figure:
    figure = _NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _caption(recs: Sequence[Reconstruction]) -> str:
    simulated = any(r.measurement is not None and r.measurement.simulated for r in recs)
    return ("Simulated measurement. " if simulated else "") + RESEARCH_ONLY


def show_reconstruction(rec: Reconstruction, ax: Axes | None = None) -> Figure:
    """Draw one reconstruction; returns the figure (that of ``ax`` if given)."""
    if ax is None:
        figure = _new_figure(_PANEL_INCHES + 1, _PANEL_INCHES + 1.4)
        figure.supxlabel(_caption([rec]), fontsize=6)
        ax = figure.add_subplot()
    _draw(ax, rec.upright, display_window(rec.upright), _title(rec), _aspect(rec))
    owner = ax.get_figure(root=True)
    if owner is None:
        raise GeometryError("expected axes that belong to a figure, got axes that were removed")
    return owner


def compare_reconstructions(recs: Sequence[Reconstruction], *, difference: bool = True) -> Figure:
    """Draw reconstructions side by side in one window, that of the target or the first; errors below.

    Raises
    ------
    GeometryError
        If the images differ in shape.
    """
    shapes = {tuple(r.image.shape) for r in recs}
    if len(shapes) != 1:
        raise GeometryError(f"expected reconstructions of one shape to compare, got {sorted(shapes)}")
    first = recs[0].measurement
    target = first.target if first is not None else None
    reference: Tensor | None = None
    if target is not None and first is not None:
        reference = target.abs() if target.is_complex() else target
        reference = first.geometry.to_display(reference) if first.geometry is not None else reference
    window = display_window(recs[0].upright if reference is None else reference)
    panels = len(recs) + (reference is not None)
    rows = 2 if difference and reference is not None else 1
    figure = _new_figure(_PANEL_INCHES * panels, (_PANEL_INCHES + 0.8) * rows)
    axes = figure.subplots(rows, panels, squeeze=False)
    for column, rec in enumerate(recs):
        _draw(axes[0, column], rec.upright, window, _title(rec), _aspect(rec))
    if reference is not None:
        _draw(axes[0, -1], reference, window, "target", _aspect(recs[0]))
        if rows == 2:
            _draw_differences(axes[1], recs, reference.cpu(), window)
    figure.supxlabel(_caption(recs), fontsize=7)
    return figure


def _draw_differences(
    axes: npt.NDArray[np.object_],
    recs: Sequence[Reconstruction],
    reference: Tensor,
    window: tuple[float, float],
) -> None:
    white = (window[1] - window[0]) / _DIFFERENCE_GAIN
    for ax, rec in zip(axes, recs, strict=False):
        error = (rec.upright.cpu() - reference).abs()
        relative = float(
            torch.linalg.vector_norm(error) / torch.linalg.vector_norm(reference).clamp_min(1e-30)
        )
        _draw(
            ax,
            error,
            (0.0, white),
            f"|error| x {_DIFFERENCE_GAIN:.0f}, relative {relative:.3f}",
            _aspect(rec),
        )
    axes[-1].set_axis_off()


def html_picture(image: Tensor) -> str:
    """Return an ``<img>`` with the image as embedded PNG; empty for a batch."""
    if image.ndim != 2:
        return ""
    height, width = image.shape
    figure = Figure(figsize=(_HTML_WIDTH_INCHES, _HTML_WIDTH_INCHES * height / width), dpi=80)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_axis_off()
    black, white = display_window(image)
    ax.imshow(_pixels(image), cmap="gray", vmin=black, vmax=white, aspect="auto")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="reconstruction" src="data:image/png;base64,{data}">'
