"""Head slices synthesised from 3-D label maps: real anatomy, every contrast, and words that are exactly true."""

from treg_med.training.label_heads.drawing import LabelHeads

__all__ = ["LabelHeads"]
