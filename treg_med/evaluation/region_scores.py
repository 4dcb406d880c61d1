"""The regions of a scan, from its mask and its boxes, and the row that each of them makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from treg_med.data.fastmri import FastMriReader
from treg_med.data.nifti import NiftiVolume
from treg_med.data.safe_hdf5 import hdf5_errors, open_hdf5
from treg_med.data.source import ScanReader
from treg_med.errors import ConfigError, GeometryError
from treg_med.evaluation.datasets import ScanFile
from treg_med.evaluation.metrics import Images, Mask
from treg_med.evaluation.protocols import Score
from treg_med.evaluation.references import Reference
from treg_med.evaluation.regions import BOX, PROTOCOL, VERSION, Box, box_mask, region_metrics
from treg_med.evaluation.slice_grid import SliceGrid
from treg_med.evaluation.volume_protocol import HU_WINDOW

__all__ = ["Region", "counted", "no_region_note", "read_regions", "region_score"]

_METRICS = ("psnr_roi", "ssim_roi", "nmse_roi", "error_ratio", "cnr", "cnr_target", "lesion_contrast")
_STORED_IMAGES = ("reconstruction_rss", "reconstruction_esc")
_NO_REGION = ": no voxel of the mask or boxes lies in the evaluated slices of "
_MOST_NAMES = 3


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the evaluated slices.

    Parameters
    ----------
    description
        ``"mask"``, or ``"box: "`` and the label.
    mask
        (slices, H, W), not empty.
    """

    description: str
    mask: Mask


def read_regions(scan: ScanReader, file: ScanFile, grid: SliceGrid) -> list[Region]:
    """Return the regions of a scan that have a pixel in the slices of the grid: its mask, then its boxes by label.

    Any voxel of the mask that is not 0 counts. Boxes of one label are one region.

    Parameters
    ----------
    scan
        The open scan.
    file
        Where its mask and boxes are.
    grid
        Its slices.

    Raises
    ------
    GeometryError
        If the mask is not on the grid of the scan, or a box lies outside of it.
    ConfigError
        For boxes of a scan that is not from fastMRI.
    TregMedError
        As in `NiftiVolume.read`.
    """
    found: list[Region] = []
    if file.mask is not None:
        found.append(Region("mask", grid.slices_of(NiftiVolume.read(file.mask), file.mask.name) != 0))
    for label in dict.fromkeys(box.label for box in file.boxes):
        mask = _on_images(scan, [box for box in file.boxes if box.label == label])
        # What follows a semicolon is no part of the description in the table.
        found.append(Region(BOX + label.replace(";", ","), mask[list(grid.indices)]))
    return [region for region in found if region.mask.any()]


def region_score(prediction: Images, reference: Reference, region: Region) -> Score:
    """Score a volume in one of its regions.

    The metrics are those of `region_metrics`, with one data range for the volume: its largest value; for Hounsfield
    units 2000, with both volumes clipped to -1000..1000 HU and air moved to 0. They are NaN where the prediction, in
    the region or elsewhere, is not finite.

    Parameters
    ----------
    prediction
        (slices, H, W), in the unit of the reference.
    reference
        The true images.
    region
        Part of their slices.

    Raises
    ------
    ConfigError
        If the reference has no signal.
    """
    target = reference.images
    bad = int(np.count_nonzero(~np.isfinite(prediction)))
    if reference.unit == "HU":
        low, high = HU_WINDOW
        prediction, target = (np.clip(hu, low, high) - low for hu in (prediction, target))
        peak = high - low
    else:
        peak = float(target.max())
    if bad:
        values = dict.fromkeys(_METRICS, math.nan)
        note: str | None = f"{bad} NaN or Inf pixels in the prediction"
    else:
        values = region_metrics(prediction, target, region.mask, data_range=peak)
        undefined = [name for name, value in values.items() if math.isnan(value)]
        note = f"no surroundings, or nothing in them to measure {', '.join(undefined)} by" if undefined else None
    return Score(PROTOCOL, VERSION, "volume", None, peak, None, region.description, bad, values, note)


def no_region_note(scan: ScanFile) -> str:
    """Say that a scan has a mask or boxes, but none in the evaluated slices."""
    return f"{scan.dataset}{_NO_REGION}{scan.name}"


def counted(notes: Iterable[str]) -> list[str]:
    """Return notes, with one and a number for all scans of a dataset that `no_region_note` was said of."""
    scans: dict[str, list[str]] = {}
    others = []
    for note in notes:
        dataset, said, scan = note.partition(_NO_REGION)
        if said:
            scans.setdefault(dataset, []).append(scan)
        else:
            others.append(note)
    return others + [f"{dataset}{_NO_REGION}{_listed(names)}" for dataset, names in scans.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} others" if len(names) > _MOST_NAMES else ""
    return f"{len(names)} scan{'s' * (len(names) != 1)} ({', '.join(names[:_MOST_NAMES])}{more})"


def _on_images(scan: ScanReader, boxes: Sequence[Box]) -> Mask:
    """Return boxes as a mask on all images of a scan, of which the annotated ones are the centre."""
    if not isinstance(scan, FastMriReader):
        raise ConfigError(
            f"expected a scan of fastMRI for boxes of fastMRI+, got {scan.path.name!r} ({scan.header.format}); take "
            "masks for it"
        )
    drawn = _annotated_shape(scan)
    shape = (len(scan), *scan.header.image_shape)
    if drawn[0] != shape[0] or any(side > have for side, have in zip(drawn, shape, strict=True)):
        raise GeometryError(
            f"expected images of at most {shape} under the boxes, got a reconstruction of shape {drawn} in "
            f"{scan.path.name!r}; is it that of this k-space?"
        )
    mask = np.zeros(shape, dtype=bool)
    top, left = ((have - side) // 2 for side, have in zip(drawn[1:], shape[1:], strict=True))
    mask[:, top : top + drawn[1], left : left + drawn[2]] = box_mask(boxes, drawn)
    return mask


def _annotated_shape(scan: FastMriReader) -> tuple[int, int, int]:
    """Return the shape of the images that the radiologists saw: those in the file, else as its header announces."""
    with hdf5_errors(scan.path.name), open_hdf5(scan.path) as file:
        for name in _STORED_IMAGES:
            stored = file.get(name)
            if isinstance(stored, h5py.Dataset) and stored.ndim == 3:
                slices, rows, columns = stored.shape
                return int(slices), int(rows), int(columns)
    rows, columns = scan.header.image_shape
    return len(scan), min(scan.encoding.recon[0], rows), min(scan.encoding.recon[1], columns)
