"""Parallel-beam computed tomography."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.base import LinearOperator
from treg_med.operators.ct_operator import CTOperator, checked_geometry
from treg_med.operators.ct_rays import ParallelRays
from treg_med.operators.fourier_slice import FourierSlice
from treg_med.operators.joseph import JosephProjector

__all__ = ["ParallelBeamCT"]

_MOST_REPLICAS = 8


class ParallelBeamCT(CTOperator):
    r"""Line integrals along parallel rays, ``(*batch, H, W)`` in 1/mm to ``(*batch, views, bins)``.

    .. math:: p(b, k) = \int \mu\; \delta(x \cos b + y \sin b - (k - c) \Delta)\, dx\, dy

    Parameters
    ----------
    image_shape
        ``(H, W)``.
    angles
        ``(views,)`` in rad, strictly monotone.
    n_bins
        Bins of the detector.
    pixel_size, bin_size
        In mm.
    centre
        Bin c of the rotation axis; default the middle, ``(n_bins - 1) / 2``.
    mode
        ``"fourier"`` (`FourierSlice`: square pixels averaged over the bins, fastest) or ``"joseph"``
        (`JosephProjector`: lines).
    replicas
        Spectral replicas of the Fourier mode, which only matter for detail near the size of a pixel.

    tolerance
        None, or the relative error of the Fourier mode's transform, which is then left to finufft (see
        `NonuniformFFT`).

    Raises
    ------
    GeometryError
        For angles in degrees or out of order, lengths that are not positive, a centre beyond the detector, or rays that
        miss the image.
    ConfigError
        For an unknown mode or number of replicas.

    Examples
    --------
    >>> import math, torch
    >>> operator = ParallelBeamCT((64, 64), torch.arange(60) * math.pi / 60, 95)
    >>> operator(torch.full((64, 64), 0.02)).shape
    torch.Size([60, 95])
    """

    rays: ParallelRays

    def __init__(
        self,
        image_shape: tuple[int, int],
        angles: Tensor,
        n_bins: int,
        *,
        pixel_size: float = 1.0,
        bin_size: float = 1.0,
        centre: float | None = None,
        mode: Literal["fourier", "joseph"] = "fourier",
        replicas: int = 0,
        tolerance: float | None = None,
    ) -> None:
        rays = ParallelRays(angles, n_bins, bin_size, centre)
        shape = checked_geometry(image_shape, rays, pixel_size)
        if isinstance(replicas, bool) or replicas not in range(_MOST_REPLICAS + 1):
            raise ConfigError(f"expected replicas from 0 to {_MOST_REPLICAS}, got {replicas!r}")
        if mode == "fourier":
            projector: LinearOperator = _fourier(shape, rays, float(pixel_size), replicas, tolerance)
        elif mode == "joseph":
            projector = JosephProjector(shape, rays, pixel_size=float(pixel_size))
        else:
            raise ConfigError(f"expected a mode 'fourier' or 'joseph', got {mode!r}")
        super().__init__(shape, rays, projector, pixel_size)
        self.mode, self.replicas, self.tolerance = mode, replicas, tolerance

    @property
    def options(self) -> dict[str, Any]:
        """Keywords that make this operator again, with its image shape, angles and number of bins."""
        return {
            "pixel_size": self.pixel_size,
            "bin_size": self.bin_size,
            "centre": self.centre,
            "mode": self.mode,
            "replicas": self.replicas,
            "tolerance": self.tolerance,
        }

    def _radius_seen(self, reach: float) -> float:
        return reach

    def backproject(self, y: Tensor) -> Tensor:
        """Return the sum over the views of the band-limited profiles y at every pixel (no length, no weight)."""
        projector = self._projector
        # Replicas lie beyond the band of the profiles.
        if not isinstance(projector, FourierSlice) or self.replicas:
            key = ("fourier", y.device)
            projector = self._cached(key, lambda: _fourier(self.image_shape, self.rays, self.pixel_size).to(y.device))
        return projector.backproject(y)


def _fourier(
    shape: tuple[int, int], rays: ParallelRays, pixel_size: float, replicas: int = 0, tolerance: float | None = None
) -> FourierSlice:
    return FourierSlice(
        shape,
        rays.angles,
        rays.n_bins,
        pixel_size=pixel_size,
        bin_size=rays.bin_size,
        centre=rays.axis,
        aperture=rays.bin_size,
        replicas=replicas,
        tolerance=tolerance,
    )
