"""What all CT projectors are: a linear map between an attenuation image and line integrals, in physical units."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from treg_med.errors import GeometryError
from treg_med.operators.base import LinearOperator
from treg_med.operators.contract import checked_image_shape
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.ct_missing import missing_views
from treg_med.operators.ct_rays import Rays, checked_length
from treg_med.operators.projector import Projector

__all__ = ["CTOperator"]


class CTOperator(Projector):
    """Line integrals p = integral of mu dl of an image mu in 1/mm, ``(*batch, H, W)`` to ``(*batch, views, bins)``.

    Pixel (i, j) lies at x = (j - (W - 1) / 2) ``pixel_size`` to the right and y = ((H - 1) / 2 - i) ``pixel_size`` up,
    in mm from the rotation axis. p has no unit; it is -log(I / I0) of a measurement.

    Attributes
    ----------
    rays
        Beam and detector.
    image_shape, pixel_size
        ``(H, W)`` and the side of a pixel in mm.
    """

    angles: Tensor

    def __init__(self, image_shape: tuple[int, int], rays: Rays, projector: LinearOperator, pixel_size: float) -> None:
        super().__init__(image_shape, (rays.views, rays.n_bins), is_complex=False)
        self.rays, self.pixel_size = rays, float(pixel_size)
        self._projector = projector
        self.register_buffer("angles", rays.angles.clone())

    def _forward(self, x: Tensor) -> Tensor:
        return _one_by_one(self._projector._forward, x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return _one_by_one(self._projector._adjoint, y)

    def facts(self) -> dict[str, Any]:
        """Return beam, views, arc, lengths, and in words what is not measured."""
        rays, pixel = self.rays, self.pixel_size
        height, width = self.domain_shape
        return {
            **rays.facts(),
            "views": rays.views,
            "bins": rays.n_bins,
            "arc_deg": arc_degrees(rays.angles),
            "missing": missing_views(rays.angles, rays.opening, pixel, height * pixel, width * pixel),
            "centre": float(rays.axis),
            "pixel_size_mm": pixel,
            "bin_size_mm": rays.bin_size,
        }

    @property
    def image_shape(self) -> tuple[int, int]:
        """``(H, W)``."""
        return self.domain_shape[0], self.domain_shape[1]

    @property
    def views(self) -> int:
        """Number of views."""
        return self.rays.views

    @property
    def n_bins(self) -> int:
        """Bins of the detector."""
        return self.rays.n_bins

    @property
    def bin_size(self) -> float:
        """Distance of the bins in mm."""
        return self.rays.bin_size

    @property
    def centre(self) -> float:
        """Bin that the ray through the rotation axis hits."""
        return self.rays.axis

    @property
    def coverage(self) -> float:
        """Arc of view angles in rad, one step beyond the last view."""
        return self.rays.arc

    @property
    def field_of_view(self) -> float:
        """Radius in mm of the disc about the axis that every view sees whole."""
        reach = min(self.centre, self.n_bins - 1 - self.centre) + 0.5
        return self._radius_seen(max(reach, 0.0) * self.bin_size)

    @abstractmethod
    def _radius_seen(self, reach: float) -> float:
        """Return the distance from the axis in mm of the ray at a detector coordinate in mm."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Keywords that make this operator again, with its image shape, angles and number of bins."""

    def subset(self, views: Tensor | slice) -> Self:
        """Return the same geometry with some of its views only, by their indices."""
        return self.changed(angles=self.rays.angles[views])

    def changed(self, **values: Any) -> Self:
        """Return the same geometry but for some of its arguments."""
        own = {"image_shape": self.image_shape, "angles": self.rays.angles, "n_bins": self.n_bins}
        return type(self)(**{**own, **self.options, **values})

    def __repr__(self) -> str:
        """Return shapes, beam, arc and lengths."""
        return (
            f"{super().__repr__()}, {self.rays.describe()}, {self.views} views over "
            f"{math.degrees(self.coverage):.4g} degrees, pixels {self.pixel_size:.4g} mm, bins {self.bin_size:.4g} mm"
        )


def _one_by_one(apply: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply a map to the items of a batch ``(*batch, a, b)``.

    On a CPU every item by itself: sparse products round differently with more columns, and no result may depend on the
    neighbours in a batch.
    """
    flat = values.reshape(-1, *values.shape[-2:])
    made = apply(flat) if values.device.type != "cpu" else torch.cat([apply(item) for item in flat.split(1)])
    return made.reshape(*values.shape[:-2], *made.shape[1:])


def checked_geometry(image_shape: tuple[int, int], rays: Rays, pixel_size: float) -> tuple[int, int]:
    """Return the shape of an image that the rays can pass, or raise `GeometryError`."""
    shape = checked_image_shape(image_shape)
    checked_length("pixel_size", pixel_size)
    height, width = shape
    rays.check_image(math.hypot(height, width) / 2 * pixel_size)
    if not bool(rays.crossing(shape, pixel_size).any()):
        raise GeometryError(
            f"expected rays through the image, but every one of them misses its {height} x {width} pixels of "
            f"{pixel_size:g} mm; give pixel_size, bin_size and the distances in the same unit, mm"
        )
    return shape
