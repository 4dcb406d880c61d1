"""The slices of a scan as a grid, and any volume on that grid brought to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from treg_med.data.nifti import NiftiVolume
from treg_med.data.orientation import slices_geometry, stored_affine, to_images
from treg_med.data.records import Geometry
from treg_med.errors import GeometryError

__all__ = ["Images", "SliceGrid"]

Images = npt.NDArray[np.float32]

# Voxels that lie apart by less than this part of their size are the same.
_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """Where the reconstructed slices of a scan lie.

    Parameters
    ----------
    scan
        Geometry of the whole scan.
    indices
        Increasing, evenly spaced slice numbers.
    """

    scan: Geometry
    indices: tuple[int, ...]

    @cached_property
    def part(self) -> Geometry:
        """Geometry of the volume of these slices."""
        return slices_geometry(self.scan, self.indices)

    def slices_of(self, volume: NiftiVolume, name: str) -> Images:
        """Return these slices (slices, H, W) of a volume of the scan, or of the slices alone.

        The axes of the volume may be stored in any order and direction. Where the scan does not know its position they
        have to be those of the scan.

        Parameters
        ----------
        volume
            The volume.
        name
            Of its file, for the message.

        Raises
        ------
        GeometryError
            Saying what differs.
        """
        taken = self._by_affine(volume, name) if self.scan.known else self._by_shape(volume, name)
        return np.ascontiguousarray(np.moveaxis(taken, -1, 0), dtype=np.float32)

    def _by_affine(self, volume: NiftiVolume, name: str) -> Images:
        shape, sides = _stored_shape(self.part), volume.values.shape
        # From voxels of the slices to voxels of the volume: whole steps along its axes if both are one grid.
        step = np.linalg.inv(volume.affine) @ stored_affine(self.part)
        nearest = np.rint(step)
        corners = np.array(np.meshgrid(*([0, side - 1] for side in shape), [1])).reshape(4, -1)
        apart = float(np.abs((step - nearest) @ corners).max())
        along = [int(axis) for axis in np.abs(nearest[:3, :3]).argmax(0)]
        if apart > _TOLERANCE or sorted(along) != [0, 1, 2] or np.count_nonzero(nearest[:3, :3]) != 3:
            raise GeometryError(
                f"expected {name!r} on the grid of the scan, {self._described()}, got {_described(volume)}: "
                f"{_difference(volume.affine, stored_affine(self.part))}; resample it to the scan"
            )
        places = [np.array(0)] * 3
        for j, axis in enumerate(along):
            places[axis] = (nearest[axis, 3] + nearest[axis, j] * np.arange(shape[j])).astype(int)
        if any(place.min() < 0 or place.max() >= side for place, side in zip(places, sides, strict=True)):
            raise GeometryError(
                f"expected {name!r} to cover the reconstructed slices, {self._described()}, got {_described(volume)}, "
                "which does not; export the whole volume"
            )
        return to_images(volume.values[np.ix_(*places)].transpose(along), self.part)

    def _by_shape(self, volume: NiftiVolume, name: str) -> Images:
        shape = volume.values.shape
        if shape == _stored_shape(self.part):
            return to_images(volume.values, self.part)
        if shape == _stored_shape(self.scan):
            return to_images(volume.values, self.scan)[..., list(self.indices)]
        raise GeometryError(
            f"expected {name!r} of shape {_stored_shape(self.scan)}, or {_stored_shape(self.part)} for the "
            f"reconstructed slices, got {shape}; the scan does not know its position, so that axes cannot be matched: "
            "export the volume as it was read"
        )

    def _described(self) -> str:
        rows, columns, slices = _stored_shape(self.part)
        return f"{rows} x {columns} x {slices} voxels"


def _stored_shape(geometry: Geometry) -> tuple[int, ...]:
    sides = [0, 0, 0]
    for side, (axis, _) in zip(geometry.shape, geometry.storage, strict=True):
        sides[axis] = side
    return tuple(sides)


def _described(volume: NiftiVolume) -> str:
    return " x ".join(map(str, volume.values.shape)) + " voxels"


def _difference(found: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> str:
    """Return in which way two affines differ."""
    has, needs = (np.sort(np.linalg.norm(affine[:3, :3], axis=0)) for affine in (found, wanted))
    if not np.allclose(has, needs, rtol=_TOLERANCE):
        shown = [" x ".join(f"{side:.3g}" for side in size) for size in (has, needs)]
        return f"voxels of {shown[0]} mm instead of {shown[1]} mm"
    turned = np.linalg.inv(found[:3, :3]) @ wanted[:3, :3]
    if not np.allclose(turned, np.rint(turned), atol=_TOLERANCE):
        return "its axes are turned against those of the scan"
    shift = wanted[:3, 3] - found[:3, 3]
    return f"it is shifted by a part of a voxel, origins lie {np.linalg.norm(shift):.3g} mm apart"
