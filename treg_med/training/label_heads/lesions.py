r"""Lesion masks in MNI space, kept small and carried into the brain of a label map.

The cerebrum of the map is matched to that of the MNI template by a scale and a shift of every axis:

.. math::
    m_a = L_a + (p_a - l_a)\,\frac{H_a - L_a}{h_a - l_a}

with :math:`p` a voxel of the map, :math:`l, h` the edges of its cerebrum, and :math:`m, L, H` in MNI mm.

Infarcts: Absher J et al., The stroke outcome optimization project, Sci Data 2024;11:839. Plaques: Lesjak Z et al.,
Neuroinformatics 2017.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from treg_med.errors import FormatError
from treg_med.training.label_heads.maps import read_image

__all__ = ["CarriedLesion", "LesionMask", "load_all_plaques", "load_infarcts"]

#: Edges of the cerebrum of the MNI152 template in mm, found by where plaques lie in white matter.
_MNI_CEREBRUM = np.array([[-67.0, -103.0, -50.0], [67.0, 70.0, 76.0]])
_FIELDS = ("packed", "subject", "split")
_ATTRIBUTES = ("axes", "shape")


@dataclass(frozen=True)
class LesionMask:
    """The box about a lesion, eight voxels to a byte.

    Attributes
    ----------
    packed : NDArray[uint8] ``(X, Y, bytes)``
        Bits of the mask, first voxel in the highest bit.
    corner : NDArray[float64] ``(3,)``
        Centre of the first voxel in MNI mm.
    """

    packed: NDArray[np.uint8]
    corner: NDArray[np.float64]

    def voxels(self) -> NDArray[np.uint8]:
        """Mask ``(X, Y, Z)``, 0 or 1, with a border of zeros on every side."""
        return np.pad(np.unpackbits(self.packed, axis=-1), 1)


@dataclass(frozen=True)
class CarriedLesion:
    """A lesion in the voxels of a label map.

    Attributes
    ----------
    voxels : NDArray[uint8] ``(X, Y, Z)``
        The mask in its own voxels, with a border of zeros.
    scale, shift : NDArray[float64] ``(3,)``
        Voxel of the mask = scale * voxel of the map + shift.
    """

    voxels: NDArray[np.uint8]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def carry(cls, mask: LesionMask, cerebrum: NDArray[np.float64], *, mirrored: bool = False) -> CarriedLesion:
        """Match the template's cerebrum to the box ``(2, 3)`` of a map's, left and right exchanged if `mirrored`."""
        low, high = cerebrum[0] - 0.5, cerebrum[1] + 0.5
        scale = (_MNI_CEREBRUM[1] - _MNI_CEREBRUM[0]) / (high - low)
        shift = _MNI_CEREBRUM[0] - low * scale
        if mirrored:
            scale, shift = (np.array([-v[0], v[1], v[2]]) for v in (scale, shift))
        return cls(mask.voxels(), scale, shift - mask.corner + 1)

    def places(self) -> NDArray[np.float64]:
        """Voxels of the map that the lesion covers, ``(n, 3)``, one row for every voxel of the mask."""
        return (np.argwhere(self.voxels) - self.shift) / self.scale

    def at(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the lesion covers points of the map, ``(3, n)`` voxels -> ``(n,)``."""
        flat: NDArray[np.int32] | int = 0
        for axis, size in enumerate(self.voxels.shape):
            along = points[axis] * np.float32(self.scale[axis])
            along += np.float32(self.shift[axis] + 0.5)
            np.clip(along, 0, size - 0.5, out=along)
            flat = flat * size + along.astype(np.int32)
        return self.voxels.ravel()[flat].astype(bool)


def load_infarcts(path: Path) -> list[LesionMask]:
    """Training masks of a file of stroke lesions.

    Parameters
    ----------
    path : Path
        HDF5: ``packed`` ``(n, X, Y, bytes)``, ``subject`` and ``split`` ``(n,)``; attributes ``shape`` and ``axes``,
        which says "MNI (a+i, b+j, c+k)".

    Raises
    ------
    FormatError
        If it is not HDF5, one of them is missing, or `axes` does not say where the first voxel lies.
    """
    if not h5py.is_hdf5(path):
        raise FormatError(f"expected an HDF5 file with datasets {_FIELDS}, got {path}; write it with h5py")
    with h5py.File(path) as file:
        missing = [name for name in _FIELDS if name not in file] + [a for a in _ATTRIBUTES if a not in file.attrs]
        if missing:
            raise FormatError(
                f"expected datasets {_FIELDS} and attributes {_ATTRIBUTES} in {path.name}, {missing} are missing; "
                f"write the masks with np.packbits(mask, axis=-1)"
            )
        axes = str(file.attrs["axes"])
        origin = re.search(r"\(\s*(-?[\d.]+)\s*\+\s*i,\s*(-?[\d.]+)\s*\+\s*j,\s*(-?[\d.]+)\s*\+\s*k", axes)
        if not origin:
            raise FormatError(
                f"expected attribute axes of {path.name} to say 'MNI (a+i, b+j, c+k)', got {axes!r}; "
                f"write the position of voxel (0, 0, 0) in mm"
            )
        shape = tuple(int(n) for n in file.attrs["shape"])
        packed, splits = file["packed"], file["split"].asstr()[...]
        if packed.shape[1:] != (shape[0], shape[1], -(-shape[2] // 8)):
            raise FormatError(
                f"expected packed (n, {shape[0]}, {shape[1]}, {-(-shape[2] // 8)}) in {path.name} for masks of "
                f"{shape}, got {packed.shape}; write the masks with np.packbits(mask, axis=-1)"
            )
        corner = np.array([float(v) for v in origin.groups()])
        masks = (_boxed(packed[int(i)], corner) for i in np.flatnonzero(splits == "train"))
        return [mask for mask in masks if mask]


def load_all_plaques(folder: Path, leave_out: Collection[str]) -> list[LesionMask]:
    """Masks of every ``*/*lesions*.nii.gz`` whose name has none of the parts `leave_out` between underscores.

    Raises
    ------
    FormatError
        If one is not a 3-D NIfTI image.
    GeometryError
        For an affine that cannot be inverted or voxels that are not 1 mm.
    """
    paths = [p for p in sorted(folder.glob("*/*lesions*.nii*")) if not set(leave_out) & set(p.name.split("_"))]
    return [mask for mask in map(_load_plaques, paths) if mask]


def _load_plaques(path: Path) -> LesionMask | None:
    """Mask of the plaques of one patient in MNI space; none if it is empty."""
    image = read_image(path)
    mask = np.asarray(image.dataobj) > 0
    if mask.ndim != 3:
        raise FormatError(f"expected a 3-D mask in {path.name}, got {mask.ndim}-D; save one volume")
    return _boxed(np.packbits(mask, axis=-1), image.affine[:3, 3])


def _boxed(packed: NDArray[np.uint8], corner: NDArray[np.float64]) -> LesionMask | None:
    """Cut a packed mask to the bytes that hold it."""
    spans = [np.flatnonzero(packed.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(spans[0]):
        return None
    cut = packed[tuple(slice(span[0], span[-1] + 1) for span in spans)]
    return LesionMask(cut.copy(), corner + np.array([span[0] for span in spans]) * (1, 1, 8))
