"""From a user's scans and captions to the slice file that training reads."""

from treg_med.training.prepare.preparation import prepare_slices

__all__ = ["prepare_slices"]
