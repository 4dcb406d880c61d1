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

    def _matvec(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *self.domain_shape)
        y = flat.new_zeros(len(flat), *self.range_shape)
        depth = self.domain_shape[0]
        for item, volume in enumerate(flat):
            for group in self._fan.groups(x):
                # (line, pixel, z), with background about the pixels and about z.
                lines = volume.permute((2, 1, 0) if group.transposed else (1, 2, 0))
                padded = torch.nn.functional.pad(lines, (0, 0, 1, 2)).reshape(-1, depth)
                for view in group.views.tolist():
                    columns = group.gain[view].nonzero()[:, 0]
                    for block in self._blocks(group.lines, len(columns)):
                        position = group.position(view, columns, block).clamp_(-1, group.width)
                        left = position.floor()
                        index = left.long() + 1 + block * (group.width + 3)
                        share = (position - left)[..., None]
                        sheet = torch.lerp(padded[index], padded[index + 1], share)  # (columns, lines, z)
                        values = self._along_z(sheet, self._slopes(group, view, columns, block, x))
                        y[item, view][:, columns] += values.mT
                    y[item, view][:, columns] *= self._gain(group, view, columns, x).mT
        return y.reshape(*x.shape[:-3], *self.range_shape)

    def _rmatvec(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, *self.range_shape)
        x = flat.new_zeros(len(flat), *self.domain_shape)
        depth = self.domain_shape[0]
        for item, projections in enumerate(flat):
            for group in self._fan.groups(y):
                part = flat.new_zeros(group.lines, group.width, depth)
                pixel = torch.arange(group.width, device=y.device, dtype=y.dtype)
                for view in group.views.tolist():
                    columns = group.gain[view].nonzero()[:, 0]
                    rays = projections[view][:, columns].mT * self._gain(group, view, columns, y)
                    first = self._fan.first_bins(group, view, y.device)
                    number = torch.full((self.range_shape[2] + 1,), len(columns), device=y.device)
                    number[columns] = torch.arange(len(columns), device=y.device)
                    for block in self._blocks(group.lines, len(columns)):
                        sheet = self._from_z(rays, self._slopes(group, view, columns, block, y))
                        sheet = torch.nn.functional.pad(sheet, (0, 0, 0, 0, 0, 1)).reshape(-1, depth)
                        position = group.position(view, columns, block)
                        position = torch.nn.functional.pad(position, (0, 0, 0, 1), value=-1e6)
                        inner = torch.arange(len(block), device=y.device)[:, None]
                        for tap in range(group.taps):
                            bins = first[block] + tap
                            row = number[torch.where((bins >= 0) & (bins < self.range_shape[2]), bins, -1)]
                            weight = (1 - (position[row, inner] - pixel).abs()).clamp_(min=0)
                            part[block] += sheet[row * len(block) + inner] * weight[..., None]
                x[item] += part.permute((2, 1, 0) if group.transposed else (2, 0, 1))
        return x.reshape(*y.shape[:-3], *self.domain_shape)

    def _along_z(self, sheet: Tensor, slopes: Tensor) -> Tensor:
        """Interpolate ``(columns, lines, z)`` at the heights of the rows and add the lines, ``(columns, rows)``."""
        depth = sheet.shape[-1]
        place = self._heights(slopes).clamp_(-1, depth)
        left = place.floor()
        index = left.long() + 1
        padded = torch.nn.functional.pad(sheet, (1, 2))
        values = torch.lerp(padded.gather(2, index), padded.gather(2, index + 1), place - left)
        return values.sum(1)

    def _from_z(self, rays: Tensor, slopes: Tensor) -> Tensor:
        """Apply the transpose of `_along_z` to ``(columns, rows)``."""
        beam, depth = self.beam, self.domain_shape[0]
        level = torch.arange(depth, device=rays.device, dtype=rays.dtype)
        # Heights rise by `slopes` from row to row: those within one voxel of a level.
        reach = 1 / slopes.double()[..., None]
        middle = (level.double() - (depth - 1) / 2) * reach + beam.row_centre
        first = torch.ceil(middle - reach - 1e-6).long()
        sheet = rays.new_zeros(*slopes.shape, depth)
        rise = slopes[..., None]
        origin = rays.new_tensor((depth - 1) / 2)
        for tap in range(int(2 * float(reach.max())) + 2):
            row = first + tap
            inside = (row >= 0) & (row < beam.rows)
            row = row.clamp_(0, beam.rows - 1)
            height = torch.addcmul(origin, (row - beam.row_centre).to(rays.dtype), rise)
            weight = (1 - (height - level).abs()).clamp_(min=0) * inside
            sheet += rays.gather(1, row.flatten(1)).reshape(row.shape) * weight
        return sheet

    def _heights(self, slopes: Tensor) -> Tensor:
        """Return the z position of every row in voxels, ``(columns, lines, rows)``."""
        rows = (torch.arange(self.beam.rows, device=slopes.device) - self.beam.row_centre).to(slopes.dtype)
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
