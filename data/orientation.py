"""How an image array lies in a stored volume and in the patient.

Images are (row, column, slice). Volumes from NIfTI are turned so that images come out upright in the
radiological convention, as the shipped prior's words mean them: axial with anterior up, coronal and sagittal
with superior up, the patient's left on the right of axial and coronal images, anterior on the left of
sagittal ones. The slice index stays that of the file. `Geometry.storage` remembers the turn, and the writer undoes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations

from treg_med.data.records import Geometry
from treg_med.errors import GeometryError

__all__ = [
    "choose_slice_axis",
    "oriented_geometry",
    "plane_of",
    "slices_geometry",
    "stored_affine",
    "to_images",
    "to_volume",
    "unknown_geometry",
]

Storage = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_PLANES = ("sagittal", "coronal", "axial")
# For each RAS axis across the slices: the (RAS axis, direction) that rows and columns run along.
_UPRIGHT = {2: ((1, -1), (0, -1)), 1: ((2, -1), (0, -1)), 0: ((2, -1), (1, -1))}
# Spacings that differ by less than this are the same.
_SPACING_TOLERANCE = 1.05


def choose_slice_axis(affine: npt.NDArray[np.float64]) -> int:
    """Return the stored axis to slice across: the one of clearly coarsest spacing, else the axial one."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    coarsest = int(np.argmax(spacing))
    if spacing[coarsest] > _SPACING_TOLERANCE * np.delete(spacing, coarsest).max():
        return coarsest
    return int(np.flatnonzero(_ras_axes(affine)[:, 0] == 2)[0])


def plane_of(affine: npt.NDArray[np.float64], slice_axis: int) -> str:
    """Return axial, coronal or sagittal: the plane that slices across ``slice_axis`` are closest to."""
    return _PLANES[int(_ras_axes(affine)[slice_axis, 0])]


def _ras_axes(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    axes = orientations.io_orientation(affine)
    if not np.isfinite(axes).all():
        raise GeometryError(
            "expected an affine with three independent axes, got a degenerate one; repair the header"
        )
    return np.asarray(axes, dtype=np.int64)


def oriented_geometry(
    affine: npt.NDArray[np.float64],
    shape: Sequence[int],
    slice_axis: int,
    *,
    sform_code: int = 0,
    qform_code: int = 0,
    xyzt_units: int = 2,
) -> Geometry:
    """Return the geometry of upright images cut across ``slice_axis`` of a stored volume.

    Parameters
    ----------
    affine
        (4, 4), stored voxel index to RAS+ mm.
    shape
        Three sides of the stored volume.
    slice_axis
        Stored axis across the slices.
    sform_code, qform_code, xyzt_units
        Codes of the source.
    """
    axes = _ras_axes(affine)
    wanted = _UPRIGHT[int(axes[slice_axis, 0])]
    turn = []
    for ras_axis, direction in wanted:
        stored = int(np.flatnonzero(axes[:, 0] == ras_axis)[0])
        turn.append((stored, direction * int(axes[stored, 1])))
    storage: Storage = (turn[0], turn[1], (slice_axis, 1))
    return Geometry(
        affine=affine @ orientations.inv_ornt_aff(_inverse(storage), tuple(shape)),
        shape=(shape[turn[0][0]], shape[turn[1][0]], shape[slice_axis]),
        sform_code=sform_code,
        qform_code=qform_code,
        xyzt_units=xyzt_units,
        known=sform_code > 0 or qform_code > 0,
        storage=storage,
    )


def unknown_geometry(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    display_rot90: int = 0,
    display_flip: bool = False,
) -> Geometry:
    """Return a placeholder for a file without geometry; viewers show the written volume the right way up.

    The stored volume is (x, y, slice) with x to the right and y up on the *displayed* image, and the affine
    is the one that nibabel assumes for a header with both codes 0: centred, x pointing left. Which side is
    the patient's left is not known.

    Parameters
    ----------
    shape
        (rows, columns, slices) of the raw arrays.
    spacing_mm
        Distance between rows, columns and slices.
    display_rot90, display_flip
        As in `Geometry`.
    """
    # Displayed (row, column) as seen from the raw axes: where each raw axis points on the screen.
    axes: list[tuple[int, int]] = [(0, 1), (1, 1)]
    for _ in range(display_rot90 % 4):
        # A quarter turn anticlockwise sends columns to reversed rows and rows to columns.
        axes = [(1, d) if axis == 0 else (0, -d) for axis, d in axes]
    if display_flip:
        axes = [(axis, -d if axis == 1 else d) for axis, d in axes]
    turn = [(1, -d) if axis == 0 else (0, d) for axis, d in axes]
    storage: Storage = (turn[0], turn[1], (2, 1))
    stored_shape = [0, 0, shape[2]]
    stored_spacing = [0.0, 0.0, spacing_mm[2]]
    for raw, (stored, _) in enumerate(turn):
        stored_shape[stored], stored_spacing[stored] = shape[raw], spacing_mm[raw]
    header = nib.Nifti1Header()
    header.set_data_shape(stored_shape)
    header.set_zooms(stored_spacing)
    affine = np.asarray(header.get_base_affine(), dtype=np.float64)
    affine = affine @ orientations.inv_ornt_aff(_inverse(storage), tuple(stored_shape))
    return Geometry(
        affine, shape, known=False, storage=storage, display_rot90=display_rot90, display_flip=display_flip
    )


def _inverse(storage: Storage) -> npt.NDArray[np.float64]:
    """Return the nibabel orientation that takes the stored volume to images."""
    turn = np.zeros((3, 2))
    for image_axis, (stored_axis, direction) in enumerate(storage):
        turn[stored_axis] = image_axis, direction
    return turn


def to_images(volume: npt.NDArray[np.float32], geometry: Geometry) -> npt.NDArray[np.float32]:
    """Turn a stored volume into upright images (row, column, slice); a view, no copy."""
    return np.asarray(orientations.apply_orientation(volume, _inverse(geometry.storage)))


def to_volume(
    images: npt.NDArray[np.float32], geometry: Geometry
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Turn images (row, column, slice) back into the stored volume and its affine."""
    turn = np.array(geometry.storage, dtype=np.float64)
    return np.asarray(orientations.apply_orientation(images, turn)), stored_affine(geometry)


def stored_affine(geometry: Geometry) -> npt.NDArray[np.float64]:
    """Return the affine (4, 4) of the stored volume."""
    turn = np.array(geometry.storage, dtype=np.float64)
    return np.asarray(geometry.affine @ orientations.inv_ornt_aff(turn, geometry.shape))


def slices_geometry(geometry: Geometry, indices: Sequence[int]) -> Geometry:
    """Return the geometry of a volume made of some slices only.

    Raises
    ------
    GeometryError
        If the slices are not evenly spaced, increasing and inside the scan.
    """
    steps = {b - a for a, b in zip(indices, indices[1:], strict=False)}
    if (
        not indices
        or len(steps) > 1
        or any(s < 1 for s in steps)
        or min(indices) < 0
        or max(indices) >= geometry.shape[2]
    ):
        raise GeometryError(
            f"expected increasing, evenly spaced slices of {geometry.shape[2]}, got {list(indices)[:10]}; "
            "an affine cannot describe others"
        )
    step = steps.pop() if steps else 1
    move = np.eye(4)
    move[2, 2], move[2, 3] = step, indices[0]
    return replace(
        geometry, affine=geometry.affine @ move, shape=(*geometry.shape[:2], len(indices)), slice_index=0
    )
