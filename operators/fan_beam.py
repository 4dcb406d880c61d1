"""Fan-beam computed tomography."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.base import LinearOperator
from treg_med.operators.ct_operator import CTOperator, checked_geometry
from treg_med.operators.ct_rays import FanRays
from treg_med.operators.joseph import JosephProjector
from treg_med.operators.rebinned_fourier import RebinnedFourier

__all__ = ["FanBeamCT"]


class FanBeamCT(CTOperator):
    r"""Line integrals along the rays of a fan, ``(*batch, H, W)`` in 1/mm to ``(*batch, views, bins)``.

    The source stands at :math:`-R (-\sin b, \cos b)`, the detector at the distance Q behind the rotation axis, its axis
    along :math:`(\cos b, \sin b)`; bin k sees the ray of

    .. math:: x \cos(b - \gamma) + y \sin(b - \gamma) = R \sin\gamma

    with :math:`\tan\gamma = u / (R + Q)` (flat) or :math:`\gamma = u / (R + Q)` (curved about the source) and
    :math:`u = (k - c) \Delta`.

    Parameters
    ----------
    image_shape
        ``(H, W)``.
    angles
        ``(views,)`` in rad, strictly monotone.
    n_bins
        Bins of the detector.
    source_origin, origin_detector
        R and Q in mm.
    pixel_size
        In mm.
    bin_size
        In mm on the detector, along the arc where it is curved.
    detector
        ``"flat"`` or ``"curved"``.
    centre
        Bin c that the ray through the rotation axis hits; default the middle. A detector offset or an error of the
        centre of rotation are both a shift of c.
    mode
        ``"fourier"`` (`RebinnedFourier`, fastest) or ``"joseph"`` (`JosephProjector`).

    Raises
    ------
    GeometryError
        For angles in degrees or out of order, lengths that are not positive, a source inside the image, a centre beyond
        the detector, or rays that miss the image.
    ConfigError
        For an unknown detector or mode.

    Examples
    --------
    >>> import math, torch
    >>> angles = torch.arange(90) * 2 * math.pi / 90
    >>> operator = FanBeamCT((64, 64), angles, 128, source_origin=400.0, origin_detector=150.0)
    >>> operator(torch.full((64, 64), 0.02)).shape
    torch.Size([90, 128])
    """

    rays: FanRays

    def __init__(
        self,
        image_shape: tuple[int, int],
        angles: Tensor,
        n_bins: int,
        *,
        source_origin: float,
        origin_detector: float,
        pixel_size: float = 1.0,
        bin_size: float = 1.0,
        detector: Literal["flat", "curved"] = "flat",
        centre: float | None = None,
        mode: Literal["fourier", "joseph"] = "fourier",
    ) -> None:
        rays = FanRays(
            angles,
            n_bins,
            bin_size,
            centre,
            source_origin=source_origin,
            origin_detector=origin_detector,
            shape=detector,
        )
        shape = checked_geometry(image_shape, rays, pixel_size)
        super().__init__(shape, rays, _projector(shape, rays, float(pixel_size), mode), pixel_size)
        self.mode = mode

    @property
    def source_origin(self) -> float:
        """Distance from the source to the rotation axis in mm."""
        return self.rays.source_origin

    @property
    def origin_detector(self) -> float:
        """Distance from the rotation axis to the detector in mm."""
        return self.rays.origin_detector

    @property
    def detector(self) -> str:
        """``"flat"`` or ``"curved"``."""
        return self.rays.shape

    @property
    def options(self) -> dict[str, Any]:
        """Keywords that make this operator again, with its image shape, angles and number of bins."""
        return {
            "source_origin": self.source_origin,
            "origin_detector": self.origin_detector,
            "pixel_size": self.pixel_size,
            "bin_size": self.bin_size,
            "detector": self.detector,
            "centre": self.centre,
            "mode": self.mode,
        }

    def _radius_seen(self, reach: float) -> float:
        turned = reach / self.rays.source_detector
        return self.source_origin * math.sin(math.atan(turned) if self.detector == "flat" else turned)


def _projector(shape: tuple[int, int], rays: FanRays, pixel_size: float, mode: str) -> LinearOperator:
    if mode == "fourier":
        theta, s = rays.lines()
        return RebinnedFourier(
            shape, theta, s, pixel_size=pixel_size, aperture=rays.bin_size / rays.magnification
        )
    if mode == "joseph":
        return JosephProjector(shape, rays, pixel_size=pixel_size)
    raise ConfigError(f"expected a mode 'fourier' or 'joseph', got {mode!r}")
