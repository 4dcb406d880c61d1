"""What a slice file says of its slices beside their pixels: columns, checked, and the attributes made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from treg_med.errors import FormatError
from treg_med.words.captions import ATTRIBUTES, SliceAttributes, read_attributes, size_word
from treg_med.words.safe_text import check_text
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["read_columns", "slice_attributes"]

_SPLITS = ("train", "val")
_TEXTS = (
    "subject", "contrast", "plane", "finding", "region", "contrast_agent", "lesion_side", "lesion_territory", "sex",
)  # fmt: skip
_NUMBERS = ("native_spacing_mm", "pixel_spacing_mm", "age_years", "lesion_area_mm2")
_DISEASES = {
    "glioma": "glioma",
    "meningioma": "meningioma",
    "pituitary": "pituitary tumour",
    "healthy_volunteer": "healthy",
}
_SEXES = {"M": "man", "F": "woman"}
#: Coarsest voxel in mm of a slice that shows the detail of a usual scan.
_FINE_MM = 1.5

Columns = dict[str, npt.NDArray[Any]]


def read_columns(file: h5py.File, count: int, name: str) -> Columns:
    """Read the columns of a slice file; those that it lacks are filled with nothing, numbers with NaN.

    Raises
    ------
    FormatError
        If a column has another length or type, a split is neither train nor val, a caption seems to hold a name or a
        date, or a spacing is not a length.
    """
    columns: Columns = {text: file[text].asstr()[...] for text in ("captions", "split")}
    for text in _TEXTS:
        columns[text] = file[text].asstr()[...] if text in file else np.full(count, "", dtype=object)
    for number in _NUMBERS:
        values = np.asarray(file[number][...] if number in file else np.full(count, np.nan))
        if values.dtype.kind not in "iuf":
            raise FormatError(f"expected {number} of {name} to hold numbers, got {values.dtype}")
        columns[number] = values.astype(np.float64)
    for column, values in columns.items():
        if values.shape != (count,):
            raise FormatError(f"expected {count} entries of {column} in {name}, one per image, got {len(values)}")
    _check(columns, name)
    return columns


def _check(columns: Columns, name: str) -> None:
    strange = sorted(set(columns["split"]) - set(_SPLITS))
    if strange:
        raise FormatError(f"expected split to be train or val in {name}, got {strange[0]!r:.60}; rename it")
    for column in ("native_spacing_mm", "pixel_spacing_mm"):
        spacing = columns[column]
        if (wrong := np.flatnonzero(~np.isnan(spacing) & ~((spacing > 0) & np.isfinite(spacing)))).size:
            raise FormatError(
                f"expected {column} above zero in {name}, got {spacing[wrong[0]]:g} in row {wrong[0]}; "
                "leave the column out, or say NaN, where it is not known"
            )
    for row, caption in enumerate(columns["captions"]):
        if found := check_text(caption):
            raise FormatError(f"expected captions without personal data in {name}, but of row {row} {found[0]}")


def slice_attributes(row: Mapping[str, Any], images: str) -> SliceAttributes:
    """Attributes of one slice from the caption and, before it, from the columns, where they know the grammar's values.

    Parameters
    ----------
    row : Mapping
        Column -> value.
    images : str
        Dataset of the images; ``images_soft`` holds CT in its soft-tissue window.
    """
    said = read_attributes(row["captions"])
    columns = {
        "contrast": row["contrast"],
        "plane": row["plane"],
        "region": row["region"],
        "agent": row["contrast_agent"],
        "disease": _DISEASES.get(row["finding"], ""),
        "sex": _SEXES.get(row["sex"], row["sex"]),
    }
    known: dict[str, Any] = {
        name: value for name, value in columns.items() if value != UNKNOWN and value in ATTRIBUTES[name]
    }
    if row["age_years"] >= 1:
        known["age"] = int(row["age_years"])
    if row["native_spacing_mm"] > _FINE_MM:
        known["resolution"] = "coarse"
    finding = row["finding"]
    if finding.startswith("ms_"):
        known["disease"] = "multiple sclerosis"
        if finding == "ms_no_lesion_in_slice":
            known["lesions"] = "none"
    elif finding.startswith("stroke_"):
        known |= {"disease": "stroke"} | (_infarct(row) if finding == "stroke_lesion" else {"lesions": "none"})
    if said.modality == "CT":
        known["window"] = "soft tissue" if images == "images_soft" else "wide"
    merged = {f: getattr(said, f) for f in SliceAttributes.__dataclass_fields__} | known
    if merged["plane"] == "sagittal":  # it shows one half, and not which
        merged["side"] = UNKNOWN
    return SliceAttributes(**merged)


def _infarct(row: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {"lesion": "infarct"}
    for name, column in (("side", "lesion_side"), ("territory", "lesion_territory")):
        if row[column] in ATTRIBUTES[name] and row[column] != UNKNOWN:
            known[name] = row[column]
    if row["lesion_area_mm2"] > 0:
        known["size"] = size_word(row["lesion_area_mm2"])
    return known
