"""The protocol of this toolkit, ``volume``, and what the protocols share: the volume and the rows they make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treg_med.errors import NumericsError
from treg_med.evaluation.device_metrics import MetricFunctions
from treg_med.evaluation.metrics import Array, Images, Mask, absolute_error, decibels, squared_error
from treg_med.evaluation.perceptual import HAARPSI_SIDE, MS_SSIM_SIDE
from treg_med.evaluation.regions import object_mask

__all__ = ["HU_WINDOW", "SOFT_TISSUE_HU", "Row", "Volume", "rows_by_slice", "slice_notes", "volume_rows"]

HU_WINDOW = (-1000.0, 1000.0)
SOFT_TISSUE_HU = (-160.0, 240.0)
# A sliver of the object at the end of a volume says more about the threshold than about the reconstruction.
_LEAST_SHARE = 0.01
_OBJECT = {
    "magnitude": "target above 10 % of its 99th percentile, holes filled",
    "HU": "target above -500 HU, holes filled",
}


@dataclass(frozen=True)
class Volume:
    """A prediction and its target (n, H, W), which pixels count, and how many of each slice are NaN or Inf."""

    prediction: Images
    target: Images
    mask: Mask | None
    unit: str
    nan_pixels: npt.NDArray[np.intp]


class Row(NamedTuple):
    """What a protocol says of a volume or a slice."""

    level: str
    slice: int | None
    data_range: float
    values: dict[str, float]
    note: str | None = None
    mask: str | None = None


def slice_notes(volume: Volume, ranges: npt.ArrayLike | None = None) -> list[str | None]:
    """Say of each slice why it cannot be measured: the prediction is not finite, or there is no data range."""
    notes: list[str | None] = [
        f"{count} NaN or Inf pixels in slice {index} of the prediction" if count else None
        for index, count in enumerate(volume.nan_pixels)
    ]
    if ranges is None:
        return notes
    return [
        note or (None if size > 0 else "constant or empty target: no data range")
        for note, size in zip(notes, np.asarray(ranges), strict=True)
    ]


def rows_by_slice(
    ranges: Array,
    notes: Sequence[str | None],
    measured: Callable[[Mask], Mapping[str, Array]],
    metrics: Sequence[str],
    mask: str | None = None,
) -> list[Row]:
    """Make one row per slice; slices with a note are not measured, their metrics are NaN.

    Parameters
    ----------
    ranges
        (n,), data range of each slice.
    notes
        As of `slice_notes`.
    measured
        Given which slices to measure, (n,) bool, returns the metrics of those.
    metrics
        Every name that rows have; NaN where ``measured`` gives none.
    mask
        Description of the pixels that count.
    """
    usable = np.array([note is None for note in notes])
    values = {name: np.full(len(notes), np.nan) for name in metrics}
    if usable.any():
        for name, found in measured(usable).items():
            values[name][usable] = found
    spans = np.where(ranges > 0, ranges, np.nan)
    return [
        Row("slice", i, float(spans[i]), {name: float(values[name][i]) for name in metrics}, notes[i], mask)
        for i in range(len(notes))
    ]


def volume_rows(volume: Volume, functions: MetricFunctions) -> list[Row]:
    """Score a volume, and each of its slices, over the object.

    The object is the mask where one is given, else what `regions.object_mask` finds in the target. One data range R
    serves the whole volume: the largest value of the target inside the object; for Hounsfield units 2000, with both
    clipped to -1000..1000 HU and air moved to 0.

    A slice row holds

    - ``psnr``, ``nmse``: errors averaged over the object's pixels of the slice;
    - ``ssim`` (7 x 7 uniform): map averaged over the object's pixels of the slice, windows may reach out of it;
    - ``ms_ssim``, ``haarpsi``: of the whole slice, as they are not defined on a part;
    - for Hounsfield units ``rmse_hu``, ``mae_hu`` over the object's pixels, ``rmse_hu_soft`` over those where the
      target is -160..240 HU; none of them clipped.

    The volume row pools the errors of all the object's pixels (a long slice weighs more than a short one) and takes
    the plain mean over slices of ``ssim``, ``ms_ssim`` and ``haarpsi``. Slices of which the object covers less than
    1 % have no values of their own and no part in these means. MS-SSIM is NaN where the smaller side is below 161
    pixels.
    """
    mask = object_mask(volume.target, volume.unit) if volume.mask is None else volume.mask
    if not mask.any():
        raise NumericsError(
            f"expected an object in the target, found none ({_OBJECT[volume.unit]}); values reach from "
            f"{float(volume.target.min()):g} to {float(volume.target.max()):g}: give a mask or leave this volume out"
        )
    prediction, target, peak = _in_range(volume, mask)
    counts = np.count_nonzero(mask, axis=(1, 2)).astype(np.float64)
    squared = functions.squared_error(prediction, target, mask)
    energy = functions.squared_error(np.zeros_like(target), target, mask)
    sums = {"squared": squared, "energy": energy} | (_hounsfield_sums(volume, mask) if volume.unit == "HU" else {})
    metrics = ["psnr", "ssim", "nmse", "ms_ssim", "haarpsi"]
    if volume.unit == "HU":
        metrics += ["rmse_hu", "rmse_hu_soft", "mae_hu"]
    notes = slice_notes(volume)
    whole = next((note for note in notes if note), None)
    for index in np.flatnonzero(counts < _LEAST_SHARE * mask[0].size):
        notes[index] = notes[index] or "the object covers less than 1 % of the slice"
    side = min(target.shape[1:])

    def measured(usable: Mask) -> dict[str, Array]:
        p, t = prediction[usable], target[usable]
        found = _pooled({name: values[usable] for name, values in sums.items()}, counts[usable], peak)
        found["ssim"] = functions.ssim(p, t, peak, mask=mask[usable])
        if side >= MS_SSIM_SIDE:
            found["ms_ssim"] = functions.ms_ssim(p, t, peak)
        if side >= HAARPSI_SIDE:
            found["haarpsi"] = functions.haarpsi(p, t, peak)
        return found

    described = _OBJECT[volume.unit] if volume.mask is None else "given"
    described += f"; {int(counts.sum())} pixels"
    rows = rows_by_slice(np.full(len(target), peak), notes, measured, metrics, described)
    values = dict.fromkeys(metrics, np.nan)
    if whole is None:
        totals = {name: each.sum(keepdims=True) for name, each in sums.items()}
        pooled = _pooled(totals, counts.sum(keepdims=True), peak)
        values |= {name: float(value[0]) for name, value in pooled.items()}
        values |= {name: _mean_of_slices(rows, name) for name in ("ssim", "ms_ssim", "haarpsi")}
    rows = [Row("volume", None, peak, values, whole, described), *rows]
    if side >= MS_SSIM_SIDE:
        return rows
    small = f"ms_ssim needs sides of at least {MS_SSIM_SIDE} pixels, got {side}"
    return [row._replace(note=row.note or small) for row in rows]


def _in_range(volume: Volume, mask: Mask) -> tuple[Images, Images, float]:
    if volume.unit == "HU":
        low, high = HU_WINDOW
        prediction, target = (np.clip(hu, low, high) - low for hu in (volume.prediction, volume.target))
        return prediction, target, high - low
    peak = float(volume.target[mask].max())
    if not peak > 0:
        raise NumericsError(
            f"expected a target with signal inside the mask, got a largest value of {peak:g}; is this the right mask?"
        )
    return volume.prediction, volume.target, peak


def _hounsfield_sums(volume: Volume, mask: Mask) -> dict[str, Array]:
    low, high = SOFT_TISSUE_HU
    soft = mask & (volume.target >= low) & (volume.target <= high)
    return {
        "squared_hu": squared_error(volume.prediction, volume.target, mask),
        "absolute_hu": absolute_error(volume.prediction, volume.target, mask),
        "squared_soft": squared_error(volume.prediction, volume.target, soft),
        "soft": np.count_nonzero(soft, axis=(1, 2)).astype(np.float64),
    }


def _pooled(of: Mapping[str, Array], count: Array, peak: float) -> dict[str, Array]:
    """Turn sums over pixels, of slices or of the volume, into metrics; NaN where there are no pixels."""
    with np.errstate(invalid="ignore", divide="ignore"):
        metrics = {
            "psnr": decibels(of["squared"] / count, peak),
            "nmse": np.where(of["energy"] > 0, of["squared"] / of["energy"], np.nan),
        }
        if "soft" in of:
            metrics["rmse_hu"] = np.sqrt(of["squared_hu"] / count)
            metrics["mae_hu"] = of["absolute_hu"] / count
            metrics["rmse_hu_soft"] = np.sqrt(of["squared_soft"] / of["soft"])
    return metrics


def _mean_of_slices(rows: Sequence[Row], name: str) -> float:
    values = [row.values[name] for row in rows if not np.isnan(row.values[name])]
    return float(np.mean(values)) if values else float("nan")
