"""A predicted volume and its target brought to one grid, or refused: shape, place in the patient, mirroring.

Two files of one shape can still be mirrored against each other, and a symmetric head hides it: the numbers are merely
bad. Here affines that differ by a permutation or a flip of axes are resolved, any other difference is an error, and
the images themselves are asked whether they are mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from treg_med.data.nifti import NiftiVolume, looks_like_hounsfield
from treg_med.data.orientation import choose_slice_axis, oriented_geometry, to_images
from treg_med.errors import ConfigError, GeometryError, NumericsError

__all__ = ["Pair", "mirrored_axes", "paired"]

Values = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

# Corners of the volume may lie this far apart, in units of the smallest voxel side.
_TOLERANCE = 0.1
_SPACING_TOLERANCE = 0.01
_LEAST_CORRELATION = 0.5
_LARGEST_ODD_CORRELATION = -0.3
_COMPARED_SIDE = 64


@dataclass(frozen=True)
class Pair:
    """A prediction on the grid of its target.

    Attributes
    ----------
    prediction, target
        (slices, H, W) float32, upright, slices in the order of the target's file. The prediction may hold NaN.
    unit
        ``"HU"`` where the target reaches below -200, else ``"magnitude"``.
    affine
        (4, 4), voxel of the target's file to RAS+ mm.
    spacing_mm
        Distance between rows, columns and slices.
    slice_axis
        Axis of the target's file across the slices.
    known
        Whether both files say where they lie in the patient.
    notes
        What was done or could not be checked.
    """

    prediction: Values
    target: Values
    unit: str
    affine: Affine
    spacing_mm: tuple[float, float, float]
    slice_axis: int
    known: bool
    notes: tuple[str, ...]


def paired(pred_path: Path, target_path: Path, *, slice_axis: int | None = None) -> Pair:
    """Read a predicted and a target NIfTI volume and bring the prediction to the axes of the target.

    Parameters
    ----------
    pred_path, target_path
        ``.nii`` or ``.nii.gz``, one volume each.
    slice_axis
        Axis of the target's file (0, 1, 2) to slice across; default: the coarsest, else the axial one.

    Raises
    ------
    GeometryError
        If shapes, voxel sizes or places differ, or the images are mirrored although the headers do not say so.
    NumericsError
        If the target is not finite; the message names the slice.
    FormatError, UnsafeFileError, ResourceError, ConfigError
        As in `data.nifti.NiftiVolume.read`.
    """
    if slice_axis not in (None, 0, 1, 2):
        raise ConfigError(f"expected slice_axis 0, 1 or 2, got {slice_axis!r}")
    # NaN in a prediction is counted, in a target it is named with its slice.
    prediction, target = (NiftiVolume.read(path, finite=False) for path in (pred_path, target_path))
    axis = choose_slice_axis(target.affine) if slice_axis is None else slice_axis
    _check_finite(target, axis, target_path.name)
    unplaced = [
        path.name for path, volume in ((pred_path, prediction), (target_path, target)) if not _is_placed(volume)
    ]
    if unplaced:
        values = prediction.values
        notes = [f"no place in the patient in {' and '.join(unplaced)}: axes are taken to be the same"]
        _check_shape(values.shape, target.values.shape, "")
    else:
        values, notes = _on_the_axes_of(prediction, target)
    mirrored = mirrored_axes(values, target.values)
    if mirrored:
        along = _named(mirrored, target, placed=not unplaced)
        raise GeometryError(
            f"{pred_path.name!r} is mirrored against {target_path.name!r} along {along}: it agrees far better when "
            "flipped, although the headers do not say so; flip it, or repair the program that wrote it (left and "
            "right of the patient may be exchanged)"
        )
    geometry = oriented_geometry(target.affine, target.values.shape, axis)
    return Pair(
        np.moveaxis(to_images(values, geometry), 2, 0),
        np.moveaxis(to_images(target.values, geometry), 2, 0),
        "HU" if looks_like_hounsfield(target_path) else "magnitude",
        target.affine,
        geometry.spacing_mm,
        axis,
        not unplaced,
        tuple(notes),
    )


def _is_placed(volume: NiftiVolume) -> bool:
    return volume.sform_code > 0 or volume.qform_code > 0


def _check_finite(target: NiftiVolume, axis: int, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(target.values).all(axis=tuple({0, 1, 2} - {axis})))
    if bad.size:
        raise NumericsError(
            f"expected a finite target, got NaN or Inf in slice {', '.join(map(str, bad[:5]))} of {name!r} "
            f"({bad.size} slices in all); repair the target or leave these slices out"
        )


def _check_shape(prediction: tuple[int, ...], target: tuple[int, ...], turned: str) -> None:
    if prediction != target:
        raise GeometryError(
            f"expected a prediction of shape {target}, that of the target, got {prediction}{turned}; crop both to the "
            "same field of view, or resample the prediction to the grid of the target"
        )


def _on_the_axes_of(prediction: NiftiVolume, target: NiftiVolume) -> tuple[Values, list[str]]:
    """Permute and flip the axes of the prediction to those of the target, then compare where every corner lies."""
    turn = orientations.ornt_transform(
        orientations.io_orientation(prediction.affine), orientations.io_orientation(target.affine)
    )
    values = np.asarray(orientations.apply_orientation(prediction.values, turn))
    affine = prediction.affine @ orientations.inv_ornt_aff(turn, prediction.values.shape)
    codes = ["".join(orientations.aff2axcodes(volume.affine)) for volume in (prediction, target)]
    turned = "" if codes[0] == codes[1] else f" after turning it from {codes[0]} to {codes[1]}"
    _check_shape(values.shape, target.values.shape, turned)
    _check_place(affine, target.affine, target.values.shape)
    return values, [f"prediction turned from {codes[0]} to the target's {codes[1]}"] if turned else []


def _check_place(affine: Affine, expected: Affine, shape: tuple[int, ...]) -> None:
    sizes, wanted = (np.linalg.norm(a[:3, :3], axis=0) for a in (affine, expected))
    if np.any(np.abs(sizes - wanted) > _SPACING_TOLERANCE * wanted):
        raise GeometryError(
            f"expected voxels of {_numbers(wanted)} mm, those of the target, got {_numbers(sizes)} mm; resample the "
            "prediction to the grid of the target, or repair its header"
        )
    corners = np.array([[*corner, 1.0] for corner in np.ndindex(2, 2, 2)]) * [*(side - 1 for side in shape), 1]
    distance = float(np.linalg.norm((corners @ (affine - expected).T)[:, :3], axis=1).max())
    if distance <= _TOLERANCE * float(wanted.min()):
        return
    turn = (affine[:3, :3] / sizes).T @ (expected[:3, :3] / wanted)
    angle = math.degrees(math.acos(min(max((float(np.trace(turn)) - 1) / 2, -1.0), 1.0)))
    middle = np.array([*((side - 1) / 2 for side in shape), 1.0])
    shift = ((affine - expected) @ middle)[:3]
    raise GeometryError(
        f"expected the prediction where the target is, within {_TOLERANCE:g} of a voxel; corners lie up to "
        f"{distance:.3g} mm apart (centre shifted by {_numbers(shift)} mm along R, A, S; rotated by {angle:.3g} "
        "degrees); resample the prediction to the target's grid, or copy the target's header if the pixels do match"
    )


def _numbers(values: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def mirrored_axes(prediction: Values, target: Values) -> tuple[int, ...]:
    r"""Return the axes along which the prediction is mirrored against the target, none if it is not.

    A head is nearly symmetric: mirrored, it still correlates by 0.9. What tells is the part that changes sign when
    some axes are flipped, :math:`x_a = (x - F x) / 2`: it agrees with that of the target as it is, and is its negative
    where the prediction is mirrored. That is concluded where their correlation is below -0.3 and the flipped
    prediction as a whole correlates by more than 0.5.

    Parameters
    ----------
    prediction, target
        (i, j, k); NaN of the prediction counts as 0. Blocks are averaged until at most 64 are left along each axis.
    """
    blocks = [max(1, -(-side // _COMPARED_SIDE)) for side in target.shape]
    p, t = (_coarse(np.nan_to_num(v, posinf=0, neginf=0), blocks) for v in (prediction, target))
    agreement = {axes: _correlation(np.flip(p, axes), t) for axes in _flips()}
    best = max(agreement, key=lambda axes: agreement[axes])
    if agreement[best] <= _LEAST_CORRELATION:
        return ()
    odd = _correlation(p - np.flip(p, best), t - np.flip(t, best))
    return best if odd < _LARGEST_ODD_CORRELATION else ()


def _flips() -> Iterator[tuple[int, ...]]:
    for count in (1, 2, 3):
        yield from combinations(range(3), count)


def _coarse(values: Values, blocks: list[int]) -> npt.NDArray[np.float64]:
    """Average blocks about the centre, so that a flip of the volume is a flip of the coarse one, to half a voxel."""
    coarse = values.astype(np.float64)
    for axis, block in enumerate(blocks):
        count = coarse.shape[axis] // block
        start = (coarse.shape[axis] - count * block) // 2
        coarse = np.moveaxis(coarse, axis, 0)[start : start + count * block]
        coarse = np.moveaxis(coarse.reshape(count, block, *coarse.shape[1:]).mean(axis=1), 0, axis)
    return coarse


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.sum(a * b)) / size if size else 0.0


def _named(axes: tuple[int, ...], target: NiftiVolume, placed: bool) -> str:
    """Name axes for a reader: by the patient where the header knows, by the screen where it does not."""
    if placed:
        closest = orientations.io_orientation(target.affine)[:, 0].astype(int)
        names = [("left-right", "front-back", "head-feet")[closest[axis]] for axis in axes]
    else:
        # Viewers show the first two axes of an unplaced volume across and up the screen.
        names = [("left-right of the image", "up-down of the image", "the order of the slices")[axis] for axis in axes]
    return " and ".join(f"axis {axis} ({name})" for axis, name in zip(axes, names, strict=True))
