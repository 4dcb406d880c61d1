r"""Slices through a label map: a plane, its pixels in the map, and the tissues under them.

A pixel at (x, y) mm, x to the right of the image and y down, lies at

.. math::
    p = c + (x + u_x)\, e_x + (y + u_y)\, e_y + o\, e_n

in the voxels of the map, with :math:`u` a smooth deformation in mm, :math:`o` the offset in a thick slice. Zoom,
stretch and shear are in :math:`e_x, e_y`. Images follow the radiological convention: the patient's left is on the right
of axial and coronal images, anterior is on the left of sagittal ones.

Super-sampling a label map for partial volume: Billot B et al., SynthSeg, Med Image Anal 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from treg_med.training.label_heads.fields import random_field
from treg_med.training.label_heads.maps import HeadMap

__all__ = ["NORMAL_AXIS", "PLANES", "Cut", "draw_cut"]

#: plane -> how often it is drawn
PLANES = {"axial": 0.5, "coronal": 0.3, "sagittal": 0.2}
#: plane -> axis of the map across it
NORMAL_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
#: plane -> directions of the image's x and y in the map, whose axes point right, anterior and superior
_AXES = {
    "axial": ((-1, 0, 0), (0, -1, 0)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, -1, 0), (0, 0, -1)),
}
#: plane -> largest tilt out of the plane, and turn in it, in degrees
_TILT = {"axial": (9.0, 8.0), "coronal": (7.0, 8.0), "sagittal": (4.0, 10.0)}
_FIELD_OF_VIEW = 256.0  # mm along the longer side
_SUPERSAMPLING = 2


_Number = TypeVar("_Number", np.uint8, np.float32)


@dataclass(frozen=True)
class Cut:
    """A slice of a map at twice the image's resolution.

    Attributes
    ----------
    points : NDArray[float32] ``(3, 2H * 2W)``
        Voxels of the map under the middle of the slice.
    normal : NDArray[float32] ``(3,)``
        Across the slice, unit length.
    offsets : NDArray[float32] ``(S,)``
        Places in the thickness that are averaged, mm.
    size : tuple of int
        (H, W) of the image.
    pitch : float
        Side of a pixel in mm.
    """

    points: NDArray[np.float32]
    normal: NDArray[np.float32]
    offsets: NDArray[np.float32]
    size: tuple[int, int]
    pitch: float

    def layers(self) -> list[NDArray[np.float32]]:
        """Points ``(3, 2H * 2W)`` of every offset."""
        return [self.points + offset * self.normal[:, None] for offset in self.offsets]

    def tissues(self, head: HeadMap) -> NDArray[np.uint8]:
        """Tissue under every point, ``(S, 2H * 2W)``; outside the map is air."""
        volume = head.tissues.ravel()
        found = np.empty((len(self.offsets), self.points.shape[1]), dtype=np.uint8)
        for row, points in zip(found, self.layers(), strict=True):
            flat: NDArray[np.int32] | int = 0
            for axis, size in enumerate(head.tissues.shape):
                along = points[axis] + np.float32(0.5)
                np.clip(along, 0, size - 0.5, out=along)
                flat = flat * size + along.astype(np.int32)
            np.take(volume, flat, out=row, mode="clip")
        return found

    def averaged(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean of ``(S, 2H * 2W)`` over the thickness and the points of a pixel, ``(H, W)``."""
        total = values.sum(0).reshape(self.size[0] * _SUPERSAMPLING, self.size[1] * _SUPERSAMPLING)
        parts = (total[i::_SUPERSAMPLING, j::_SUPERSAMPLING] for i, j in np.ndindex(_SUPERSAMPLING, _SUPERSAMPLING))
        return np.add.reduce(list(parts)) / np.float32(len(values) * _SUPERSAMPLING**2)

    def middle(self, values: NDArray[_Number]) -> NDArray[_Number]:
        """One of the points of every pixel, in the middle of the slice, ``(..., H, W)`` of ``(..., 2H * 2W)``."""
        shape = (*values.shape[:-1], self.size[0] * _SUPERSAMPLING, self.size[1] * _SUPERSAMPLING)
        return values.reshape(shape)[..., ::_SUPERSAMPLING, ::_SUPERSAMPLING]


def draw_cut(
    head: HeadMap, plane: str, pivot: NDArray[np.float64], size: tuple[int, int], rng: np.random.Generator
) -> Cut:
    """Draw a slice of a plane through `pivot`, with a random tilt, zoom, deformation and thickness.

    Parameters
    ----------
    head : HeadMap
        Of which the slice is.
    plane : str
        One of `PLANES`.
    pivot : NDArray ``(3,)``
        A voxel of the map that lies in the slice, whatever the tilt.
    size : tuple of int
        (H, W) of the image.
    rng : numpy.random.Generator
        Source of everything that is random.
    """
    pitch = _FIELD_OF_VIEW / max(size)
    across, along = (np.array(axis, dtype=np.float64) for axis in _AXES[plane])
    normal = np.eye(3)[NORMAL_AXIS[plane]]
    tilt, turn = _TILT[plane]
    angles = np.deg2rad(np.clip(rng.normal(0, 0.5, 3), -1, 1) * (tilt, tilt, turn))
    rotation = Rotation.from_rotvec(angles[0] * across + angles[1] * along + angles[2] * normal)
    across, along, normal = (rotation.apply(axis) for axis in (across, along, normal))

    middle = head.brain.mean(0)
    if head.whole:  # noses and necks are in the picture too
        middle = 0.6 * middle + 0.4 * head.head.mean(0)
    middle = middle + rng.uniform(-6, 6, 3)
    # The point of the plane that is nearest to the middle comes to the centre of the image.
    centre = middle + normal * ((pivot - middle) @ normal)

    zoom = rng.uniform(0.9, 1.1)
    stretch, shear = 1 + rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.03)
    e_x = across * stretch / zoom
    e_y = (along / stretch + shear * across) / zoom
    fine = tuple(_SUPERSAMPLING * side for side in size)
    step = pitch / _SUPERSAMPLING
    y = ((np.arange(fine[0]) - (fine[0] - 1) / 2) * step).astype(np.float32)[:, None]
    x = ((np.arange(fine[1]) - (fine[1] - 1) / 2) * step).astype(np.float32)[None]
    bend = rng.uniform(0.3, 1.0)
    shifts = []
    for _ in range(2):
        shift = np.float32(bend) * (2.0 * random_field(rng, size, 5) + 0.6 * random_field(rng, size, 14))
        # So smooth a field may be the same for the points of a pixel.
        shifts.append(shift.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1))
    x, y = x + shifts[0], y + shifts[1]
    points = np.empty((3, fine[0] * fine[1]), dtype=np.float32)
    for axis in range(3):
        points[axis] = (np.float32(e_x[axis]) * x + np.float32(e_y[axis]) * y + np.float32(centre[axis])).ravel()

    thickness = rng.uniform(1.0, 3.5)
    count = 2 if thickness < 1.5 else 3
    offsets = ((np.arange(count) + 0.5) / count - 0.5) * thickness
    return Cut(points, normal.astype(np.float32), offsets.astype(np.float32), size, pitch)
