"""Files in, files out: readers, records, writer and phantoms; no physics."""

from __future__ import annotations

from treg_med.data.records import RESEARCH_ONLY, Geometry, Measurement, Reconstruction

__all__ = ["RESEARCH_ONLY", "Geometry", "Measurement", "Reconstruction"]
