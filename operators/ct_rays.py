"""Where the rays of a scan run: the beam and the detector, without the image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.ct_angles import checked_angles

__all__ = ["FanRays", "ParallelRays", "Rays", "checked_length", "image_axes"]


@dataclass(frozen=True, eq=False)
class Rays(ABC):
    r"""Rays of views at angles b over a line of bins.

    The detector axis points along :math:`e = (\cos b, \sin b)`, the central ray along :math:`d = (-\sin b, \cos b)`, x
    to the right and y up, with the origin on the rotation axis. A ray is the line :math:`x \cos\theta + y \sin\theta =
    s`.

    Parameters
    ----------
    angles
        ``(views,)`` in rad, strictly monotone.
    n_bins
        Bins of the detector.
    bin_size
        Distance of the bins in mm.
    centre
        Bin that the ray through the rotation axis hits; default the middle, ``(n_bins - 1) / 2``.

    Raises
    ------
    GeometryError
        For angles in degrees, repeated or out of order, for lengths that are not positive, and for a centre beyond the
        detector.
    """

    angles: Tensor
    n_bins: int
    bin_size: float = 1.0
    centre: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "angles", checked_angles(self.angles))
        if isinstance(self.n_bins, bool) or not isinstance(self.n_bins, int) or self.n_bins < 1:
            raise GeometryError(f"expected a detector of at least one bin, got n_bins={self.n_bins!r}")
        checked_length("bin_size", self.bin_size)
        centre = (self.n_bins - 1) / 2 if self.centre is None else float(self.centre)
        if not -0.5 <= centre <= self.n_bins - 0.5:
            raise GeometryError(
                f"expected the rotation axis on the detector, got centre={centre:g} for bins 0 to {self.n_bins - 1}; "
                "give it in bins, not in mm or as an offset from the middle"
            )
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "bin_size", float(self.bin_size))

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.angles)

    @property
    def arc(self) -> float:
        """Arc of the view angles in rad, one step beyond the last view."""
        if self.views == 1:
            return 0.0
        return abs(float(self.angles[-1]) - float(self.angles[0])) * self.views / (self.views - 1)

    @property
    def opening(self) -> float:
        """Angle in rad between the outermost rays of a view."""
        return 0.0

    @property
    def magnification(self) -> float:
        """Size on the detector of one mm at the rotation axis."""
        return 1.0

    @property
    def axis(self) -> float:
        """Bin that the ray through the rotation axis hits."""
        return (self.n_bins - 1) / 2 if self.centre is None else self.centre

    @property
    def detector(self) -> Tensor:
        """Detector coordinate of the bins in mm, float64 ``(n_bins,)``."""
        return (torch.arange(self.n_bins, dtype=torch.float64) - self.axis) * self.bin_size

    def subset(self, views: Tensor | slice) -> Self:
        """Return the rays of some of the views."""
        return replace(self, angles=self.angles[views])

    @abstractmethod
    def lines(self) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\theta` in rad and s in mm of every ray, float64 ``(views, n_bins)``."""

    @abstractmethod
    def bin_at(self, angle: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the bin, as a real number, whose ray meets a point in mm."""

    def crossing(self, image_shape: tuple[int, int], pixel_size: float, *, margin: float = 0.0) -> Tensor:
        """Return which rays come within a margin in mm of an image ``(H, W)``, bool ``(views, n_bins)``."""
        theta, s = self.lines()
        height, width = image_shape
        across = (theta.cos().abs() * width + theta.sin().abs() * height) / 2 * pixel_size
        return s.abs() <= across + margin

    @abstractmethod
    def describe(self) -> str:
        """Return the beam in a few words."""

    def facts(self) -> dict[str, Any]:
        """Return the beam for a record of where data come from."""
        return {"beam": "parallel"}

    def check_image(self, radius: float) -> None:  # noqa: B027 - a parallel beam sees any image
        """Refuse an image of a radius in mm that the beam cannot pass."""


@dataclass(frozen=True, eq=False)
class ParallelRays(Rays):
    r"""Parallel beam: :math:`\theta = b`, :math:`s = (k - c) \Delta`."""

    def lines(self) -> tuple[Tensor, Tensor]:
        """Return angle and distance of every ray."""
        shape = (self.views, self.n_bins)
        return self.angles[:, None].expand(shape), self.detector.expand(shape)

    def bin_at(self, angle: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the bin of a point."""
        return (x * torch.cos(angle) + y * torch.sin(angle)) / self.bin_size + self.axis

    def describe(self) -> str:
        """Return the beam in a few words."""
        return "parallel beam"


@dataclass(frozen=True, eq=False, kw_only=True)
class FanRays(Rays):
    r"""Fan beam from the source at :math:`-R d` to a detector whose middle is at :math:`+Q d`.

    With the fan angle :math:`\gamma`, :math:`\tan\gamma = u / (R + Q)` on a flat detector and :math:`\gamma = u / (R +
    Q)` on one curved about the source, :math:`\theta = b - \gamma` and :math:`s = R \sin\gamma`.

    Parameters
    ----------
    source_origin, origin_detector
        R > 0 and Q >= 0 in mm; Q = 0 is a detector scaled to the rotation axis.
    shape
        ``"flat"`` or ``"curved"``.
    """

    source_origin: float
    origin_detector: float
    shape: Literal["flat", "curved"] = "flat"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_length("source_origin", self.source_origin)
        if not (math.isfinite(self.origin_detector) and self.origin_detector >= 0):
            raise GeometryError(
                f"expected origin_detector >= 0 in mm, got {self.origin_detector}; it is the distance from the "
                "rotation axis to the detector, not from the source"
            )
        if self.shape not in ("flat", "curved"):
            raise ConfigError(f"expected a detector 'flat' or 'curved', got {self.shape!r}")
        widest = float(self.fan_angles.abs().max())
        if widest >= math.pi / 2:
            raise GeometryError(
                f"expected a fan of less than 180 degrees, got bins {math.degrees(widest):.0f} degrees from the "
                "central ray; check bin_size and the distances, all in mm"
            )

    @property
    def source_detector(self) -> float:
        """Distance from the source to the detector in mm."""
        return self.source_origin + self.origin_detector

    @property
    def magnification(self) -> float:
        """Size on the detector of one mm at the rotation axis."""
        return self.source_detector / self.source_origin

    @property
    def fan_angles(self) -> Tensor:
        r""":math:`\gamma` of the bins in rad, float64 ``(n_bins,)``."""
        turned = self.detector / self.source_detector
        return turned.atan() if self.shape == "flat" else turned

    @property
    def opening(self) -> float:
        """Angle in rad between the outermost rays of a view."""
        return float(self.fan_angles.max() - self.fan_angles.min())

    def facts(self) -> dict[str, Any]:
        """Return the beam for a record of where data come from."""
        return {
            "beam": "fan",
            "source_origin_mm": self.source_origin,
            "origin_detector_mm": self.origin_detector,
            "detector": self.shape,
        }

    def lines(self) -> tuple[Tensor, Tensor]:
        """Return angle and distance of every ray."""
        gamma = self.fan_angles
        return self.angles[:, None] - gamma, (self.source_origin * gamma.sin()).expand(self.views, self.n_bins)

    def bin_at(self, angle: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the bin of a point."""
        cos, sin = torch.cos(angle), torch.sin(angle)
        tangent = (x * cos + y * sin) / (self.source_origin - x * sin + y * cos)
        turned = tangent if self.shape == "flat" else tangent.atan()
        return turned * (self.source_detector / self.bin_size) + self.axis

    def describe(self) -> str:
        """Return the beam in a few words."""
        return f"fan beam, {self.shape} detector, source {self.source_origin:g} mm from the axis"

    def check_image(self, radius: float) -> None:
        """Refuse an image that the source would turn into."""
        if radius >= self.source_origin:
            raise GeometryError(
                f"expected the source outside the image, got source_origin={self.source_origin:g} mm and an image "
                f"whose corner is {radius:.4g} mm from the axis; give all lengths in mm"
            )


def image_axes(shape: tuple[int, ...], size: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x of the columns and y of the rows of an image ``(..., H, W)`` in mm, in the precision of a tensor."""
    height, width = shape[-2:]
    columns, rows = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (width, height))
    return (columns - (width - 1) / 2) * size, ((height - 1) / 2 - rows) * size


def checked_length(name: str, value: float) -> None:
    """Refuse a length that is not positive and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise GeometryError(f"expected {name} > 0 in mm, got {value!r}")
