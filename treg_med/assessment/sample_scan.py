"""The packaged measured scan, reconstructed classically, and its round trip through the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from treg_med.assessment.figures import picture_row
from treg_med.codec import ImageCodec
from treg_med.data import open_scan, sample_path
from treg_med.solvers.total_variation import TotalVariation

if TYPE_CHECKING:
    from treg_med.priors.base import Prior

__all__ = ["SampleScan", "show_sample_scan"]

_SAMPLE = "brain_8ch_poisson"
_WHITE = 0.997


@dataclass(frozen=True)
class SampleScan:
    """A picture without a number: the scan has no fully sampled reference."""

    name: str
    picture: str


@torch.no_grad()
def show_sample_scan(prior: Prior) -> SampleScan:
    """Draw the scan as two-stage total variation reconstructs it, its round trip, and their difference."""
    with open_scan(sample_path(_SAMPLE)) as scan:
        image = TotalVariation()(scan[0]).upright
    image = (image / torch.quantile(image[image > 0.1 * image.max()], _WHITE)).float()
    codec = ImageCodec((image.shape[0], image.shape[1]), prior.image_multiple)
    back = codec.decode(prior.decode(prior.encode(codec.encode(image))))
    titles = ["measured scan, total variation", "its round trip", "|difference| x 10"]
    return SampleScan(_SAMPLE, picture_row([image, back, (back - image).abs()], titles, gains=[1, 1, 10]))
