"""Joseph's projector of an image along any set of lines, and its exact transpose, both as gathers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.operators.base import LinearOperator
from treg_med.operators.ct_rays import Rays, image_axes

__all__ = ["JosephProjector", "RayGroup", "look_up", "pairs"]

# Positions of rays of the other group: no pixel is near.
_NOWHERE = -1e6


@dataclass(frozen=True)
class RayGroup:
    """Rays that are followed along one axis of the image, row by row (or column by column).

    A ray meets line l of the image, of `width` pixels, at the pixel position ``first + l slope``, and a pixel there
    counts `gain`, the length of the ray between two lines in mm. Rays ``(views, n_bins)``. A ray reaches pixels up to
    `half_widths` ``(views,)`` bins away from their own.
    """

    transposed: bool
    lines: int
    width: int
    first: Tensor
    slope: Tensor
    gain: Tensor
    views: Tensor
    half_widths: Tensor

    def position(self, view: int, bins: Tensor | slice, lines: Tensor) -> Tensor:
        """Return where the rays of a view meet lines, ``(bins, lines)``, in pixels."""
        return torch.addcmul(
            self.first[view][bins][..., None], self.slope[view][bins][..., None], lines.to(self.first.dtype)
        )

    def taps(self, view: int) -> int:
        """Bins that may reach a pixel of a view."""
        return int(2 * float(self.half_widths[view])) + 1


class JosephProjector(LinearOperator):
    r"""Line integrals by linear interpolation, ``(*batch, H, W)`` to ``(*batch, views, bins)``.

    .. math::
        A_{r, ij} = \frac{p}{c_r} \max\left(0, 1 - \frac{|s_r - x_j \cos\theta_r - y_i \sin\theta_r|}{p\, c_r}\right),
        \qquad c_r = \max(|\cos\theta_r|, |\sin\theta_r|)

    with pixel size p: a ray is followed row by row or column by column, whichever it crosses more steeply. The
    transpose visits, for every pixel and view, the few bins whose weight is not zero; both directions find the position
    of a ray by the same operations, so weights agree to rounding, and neither scatters, so results are reproducible on
    any device.

    Joseph, IEEE Trans. Med. Imaging 1 (1982) 192.
    """

    def __init__(self, image_shape: tuple[int, int], rays: Rays, *, pixel_size: float) -> None:
        super().__init__(image_shape, (rays.views, rays.n_bins), is_complex=False)
        self.rays, self.pixel_size = rays, pixel_size
        # So that the device of the operator is known.
        self.register_buffer("_device_of", torch.zeros(()))

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *self.domain_shape)
        y = flat.new_zeros(len(flat), *self.range_shape)
        for group in self.groups(x):
            tables = [pairs(image.mT if group.transposed else image) for image in flat]
            along = torch.arange(group.lines, device=x.device)
            start = (along * (group.width + 3) + 1).int()
            for view in group.views.tolist():
                position = group.position(view, slice(None), along).clamp_(-1, group.width)
                left = position.floor()
                position -= left
                index = (left.int() + start).flatten()
                for item, table in enumerate(tables):
                    value, step = look_up(table, index, position)
                    y[item, view] += group.gain[view] * torch.addcmul(value, step, position).sum(-1)
        return y.reshape(*x.shape[:-2], *self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, *self.range_shape)
        image = flat.new_zeros(len(flat), *self.domain_shape)
        for group in self.groups(y):
            part = flat.new_zeros(len(flat), group.lines, group.width)
            pixel = torch.arange(group.width, device=y.device, dtype=y.dtype)
            line = torch.arange(group.lines, device=y.device, dtype=y.dtype)[:, None]
            for view in group.views.tolist():
                taps = group.taps(view)
                index = self.first_bins(group, view, y).flatten()
                # Bins beyond the detector weigh nothing.
                values, first, slope = (
                    torch.nn.functional.pad(table, (taps, taps))
                    for table in (flat[:, view] * group.gain[view], group.first[view], group.slope[view])
                )
                for _ in range(taps):
                    position = first.index_select(0, index).view(group.lines, group.width)
                    position.addcmul_(slope.index_select(0, index).view_as(position), line)
                    weight = position.sub_(pixel).abs_().neg_().add_(1).clamp_(min=0)
                    for item, value in enumerate(values):
                        part[item].addcmul_(value.index_select(0, index).view_as(weight), weight)
                    index += 1
            image += part.mT if group.transposed else part
        return image.reshape(*y.shape[:-2], *self.domain_shape)

    def first_bins(self, group: RayGroup, view: int, like: Tensor) -> Tensor:
        """Return the first bin that may reach each pixel of a view, ``(lines, width)``, plus the taps of the view."""
        x, y = image_axes(self.domain_shape, self.pixel_size, like)
        x, y = (x[:, None], y) if group.transposed else (x, y[:, None])
        centre = self.rays.bin_at(self.rays.angles[view].to(like), x, y)
        taps, last = group.taps(view), self.range_shape[1]
        return centre.sub_(group.half_widths[view].to(like)).ceil_().add_(taps).clamp_(0, last + taps).int()

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
                _half_widths(first, slope, mine, lines, across),
            )


def _half_widths(first: Tensor, slope: Tensor, mine: Tensor, lines: int, width: int) -> Tensor:
    """Return how many bins away from its own a pixel of each view may be seen, at most, ``(views,)``."""
    line = torch.arange(lines, dtype=first.dtype, device=first.device)
    widths = torch.full((len(first),), 2.0, dtype=torch.float64)
    for view in mine.any(1).nonzero()[:, 0].tolist():
        position = torch.addcmul(first[view, :, None], slope[view, :, None], line)
        inside = (position > -1) & (position < width) & mine[view, :, None]
        # Steps between rays of which one meets a pixel of the line: elsewhere a fan may be much denser.
        both = (inside[1:] | inside[:-1]) & (mine[view, 1:] & mine[view, :-1])[:, None]
        if bool(both.any()):
            # Room for rounding of bins and positions in single precision.
            widths[view] = 1 / float(position.diff(dim=0).abs()[both].min()) + 2e-3
    return widths


def pairs(rows: Tensor) -> Tensor:
    """Return a table of values and steps to the next, of rows padded by one zero on the left and two on the right."""
    padded = torch.nn.functional.pad(rows, (1, 2)).reshape(-1)
    steps = torch.nn.functional.pad(padded.diff(), (0, 1))
    # As complex numbers one look-up fetches both.
    return torch.view_as_complex(torch.stack([padded, steps], -1))


def look_up(table: Tensor, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values and steps of `pairs` at indices, in the shape of a tensor."""
    both = torch.view_as_real(table.index_select(0, index)).view(*like.shape, 2)
    return both[..., 0], both[..., 1]
