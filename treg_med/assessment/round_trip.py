"""(a) The autoencoder's round trip: the representational floor of any latent method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.assessment.figures import picture_row
from treg_med.priors.base import Prior
from treg_med.training.slices import CaptionedSlices

__all__ = ["RoundTrip", "RoundTripRow", "measure_round_trip", "round_trip"]

_CHUNK = 8


@dataclass(frozen=True)
class RoundTripRow:
    """PSNR in dB over the slices of one contrast: data range the slice maximum, and 1."""

    group: str
    slices: int
    mean: float
    worst: float
    mean_range_one: float
    worst_range_one: float


@dataclass(frozen=True)
class RoundTrip:
    """Round trip of a set of slices; `picture` shows the worst one."""

    source: str
    overall: RoundTripRow
    groups: tuple[RoundTripRow, ...]
    worst_caption: str
    worst_slice: int
    picture: str


def round_trip(prior: Prior, images: Tensor) -> Tensor:
    """Return D(E(x)) of images ``(n, H, W)`` in [0, 1], unclamped."""
    own = getattr(prior, "round_trip", None)
    if own is not None:
        return own(images)
    return (prior.decode(prior.encode(2 * images[:, None] - 1)) + 1)[:, 0] / 2


@torch.no_grad()
def measure_round_trip(prior: Prior, slices: CaptionedSlices, source: str) -> RoundTrip:
    r"""Measure PSNR per contrast; empty slices are left out, as they have no range.

    .. math:: 20 \log_{10} (\max x / \mathrm{rms}(x - D(E(x))))
    """
    images = slices.images[:, 0].float() / 255
    rows = [i for i in range(len(images)) if float(images[i].amax()) > 0]
    back = torch.cat([round_trip(prior, images[rows[i : i + _CHUNK]]).cpu() for i in range(0, len(rows), _CHUNK)])
    error = (back - images[rows]).square().mean((1, 2)).clamp_min(1e-20).sqrt()
    by_maximum = 20 * (images[rows].amax((1, 2)) / error).log10()
    by_one = -20 * error.log10()
    names = [slices.attributes[i].contrast for i in rows]
    names = ["CT" if slices.attributes[i].modality == "CT" else name for i, name in zip(rows, names, strict=True)]

    def row(group: str, chosen: list[int]) -> RoundTripRow:
        a, b = by_maximum[chosen], by_one[chosen]
        return RoundTripRow(group, len(chosen), float(a.mean()), float(a.min()), float(b.mean()), float(b.min()))

    groups = [row(name, [i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(sorted(names))]
    worst = int(by_maximum.argmin())
    original, result = images[rows[worst]], back[worst]
    picture = picture_row(
        [original, result, (result - original).abs()],
        ["slice", f"round trip, {float(by_maximum[worst]):.1f} dB", "|error| x 10"],
        gains=[1, 1, 10],
    )
    return RoundTrip(
        source, row("all", list(range(len(rows)))), tuple(groups), slices.captions[rows[worst]], rows[worst], picture
    )
