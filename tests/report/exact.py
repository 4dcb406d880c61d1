"""Gaussian priors that read captions, and slices drawn from them: what they understand is known by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from treg_med.priors import GaussianPrior
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import read_attributes

SIDE = 24


def covariance(std: float) -> Tensor:
    """Smooth images of this standard deviation."""
    index = torch.arange(SIDE, dtype=torch.float64)
    points = torch.cartesian_prod(index, index)
    smooth = torch.exp(-torch.cdist(points, points) / 4)
    return std**2 * smooth + 1e-5 * torch.eye(SIDE**2, dtype=torch.float64)


class CaptionReader(GaussianPrior):
    """A Gaussian prior whose mean depends on a caption by a rule."""

    def __init__(self, means: dict[str, Tensor], std: float, rule: Callable[[str], str]) -> None:
        super().__init__({"": torch.stack(list(means.values())).mean(0), **means}, covariance(std))
        self.rule = rule

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Mean images of the texts that the rule makes of captions."""
        texts = [text] if isinstance(text, str) else list(text)
        return super().embed([self.rule(entry) if entry else "" for entry in texts])


def contrast_of(caption: str) -> str:
    """Contrast that a caption says."""
    return read_attributes(caption).contrast


def draw(
    means: Sequence[Tensor], captions: list[str], std: float = 0.1, masks: Tensor | None = None
) -> CaptionedSlices:
    """Draw one slice of N(mean, covariance) per caption; images are stored as slices are, eight bits."""
    generator = torch.Generator().manual_seed(5)
    root = torch.linalg.cholesky(covariance(std))
    noise = torch.randn(len(captions), SIDE**2, generator=generator, dtype=torch.float64)
    images = torch.stack(list(means)) + (noise @ root.T).reshape(-1, SIDE, SIDE)
    stored = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, None]
    return CaptionedSlices(
        stored,
        torch.zeros_like(stored) if masks is None else masks,
        [read_attributes(caption) for caption in captions],
        captions,
        [f"subject {i % 2}" for i in range(len(captions))],
        torch.full((len(captions),), 1 / len(captions), dtype=torch.float64),
    )
