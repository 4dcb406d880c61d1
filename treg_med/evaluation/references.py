"""What a reconstruction is compared with: the image that a scan was simulated from or holds, or a volume beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from treg_med.data.ct_volume import SimulatedCTReader
from treg_med.data.nifti import NiftiReader, NiftiVolume
from treg_med.data.records import Geometry
from treg_med.data.slice_record import shown_values
from treg_med.data.source import SliceSource
from treg_med.errors import ConfigError
from treg_med.evaluation.slice_grid import Images, SliceGrid

__all__ = ["Reference", "read_reference", "reference_slice"]

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
        images = np.stack([reference_slice(scan, index) for index in indices])
    return Reference(images, _unit(scan, indices[0]), grid)


def reference_slice(scan: SliceSource, index: int) -> Images:
    """Return the reference (H, W) that a scan holds of a slice: the magnitude, or Hounsfield units.

    Raises
    ------
    ConfigError
        If it holds none.
    """
    # The images that a measurement is simulated from, without simulating it.
    if isinstance(scan, NiftiReader):
        return shown_values(scan.magnitude(index).numpy())
    if isinstance(scan, SimulatedCTReader):
        return shown_values(scan.attenuation(index).numpy(), scan.simulation.mu_water)
    measurement = scan[index]
    if measurement.target is None:
        raise ConfigError(
            "the scan holds no reference to compare with: a measurement that was never complete has none; name a "
            "volume with target"
        )
    return shown_values(measurement.target.detach().cpu().resolve_conj().numpy(), measurement.mu_water)


def _unit(scan: SliceSource, index: int) -> Unit:
    if isinstance(scan, SimulatedCTReader):
        return "HU"
    return "magnitude" if scan.header.views is None or scan[index].mu_water is None else "HU"
