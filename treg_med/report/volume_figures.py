"""Pictures of finished volumes: read slice by slice, turned upright, and drawn as small PNG files in base64.

Every picture keeps the pixels of the volume; captions and scales are text of the page. All volumes go by once, slice
beside slice, and only what is shown is kept.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, repeat
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from treg_med.data.figures import display_window, hounsfield_window
from treg_med.data.orientation import oriented_geometry, to_images
from treg_med.data.records import Geometry
from treg_med.errors import NumericsError

__all__ = [
    "RESIDUAL_HIGH",
    "RESIDUAL_LOW",
    "SIGNED_COLOURS",
    "Comparison",
    "StoredVolume",
    "Survey",
    "compared",
    "edge_letters",
    "even_positions",
    "grey_png",
    "grey_windows",
    "residual_chart",
    "rms_rows",
    "rms_text",
    "signed_png",
    "survey",
]

FloatArray = npt.NDArray[np.float32]

RESIDUAL_LOW, RESIDUAL_HIGH = 0.8, 1.2
_MONTAGE_SLICES = 6
# Black and white in HU.
_SOFT, _WIDE = (-160.0, 240.0), (-1000.0, 1000.0)
# Part of the pixels that may be beyond the ends of a colour scale.
_SIGNED_QUANTILE = 0.998
_NICE_NUMBERS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0)
# An odd number of colours gives zero one of its own.
_SIGNED = (255 * colormaps["RdBu_r"](np.linspace(0, 1, 255))[:, :3]).round().astype(np.uint8)
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_INK, _FAINT, _BAND = "#222222", "#777777", "#f6e9e7"
_LINES = ("#0b5394", "#b45f06", "#38761d", "#741b47", "#5f6a72", "#a61c00")
_MARKERS = "os^Dv*"

SIGNED_COLOURS = tuple("#{:02x}{:02x}{:02x}".format(*_SIGNED[i]) for i in range(0, 255, 254 // 8))
"""Nine colours of the signed scale from its lowest to its highest value, for a legend."""


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A volume of three stored axes that gives its slices upright, one at a time.

    Parameters
    ----------
    data
        Array or nibabel array proxy; read one slice after the other, in order.
    geometry
        Of the upright images, as `oriented_geometry` makes it.
    """

    data: Any
    geometry: Geometry

    @classmethod
    def of_image(cls, image: Any, axis: int) -> StoredVolume:
        """Take a nibabel image to be sliced across a stored axis.

        Slices of the last axis lie together in the file and are streamed from it; for others the file is read whole.

        Raises
        ------
        GeometryError
            If the affine is degenerate.
        """
        header = image.header
        codes = {"sform_code": int(header["sform_code"]), "qform_code": int(header["qform_code"])}
        geometry = oriented_geometry(image.affine, image.shape, axis, **codes)
        streamed = axis == len(image.shape) - 1
        return cls(image.dataobj if streamed else np.asarray(image.dataobj, dtype=np.float32), geometry)

    def __len__(self) -> int:
        """Return the number of slices."""
        return self.geometry.shape[2]

    def planes(self) -> Iterator[FloatArray]:
        """Go through the slices in order, each upright ``(H, W)``."""
        where: list[slice] = [slice(None)] * 3
        for k in range(len(self)):
            where[self.geometry.storage[2][0]] = slice(k, k + 1)
            yield to_images(np.asarray(self.data[tuple(where)], dtype=np.float32), self.geometry)[..., 0]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One slice of every method, the main one last, and of the target if there is one."""

    position: int
    images: tuple[FloatArray, ...]
    target: FloatArray | None

    @property
    def differences(self) -> tuple[FloatArray, ...]:
        """The main result minus each of the others."""
        return tuple(self.images[-1] - image for image in self.images[:-1])

    @property
    def errors(self) -> tuple[FloatArray, ...]:
        """Each method minus the target; empty without one."""
        return () if self.target is None else tuple(image - self.target for image in self.images)


@dataclass(frozen=True, eq=False)
class Survey:
    """What is kept of all volumes after one pass.

    Parameters
    ----------
    montage
        Evenly spaced slices of the main result, by position in the volume.
    shown
        The middle slice and, where it is another one, the slice where the main result differs most (rms).
    peak
        Maximum of the main result.
    differences
        Rms of the main result minus each other method, ``(others, slices)``.
    errors
        Rms of each method minus the target, ``(methods, slices)``; None without target.
    """

    montage: Mapping[int, FloatArray]
    shown: tuple[Comparison, ...]
    peak: float
    differences: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64] | None

    @property
    def most(self) -> int | None:
        """Position of the slice where the main result differs most; None where nothing differs."""
        total = np.square(self.differences).sum(axis=0)
        return int(total.argmax()) if total.any() else None


def survey(volumes: Sequence[StoredVolume], target: StoredVolume | None = None) -> Survey:
    """Go through volumes of one shape once, the main result last, and keep what a page shows.

    Raises
    ------
    NumericsError
        If a slice holds NaN or Inf.
    """
    count = len(volumes[-1])
    wanted, middle = even_positions(count), count // 2
    montage: dict[int, FloatArray] = {}
    central = farthest = None
    differences = np.zeros((len(volumes) - 1, count))
    errors = None if target is None else np.zeros((len(volumes), count))
    peak, most = -math.inf, -1.0
    targets = repeat(None, count) if target is None else target.planes()
    rows = zip(*(volume.planes() for volume in volumes), strict=True)
    for position, (images, true) in enumerate(zip(rows, targets, strict=True)):
        slices = Comparison(position, images, true)
        _check_finite(slices)
        differences[:, position] = [_rms(d) for d in slices.differences]
        if errors is not None:
            errors[:, position] = [_rms(e) for e in slices.errors]
        peak = max(peak, float(images[-1].max()))
        if position in wanted:
            montage[position] = images[-1]
        if position == middle:
            central = slices
        distance = float(np.square(differences[:, position]).sum())
        if distance > most:
            most, farthest = distance, slices
    # With nothing to compare every slice is as far as the first.
    pair = (central, farthest if most > 0 else None)
    shown = {c.position: c for c in pair if c is not None}
    return Survey(montage, tuple(shown.values()), peak, differences, errors)


def even_positions(count: int, wanted: int = _MONTAGE_SLICES) -> tuple[int, ...]:
    """Return up to ``wanted`` positions, the middles of equal parts of ``count`` slices."""
    parts = min(count, wanted)
    return tuple((2 * i + 1) * count // (2 * parts) for i in range(parts))


def _check_finite(slices: Comparison) -> None:
    images = slices.images if slices.target is None else (*slices.images, slices.target)
    if not all(np.isfinite(image).all() for image in images):
        raise NumericsError(
            f"expected finite volumes, got NaN or Inf in slice {slices.position} of a result or the target; "
            "mend the target (for example NaN to 0), or reconstruct again"
        )


def _rms(values: FloatArray) -> float:
    return math.sqrt(float(np.square(values, dtype=np.float64).mean()))


def edge_letters(geometry: Geometry) -> Mapping[str, str]:
    """Return the direction in the patient that each edge of an upright image lies in; empty where it is unknown."""
    if not geometry.known:
        return {}
    down, right, _ = nib.aff2axcodes(geometry.affine)
    return {"left": _OPPOSITE[right], "right": right, "top": _OPPOSITE[down], "bottom": down}


def grey_windows(shown: Survey, unit: str | None) -> tuple[tuple[float, float], ...]:
    """Return black and white levels of the main result, or of the target where there is one.

    In HU there are two: that of soft tissue and that of everything from lung to bone, the one that fits better first.
    """
    middle = shown.shown[0]
    if unit == "HU":
        image = middle.images[-1] if middle.target is None else middle.target
        fitting = hounsfield_window(torch.from_numpy(np.array(image)))
        return (_SOFT, _WIDE) if fitting == _SOFT else (_WIDE, _SOFT)
    targets = [c.target for c in shown.shown if c.target is not None]
    return (display_window(torch.from_numpy(np.stack(targets or list(shown.montage.values())))),)


def _signed_limit(images: Sequence[FloatArray], factor: float) -> float:
    """Return a round end of a colour scale that nearly all of ``factor * images`` lie inside."""
    ends = [float(np.quantile(np.abs(image), _SIGNED_QUANTILE)) for image in images]
    largest = factor * max(ends, default=0.0)
    if not largest > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(nice * power for nice in _NICE_NUMBERS if nice * power >= largest * (1 - 1e-6))


def compared(
    kept: Survey, numbers: Sequence[int], windows: Sequence[tuple[float, float]], factor: float
) -> list[dict[str, Any]]:
    """Draw the slices shown: greys in every window, ``factor`` times differences and errors.

    Differences have one colour scale and errors another, the same for all slices. ``numbers`` are those of the slices
    in the scan.
    """
    limit = _signed_limit([d for c in kept.shown for d in c.differences], factor)
    error_limit = _signed_limit([e for c in kept.shown for e in c.errors], factor)
    return [
        {
            "slice": numbers[c.position],
            "middle": c is kept.shown[0],
            "most": c.position == kept.most,
            "greys": [[grey_png(image, window) for image in c.images] for window in windows],
            "targets": [] if c.target is None else [grey_png(c.target, window) for window in windows],
            "differences": [signed_png(factor * d, limit) for d in c.differences],
            "difference_rms": [rms_text(factor * v) for v in kept.differences[:, c.position]],
            "limit": f"{limit:g}",
            "errors": [signed_png(factor * e, error_limit) for e in c.errors],
            "error_rms": [] if kept.errors is None else [rms_text(factor * v) for v in kept.errors[:, c.position]],
            "error_limit": f"{error_limit:g}",
        }
        for c in kept.shown
    ]


def rms_rows(values: npt.NDArray[np.float64], numbers: Sequence[int], factor: float) -> list[tuple[str, str, int]]:
    """Return, for every row of rms by slice, that of the volume, the largest, and the number of its slice."""
    whole = factor * np.sqrt(np.square(values).mean(axis=1))
    rows = zip(whole, values, strict=True)
    return [(rms_text(w), rms_text(factor * v.max()), numbers[int(v.argmax())]) for w, v in rows]


def rms_text(value: float) -> str:
    """Return a number to three digits, without an exponent where it is large."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def grey_png(image: FloatArray, window: tuple[float, float]) -> str:
    """Return an image as PNG in base64, black and white at the ends of the window."""
    black, white = window
    levels = np.clip((image.astype(np.float64) - black) / (white - black), 0, 1)
    return _png(Image.fromarray((255 * levels).round().astype(np.uint8)))


def signed_png(image: FloatArray, limit: float) -> str:
    """Return a difference as PNG in base64: blue at ``-limit``, white at zero, red at ``+limit``."""
    levels = np.clip(image.astype(np.float64) / limit, -1, 1)
    picture = Image.fromarray((127 + 127 * levels).round().astype(np.uint8))
    picture.putpalette(_SIGNED.tobytes())
    return _png(picture)


def _png(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=6)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def residual_chart(slices: Sequence[int], residuals: Mapping[str, Sequence[float | None]]) -> str:
    """Draw the residual of every slice in noise units, a line a method, as PNG in base64."""
    figure = Figure(figsize=(9.6, 3.3), dpi=110)
    FigureCanvasAgg(figure)
    ax: Axes = figure.add_axes((0.06, 0.14, 0.77, 0.76))
    for (label, values), colour, marker in zip(residuals.items(), cycle(_LINES), cycle(_MARKERS), strict=False):
        points = [math.nan if value is None else value for value in values]
        ax.plot(slices, points, color=colour, marker=marker, markersize=4, linewidth=1.3, alpha=0.85, label=label)
    low, high = ax.get_ylim()
    low, high = max(0.0, min(low, RESIDUAL_LOW - 0.15)), max(high, RESIDUAL_HIGH + 0.15)
    ax.set_ylim(low, high)
    ax.axhspan(RESIDUAL_HIGH, high, color=_BAND, linewidth=0, zorder=0)
    ax.axhspan(low, RESIDUAL_LOW, color=_BAND, linewidth=0, zorder=0)
    ax.axhline(1.0, color=_FAINT, linestyle="--", linewidth=1, zorder=1)
    for level, text, place in (
        (1.0, "1.0: the noise level", "center"),
        (RESIDUAL_HIGH, "above 1.2: misses\nwhat was measured", "bottom"),
        (RESIDUAL_LOW, "below 0.8:\nfollows the noise", "top"),
    ):
        ax.annotate(text, (1.01, level), xycoords=("axes fraction", "data"), fontsize=8, color=_FAINT, va=place)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("slice", fontsize=9, color=_INK)
    ax.set_ylabel("residual (noise units)", fontsize=9, color=_INK)
    ax.tick_params(labelsize=8, colors=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    legend = ax.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.99), ncols=len(residuals))
    for name in legend.get_texts():
        name.set_parse_math(False)
    stream = io.BytesIO()
    # The version of the drawing library would make equal pages differ.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode("ascii")
