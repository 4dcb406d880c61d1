"""Adapting a prior to other images: its decoder or its denoiser, by low-rank factors or in full."""

from treg_med.training.adaptation.run import AdaptationSettings, adapt_prior, load_adaptation_slices

__all__ = ["AdaptationSettings", "adapt_prior", "load_adaptation_slices"]
