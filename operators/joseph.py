"""Joseph's projector of an image along any set of lines, and its exact transpose, both as gathers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.operators.base import LinearOperator
from treg_med.operators.ct_rays import Rays

__all__ = ["JosephProjector", "RayGroup"]

# Positions of rays of the other group: no pixel is near.
_NOWHERE = -1e6


@dataclass(frozen=True)
class RayGroup:
    """Rays that are followed along one axis of the image, row by row (or column by column).

    A ray meets line l of the image, of `width` pixels, at the pixel position ``first + l slope``, and a pixel there
    counts `gain`, the length of the ray between two lines in mm. Rays ``(views, n_bins)``.
    """

    transposed: bool
    lines: int
    width: int
    first: Tensor
    slope: Tensor
    gain: Tensor
    views: Tensor
    half_width: float

    @property
    def taps(self) -> int:
        """Bins that may reach a pixel of a view."""
        return int(2 * self.half_width) + 2

    def position(self, view: int, bins: Tensor | slice, lines: Tensor) -> Tensor:
        """Return where the rays of a view meet lines, ``(bins, lines)``, in pixels."""
        return torch.addcmul(
            self.first[view][bins][..., None], self.slope[view][bins][..., None], lines.to(self.first.dtype)
        )


class JosephProjector(LinearOperator):
    r"""Line integrals by linear interpolation, ``(*batch, H, W)`` to ``(*batch, views, bins)``.

    .. math::
        A_{r, ij} = \frac{p}{c_r} \max\left(0, 1 - \frac{|s_r - x_j \cos\theta_r - y_i \sin\theta_r|}{p\, c_r}\right),
        \qquad c_r = \max(|\cos\theta_r|, |\sin\theta_r|)

    with pixel size p: a ray is followed row by row or column by column, whichever it crosses more steeply. The
    transpose visits, for every pixel and view, the few bins whose weight is not zero; both directions compute a weight
    by the same operations, so it is the same number, and neither scatters, so results are reproducible on any device.

    Joseph, IEEE Trans. Med. Imaging 1 (1982) 192.
    """

    def __init__(self, image_shape: tuple[int, int], rays: Rays, *, pixel_size: float) -> None:
        super().__init__(image_shape, (rays.views, rays.n_bins), is_complex=False)
        self.rays, self.pixel_size = rays, pixel_size
        # So that the device of the operator is known.
        self.register_buffer("_device_of", torch.zeros(()))

    def _matvec(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *self.domain_shape)
        y = flat.new_zeros(len(flat), *self.range_shape)
        for group in self.groups(x):
            image = flat.mT if group.transposed else flat
            # One pixel of background on the left, two on the right: positions are clamped to them.
            padded = torch.nn.functional.pad(image, (1, 2)).reshape(len(flat), -1)
            along = torch.arange(group.lines, device=x.device)
            start = along * (group.width + 3) + 1
            for view in group.views.tolist():
                position = group.position(view, slice(None), along).clamp_(-1, group.width)
                left = position.floor()
                share = position - left
                index = left.long() + start
                below = padded[:, index]
                value = torch.lerp(below, padded[:, index + 1], share)
                y[:, view] += group.gain[view] * value.sum(-1)
        return y.reshape(*x.shape[:-2], *self.range_shape)

    def _rmatvec(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, *self.range_shape)
        image = flat.new_zeros(len(flat), *self.domain_shape)
        for group in self.groups(y):
            part = flat.new_zeros(len(flat), group.lines, group.width)
            pixel = torch.arange(group.width, device=y.device, dtype=y.dtype)
            line = torch.arange(group.lines, device=y.device, dtype=y.dtype)[:, None]
            for view in group.views.tolist():
                nearest = self.first_bins(group, view, y.device)
                weighted = flat[:, view] * group.gain[view]
                first, slope = group.first[view], group.slope[view]
                for tap in range(group.taps):
                    bins = (nearest + tap).clamp(0, self.range_shape[1] - 1)
                    inside = (nearest + tap == bins).to(y.dtype)
                    position = torch.addcmul(first[bins], slope[bins], line)
                    weight = (1 - (position - pixel).abs()).clamp_(min=0) * inside
                    part += weighted[:, bins] * weight
            image += part.mT if group.transposed else part
        return image.reshape(*y.shape[:-2], *self.domain_shape)

    def first_bins(self, group: RayGroup, view: int, device: torch.device) -> Tensor:
        """Return the first bin that may reach each pixel of a view, ``(lines, width)``."""
        height, width = self.domain_shape
        x = (torch.arange(width, device=device, dtype=torch.float64) - (width - 1) / 2) * self.pixel_size
        y = ((height - 1) / 2 - torch.arange(height, device=device, dtype=torch.float64)) * self.pixel_size
        centre = self.rays.bin_at(self.rays.angles[view].to(device), x, y[:, None])
        first = torch.ceil(centre - group.half_width).long()
        return first.mT.contiguous() if group.transposed else first

    def groups(self, like: Tensor) -> list[RayGroup]:
        """Return the rays that are followed row by row, and those column by column, in the precision of a tensor."""
        key = ("groups", like.dtype, like.device)
        groups: list[RayGroup] = self._cached(key, lambda: list(self._build(like)))
        return groups

    def _build(self, like: Tensor) -> Iterator[RayGroup]:
        theta, s = (value.to(like.device) for value in self.rays.lines())
        cos, sin = theta.cos(), theta.sin()
        height, width = self.domain_shape
        size = self.pixel_size
        rows = cos.abs() >= sin.abs()
        top, left = (height - 1) / 2 * size, -(width - 1) / 2 * size
        by_row = ((s - top * sin) / (cos * size) + (width - 1) / 2, sin / cos, size / cos.abs())
        by_column = ((height - 1) / 2 - (s - left * cos) / (sin * size), cos / sin, size / sin.abs())
        for mine, (first, slope, gain), transposed in ((rows, by_row, False), (~rows, by_column, True)):
            if not bool(mine.any()):
                continue
            lines, across = (width, height) if transposed else (height, width)
            yield RayGroup(
                transposed,
                lines,
                across,
                torch.where(mine, first, _NOWHERE).to(like.dtype),
                torch.where(mine, slope, 0).to(like.dtype),
                torch.where(mine, gain, 0).to(like.dtype),
                mine.any(1).nonzero()[:, 0],
                _half_width(first, slope, mine, lines),
            )


def _half_width(first: Tensor, slope: Tensor, mine: Tensor, lines: int) -> float:
    """Return how many bins away from its own a pixel may be seen, at most."""
    both = mine[:, 1:] & mine[:, :-1]
    if not bool(both.any()):
        return 2.0
    # Positions are straight in the line number, so their distances are least at the first or the last line.
    ends = torch.stack([first, first + (lines - 1) * slope])
    steps = ends.diff(dim=-1).abs()[:, both]
    return 1 / float(steps.min()) + 1e-3
