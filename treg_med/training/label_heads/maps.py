"""Label maps of heads: read, turned to RAS, and put into tissues."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from treg_med.errors import FormatError, GeometryError, ResourceError
from treg_med.training.label_heads.tissues import BRAIN, CODES, LEFT, RIGHT, TISSUES, index_of

__all__ = ["HeadMap", "read_image", "load_maps"]

_FAT_DEPTH = 4.0  # mm of fat under the skin
_ORBIT = 24.0  # mm, radius of the orbit about the point behind the eye
_VOXEL_TOLERANCE = 0.05


@dataclass(frozen=True)
class HeadMap:
    """Tissues of one head.

    Attributes
    ----------
    tissues : NDArray[uint8] ``(X, Y, Z)``
        Positions in `TISSUES`; axes to the right, anterior and superior, 1 mm, with one voxel of air around.
    whole : bool
        Whether there is a skull, and not the brain alone.
    cerebrum, brain : NDArray[float64] ``(2, 3)``
        Lowest and highest voxel of the cerebrum, and of the brain with cerebellum and stem.
    head : NDArray[float64] ``(2, 3)``
        The same of everything that is not air.
    cerebellum : NDArray[float64] ``(3,)``
        Middle of the cerebellum's white matter; without one, of the brain.
    midplane : NDArray[float64] ``(4,)``
        (a, b, c, d) with a x + b y + c z + d positive on the patient's right.
    """

    tissues: NDArray[np.uint8]
    whole: bool
    cerebrum: NDArray[np.float64]
    brain: NDArray[np.float64]
    head: NDArray[np.float64]
    cerebellum: NDArray[np.float64]
    midplane: NDArray[np.float64]


def load_maps(folder: Path) -> list[HeadMap]:
    """Read the maps of every folder under `folder`, in the order of their names.

    A folder's ``labels.json`` has an entry ``index_to_original`` from the numbers in its maps to FreeSurfer numbers;
    a folder without one, next to others that have one, holds FreeSurfer numbers.

    Raises
    ------
    ResourceError
        Without maps, or without any ``labels.json``.
    FormatError
        For codes that are not known, and a map that is not a 3-D array of integers.
    GeometryError
        For an affine that cannot be inverted or voxels that are not 1 mm.
    """
    paths = [p for p in sorted(folder.glob("*/*.nii*")) if "lesion" not in p.name]
    if not paths:
        raise ResourceError(
            f"expected label maps (*/*.nii.gz) in {folder}, found none; give the folder above those of the maps"
        )
    if not any((p.parent / "labels.json").is_file() for p in paths):
        raise ResourceError(
            f"expected labels.json beside the label maps in {folder}, found none; write one with the entry "
            f'"index_to_original": number in the map -> FreeSurfer number'
        )
    tables = {parent: _code_table(parent / "labels.json") for parent in sorted({p.parent for p in paths})}
    return [_load_map(path, tables[path.parent]) for path in paths]


def read_image(path: Path) -> nib.Nifti1Image:
    """Image of 1 mm voxels, its axes to the right, anterior and superior.

    Raises
    ------
    FormatError
        If it is not a NIfTI file.
    GeometryError
        If its affine cannot be inverted or the voxels are not 1 mm.
    """
    try:
        image = nib.load(path)
    except nib.filebasedimages.ImageFileError as error:
        raise FormatError(f"expected a NIfTI image, got {path}: {error}; save it with nibabel") from error
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise GeometryError(
            f"expected an affine that can be inverted in {path.name}, got {affine[:3].tolist()}; "
            f"set the sform or qform of the file"
        )
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if np.abs(sizes - 1).max() > _VOXEL_TOLERANCE:
        raise GeometryError(
            f"expected voxels of 1 mm in {path.name}, got {sizes.round(3).tolist()} mm; resample it to 1 mm, nearest"
        )
    return nib.as_closest_canonical(image)


def _code_table(path: Path) -> dict[int, int] | None:
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["index_to_original"]
        return {int(index): int(code) for index, code in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f'expected {path} to hold {{"index_to_original": {{"1": 2, ...}}}}, got {type(error).__name__}: {error}; '
            f"write number in the map -> FreeSurfer number"
        ) from error


def _load_map(path: Path, table: dict[int, int] | None) -> HeadMap:
    image = read_image(path)
    labels = np.asarray(image.dataobj)
    if labels.ndim != 3 or labels.dtype.kind not in "ui":
        raise FormatError(
            f"expected a 3-D map of integers in {path.name}, got {labels.ndim}-D {labels.dtype}; "
            f"save the labels as uint8 without scaling"
        )
    present = np.unique(labels).tolist()
    codes = {index: index if table is None else table.get(index) for index in present}
    unknown = [index for index, code in codes.items() if code not in CODES]
    if unknown:
        raise FormatError(
            f"expected codes that labels.json beside {path.name} turns into known FreeSurfer numbers, "
            f"got {unknown} ({[codes[i] for i in unknown]}); add them to index_to_original"
        )
    look_up = np.zeros(max(present) + 1, dtype=np.int32)
    for index, code in codes.items():
        look_up[index] = code
    to_tissue = np.array([TISSUES.index(CODES[int(code)]) for code in look_up], dtype=np.uint8)
    # Negative labels cannot be looked up, but they are unknown codes and have been refused.
    tissues = np.pad(to_tissue[labels], 1)
    inside = np.isin(tissues, index_of(*BRAIN))
    if not inside.any():
        raise FormatError(f"expected brain tissue in {path.name}, got labels {present}; check labels.json")
    left, right = (np.pad(np.isin(look_up, side)[labels], 1) for side in (LEFT, RIGHT))
    cerebrum = _box(np.isin(tissues, index_of("grey", "white")))
    whole = bool((tissues == TISSUES.index("bone")).any())
    tissues = _cleaned(tissues)
    tissues = _with_dura(_with_fat(tissues)) if whole else _with_fluid(tissues, inside)
    tree = np.argwhere(tissues == TISSUES.index("cerebellar white"))
    brain = _box(inside)
    return HeadMap(
        tissues=np.ascontiguousarray(tissues), whole=whole, cerebrum=cerebrum, brain=brain, head=_box(tissues > 0),
        cerebellum=tree.mean(0) if len(tree) else brain.mean(0), midplane=_midplane(left, right, cerebrum),
    )  # fmt: skip


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    spans = (np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return np.array([(span[0], span[-1]) for span in spans], dtype=np.float64).T


def _midplane(left: NDArray[np.bool_], right: NDArray[np.bool_], cerebrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Plane between the hemispheres, by least squares; the middle of the cerebrum where they share a code."""
    if not (left.any() and right.any()):
        return np.array([1.0, 0.0, 0.0, -cerebrum[:, 0].mean()])
    places = [np.argwhere(side)[::50] for side in (left, right)]
    design = np.concatenate([np.pad(p.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0) for p in places])
    target = np.repeat([-1.0, 1.0], [len(p) for p in places])
    return np.linalg.lstsq(design, target, rcond=None)[0]


def _cleaned(tissues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take away islands outside the head, and fill single voxels of air inside it."""
    parts, count = ndimage.label(tissues > 0)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        tissues = np.where(parts == sizes.argmax(), tissues, 0).astype(np.uint8)
    air = (tissues == 0).astype(np.float32)
    holes = (air > 0) & (ndimage.uniform_filter(air, 3) < 0.5)
    return np.where(holes, ndimage.maximum_filter(tissues, 3), tissues).astype(np.uint8)


def _with_fat(tissues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Soft tissue under the skin and about the eyes is fat; the maps have one class for all of it."""
    soft = tissues == TISSUES.index("soft")
    skin = (tissues == TISSUES.index("skin")).astype(np.float32)
    # A Gaussian of the skin falls with depth and, unlike a distance, smoothly across its gaps.
    near = ndimage.gaussian_filter(skin, 0.6 * _FAT_DEPTH, truncate=2.0) > 0.10
    eyes = np.argwhere(tissues == TISSUES.index("eye"))
    if len(eyes):
        middle = np.median(eyes[:, 0])
        for eye in (eyes[eyes[:, 0] < middle], eyes[eyes[:, 0] >= middle]):
            if len(eye):
                x, y, z = np.ogrid[tuple(slice(n) for n in tissues.shape)]
                cx, cy, cz = eye.mean(0) - (0, 10, 0)
                near |= (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < _ORBIT**2
    tissues[soft & near] = TISSUES.index("fat")
    return tissues


def _with_dura(tissues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fluid that touches the skull is dura, as dark as bone; the maps have no class for it."""
    bone = tissues == TISSUES.index("bone")
    tissues[ndimage.binary_dilation(bone) & (tissues == TISSUES.index("csf"))] = TISSUES.index("bone")
    return tissues


def _with_fluid(tissues: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Fill the sulci of a map of the brain alone with fluid."""
    hull = ndimage.gaussian_filter(inside.astype(np.float32), 4.0, truncate=2.0) > 0.43
    tissues[(tissues == 0) & hull] = TISSUES.index("csf")
    return tissues
