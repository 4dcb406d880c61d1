"""What a reconstruction is compared with: the image that a scan was simulated from or holds, or a volume beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from treg_med.data.ct_volume import SimulatedCTReader
from treg_med.data.nifti import NiftiVolume
from treg_med.data.records import Geometry
from treg_med.data.reference import reference_slice
from treg_med.data.source import SliceSource
from treg_med.errors import ConfigError
from treg_med.evaluation.slice_grid import Images, SliceGrid

__all__ = ["Reference", "read_reference"]

Unit = Literal["magnitude", "HU"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The true images of the reconstructed slices.

    Parameters
    ----------
    images
        (slices, H, W).
    unit
        ``"HU"`` for CT with mu_water, else ``"magnitude"``.
    grid
        Where they lie.
    """

    images: Images
    unit: Unit
    grid: SliceGrid


def read_reference(scan: SliceSource, indices: Sequence[int], target: Path | None = None) -> Reference:
    """Return the reference of some slices of an open scan.

    Parameters
    ----------
    scan
        The scan.
    indices
        Increasing, evenly spaced slice numbers.
    target
        NIfTI volume of the whole scan or of these slices; None for the reference that the scan holds.

    Raises
    ------
    ConfigError
        If the scan holds none.
    GeometryError
        If the volume is not on the grid of the scan.
    NumericsError
        If it holds NaN or Inf.
    """
    whole = getattr(scan, "geometry", None) or scan[indices[0]].geometry
    if not isinstance(whole, Geometry):
        whole = Geometry(shape=(*scan.header.image_shape, len(scan)))
    grid = SliceGrid(whole, tuple(indices))
    if target is not None:
        images = grid.slices_of(NiftiVolume.read(target), target.name)
    else:
        images = np.stack([_held(scan, index) for index in indices])
    return Reference(images, _unit(scan, indices[0]), grid)


def _held(scan: SliceSource, index: int) -> Images:
    image = reference_slice(scan, index)
    if image is None:
        raise ConfigError(
            "the scan holds no reference to compare with: a measurement that was never complete has none; name a "
            "volume with target"
        )
    return image


def _unit(scan: SliceSource, index: int) -> Unit:
    if isinstance(scan, SimulatedCTReader):
        return "HU"
    return "magnitude" if scan.header.views is None or scan[index].mu_water is None else "HU"
