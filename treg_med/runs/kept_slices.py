"""What is known of the slices of a volume that is put together, without reading the scan again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treg_med.data.records import Geometry
from treg_med.data.reference import reference_slice
from treg_med.data.slice_record import SliceRecord
from treg_med.data.source import SliceSource
from treg_med.errors import FormatError
from treg_med.runs.plan import MethodPlan, VolumePlan
from treg_med.runs.records import RecordStore
from treg_med.runs.tree import OutputTree

__all__ = ["KeptSlices", "SlicePlace", "record_store"]


@dataclass(frozen=True, eq=False)
class SlicePlace:
    """What all methods have in common at one slice.

    Parameters
    ----------
    shape
        (H, W).
    geometry
        Of the scan, at this slice; None where it has none.
    target
        (H, W), the reference as a volume shows it.
    mu_water
        Attenuation of water (1/mm) where the volume shows Hounsfield units.
    simulated
        Whether the data were computed from an image.
    """

    shape: tuple[int, int]
    geometry: Geometry | None
    target: npt.NDArray[np.float32] | None
    mu_water: float | None
    simulated: bool


def record_store(plan: VolumePlan, each: MethodPlan) -> RecordStore:
    """Return where the finished slices of a method are kept."""
    return RecordStore(OutputTree(plan.job.out).records(each.record_key))


@dataclass(frozen=True)
class KeptSlices:
    """The slices of a volume, from their records; from the scan where every method was complete before.

    Parameters
    ----------
    plan
        Of the volume.
    scan
        Read only where no record is left.
    """

    plan: VolumePlan
    scan: SliceSource

    def record(self, each: MethodPlan, index: int) -> SliceRecord | None:
        """Record of a method's slice; None where its volume was written before."""
        try:
            return record_store(self.plan, each).get(index)
        except FormatError:
            return None

    def place(self, index: int) -> SlicePlace:
        """Geometry and reference of a slice."""
        records = (self.record(each, index) for each in self.plan.todo)
        record = next((one for one in records if one is not None), None)
        if record is None:
            m = self.scan[index]
            height, width = m.operator.domain_shape
            return SlicePlace((height, width), m.geometry, reference_slice(self.scan, index), m.mu_water, m.simulated)
        height, width = record.image.shape
        mu_water = record.unit.get("mu_water_per_mm")
        simulated = bool(record.source.get("simulated"))
        return SlicePlace((height, width), record.geometry, record.target, mu_water, simulated)
