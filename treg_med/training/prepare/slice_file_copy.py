"""A slice file that somebody else wrote, checked and brought to the size and window of ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch

from treg_med.data.hdf5_reader import text_attribute
from treg_med.data.safe_hdf5 import check_fits_memory, hdf5_errors, open_hdf5
from treg_med.errors import ConfigError, FormatError
from treg_med.training.prepare.slice_file import SliceFileWriter, SliceRow, split_rows
from treg_med.words.captions import read_attributes
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["copy_slice_file", "has_masks", "is_slice_file"]

_COLUMNS = ("contrast", "plane", "finding", "subject", "split", "source", "modality", "region", "contrast_agent")
_OTHERS = ("region", "contrast_agent")
_SPLITS = ("train", "val")
_SLICES_AT_ONCE = 64
# Of 255: what is darker is air and noise.
_DARKEST = 25


def is_slice_file(path: Path) -> bool:
    """Whether an HDF5 file has images with captions."""
    with open_hdf5(path) as file:
        return all(isinstance(file.get(name), h5py.Dataset) for name in ("images", "captions"))


def has_masks(path: Path) -> bool:
    """Whether a slice file has lesion masks."""
    with open_hdf5(path) as file:
        return isinstance(file.get("lesion_masks"), h5py.Dataset)


def copy_slice_file(
    path: Path,
    writer: SliceFileWriter,
    *,
    size: int,
    every: int,
    window: tuple[float, float] | None,
    least_foreground: float,
    val_share: float,
    seed: int,
) -> tuple[list[SliceRow], list[str]]:
    """Add the slices of a file; return their rows and warnings.

    8-bit images keep their grey levels; others are MR (0 to the 99.7 percentile of each slice) or Hounsfield units.

    Raises
    ------
    FormatError
        If a column has another length or type, or a split is neither train nor val.
    ConfigError
        If a window is asked for, and which window the 8-bit CT images show is not recorded.
    UnsafeFileError
        As `open_hdf5`.
    """
    from treg_med.training.prepare.slice_transforms import as_typed_errors, to_square_slices

    with _opened(path) as file:
        images, masks = _checked_pixels(file)
        columns = _columns(file, len(images))
        units, shown = _units(file, images), _window_shown(file)
        as_they_are = units == "grey levels" and window is None and images.shape[1:] == (size, size)
        transform = to_square_slices(size, window)
        for start in range(0, len(images), _SLICES_AT_ONCE):
            # In order and in pieces: a compressed chunk holds several slices.
            piece = slice(start, start + _SLICES_AT_ONCE)
            values, lesions = images[piece], None if masks is None else masks[piece]
            chosen = [i for i in range(len(values)) if (start + i) % every == 0]
            found = [_row(columns, start + i, path.name) for i in chosen]
            if as_they_are:
                some = None if lesions is None else lesions[chosen]
                _add_as_they_are(writer, found, values[chosen], some, least_foreground)
                continue
            for i, row in zip(chosen, found, strict=True):
                item = _item(row, values[i], None if lesions is None else lesions[i], units)
                if row.modality == "CT" and window is not None:
                    item |= {"image": _hounsfield(item, shown, path.name), "units": "HU"}
                with as_typed_errors(f"slice {start + i}"):
                    done = transform(item)
                if float(done["foreground"][0]) >= least_foreground:
                    row = replace(row, pixel_spacing_mm=done["pixel_mm"], modality=done["modality"])
                    writer.add([row], done["image"].numpy(), done["mask"].numpy() if masks is not None else None)
    return _with_splits(writer.rows, val_share, seed)


def _add_as_they_are(
    writer: SliceFileWriter,
    rows: list[SliceRow],
    images: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.uint8] | None,
    least_foreground: float,
) -> None:
    """Copy 8-bit slices of the right size without those that show nothing."""
    filled = np.flatnonzero((images > _DARKEST).mean((1, 2)) >= least_foreground)
    modality = [replace(rows[i], modality=rows[i].modality if rows[i].modality == "CT" else "MRI") for i in filled]
    writer.add(modality, images[filled], None if masks is None else (masks[filled] != 0).astype(np.uint8))


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with open_hdf5(path) as file, hdf5_errors(path.name):
        yield file


def _checked_pixels(file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset | None]:
    images, masks = file["images"], file.get("lesion_masks")
    if images.dtype.kind not in "iuf" or images.ndim != 3 or 0 in images.shape:
        raise FormatError(f"expected images (N, H, W) in real numbers, got {images.shape} {images.dtype}")
    if masks is not None and (not isinstance(masks, h5py.Dataset) or masks.shape != images.shape):
        shape = getattr(masks, "shape", "a group")
        raise FormatError(f"expected lesion_masks {images.shape} like the images, got {shape}")
    check_fits_memory("a slice", 4 * images[0].size)
    return images, masks


def _columns(file: h5py.File, count: int) -> dict[str, npt.NDArray[Any]]:
    columns = {}
    for name in ("captions", *_COLUMNS):
        if name not in file:
            columns[name] = np.full(count, "", dtype=object)
            continue
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or h5py.check_string_dtype(dataset.dtype) is None:
            raise FormatError(f"expected {name} to hold texts, got {getattr(dataset, 'dtype', 'a group')}")
        columns[name] = dataset.asstr(errors="replace")[...]
    for name, kinds in (("slice_index", "iu"), ("pixel_spacing_mm", "iuf"), ("has_lesion_mask", "bu")):
        if name in file:
            columns[name] = np.asarray(file[name][...])
            if columns[name].dtype.kind not in kinds:
                raise FormatError(f"expected {name} to hold numbers, got {columns[name].dtype}")
    for name, values in columns.items():
        if values.shape != (count,):
            raise FormatError(f"expected {count} entries of {name}, one per image, got shape {values.shape}")
    for row, split in enumerate(columns["split"]):
        if split not in ("", *_SPLITS):
            raise FormatError(f"expected split to be train or val, got {split!r:.60} in row {row}; rename it")
    empty = [row for row, caption in enumerate(columns["captions"]) if not caption.strip()]
    if empty:
        raise FormatError(f"expected a caption in every row, got {len(empty)} empty ones, the first in row {empty[0]}")
    return columns


def _row(columns: dict[str, npt.NDArray[Any]], index: int, name: str) -> SliceRow:
    word = {column: str(columns[column][index]) for column in ("captions", *_COLUMNS)}
    said = read_attributes(word["captions"])
    spacing = float(columns["pixel_spacing_mm"][index]) if "pixel_spacing_mm" in columns else float("nan")
    return SliceRow(
        captions=word["captions"],
        contrast=word["contrast"] or said.contrast,
        plane=word["plane"] or said.plane,
        finding=word["finding"] or UNKNOWN,
        subject=word["subject"] or "unknown",
        split=word["split"],
        source=Path(word["source"] or name).name,
        modality=word["modality"] or said.modality,
        slice_index=int(columns["slice_index"][index]) if "slice_index" in columns else index,
        pixel_spacing_mm=spacing if spacing > 0 else float("nan"),
        has_lesion_mask=bool(columns["has_lesion_mask"][index]) if "has_lesion_mask" in columns else False,
        others={column: word[column] for column in _OTHERS if word[column]},
    )


def _units(file: h5py.File, images: h5py.Dataset) -> str:
    """Grey levels, HU, or "" where each slice tells by itself."""
    from treg_med.training.prepare.slice_transforms import looks_like_hounsfield

    if images.dtype == np.uint8:
        return "grey levels"
    pieces = range(0, len(images), _SLICES_AT_ONCE)
    low = min(float(np.min(images[i : i + _SLICES_AT_ONCE])) for i in pieces)
    return "HU" if looks_like_hounsfield(low) else ""


def _window_shown(file: h5py.File) -> tuple[float, float] | None:
    """Window of the 8-bit CT images, as our own files record it."""
    try:
        low, high = json.loads(text_attribute(file.attrs, "settings") or "{}")["ct_window"]
        return float(low), float(high)
    except (ValueError, KeyError, TypeError):
        return None


def _item(
    row: SliceRow, values: npt.NDArray[Any], lesions: npt.NDArray[Any] | None, units: str
) -> dict[str, Any]:
    """One slice as `to_square_slices` takes it."""
    item = {
        "image": torch.from_numpy(np.asarray(values, dtype=np.float32))[None],
        "units": units,
        "kept": [0],
        "own_plane": "",
        "says_ct": row.modality == "CT",
        "spacing_mm": (row.pixel_spacing_mm,) * 2,
    }
    if lesions is not None:
        item["mask"] = torch.from_numpy(np.asarray(lesions, dtype=np.float32))[None]
    return item


def _hounsfield(item: dict[str, Any], shown: tuple[float, float] | None, name: str) -> torch.Tensor:
    values: torch.Tensor = item["image"]
    if item["units"] != "grey levels":
        return values
    if shown is None:
        raise ConfigError(
            f"expected CT in Hounsfield units to show in a window, but {name!r} holds 8-bit images of an unknown "
            "window; leave out the window, or prepare from the volumes"
        )
    return values / 255 * (shown[1] - shown[0]) + shown[0]


def _with_splits(rows: list[SliceRow], val_share: float, seed: int) -> tuple[list[SliceRow], list[str]]:
    if not rows:
        return [], []
    if not all(row.split for row in rows):
        return split_rows(rows, val_share, seed)
    splits = Counter(subject for subject, _ in {(row.subject, row.split) for row in rows})
    both = sum(count > 1 for count in splits.values())
    warning = f"{both} subjects of the file are in both train and val: do not quote val numbers as generalisation"
    return rows, [warning] if both else []
