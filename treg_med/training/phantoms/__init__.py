"""Random head phantoms with exact labels: what teaches a prior the words that no public caption says."""

from treg_med.training.phantoms.drawing import PATIENT_LEFT_IS, PhantomBatch, draw_attributes, draw_phantoms

__all__ = ["PATIENT_LEFT_IS", "PhantomBatch", "draw_attributes", "draw_phantoms"]
