"""Image metrics as named protocols: who measures, over what, with which data range.

One volume scores 30.6, 23.7, 23.3 or 88.7 dB depending only on whose convention is used. A score therefore carries
the name and version of its protocol, the data range, the crop and the mask, and scores of different protocols are
never averaged. The protocols of others follow their public programs, defects included; what was read is named in each
docstring. A change of any definition raises the version.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from treg_med.data.lodopab import MU_MAX
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.evaluation.device_metrics import MetricFunctions, implementation
from treg_med.evaluation.metrics import SSIM_SIDES, Array, Images, Mask, check_pair
from treg_med.evaluation.regions import PROTOCOL as REGION
from treg_med.evaluation.volume_protocol import Row, Volume, rows_by_slice, slice_notes, volume_rows

__all__ = ["Score", "available_protocols", "average", "evaluate", "protocol_units", "protocol_version"]

Unit = Literal["magnitude", "HU"]

# Of the data set, in 1/mm; the scale from Hounsfield units is that of `treg_med.data.lodopab`.
_LODOPAB_WATER = 0.020
# Stored images are clipped to 1; more than rounding above it is another unit.
_LODOPAB_LARGEST = 1.001
_PIQ_EPSILON = 1e-8
_PIQ_SIDE = 256


@dataclass(frozen=True)
class Score:
    """One row: a volume or a slice under one protocol.

    Attributes
    ----------
    protocol, version
        Which definition.
    level
        ``"volume"`` or ``"slice"``.
    slice
        Position in the volume, None for level volume.
    data_range
        R of PSNR and SSIM, in the unit that the protocol measures in; NaN where there is none.
    crop
        (H, W) that both were cropped to, None if they were not.
    mask
        Description of the pixels that count, None if all do.
    nan_pixels
        Pixels of the prediction that are NaN or Inf; every metric is NaN then.
    values
        Metric to value.
    note
        Why a value is NaN, None if none is.
    """

    protocol: str
    version: int
    level: str
    slice: int | None
    data_range: float
    crop: tuple[int, int] | None
    mask: str | None
    nan_pixels: int
    values: dict[str, float]
    note: str | None = None


def _fastmri(volume: Volume, functions: MetricFunctions) -> list[Row]:
    """Score the volume as ``fastmri/evaluate.py`` of facebookresearch/fastMRI does.

    NMSE and PSNR over all pixels of the volume, SSIM (7 x 7 uniform) as the mean over slices, data range: the largest
    value of the target volume. Both are cropped at the centre to a square as wide as the target (a target wider than
    high, which the program refuses, is not cropped); nothing is clipped. The program works in the precision of the
    files; the difference to double precision is below 1e-6.
    """
    peak = float(volume.target.max())
    if not peak > 0:
        raise NumericsError(
            f"expected a target volume with signal, got a largest value of {peak:g} over {len(volume.target)} slices; "
            "leave this volume out"
        )
    notes = [note for note in slice_notes(volume) if note]
    if notes:
        return [Row("volume", None, peak, dict.fromkeys(("psnr", "ssim", "nmse"), np.nan), notes[0])]
    error = float(functions.squared_error(volume.prediction, volume.target).sum())
    energy = float(functions.squared_error(np.zeros_like(volume.target), volume.target).sum())
    with np.errstate(divide="ignore"):
        psnr = float(10 * np.log10(np.divide(peak**2 * volume.target.size, error)))
    ssim = float(functions.ssim(volume.prediction, volume.target, peak).mean())
    return [Row("volume", None, peak, {"psnr": psnr, "ssim": ssim, "nmse": error / energy})]


def _lodopab(volume: Volume, functions: MetricFunctions) -> list[Row]:
    """Score each slice as ``dival/measure.py`` of jleuschn/dival does.

    PSNR and SSIM (7 x 7 uniform), data range: largest minus smallest value of the target image. ``psnr_fr`` and
    ``ssim_fr`` have the fixed range 1 of the data set's own unit, the attenuation over that of 3071 HU, so that images
    of different contrast are held to one standard; the challenge reports both. Hounsfield units are taken to that
    unit. A magnitude that exceeds 1 is not in that unit, and the fixed range means nothing for it.
    """
    prediction, target = volume.prediction, volume.target
    if volume.unit == "HU":
        prediction, target = ((1 + hu / 1000) * (_LODOPAB_WATER / MU_MAX) for hu in (prediction, target))
    normalised = bool(target.max() <= _LODOPAB_LARGEST)

    ranges = np.ptp(target, axis=(1, 2)).astype(np.float64)

    def measured(usable: Mask) -> dict[str, Array]:
        p, t, r = prediction[usable], target[usable], ranges[usable]
        fixed = {"psnr_fr": functions.psnr(p, t, 1.0), "ssim_fr": functions.ssim(p, t, 1.0)} if normalised else {}
        return {"psnr": functions.psnr(p, t, r), "ssim": functions.ssim(p, t, r)} | fixed

    rows = rows_by_slice(ranges, slice_notes(volume, ranges), measured, ("psnr", "ssim", "psnr_fr", "ssim_fr"))
    if normalised:
        return rows
    unit = f"no fixed range: values up to {float(target.max()):.4g} are not attenuation over that of 3071 HU"
    return [row._replace(note=row.note or unit) for row in rows]


def _contextmri(volume: Volume, functions: MetricFunctions) -> list[Row]:
    """Score each slice as ``recon_mri.py`` and ``utils.py`` of two public copies of ContextMRI do.

    Target and prediction are each brought to 0..1 by their own smallest and largest value, which forgives an error of
    scale and offset. PSNR has the range 1 and ``ssim`` (7 x 7 uniform) the range 2 that the program passes, which
    makes it larger; ``ssim_unit_range`` is the same with range 1.
    """
    notes = slice_notes(volume, np.ptp(volume.target, axis=(1, 2)))
    for index in np.flatnonzero(np.ptp(volume.prediction, axis=(1, 2)) == 0):
        notes[index] = notes[index] or "constant prediction: cannot be normalised"

    def measured(usable: Mask) -> dict[str, Array]:
        p, t = _min_max_normalised(volume.prediction[usable]), _min_max_normalised(volume.target[usable])
        return {
            "psnr": functions.psnr(p, t, 1.0),
            "ssim": functions.ssim(p, t, 2.0),
            "ssim_unit_range": functions.ssim(p, t, 1.0),
        }

    return rows_by_slice(np.ones(len(notes)), notes, measured, ("psnr", "ssim", "ssim_unit_range"))


def _min_max_normalised(images: Images) -> Array:
    double = images.astype(np.float64)
    low = double.min(axis=(1, 2), keepdims=True)
    return np.asarray((double - low) / (double.max(axis=(1, 2), keepdims=True) - low))


def _inversebench_mri(volume: Volume, functions: MetricFunctions) -> list[Row]:
    """Score each slice as ``training/loss.py`` and ``eval.py`` of devzhk/InverseBench do with piq.

    Data range: the largest value of the target slice, prediction clipped to 0..R. PSNR adds 1e-8 to the relative mean
    squared error, so that 80 dB is the most. SSIM has an 11 x 11 Gaussian window of sigma 1.5, and images whose
    smaller side s rounds to f = s / 256 > 1 are first averaged over f x f blocks. The number is that of MONAI where
    f = 1.
    """
    factor = max(1, round(min(volume.target.shape[1:]) / _PIQ_SIDE))

    ranges = volume.target.max(axis=(1, 2)).astype(np.float64)

    def measured(usable: Mask) -> dict[str, Array]:
        r, t = ranges[usable], volume.target[usable]
        p = np.clip(volume.prediction[usable], 0, r[:, None, None])
        relative = functions.squared_error(p, t) / (t[0].size * r**2)
        ssim = functions.ssim(_block_means(p, factor), _block_means(t, factor), r, window="gaussian")
        return {"psnr": -10 * np.log10(relative + _PIQ_EPSILON), "ssim": ssim}

    return rows_by_slice(ranges, slice_notes(volume, ranges), measured, ("psnr", "ssim"))


def _block_means(images: Images, factor: int) -> Images:
    height, width = (side // factor for side in images.shape[1:])
    whole = images[:, : height * factor, : width * factor].astype(np.float64)
    return np.asarray(whole.reshape(len(images), height, factor, width, factor).mean(axis=(2, 4)))


@dataclass(frozen=True)
class _Protocol:
    version: int
    units: tuple[Unit, ...]
    score: Callable[[Volume, MetricFunctions], list[Row]]
    smallest_side: int = SSIM_SIDES["uniform"]
    crops_to_square: bool = False
    takes_mask: bool = False


_PROTOCOLS: dict[str, _Protocol] = {
    "fastmri": _Protocol(1, ("magnitude",), _fastmri, crops_to_square=True),
    "lodopab": _Protocol(1, ("magnitude", "HU"), _lodopab),
    "contextmri": _Protocol(1, ("magnitude",), _contextmri),
    "inversebench-mri": _Protocol(1, ("magnitude",), _inversebench_mri, smallest_side=SSIM_SIDES["gaussian"]),
    "volume": _Protocol(1, ("magnitude", "HU"), volume_rows, takes_mask=True),
}


def available_protocols() -> tuple[str, ...]:
    """Return the names of all protocols."""
    return tuple(_PROTOCOLS)


def protocol_units(protocol: str) -> tuple[Unit, ...]:
    """Return the units that a protocol is defined for.

    Raises
    ------
    ConfigError
        If there is no such protocol.
    """
    return _protocol(protocol).units


def protocol_version(protocol: str) -> int:
    """Return the version of a protocol's definition; numbers of two versions are not comparable.

    Raises
    ------
    ConfigError
        If there is no such protocol.
    """
    return _protocol(protocol).version


def _protocol(name: str) -> _Protocol:
    if name not in _PROTOCOLS:
        close = difflib.get_close_matches(str(name).lower(), _PROTOCOLS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        hint = "; regions are measured wherever a dataset has masks or boxes: leave it out" if name == REGION else hint
        raise ConfigError(f"expected a protocol among {', '.join(_PROTOCOLS)}; got {name!r}{hint}")
    return _PROTOCOLS[name]


def evaluate(
    pred: Any,
    target: Any,
    protocol: str = "fastmri",
    *,
    unit: Unit = "magnitude",
    mask: Any = None,
    crop: tuple[int, int] | None = None,
    device: Any = None,
) -> list[Score]:
    """Score a volume against its target under one named protocol.

    Parameters
    ----------
    pred, target
        (slices, H, W), real, numpy or torch, in one unit.
    protocol
        One of `available_protocols`.
    unit
        ``"magnitude"`` (any scale with 0 for no signal) or ``"HU"``.
    mask
        (slices, H, W), non-zero where pixels count; only for protocols of ours, those of others have none.
    crop
        (H, W) to crop both to, at the centre; default: what the protocol says, recorded in the score.
    device
        A torch device for the metrics; default: the reference on the CPU. A device that does not agree with the
        reference to 1e-6 is not used, with a warning.

    Returns
    -------
    One score per volume or slice, as the protocol says.

    Raises
    ------
    ConfigError
        For an unknown protocol, unit or device, complex images, or a mask where the protocol has none.
    GeometryError
        If shapes do not fit.
    NumericsError
        If the target is not finite, or a volume-level protocol finds no signal in it.
    """
    chosen = _protocol(protocol)
    if unit not in chosen.units:
        raise ConfigError(
            f"protocol {protocol!r} is defined for {' and '.join(chosen.units)}, got unit {unit!r}; for CT choose "
            "'volume' or 'lodopab'"
        )
    if mask is not None and not chosen.takes_mask:
        raise ConfigError(f"protocol {protocol!r} counts every pixel, got a mask; choose 'volume', or leave it out")
    prediction, truth = _real(pred, "prediction"), _real(target, "target")
    region = None if mask is None else _array(mask).astype(bool)
    if region is not None:
        check_pair(region, truth)
    if crop is None and chosen.crops_to_square and truth.ndim == 3 and truth.shape[1] >= truth.shape[2]:
        crop = (truth.shape[2], truth.shape[2])
    if crop is not None:
        prediction, truth = _cropped(prediction, crop, "prediction"), _cropped(truth, crop, "target")
        region = None if region is None else _cropped(region, crop, "mask")
    check_pair(prediction, truth, side=chosen.smallest_side)
    _check_finite(truth)
    bad = np.count_nonzero(~np.isfinite(prediction), axis=(1, 2))
    volume = Volume(prediction, truth, region, unit, bad)
    rows = chosen.score(volume, implementation(device))
    counts = [int(bad.sum() if row.slice is None else bad[row.slice]) for row in rows]
    return [
        Score(
            protocol, chosen.version, row.level, row.slice, row.data_range, crop, row.mask, count, row.values, row.note
        )
        for row, count in zip(rows, counts, strict=True)
    ]


def _array(values: Any) -> Any:
    # Tensors on any device, with or without gradients.
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _real(values: Any, name: str) -> Images:
    array = _array(values)
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"expected a real {name}, got {array.dtype}; take the magnitude first")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _cropped(images: Any, crop: tuple[int, int], name: str) -> Any:
    if images.ndim != 3 or not all(0 < side <= have for side, have in zip(crop, images.shape[1:], strict=True)):
        raise GeometryError(f"expected a {name} (slices, H, W) of at least {crop} pixels, got shape {images.shape}")
    top, left = ((have - side) // 2 for side, have in zip(crop, images.shape[1:], strict=True))
    return images[:, top : top + crop[0], left : left + crop[1]]


def _check_finite(target: Images) -> None:
    bad = ~np.isfinite(target).all(axis=(1, 2))
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise NumericsError(
            f"expected a finite target, got NaN or Inf in {int(bad.sum())} of {len(target)} slices, the first is slice "
            f"{index}; nothing can be compared with it: repair the target or leave the slices out"
        )


def average(scores: Sequence[Score]) -> dict[str, float]:
    """Return the mean of every metric; NaN where one score is NaN.

    Raises
    ------
    ConfigError
        If there are no scores, or they differ in protocol, version, level or metrics.
    """
    kinds = {(s.protocol, s.version, s.level, tuple(sorted(s.values))) for s in scores}
    if len(kinds) != 1:
        found = "; ".join(f"{p} version {v} by {level}, {', '.join(m)}" for p, v, level, m in sorted(kinds))
        raise ConfigError(
            f"expected scores of one protocol, version and level to average, got {found or 'none'}; "
            "their numbers mean different things: average each kind by itself"
        )
    return {name: float(np.mean([s.values[name] for s in scores])) for name in scores[0].values}
