"""Drawing reconstructions: upright, grey, all in one window, the misfit in the title.

Figures are made as objects, without pyplot, so that nothing needs a display and no state is shared.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.measure import label
from torch import Tensor

from treg_med.data.records import RESEARCH_ONLY, Geometry, Reconstruction
from treg_med.errors import ConfigError, GeometryError

__all__ = [
    "Panel",
    "compare_panels",
    "compare_reconstructions",
    "display_window",
    "hounsfield_window",
    "html_picture",
    "method_title",
    "show_reconstruction",
]

# Part of the pixels that may be brighter than white.
_WINDOW_QUANTILE = 0.998
_PANEL_INCHES = 3.0
_HTML_WIDTH_INCHES = 2.4
# Errors are drawn this many times brighter than the images.
_DIFFERENCE_GAIN = 5.0
# Black and white in HU: soft tissue, or everything from lung to bone where there is lung.
_SOFT_WINDOW, _WIDE_WINDOW = (-160.0, 240.0), (-1000.0, 1000.0)
_TISSUE = -300.0
# Part of the body from which on it counts: air in the bowel takes up less.
_LUNG_SHARE = 0.08


def display_window(image: Tensor) -> tuple[float, float]:
    """Return black and white level: 0 (or a negative minimum) and the 99.8th percentile."""
    values = image.detach().float().cpu().flatten()
    white = float(values.kthvalue(max(1, math.ceil(_WINDOW_QUANTILE * values.numel()))).values)
    black = min(0.0, float(values.min()))
    return black, white if white > black else black + 1.0


def hounsfield_window(image: Tensor) -> tuple[float, float]:
    """Return black and white level of an image in HU: -160 to 240 (soft tissue), -1000 to 1000 where there is lung.

    Lung is what is thin and enclosed: air and cushions around a body reach the edge of the image.
    """
    values = image.detach().float().cpu().reshape(1, 1, *image.shape[-2:])
    smooth = torch.nn.functional.avg_pool2d(values, 3, 1, 1, count_include_pad=False)[0, 0]
    thin = (smooth < _TISSUE).numpy()
    regions = label(thin, connectivity=1)
    edge = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    enclosed = int((thin & ~np.isin(regions, edge)).sum())
    tissue = thin.size - int(thin.sum())
    return _WIDE_WINDOW if tissue == 0 or enclosed > _LUNG_SHARE * tissue else _SOFT_WINDOW


def _window(image: Tensor, mu_water: float | None, window: tuple[float, float] | None) -> tuple[float, float]:
    """Return black and white level in the units of the image; for CT with mu_water the window is in HU.

    Raises
    ------
    ConfigError
        If the window is not two increasing numbers.
    """
    if window is not None and not (len(window) == 2 and window[0] < window[1]):
        raise ConfigError(f"expected a window (black, white) with black < white, got {window}")
    if mu_water is None:
        return display_window(image) if window is None else window
    black, white = hounsfield_window(1000 * (image - mu_water) / mu_water) if window is None else window
    return mu_water * (1 + black / 1000), mu_water * (1 + white / 1000)


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of a figure.

    Parameters
    ----------
    image
        (H, W) real, in the axes of the scan.
    title
        Above it.
    geometry
        Which way up it is shown; None: as it is.
    """

    image: Tensor
    title: str
    geometry: Geometry | None = None

    @classmethod
    def of(cls, rec: Reconstruction) -> Panel:
        """Magnitude, name and misfit of a reconstruction."""
        geometry = rec.measurement.geometry if rec.measurement is not None else None
        return cls(rec.magnitude, method_title(rec.solver, rec.residual), geometry)

    @property
    def upright(self) -> Tensor:
        """The image as it is shown."""
        return self.image if self.geometry is None else self.geometry.to_display(self.image)

    @property
    def aspect(self) -> float:
        """Height over width of a displayed pixel."""
        if self.geometry is None:
            return 1.0
        rows, columns, _ = self.geometry.spacing_mm
        return columns / rows if self.geometry.display_rot90 % 2 else rows / columns

    def draw(self, ax: Axes, window: tuple[float, float]) -> None:
        """Draw it in grey between black and white level."""
        black, white = window
        pixels, aspect = _pixels(self.upright), self.aspect
        ax.imshow(pixels, cmap="gray", vmin=black, vmax=white, interpolation="nearest", aspect=aspect)
        ax.set_title(self.title, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])


def method_title(name: str, residual: float) -> str:
    """Return a method's name and, where it is known, its misfit."""
    name = name or "reconstruction"
    return name if math.isnan(residual) else f"{name}\nresidual {residual:.2f} noise units"


def _mu_water(rec: Reconstruction) -> float | None:
    return None if rec.measurement is None else rec.measurement.mu_water


def _pixels(image: Tensor) -> npt.NDArray[np.float32]:
    if image.ndim != 2:
        raise GeometryError(
            f"expected one image (H, W) to draw, got {tuple(image.shape)}; pick one of the batch"
        )
    return np.asarray(image.detach().cpu().float().numpy())


class _NotebookFigure(Figure):
    """A figure that a notebook draws by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()


def _new_figure(width: float, height: float) -> Figure:
    figure = _NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _caption(simulated: bool) -> str:
    return ("Simulated measurement. " if simulated else "") + RESEARCH_ONLY


def _simulated(rec: Reconstruction) -> bool:
    return rec.measurement is not None and rec.measurement.simulated


def show_reconstruction(
    rec: Reconstruction, ax: Axes | None = None, *, window: tuple[float, float] | None = None
) -> Figure:
    """Draw one reconstruction; returns the figure (that of ``ax`` if given).

    ``window`` is black and white: in HU for CT with mu_water (default `hounsfield_window`), else in units of the image.
    """
    if ax is None:
        figure = _new_figure(_PANEL_INCHES + 1, _PANEL_INCHES + 1.4)
        figure.supxlabel(_caption(_simulated(rec)), fontsize=6)
        ax = figure.add_subplot()
    panel = Panel.of(rec)
    panel.draw(ax, _window(panel.upright, _mu_water(rec), window))
    owner = ax.get_figure(root=True)
    if owner is None:
        raise GeometryError("expected axes that belong to a figure, got axes that were removed")
    return owner


def compare_reconstructions(
    recs: Sequence[Reconstruction], *, difference: bool = True, window: tuple[float, float] | None = None
) -> Figure:
    """Draw reconstructions side by side in one window, that of the target or the first; errors below.

    ``window`` is as in `show_reconstruction`.

    Raises
    ------
    GeometryError
        If the images differ in shape.
    """
    first = recs[0].measurement
    target = first.target if first is not None else None
    return compare_panels(
        [Panel.of(rec) for rec in recs],
        None if target is None else target.abs() if target.is_complex() else target,
        mu_water=_mu_water(recs[0]),
        simulated=any(_simulated(rec) for rec in recs),
        difference=difference,
        window=window,
    )


def compare_panels(
    panels: Sequence[Panel],
    target: Tensor | None = None,
    *,
    mu_water: float | None = None,
    simulated: bool = False,
    difference: bool = True,
    window: tuple[float, float] | None = None,
) -> Figure:
    """Draw images side by side in one window, that of the target or the first; errors below.

    Parameters
    ----------
    panels
        Images of one shape; attenuations where `mu_water` (1/mm) is given, and the window is then in HU.
    target
        (H, W) reference in the axes of the first; drawn last.
    simulated
        Whether the caption says so.
    difference
        Draw the errors, where there is a target.
    window
        Black and white level.

    Raises
    ------
    GeometryError
        If the images differ in shape.
    """
    shapes = {tuple(panel.image.shape) for panel in panels}
    if len(shapes) != 1:
        raise GeometryError(f"expected reconstructions of one shape to compare, got {sorted(shapes)}")
    reference = None if target is None else Panel(target, "target", panels[0].geometry)
    levels = _window((reference or panels[0]).upright, mu_water, window)
    shown = [*panels, *([] if reference is None else [reference])]
    rows = 2 if difference and reference is not None else 1
    figure = _new_figure(_PANEL_INCHES * len(shown), (_PANEL_INCHES + 0.8) * rows)
    axes = figure.subplots(rows, len(shown), squeeze=False)
    for ax, panel in zip(axes[0], shown, strict=True):
        panel.draw(ax, levels)
    if rows == 2 and reference is not None:
        _draw_differences(axes[1], panels, reference.image.cpu(), levels)
    figure.supxlabel(_caption(simulated), fontsize=7)
    return figure


def _draw_differences(
    axes: npt.NDArray[np.object_], panels: Sequence[Panel], reference: Tensor, window: tuple[float, float]
) -> None:
    white = (window[1] - window[0]) / _DIFFERENCE_GAIN
    for ax, panel in zip(axes, panels, strict=False):
        error = (panel.image.cpu() - reference).abs()
        relative = float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(reference).clamp_min(1e-30))
        title = f"|error| x {_DIFFERENCE_GAIN:.0f}, relative {relative:.3f}"
        Panel(error, title, panel.geometry).draw(ax, (0.0, white))
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
