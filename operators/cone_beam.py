"""Circular cone-beam computed tomography with a flat panel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from treg_med.errors import GeometryError
from treg_med.operators.cone_joseph import ConeJoseph
from treg_med.operators.contract import _checked_shape
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.ct_missing import missing_views
from treg_med.operators.ct_rays import FanRays, checked_length, image_axes
from treg_med.operators.projector import Projector

__all__ = ["ConeBeam", "ConeBeamCT"]


@dataclass(frozen=True, eq=False)
class ConeBeam:
    """A source on a circle and a flat panel behind the rotation axis.

    Parameters
    ----------
    fan
        The rays in the plane of the source.
    rows
        Detector rows; row r sees z = (r - ``row_centre``) ``row_size`` at the distance of the detector.
    row_size
        Distance of the rows in mm.
    row_centre
        Row in the plane of the source, a real number.
    """

    fan: FanRays
    rows: int
    row_size: float
    row_centre: float

    @property
    def angles(self) -> Tensor:
        """View angles in rad."""
        return self.fan.angles

    @property
    def source_detector(self) -> float:
        """Distance from the source to the detector in mm."""
        return self.fan.source_detector

    @property
    def heights(self) -> Tensor:
        """Height of the rows in mm, float64 ``(rows,)``."""
        return (torch.arange(self.rows, dtype=torch.float64) - self.row_centre) * self.row_size

    def subset(self, views: Tensor | slice) -> ConeBeam:
        """Return the beam of some of the views."""
        return replace(self, fan=self.fan.subset(views))


class ConeBeamCT(Projector):
    r"""Line integrals along the rays of a cone, ``(*batch, D, H, W)`` in 1/mm to ``(*batch, views, rows, columns)``.

    In the plane of the source the rays are those of `FanBeamCT` with a flat detector; row r lies :math:`z = (r - r_c)
    \Delta_r` above that plane. Voxel (d, i, j) lies at z = (d - (D - 1) / 2) ``voxel_size``, and x and y as in a slice.
    Memory beyond input and output does not grow with the number of views.

    Parameters
    ----------
    volume_shape
        ``(D, H, W)``.
    angles
        ``(views,)`` in rad, strictly monotone.
    detector_shape
        ``(rows, columns)``.
    source_origin, origin_detector
        Distances from the rotation axis to source and detector in mm.
    voxel_size
        In mm.
    bin_size
        In mm, of rows and columns alike, or ``(row, column)``.
    centre
        ``(row, column)`` hit by the ray from the source through the rotation axis; default the middle.

    Raises
    ------
    GeometryError
        For angles in degrees or out of order, lengths that are not positive, a source inside the volume, a centre
        beyond the detector, or a cone steeper than 45 degrees.

    Projector: Joseph, IEEE Trans. Med. Imaging 1 (1982) 192, bilinear across the rays.
    """

    angles: Tensor

    def __init__(
        self,
        volume_shape: tuple[int, int, int],
        angles: Tensor,
        detector_shape: tuple[int, int],
        *,
        source_origin: float,
        origin_detector: float,
        voxel_size: float = 1.0,
        bin_size: float | tuple[float, float] = 1.0,
        centre: tuple[float, float] | None = None,
    ) -> None:
        shape, panel = _checked_shape("volume_shape", volume_shape), _checked_shape("detector_shape", detector_shape)
        if len(shape) != 3 or len(panel) != 2:
            raise GeometryError(f"expected a volume (D, H, W) and a detector (rows, columns), got {shape} and {panel}")
        checked_length("voxel_size", voxel_size)
        row_size, column_size = bin_size if isinstance(bin_size, tuple) else (bin_size, bin_size)
        checked_length("bin_size", row_size)
        row_centre, column_centre = ((panel[0] - 1) / 2, None) if centre is None else centre
        if not -0.5 <= row_centre <= panel[0] - 0.5:
            raise GeometryError(
                f"expected the plane of the source on the detector, got row {row_centre:g} of {panel[0]}"
            )
        fan = FanRays(
            angles,
            panel[1],
            column_size,
            column_centre,
            source_origin=source_origin,
            origin_detector=origin_detector,
        )
        fan.check_image(math.hypot(shape[1], shape[2]) / 2 * voxel_size)
        beam = ConeBeam(fan, panel[0], float(row_size), float(row_centre))
        highest = float(beam.heights.abs().max())
        if highest >= beam.source_detector:
            raise GeometryError(
                f"expected a cone of less than 45 degrees, got rows up to {highest:.4g} mm high at "
                f"{beam.source_detector:.4g} mm from the source; check bin_size and the distances, all in mm"
            )
        super().__init__(shape, (fan.views, *panel), is_complex=False)
        self.beam, self.voxel_size = beam, float(voxel_size)
        self._projector = ConeJoseph(shape, beam, voxel_size=self.voxel_size)
        self.register_buffer("angles", fan.angles.clone())

    def _forward(self, x: Tensor) -> Tensor:
        return self._projector._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._projector._adjoint(y)

    def facts(self) -> dict[str, Any]:
        """Return beam, views, arc, lengths, and in words what the plane of the source lacks."""
        fan, voxel = self.beam.fan, self.voxel_size
        height, width = self.domain_shape[1:]
        return {
            **fan.facts(),
            "beam": "cone",
            "views": fan.views,
            "bins": [self.beam.rows, fan.n_bins],
            "arc_deg": arc_degrees(fan.angles),
            "missing": missing_views(fan.angles, fan.opening, voxel, height * voxel, width * voxel),
            "centre": [self.beam.row_centre, fan.axis],
            "voxel_size_mm": voxel,
            "bin_size_mm": [self.beam.row_size, fan.bin_size],
        }

    @property
    def views(self) -> int:
        """Number of views."""
        return self.beam.fan.views

    def subset(self, views: Tensor | slice) -> Self:
        """Return the same geometry with some of its views only, by their indices."""
        kept = self.beam.subset(views)
        return type(self)(
            (self.domain_shape[0], self.domain_shape[1], self.domain_shape[2]),
            kept.angles,
            (kept.rows, kept.fan.n_bins),
            source_origin=kept.fan.source_origin,
            origin_detector=kept.fan.origin_detector,
            voxel_size=self.voxel_size,
            bin_size=(kept.row_size, kept.fan.bin_size),
            centre=(kept.row_centre, kept.fan.axis),
        )

    def backproject(self, y: Tensor) -> Tensor:
        """Return the sum over the views of y at every voxel, weighted by (R / depth)^2 as FDK asks."""
        beam, size = self.beam, self.voxel_size
        depth_, height, width = self.domain_shape
        device, fan = y.device, beam.fan
        x, up = image_axes(self.domain_shape, size, y)
        up = up[:, None]
        z = (torch.arange(depth_, device=device, dtype=y.dtype) - (depth_ - 1) / 2) * size
        flat = y.reshape(-1, *self.range_shape)
        volume = flat.new_zeros(len(flat), height * width, depth_)
        for view, angle in enumerate(fan.angles.tolist()):
            cos, sin = math.cos(angle), math.sin(angle)
            depth = (fan.source_origin - x * sin + up * cos).flatten()
            column = (x * cos + up * sin).flatten() / depth * (beam.source_detector / fan.bin_size) + fan.axis
            row = z * (beam.source_detector / beam.row_size) / depth[:, None] + beam.row_centre
            weight = (fan.source_origin / depth).square()[:, None].to(y)
            for item in range(len(flat)):
                profile = _lerp_rows(flat[item, view].mT.contiguous(), column)
                volume[item] += _lerp_each(profile, row) * weight
        volume = volume.reshape(len(flat), height, width, depth_).permute(0, 3, 1, 2)
        return volume.reshape(*y.shape[:-3], *self.domain_shape)

    def __repr__(self) -> str:
        """Return shapes, beam, arc and lengths."""
        return (
            f"{super().__repr__()}, cone beam, source {self.beam.fan.source_origin:g} mm from the axis, "
            f"{self.views} views over {math.degrees(self.beam.fan.arc):.4g} degrees, voxels {self.voxel_size:.4g} mm"
        )


def _lerp_rows(table: Tensor, place: Tensor) -> Tensor:
    """Return rows ``(n, c)`` of a table ``(rows, c)`` at real-valued places ``(n,)``, zero beyond its ends."""
    padded = torch.nn.functional.pad(table, (0, 0, 1, 2))
    place = place.clamp(-1, len(table))
    left = place.floor()
    index = left.long() + 1
    return torch.lerp(padded[index], padded[index + 1], (place - left).to(table)[:, None])


def _lerp_each(rows: Tensor, place: Tensor) -> Tensor:
    """Return every row of ``(n, c)`` at its own real-valued places ``(n, m)``, zero beyond its ends."""
    length = rows.shape[1]
    padded = torch.nn.functional.pad(rows, (1, 2))
    place = place.clamp(-1, length)
    left = place.floor()
    index = left.long() + 1
    return torch.lerp(padded.gather(1, index), padded.gather(1, index + 1), (place - left).to(rows))
