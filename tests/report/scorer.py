"""A tiny scorer of random weights."""

from __future__ import annotations

import torch

from treg_med.priors.image_text_scorer import ImageTextScorer


def tiny_scorer() -> ImageTextScorer:
    """The same random scorer each time."""
    torch.manual_seed(0)
    return ImageTextScorer(text_width=256, features=16, side=32, channels=(8, 8), readers=2, hidden=16).eval()
