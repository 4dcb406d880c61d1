"""Metrics inside a region, and the boxes of fastMRI+ as regions.

A whole-image metric says nothing about a lesion of forty pixels. These say how well a region was kept: the error in
it, the error in it relative to that elsewhere, and whether what stands out there still stands out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.evaluation.metrics import Images, Mask, check_pair, decibels, squared_error, ssim

__all__ = [
    "BOX",
    "FEWEST_CASES",
    "PROTOCOL",
    "VERSION",
    "Annotations",
    "Box",
    "box_mask",
    "cases_per_label",
    "common_labels",
    "object_mask",
    "read_boxes",
    "region_metrics",
]

#: Of rows that hold `region_metrics`; a change of any definition raises the version.
PROTOCOL, VERSION = "region", 1
#: Start of the description of a region that is the boxes of one label.
BOX = "box: "
#: A label seen in fewer cases than this is reported as a count, never as a mean.
FEWEST_CASES = 10
_COLUMNS = ("file", "slice", "study_level", "x", "y", "width", "height", "label")
_LARGEST_TABLE = 64 * 2**20
_OBJECT_SHARE, _OBJECT_PERCENTILE = 0.1, 99.0
_LEAST_TISSUE_HU = -500.0
_GAP, _RING = 1, 5


def object_mask(target: Images, unit: str = "magnitude") -> Mask:
    """Return where the object is: above a threshold, with the holes of every slice filled.

    The threshold is 10 % of the 99th percentile of the volume for a magnitude, and -500 HU for CT. Filling adds the
    ventricles of a FLAIR image, the lungs and the bowel gas. A CT table counts as object.

    Parameters
    ----------
    target
        (n, H, W), finite.
    unit
        ``"magnitude"`` or ``"HU"``.
    """
    if unit == "HU":
        threshold = _LEAST_TISSUE_HU
    else:
        threshold = max(_OBJECT_SHARE * float(np.percentile(target, _OBJECT_PERCENTILE)), 0.0)
    return np.stack([ndimage.binary_fill_holes(image > threshold) for image in target])


def region_metrics(
    prediction: Images, target: Images, mask: Mask, *, data_range: float | None = None
) -> dict[str, float]:
    r"""Return the metrics of one region of a volume.

    With region M, everything else :math:`\bar M`, and a ring R of pixels 2 to 6 pixels from the region in its slice:

    - ``psnr_roi``, ``nmse_roi``: over the pixels of M;
    - ``ssim_roi``: mean of the SSIM map (7 x 7, whole volume's range) over M;
    - ``error_ratio``: RMS error in M over that in :math:`\bar M`; above 1 the region is worse than the rest;
    - ``cnr``, ``cnr_target``: :math:`|\bar x_M - \bar x_R| / \mathrm{std}_R(x)` of the prediction and of the target;
    - ``lesion_contrast``: :math:`(\bar x_M - \bar x_R)` of the prediction over that of the target: 1 is kept, 0 is
      washed out, negative is inverted.

    Parameters
    ----------
    prediction, target
        (n, H, W), real, in one unit.
    mask
        (n, H, W), M.
    data_range
        R of PSNR and SSIM; default: the largest value of the target volume.

    Returns
    -------
    NaN for what is not defined: no surroundings, no contrast in the target, a non-finite prediction.

    Raises
    ------
    GeometryError
        If the shapes differ or the region is empty.
    ConfigError
        If the data range is not positive.
    """
    mask = np.asarray(mask, dtype=bool)
    check_pair(prediction, target, mask)
    if not mask.any():
        raise GeometryError("expected a region with at least one pixel, got an empty mask; leave this region out")
    peak = float(target.max()) if data_range is None else float(data_range)
    if not peak > 0:
        raise ConfigError(f"expected a positive data range, got {peak:g}; give one with data_range=")
    count = int(mask.sum())
    error = float(squared_error(prediction, target, mask).sum())
    energy = float(squared_error(np.zeros_like(target), target, mask).sum())
    rest = float(squared_error(prediction, target, ~mask).sum()) / max(mask.size - count, 1)
    ring = _ring(mask)
    noise = _std(prediction[ring]), _std(target[ring])
    contrast = _contrast(prediction, mask, ring), _contrast(target, mask, ring)
    return {
        "psnr_roi": float(decibels(error / count, peak)),
        "ssim_roi": _region_ssim(prediction, target, mask, peak),
        "nmse_roi": _ratio(error, energy),
        "error_ratio": math.sqrt(_ratio(error / count, rest)) if count < mask.size else math.nan,
        "cnr": _ratio(abs(contrast[0]), noise[0]),
        "cnr_target": _ratio(abs(contrast[1]), noise[1]),
        "lesion_contrast": _ratio(contrast[0], contrast[1]),
    }


def _region_ssim(prediction: Images, target: Images, mask: Mask, peak: float) -> float:
    """Average the map over the region's pixels in all slices, not over slices."""
    held = mask.any(axis=(1, 2))
    inside = mask[held][:, 3:-3, 3:-3].sum(axis=(1, 2))
    if not inside.any():
        return math.nan
    values = ssim(prediction[held], target[held], peak, mask=mask[held])
    return float(np.sum(values[inside > 0] * inside[inside > 0]) / inside.sum())


def _ring(mask: Mask) -> Mask:
    """Return the surroundings of the region in its own slices."""
    plane = ndimage.generate_binary_structure(2, 2)[None]
    near = ndimage.binary_dilation(mask, plane, iterations=_GAP)
    return np.asarray(ndimage.binary_dilation(near, plane, iterations=_RING) & ~near)


def _contrast(images: Images, mask: Mask, ring: Mask) -> float:
    if not ring.any():
        return math.nan
    return float(images[mask].mean(dtype=np.float64) - images[ring].mean(dtype=np.float64))


def _std(values: Images) -> float:
    return float(values.std(dtype=np.float64)) if values.size else math.nan


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


@dataclass(frozen=True)
class Box:
    """One box of fastMRI+ as it is in the table: x and y of the upper left corner in the up/down flipped image.

    Attributes
    ----------
    file
        Name of the scan without ``.h5``.
    slice
        Counted from 0.
    x, y, width, height
        Pixels.
    label
        The radiologist's word.
    """

    file: str
    slice: int
    x: int
    y: int
    width: int
    height: int
    label: str


@dataclass(frozen=True)
class Annotations:
    """The boxes, and the labels that were given to a whole study: (file, label)."""

    boxes: tuple[Box, ...]
    study_labels: tuple[tuple[str, str], ...]


def read_boxes(path: Path) -> Annotations:
    """Read ``Annotations/brain.csv`` or ``knee.csv`` of fastMRI+.

    A scan that is in neither this table nor the list of reviewed files was not looked at: that it is missing here
    means nothing.

    Parameters
    ----------
    path
        CSV with the columns file, slice, study_level, x, y, width, height, label. Rows of study level "Yes" have no
        box.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    FormatError
        If columns are missing or a row is not what they promise.

    Notes
    -----
    Zhao et al.: fastMRI+, clinical pathology annotations for knee and brain fully sampled MRI data, Scientific Data 9
    (2022) 152.
    """
    boxes: list[Box] = []
    studies: list[tuple[str, str]] = []
    try:
        if path.stat().st_size > _LARGEST_TABLE:
            raise FormatError(f"expected a table of annotations, but {path.name!r} has more than 64 MiB")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise FormatError(f"expected the columns {', '.join(_COLUMNS)} in {path.name!r}; {missing} are missing")
            for row in rows:
                where = f"line {rows.line_num} of {path.name!r}"
                if (row["study_level"] or "").strip().lower() == "yes":
                    studies.append(((row["file"] or "").strip(), (row["label"] or "").strip()))
                else:
                    boxes.append(_box(row, where))
    except OSError as error:
        raise ResourceError(f"expected a readable table of annotations, got {str(path)!r}: {error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"expected a CSV table in UTF-8, but {path.name!r} is none: {error}") from error
    return Annotations(tuple(boxes), tuple(studies))


def _box(row: dict[str, str | None], where: str) -> Box:
    try:
        numbers = [float(row[name] or "") for name in ("slice", "x", "y", "width", "height")]
    except ValueError as error:
        raise FormatError(f"expected numbers for slice, x, y, width and height in {where}: {error}") from error
    if not all(n.is_integer() for n in numbers) or min(numbers[0], *numbers[3:]) < 0:
        raise FormatError(f"expected whole pixels, slice and size not negative, in {where}, got {numbers}")
    position, x, y, width, height = (int(n) for n in numbers)
    name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
    if not name or not label or not width or not height:
        raise FormatError(f"expected a file, a label and a box with pixels in {where}; got {dict(row)}")
    return Box(name, position, x, y, width, height, label)


def box_mask(boxes: Iterable[Box], shape: tuple[int, int, int]) -> Mask:
    """Return the boxes of one scan as a mask on its ``reconstruction_rss``.

    The images were flipped up/down before they were shown to the radiologists, so that rows y to y + height of a box
    are rows H - y - height to H - y of the image. Boxes that reach beyond the image are cut.

    Parameters
    ----------
    boxes
        Of one file, of one label or of all.
    shape
        (slices, H, W) of the images that the boxes were drawn on, before any crop.

    Raises
    ------
    ConfigError
        If the boxes belong to several files.
    GeometryError
        If a box lies outside the volume.
    """
    chosen = list(boxes)
    files = sorted({box.file for box in chosen})
    if len(files) > 1:
        raise ConfigError(f"expected the boxes of one file, got those of {', '.join(files[:5])}; choose by box.file")
    count, height, width = shape
    mask = np.zeros(shape, dtype=bool)
    for box in chosen:
        rows = slice(max(height - box.y - box.height, 0), max(height - box.y, 0))
        columns = slice(max(box.x, 0), max(box.x + box.width, 0))
        if box.slice >= count or not mask[box.slice, rows, columns].size:
            raise GeometryError(f"expected a box inside a volume of shape {shape}, got {box}; is this the right scan?")
        mask[box.slice, rows, columns] = True
    return mask


def cases_per_label(annotations: Annotations) -> dict[str, int]:
    """Return in how many files each label has a box, most frequent first. A lesion in five slices is one case."""
    files: dict[str, set[str]] = {}
    for box in annotations.boxes:
        files.setdefault(box.label, set()).add(box.file)
    return dict(sorted(((label, len(names)) for label, names in files.items()), key=lambda item: (-item[1], item[0])))


def common_labels(cases: dict[str, int], fewest: int = FEWEST_CASES) -> tuple[dict[str, int], dict[str, int]]:
    """Split labels into those that may be averaged and those that are suppressed, with their numbers of cases."""
    kept = {label: count for label, count in cases.items() if count >= fewest}
    return kept, {label: count for label, count in cases.items() if label not in kept}
