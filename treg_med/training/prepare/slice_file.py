"""The slice file that training reads: one HDF5 of 8-bit slices with captions.

Datasets, N slices:

- ``images`` (N, H, W) uint8: upright, background 0; axial with anterior up, coronal and sagittal with superior up, the
  patient's left on the right of axial and coronal slices (radiological convention), anterior on the left of sagittal
  ones;
- ``captions``, ``contrast``, ``plane``, ``finding``, ``subject``, ``split`` (train, val), ``source`` (file name) and
  ``modality`` (MRI, CT), UTF-8; ``region`` and ``contrast_agent`` where they were known;
- ``slice_index`` int32, ``pixel_spacing_mm`` float32 (NaN where unknown);
- ``lesion_masks`` (N, H, W) uint8 and ``has_lesion_mask`` bool, where any mask was given.

Attributes: ``format``, ``version``, ``settings`` (JSON) and ``fingerprint`` of everything it was made of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from treg_med.data.hdf5_reader import text_attribute
from treg_med.data.safe_hdf5 import hdf5_errors, open_hdf5
from treg_med.errors import FormatError, ResourceError, TregMedError

__all__ = ["FORMAT", "VERSION", "SliceFileWriter", "SliceRow", "fingerprint", "split_rows", "stored_fingerprint"]

FORMAT = "treg_med slices"
VERSION = 1

_TEXTS = ("captions", "contrast", "plane", "finding", "subject", "split", "source", "modality")
_SLICES_PER_CHUNK = 4


@dataclass(frozen=True)
class SliceRow:
    """Everything about one slice but its pixels; ``group`` tells the volumes of a subject apart."""

    captions: str
    contrast: str
    plane: str
    finding: str
    subject: str
    split: str
    source: str
    modality: str
    slice_index: int = 0
    pixel_spacing_mm: float = math.nan
    has_lesion_mask: bool = False
    group: str = ""
    others: Mapping[str, str] = field(default_factory=dict)


class SliceFileWriter:
    """Writes slices as they come; texts are kept until `finish`, which knows all subjects.

    Parameters
    ----------
    path
        File to write; it must not be there.
    size
        Height and width of a slice.
    masks
        Whether any slice has a lesion mask.
    """

    def __init__(self, path: Path, size: int, *, masks: bool) -> None:
        self.rows: list[SliceRow] = []
        self._file = h5py.File(path, "x")
        stored = {"chunks": (_SLICES_PER_CHUNK, size, size), "compression": "gzip", "compression_opts": 4}
        names = ("images", "lesion_masks") if masks else ("images",)
        self._pixels = [
            self._file.create_dataset(n, (0, size, size), np.uint8, maxshape=(None, size, size), shuffle=True, **stored)
            for n in names
        ]

    def add(
        self, rows: Sequence[SliceRow], images: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """Append slices ``(n, H, W)`` with one row each."""
        first = len(self.rows)
        self.rows += rows
        for dataset, values in zip(self._pixels, (images, masks), strict=False):
            dataset.resize(len(self.rows), axis=0)
            if values is not None and len(rows):
                dataset[first:] = values

    def finish(self, rows: Sequence[SliceRow], attributes: Mapping[str, Any]) -> None:
        """Write the texts of all slices, in the order in which they were added."""
        for name in _TEXTS:
            self._texts(name, [getattr(row, name) for row in rows])
        for name in sorted({name for row in rows for name in row.others}):
            self._texts(name, [row.others.get(name, "") for row in rows])
        self._file["slice_index"] = np.array([row.slice_index for row in rows], dtype=np.int32)
        self._file["pixel_spacing_mm"] = np.array([row.pixel_spacing_mm for row in rows], dtype=np.float32)
        if len(self._pixels) > 1:
            self._file["has_lesion_mask"] = np.array([row.has_lesion_mask for row in rows], dtype=bool)
        self._file.attrs.update({"format": FORMAT, "version": VERSION, **attributes})

    def _texts(self, name: str, values: list[str]) -> None:
        self._file.create_dataset(name, data=values, dtype=h5py.string_dtype())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()


def stored_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of a slice file; None if there is no file.

    Raises
    ------
    ResourceError
        If another file is there, which must not be overwritten.
    """
    if not path.exists():
        return None
    try:
        with open_hdf5(path) as file, hdf5_errors(path.name):
            if text_attribute(file.attrs, "format") == FORMAT:
                return text_attribute(file.attrs, "fingerprint") or ""
    except TregMedError as error:
        raise ResourceError(
            f"{path.name!r} exists, is no slice file and is kept ({error}); choose another name"
        ) from error
    raise ResourceError(f"{path.name!r} exists, was not written by this command and is kept; choose another name")


def split_rows(rows: Sequence[SliceRow], val_share: float, seed: int) -> tuple[list[SliceRow], list[str]]:
    """Give every row its split, whole subjects at a time, and return warnings.

    A split that a row brings with it holds for its subject. Of one subject alone the last slices of each volume become
    val.

    Raises
    ------
    FormatError
        If all subjects were put into val.
    """
    given = {row.subject: row.split for row in rows if row.split}
    subjects = sorted({row.subject for row in rows})
    if len(subjects) == 1 and not given:
        return _split_slices(rows, val_share)
    open_subjects = sorted(
        (s for s in subjects if s not in given), key=lambda s: hashlib.sha256(f"{seed}/{s}".encode()).digest()
    )
    wanted = max(round(val_share * len(subjects)), 1 if val_share > 0 else 0)
    missing = max(wanted - sum(split == "val" for split in given.values()), 0)
    # Somebody has to be left to learn from.
    missing = min(missing, len(open_subjects) - ("train" not in given.values()))
    if missing < 0:
        raise FormatError(
            f'expected at least one subject to train on, but all {len(subjects)} are "val"; set "split" to "train" '
            "for some"
        )
    split = given | {s: "val" if i < missing else "train" for i, s in enumerate(open_subjects)}
    return [replace(row, split=split[row.subject]) for row in rows], []


def _split_slices(rows: Sequence[SliceRow], val_share: float) -> tuple[list[SliceRow], list[str]]:
    indices: dict[str, set[int]] = {}
    for row in rows:
        indices.setdefault(row.group, set()).add(row.slice_index)
    first_val = {}
    for group, known in indices.items():
        ordered = sorted(known)
        count = min(math.ceil(val_share * len(ordered)), len(ordered) - 1)
        first_val[group] = ordered[-count] if count else math.inf
    split = [replace(r, split="val" if r.slice_index >= first_val[r.group] else "train") for r in rows]
    if val_share == 0:
        return split, []
    return split, [
        "all slices are of one subject: the last ones of each volume became val, which tells whether training works "
        "but not whether it generalises; add subjects"
    ]


def fingerprint(facts: Any) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
