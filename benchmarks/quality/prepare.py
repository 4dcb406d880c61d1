"""Export the cases of the quality benchmark: one small NIfTI stack per subject and series, with captions.

    python benchmarks/quality/prepare.py --brain brain_mr_slices_2d.h5 --ct ct_slices_2d.h5 --nifti FOLDER --out cases

Volumes of NIFTI that belong to a subject of the split are cut to evenly spaced slices at their own resolution; other
series come from the slice files. Subjects whose patient is not known (``unknown:...``) are left out: one of them may be
in both splits. ``captions.jsonl`` says of every stack what is true of all its slices.

Of a slice file, directions and voxel sizes are known and the position in the room is not: images lie about the origin
(form code 2, "aligned"). CT slices of one series follow each other by rank times thickness, which is about right, and a
single slice is at least a little thicker than its pixels, so that readers cut the right way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt

from treg_med.data.nifti import NiftiVolume
from treg_med.data.orientation import choose_slice_axis, plane_of
from treg_med.errors import ConfigError, FormatError, ResourceError

CAPTIONS = "captions.jsonl"
# RAS axis and direction that columns, rows and slices run along, as the attributes of the files say.
MR_DIRECTIONS = {
    "axial": ((0, 1), (1, -1), (2, 1)),
    "coronal": ((0, 1), (2, -1), (1, 1)),
    "sagittal": ((1, 1), (2, -1), (0, 1)),
}
CT_DIRECTIONS = {
    "axial": ((0, -1), (1, -1), (2, -1)),
    "coronal": ((0, -1), (2, -1), (1, -1)),
    "sagittal": ((1, -1), (2, -1), (0, 1)),
}
CONTRASTS = {"t1": "T1w", "t1w": "T1w", "t1post": "T1w+Gd", "t2": "T2w", "t2w": "T2w", "flair": "FLAIR"}
ALIGNED = 2
WIDE, SOFT = (-1000.0, 2000.0), (-160.0, 400.0)
_NOT_SQUARE = 1.1


@dataclass(frozen=True)
class Stack:
    """Slices of one series, as stored in the file that is written.

    Parameters
    ----------
    values
        ``(i, j, k)``.
    affine
        ``(4, 4)`` to RAS+ mm.
    subject, plane, contrast, caption
        Words; no contrast for CT.
    """

    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    subject: str
    plane: str
    contrast: str
    caption: str
    code: int = ALIGNED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brain", type=Path, help="slice file of MR")
    parser.add_argument("--ct", type=Path, help="slice file of CT")
    parser.add_argument("--nifti", type=Path, help="folder of volumes called SUBJECT_..._CONTRAST.nii.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--per-subject", type=int, default=8, help="most slices of a stack")
    options = parser.parse_args()
    lines = prepare(
        options.out, brain=options.brain, ct=options.ct, nifti=options.nifti, split=options.split,
        per_subject=options.per_subject,
    )  # fmt: skip
    print(f"{len(lines)} stacks of {len({line['subject'] for line in lines})} subjects in {options.out}")


def prepare(
    out: Path,
    *,
    brain: Path | None = None,
    ct: Path | None = None,
    nifti: Path | None = None,
    split: str = "val",
    per_subject: int = 8,
) -> list[dict[str, str]]:
    """Write the stacks and their captions; return the lines of the captions.

    Raises
    ------
    ConfigError
        For less than one slice, or if no slice file is given.
    ResourceError, FormatError
        If a slice file is not there or not one, or has no known subject of the split.
    """
    if per_subject < 1 or (brain is None and ct is None):
        raise ConfigError(f"expected at least one slice of at least one slice file, got per_subject={per_subject}")
    stacks: list[Stack] = []
    if brain is not None:
        stacks += mr_stacks(brain, nifti, split, per_subject)
    if ct is not None:
        stacks += ct_stacks(ct, split, per_subject)
    if not stacks:
        raise FormatError(f"expected known subjects of the split {split!r}, got none; choose another split")
    named: dict[tuple[str, str], list[Stack]] = defaultdict(list)
    for stack in stacks:
        named[_name(stack)].append(stack)
    lines = []
    for (stem, suffix), members in named.items():
        for number, stack in enumerate(members, 1):
            run = f"_run-{number}" if len(members) > 1 else ""
            file = f"{stem}{run}_{suffix}.nii.gz"
            lines.append({"file": file, **_write(out / file, stack, split)})
    temporary = out / f"{CAPTIONS}.part"
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(out / CAPTIONS)
    return lines


def _name(stack: Stack) -> tuple[str, str]:
    """Return path and suffix of BIDS, between which the number of the run stands."""
    subject = "sub-" + re.sub(r"[^A-Za-z0-9]", "", stack.subject)
    folder = "anat" if stack.contrast else "ct"
    agent = "_ce-gadolinium" if stack.contrast.endswith("+Gd") else ""
    suffix = stack.contrast.removesuffix("+Gd") or "ct"
    return f"{subject}/{folder}/{subject}_acq-{stack.plane}{agent}", suffix


def _write(path: Path, stack: Stack, split: str) -> dict[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(stack.values, stack.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(stack.affine, stack.code)
    image.set_qform(stack.affine, stack.code)
    temporary = path.with_name(f"part-{os.getpid()}-{path.name}")
    nib.save(image, temporary)
    temporary.replace(path)
    words = {"caption": stack.caption, "subject": stack.subject, "split": split, "plane": stack.plane}
    return words | ({"contrast": stack.contrast} if stack.contrast else {})


def mr_stacks(path: Path, nifti: Path | None, split: str, count: int) -> Iterator[Stack]:
    """Give the stacks of every known MR subject: from its volumes, and from the slice file where it has none."""
    rows = _rows(path, split, ("contrast", "plane"))
    volumes = sorted(nifti.glob("*.nii.gz")) if nifti is not None else []
    for subject in sorted({row["subject"] for row in rows}):
        mine = [row for row in rows if row["subject"] == subject]
        for contrast in sorted({row["contrast"] for row in mine}):
            series = [row for row in mine if row["contrast"] == contrast]
            file = next((v for v in volumes if _is_volume_of(v, subject, contrast)), None)
            if file is not None:
                yield _cut(file, subject, contrast, shared_caption([row["captions"] for row in series]), count)
                continue
            for plane in sorted({row["plane"] for row in series}):
                yield _mr_stack(path, [row for row in series if row["plane"] == plane], count)


def _is_volume_of(path: Path, subject: str, contrast: str) -> bool:
    label = path.name.split(".")[0]
    return label.startswith(f"{subject}_") and CONTRASTS.get(label.rpartition("_")[2].lower()) == contrast


def _cut(path: Path, subject: str, contrast: str, caption: str, count: int) -> Stack:
    """Evenly spaced slices of a volume."""
    stored = NiftiVolume.read(path)
    axis = choose_slice_axis(stored.affine)
    total = stored.values.shape[axis]
    step = max(1, total // count)
    first = (total - step * (min(count, total) - 1)) // 2
    chosen = [first + step * k for k in range(min(count, total))]
    move = np.eye(4)
    move[axis, axis], move[axis, 3] = step, first
    values = np.take(stored.values, chosen, axis)
    whole = bool((values == np.rint(values)).all()) and float(np.abs(values).max()) < 2**15
    values = values.astype(np.int16) if whole else values
    code = stored.sform_code or stored.qform_code
    return Stack(values, stored.affine @ move, subject, plane_of(stored.affine, axis), contrast, caption, code)


def _mr_stack(path: Path, rows: Sequence[dict[str, Any]], count: int) -> Stack:
    """Evenly spaced slices of one series of the slice file; slices are numbered in pixels across."""
    rows = _spread(rows, count)
    with h5py.File(path) as file:
        images = np.stack([file["images"][row["row"]] for row in rows]).astype(np.int16)
    pixel = _known(rows[0]["pixel_spacing_mm"], 1.0)
    gap = _gap(rows, pixel, pixel)
    first = rows[0]
    affine = slices_affine(MR_DIRECTIONS[first["plane"]], images.shape, pixel, gap)
    caption = shared_caption([row["captions"] for row in rows])
    return Stack(images.transpose(2, 1, 0), affine, first["subject"], first["plane"], first["contrast"], caption)


def ct_stacks(path: Path, split: str, count: int) -> Iterator[Stack]:
    """Give the stacks of every CT patient in HU; slices of one plane, contrast agent and pixel size form a series."""
    series: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(path, split, ("plane", "contrast_agent"), ("slice_thickness_mm",)):
        pixel = _known(row["pixel_spacing_mm"], 1.5)
        series[row["subject"], row["plane"], row["contrast_agent"], round(pixel, 3)].append(row)
    for (subject, plane, _, pixel), members in sorted(series.items(), key=lambda item: str(item[0])):
        rows = _spread(members, count)
        with h5py.File(path) as file:
            chosen = [row["row"] for row in rows]
            hu = np.stack([_hounsfield(file, index) for index in chosen])
        gap = _gap(rows, _known(rows[0]["slice_thickness_mm"], 5.0), pixel)
        affine = slices_affine(CT_DIRECTIONS[plane], hu.shape, pixel, gap)
        caption = shared_caption([row["captions"] for row in rows])
        yield Stack(hu.transpose(2, 1, 0), affine, subject, plane, "", caption)


def _hounsfield(file: h5py.File, index: int) -> npt.NDArray[np.int16]:
    """Return a slice in HU, by the soft-tissue window where it lies within, which has five times finer steps."""
    hu = file["images"][index] / 255 * WIDE[1] + WIDE[0]
    if "images_soft" in file:
        soft = file["images_soft"][index]
        hu = np.where((soft > 0) & (soft < 255), soft / 255 * SOFT[1] + SOFT[0], hu)
    return np.rint(hu).astype(np.int16)


def _rows(path: Path, split: str, texts: Sequence[str], numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the slices of known subjects of a split, sorted by their place in the series."""
    if not path.is_file():
        raise ResourceError(f"expected a slice file, got {str(path)!r}, which is not there; check the path")
    try:
        with h5py.File(path) as file:
            columns = {name: file[name].asstr()[...] for name in ("subject", "split", "captions", *texts)}
            columns |= {name: file[name][...] for name in ("slice_index", "pixel_spacing_mm", *numbers)}
    except (OSError, KeyError) as error:
        raise FormatError(f"expected a slice file with captions, got {path.name}: {error}; choose another") from error
    kept = np.flatnonzero(columns["split"] == split)
    rows = [{"row": int(row), **{name: values[row] for name, values in columns.items()}} for row in kept]
    known = [row for row in rows if not row["subject"].startswith("unknown")]
    return sorted(known, key=lambda row: (int(row["slice_index"]), row["row"]))


def _spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Choose evenly spaced slices, the ends left out, one of each place."""
    places = {int(row["slice_index"]): row for row in rows}
    rows = list(places.values()) if min(places) >= 0 else list(rows)
    step = max(1, len(rows) // count)
    first = (len(rows) - step * (min(count, len(rows)) - 1)) // 2
    return [rows[first + step * k] for k in range(min(count, len(rows)))]


def _gap(rows: Sequence[Mapping[str, Any]], thickness: float, pixel: float) -> float:
    """Return the mean distance of the slices in mm."""
    places = [int(row["slice_index"]) for row in rows]
    step = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 1.0
    return max(step * thickness, _NOT_SQUARE * pixel)


def _known(value: float, default: float) -> float:
    return float(value) if np.isfinite(value) and value > 0 else default


def slices_affine(
    directions: Sequence[tuple[int, int]], shape: Sequence[int], pixel: float, gap: float
) -> npt.NDArray[np.float64]:
    """Return the affine ``(4, 4)`` of (column, row, slice), the middle of the stack at the origin.

    Parameters
    ----------
    directions
        RAS axis and sign that columns, rows and slices run along.
    shape
        (slices, rows, columns).
    pixel, gap
        Spacing within and across slices in mm.
    """
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, ((axis, sign), length) in enumerate(zip(directions, (pixel, pixel, gap), strict=True)):
        affine[axis, stored] = sign * length
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


def shared_caption(captions: Sequence[str]) -> str:
    """Return what the captions of all slices say: their common phrases, of the first one its common beginning."""
    split = [caption.rstrip(".").partition(";")[0].split(", ") for caption in captions]
    words = [phrases[0].split(" ") for phrases in split]
    common = [group[0] for group in zip(*words, strict=False) if len(set(group)) == 1]
    same = len(common) == max(map(len, words))
    while common and not same and common[-1] in ("of", "the", "and"):
        common.pop()
    rest = [phrase for phrase in split[0][1:] if all(phrase in phrases[1:] for phrases in split)]
    places = ("lower third", "middle third", "upper third")
    return ", ".join([" ".join(common), *(phrase for phrase in rest if not phrase.startswith(places))]) + "."


if __name__ == "__main__":
    main()
