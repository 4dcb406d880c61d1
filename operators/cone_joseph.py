"""Joseph's projector of a volume along the rays of a cone, and its exact transpose, both as gathers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from treg_med.operators.base import LinearOperator
from treg_med.operators.joseph import JosephProjector, RayGroup

if TYPE_CHECKING:
    from treg_med.operators.cone_beam import ConeBeam

__all__ = ["ConeJoseph"]

# Entries of the largest temporary, 32 MiB in single precision.
_LARGEST = 1 << 23
# Position of a ray that meets no pixel.
_NOWHERE = -1e6


class ConeJoseph(LinearOperator):
    r"""Line integrals by bilinear interpolation, ``(*batch, D, H, W)`` to ``(*batch, views, rows, columns)``.

    A ray is followed line by line of a slice, row by row or column by column as its fan ray is by `JosephProjector`; at
    line l it stands at a pixel position q in the slice and at the height :math:`v\, t / T` with its depth t, from the
    source along the central ray, and the distance T of the detector. With the lengths :math:`\ell` of a ray between two
    lines

    .. math:: A = \ell \max(0, 1 - |q_l - j|)\, \max(0, 1 - |v\, t_l / (T p) - d|)

    Both directions interpolate in the slice and along z one after the other, which the weights allow.
    """

    def __init__(self, volume_shape: tuple[int, ...], beam: ConeBeam, *, voxel_size: float) -> None:
        super().__init__(volume_shape, (beam.fan.views, beam.rows, beam.fan.n_bins), is_complex=False)
        self.beam, self.voxel_size = beam, voxel_size
        self._fan = JosephProjector((volume_shape[1], volume_shape[2]), beam.fan, pixel_size=voxel_size)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *self.domain_shape)
        y = flat.new_zeros(len(flat), *self.range_shape)
        depth = self.domain_shape[0]
        for item, volume in enumerate(flat):
            for group in self._fan.groups(x):
                # (line, pixel, z), with background about the pixels and about z.
                lines = volume.permute((2, 1, 0) if group.transposed else (1, 2, 0))
                padded = torch.nn.functional.pad(lines, (1, 2, 1, 2)).reshape(-1, depth + 3)
                for view in group.views.tolist():
                    columns = group.gain[view].nonzero()[:, 0]
                    total = flat.new_zeros(len(columns), self.beam.rows)
                    for block in self._blocks(group.lines, len(columns)):
                        place = group.position(view, columns, block).clamp_(-1, group.width)
                        left = place.floor()
                        place -= left
                        index = (left.long() + 1 + block * (group.width + 3)).flatten()
                        sheet = torch.lerp(
                            padded.index_select(0, index).view(*place.shape, -1),
                            padded[1:].index_select(0, index).view(*place.shape, -1),
                            place[..., None],
                        )  # (columns, lines, z)
                        total += self._along_z(sheet, self._slopes(group, view, columns, block, x))
                    y[item, view][:, columns] += total.mT * self._gain(group, view, columns, x).mT
        return y.reshape(*x.shape[:-3], *self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, *self.range_shape)
        x = flat.new_zeros(len(flat), *self.domain_shape)
        for item, projections in enumerate(flat):
            for group in self._fan.groups(y):
                part = flat.new_zeros(group.lines, group.width, self.domain_shape[0])
                for view in group.views.tolist():
                    self._spread_view(part, projections[view], group, view)
                x[item] += part.permute((2, 1, 0) if group.transposed else (2, 0, 1))
        return x.reshape(*y.shape[:-3], *self.domain_shape)

    def _spread_view(self, part: Tensor, projection: Tensor, group: RayGroup, view: int) -> None:
        """Add the transpose of one view ``(rows, columns)`` to ``(lines, pixels, z)``."""
        device, n_bins, taps = part.device, self.range_shape[2], group.taps(view)
        columns = group.gain[view].nonzero()[:, 0]
        rays = projection[:, columns].mT * self._gain(group, view, columns, projection)
        # Where a bin is among the columns of the group; those of the other group and beyond the detector are blank.
        number = torch.full((n_bins + 2 * taps,), len(columns), device=device)
        number[columns + taps] = torch.arange(len(columns), device=device)
        first = self._fan.first_bins(group, view, projection).long()
        pixel = torch.arange(group.width, device=device, dtype=part.dtype)
        for block in self._blocks(group.lines, len(columns)):
            sheet = self._from_z(rays, self._slopes(group, view, columns, block, projection))
            sheet = torch.nn.functional.pad(sheet, (0, 0, 0, 0, 0, 1)).reshape(-1, part.shape[-1])
            position = group.position(view, columns, block)
            position = torch.nn.functional.pad(position, (0, 0, 0, 1), value=_NOWHERE).flatten()
            inner = torch.arange(len(block), device=device)[:, None]
            target = part[int(block[0]) : int(block[-1]) + 1]
            for tap in range(taps):
                index = (number[first[block] + tap] * len(block) + inner).flatten()
                weight = position.index_select(0, index).view(target.shape[:2])
                weight = weight.sub_(pixel).abs_().neg_().add_(1).clamp_(min=0)
                target.addcmul_(sheet.index_select(0, index).view(target.shape), weight[..., None])

    def _along_z(self, sheet: Tensor, slopes: Tensor) -> Tensor:
        """Interpolate padded ``(columns, lines, z)`` at the heights of the rows, and add the lines."""
        place = self._heights(slopes).clamp_(-1, self.domain_shape[0])
        left = place.floor()
        place -= left
        index = left.add_(1).long()
        return torch.lerp(sheet.gather(2, index), sheet[..., 1:].gather(2, index), place).sum(1)

    def _from_z(self, rays: Tensor, slopes: Tensor) -> Tensor:
        """Apply the transpose of `_along_z` to ``(columns, rows)``, without the background."""
        beam, depth = self.beam, self.domain_shape[0]
        level = torch.arange(depth, device=rays.device, dtype=rays.dtype)
        # Heights rise by `slopes` from row to row: those within one voxel of a level, with room for rounding.
        reach = (1 / slopes)[..., None]
        taps = int(2 * float(reach.max()) + 4e-3) + 1
        row = torch.ceil((level - (depth - 1) / 2 - 1) * reach + (beam.row_centre - 2e-3)).clamp_(-taps, beam.rows)
        index = row.long().add_(taps).flatten(1)
        row -= beam.row_centre
        padded = torch.nn.functional.pad(rays, (taps, 2 * taps))
        sheet = rays.new_zeros(*slopes.shape, depth)
        rise, origin = slopes[..., None], rays.new_tensor((depth - 1) / 2)
        for tap in range(taps):
            weight = torch.addcmul(origin, row, rise).sub_(level).abs_().neg_().add_(1).clamp_(min=0)
            sheet.addcmul_(padded[:, tap:].gather(1, index).view_as(sheet), weight)
            row += 1
        return sheet

    def _heights(self, slopes: Tensor) -> Tensor:
        """Return the z position of every row in voxels, ``(columns, lines, rows)``."""
        rows = torch.arange(self.beam.rows, device=slopes.device, dtype=slopes.dtype) - self.beam.row_centre
        return torch.addcmul(slopes.new_tensor((self.domain_shape[0] - 1) / 2), rows, slopes[..., None])

    def _slopes(self, group: RayGroup, view: int, columns: Tensor, block: Tensor, like: Tensor) -> Tensor:
        """Return how many voxels the height rises from row to row, ``(columns, lines)``."""
        beam, size = self.beam, self.voxel_size
        height, width = self.domain_shape[1:]
        angle = float(beam.angles[view])
        across = group.position(view, columns, block).double()
        line = block.double()
        column, row = (line, across) if group.transposed else (across, line)
        x, y = (column - (width - 1) / 2) * size, ((height - 1) / 2 - row) * size
        depth = beam.fan.source_origin - x * math.sin(angle) + y * math.cos(angle)
        return (depth * (beam.row_size / (beam.source_detector * size))).to(like.dtype)

    def _gain(self, group: RayGroup, view: int, columns: Tensor, like: Tensor) -> Tensor:
        """Return the length of the rays between two lines in mm, ``(columns, rows)``."""
        beam = self.beam
        flat = beam.fan.detector.to(columns.device)[columns].square() + beam.source_detector**2
        steeper = (1 + beam.heights.to(columns.device).square() / flat[:, None]).sqrt()
        return group.gain[view][columns, None] * steeper.to(like.dtype)

    def _blocks(self, lines: int, columns: int) -> tuple[Tensor, ...]:
        largest = max(self.domain_shape[0], self.beam.rows) * max(columns, 1)
        device = next(self.buffers()).device
        return torch.arange(lines, device=device).split(max(1, _LARGEST // largest))
