"""The true image of a slice, where a scan knows it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treg_med.data.ct_volume import SimulatedCTReader
from treg_med.data.nifti import NiftiReader
from treg_med.data.slice_record import shown_values
from treg_med.data.source import SliceSource

__all__ = ["reference_slice"]


def reference_slice(scan: SliceSource, index: int) -> npt.NDArray[np.float32] | None:
    """Return the reference (H, W) of a slice as volumes show it, a magnitude or Hounsfield units; None without one."""
    # The images that a measurement is simulated from, without simulating it.
    if isinstance(scan, NiftiReader):
        return shown_values(scan.magnitude(index).numpy())
    if isinstance(scan, SimulatedCTReader):
        return shown_values(scan.attenuation(index).numpy(), scan.simulation.mu_water)
    measurement = scan[index]
    if measurement.target is None:
        return None
    return shown_values(measurement.target.detach().cpu().resolve_conj().numpy(), measurement.mu_water)
