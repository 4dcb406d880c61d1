"""Reconstructions beside their target, and their errors, as a picture of the report."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from treg_med.evaluation.references import Reference
from treg_med.evaluation.slice_grid import Images

__all__ = ["ERROR_GAIN", "comparison_figure"]

#: Errors are shown this many times brighter than images.
ERROR_GAIN = 5

_PANEL_INCHES = 2.2
_DPI = 110
_INK = "#222222"
# Lung to bone; narrower windows hide what is wrong in air.
_HU_WINDOW = (-1000.0, 500.0)
_BRIGHTEST = 99.7
_MOST_COLUMNS = 9


def comparison_figure(reference: Reference, position: int, images: Mapping[str, Images]) -> bytes:
    """Return a PNG: the target and every image in one window, and below them the absolute errors in one scale.

    Parameters
    ----------
    reference
        True images of the volume.
    position
        Which of its slices.
    images
        (H, W) by what to call them; at most eight are shown.
    """
    geometry = reference.grid.part
    target = reference.images[position]
    low, high = _HU_WINDOW
    if reference.unit == "magnitude":
        low, high = 0.0, float(np.percentile(target, _BRIGHTEST)) or 1.0
    panels = {"target": target, **dict(list(images.items())[: _MOST_COLUMNS - 1])}
    upright = {
        name: geometry.to_display(torch.from_numpy(np.ascontiguousarray(image))).numpy()
        for name, image in panels.items()
    }
    rows, columns, _ = geometry.spacing_mm
    aspect = columns / rows if geometry.display_rot90 % 2 else rows / columns
    height, width = upright["target"].shape
    side = _PANEL_INCHES * min(2.0, max(0.5, height * aspect / width))
    figure = Figure(figsize=(_PANEL_INCHES * len(panels), 2 * side + 0.3), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(panels), squeeze=False)
    for column, (name, image) in enumerate(upright.items()):
        _draw(axes[0, column], image, low, high, aspect)
        axes[0, column].set_title(name, fontsize=9, color=_INK)
        if column:
            _draw(axes[1, column], np.abs(image - upright["target"]), 0, (high - low) / ERROR_GAIN, aspect)
    axes[1, 0].axis("off")
    axes[1, 0].text(1, 0.5, f"error × {ERROR_GAIN}", fontsize=9, color=_INK, ha="right", va="center")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw(axes: Axes, image: Images, low: float, high: float, aspect: float) -> None:
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
