"""Named ways to measure less in computed tomography: fewer views, a part of the turn, fewer photons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.cone_beam import ConeBeamCT
from treg_med.operators.counts import LogData, log_transform, simulate_counts
from treg_med.operators.ct_angles import checked_arc
from treg_med.operators.ct_missing import missing_wedge, repeats_first, undersampled
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.ct_rays import FanRays
from treg_med.operators.hounsfield_units import MU_WATER

__all__ = ["Scenario", "limited_angle", "low_dose", "sparse_view"]

AnyCT = CTOperator | ConeBeamCT

# Files hold angles in single precision.
_SAME_ANGLE = 1e-5


@dataclass(frozen=True, eq=False)
class Scenario:
    """A scan that measures less than the whole, and what it misses.

    Attributes
    ----------
    name
        ``"sparse view"``, ``"limited angle"`` or ``"low dose"``.
    operator
        The operator of the views that remain.
    views
        ``(kept,)`` int64, their indices in the whole scan, ascending.
    i0
        Photons per ray without an object; None where the dose is not reduced.
    missing
        What is not measured, in a sentence.
    whole
        Number of views of the whole scan.
    """

    name: str
    operator: AnyCT
    views: Tensor
    i0: float | None
    missing: str
    whole: int

    def reduce(self, sinogram: Tensor) -> Tensor:
        """Return the views that remain of a whole sinogram ``(*batch, views, ...)``, measured or simulated.

        Raises
        ------
        GeometryError
            If the sinogram does not have the views of the whole scan, or the bins of the operator.
        """
        shape = (self.whole, *self.operator.range_shape[1:])
        if tuple(sinogram.shape[-len(shape) :]) != shape:
            raise GeometryError(
                f"expected the sinogram of the whole scan, (*batch, {', '.join(map(str, shape))}), "
                f"got {tuple(sinogram.shape)}"
            )
        return sinogram.index_select(sinogram.ndim - len(shape), self.views.to(sinogram.device))

    def measure(self, sinogram: Tensor, *, electronic_std: float = 0.0, generator: torch.Generator) -> LogData:
        """Simulate counts of the views that remain of a whole sinogram without noise, and take their logarithm.

        Parameters
        ----------
        sinogram
            ``(*batch, views, ...)`` line integrals without noise.
        electronic_std
            Readout noise in photons.
        generator
            Source of randomness.

        Raises
        ------
        ConfigError
            If the scenario has no dose: take `low_dose` of its operator.
        """
        if self.i0 is None:
            raise ConfigError(
                f"expected a dose to simulate counts with, got a {self.name} scan, which keeps its own; "
                "take low_dose(scenario.operator, i0)"
            )
        counts = simulate_counts(self.reduce(sinogram), self.i0, electronic_std=electronic_std, generator=generator)
        return log_transform(counts, self.i0, electronic_std=electronic_std)


def sparse_view(operator: AnyCT, views: int) -> Scenario:
    r"""Keep evenly spaced views of a scan.

    Views \|D\| apart sample detail of one pixel only within pixel / D of the axis; beyond, it appears as streaks.

    Parameters
    ----------
    operator
        The whole scan.
    views
        How many to keep. A last view that repeats the first one after a turn is dropped before.

    Raises
    ------
    ConfigError
        If the scan does not have so many views.
    """
    angles = _angles(operator)
    total = len(angles) - repeats_first(angles)
    if isinstance(views, bool) or not isinstance(views, int) or not 1 <= views <= total:
        raise ConfigError(f"expected 1 to {total} views, those of the scan, got {views!r}")
    kept = torch.arange(views) * total // views
    missing = undersampled(angles[kept], *_extent(operator))
    return _scenario("sparse view", operator, kept, None, missing)


def limited_angle(operator: AnyCT, arc: float, start: float = 0.0) -> Scenario:
    """Keep the views with angles from ``start`` to ``start + arc``, both included.

    A view at angle b measures edges whose normals point along b (or b + pi); those of a whole missing wedge of
    directions are invisible.

    Parameters
    ----------
    operator
        The whole scan.
    arc, start
        In rad; the arc is above 0 and at most 2 pi. Angles count modulo a turn, and modulo half a turn where a parallel
        beam did not go around.

    Raises
    ------
    GeometryError
        If ``arc`` or ``start`` look like degrees, or the scan does not contain the arc.
    """
    arc, start = checked_arc(arc), checked_arc(start, name="start")
    if arc <= 0:
        raise GeometryError(f"expected an arc above 0 rad, got {arc:g}; choose where it begins with start")
    angles = _angles(operator)
    step = float(angles.diff().abs().median()) if len(angles) > 1 else 0.0
    for period in (2 * math.pi,) if _fan(operator) else (2 * math.pi, math.pi):
        beyond = (angles - start + _SAME_ANGLE).remainder(period) - _SAME_ANGLE
        inside = beyond <= arc + _SAME_ANGLE
        if repeats_first(angles):
            inside[-1] &= not bool(inside[0])
        kept = inside.nonzero()[:, 0]
        measured = float(beyond[kept].max() - beyond[kept].min()) if len(kept) else -1.0
        if measured >= min(arc, 2 * math.pi - 2 * step) - 2 * step:
            break
    else:
        raise GeometryError(
            f"expected a scan with views from {math.degrees(start):.4g} to {math.degrees(start + arc):.4g} degrees, "
            f"got {len(kept)} of them in views from {math.degrees(float(angles.min())):.4g} to "
            f"{math.degrees(float(angles.max())):.4g} degrees; choose an arc (in rad) that was measured"
        )
    first = start + float(beyond[kept].min())
    rays = _fan(operator)
    missing = missing_wedge(first, measured, step, rays.opening if rays else 0.0)
    return _scenario("limited angle", operator, kept, None, missing)


def low_dose(operator: AnyCT, i0: float) -> Scenario:
    """Measure all views with few photons.

    Parameters
    ----------
    operator
        The whole scan.
    i0
        Photons per ray without an object, at least 1.

    Raises
    ------
    ConfigError
        If ``i0`` is below 1 or not finite.
    """
    if isinstance(i0, bool) or not isinstance(i0, int | float) or not (math.isfinite(i0) and i0 >= 1):
        raise ConfigError(f"expected i0 of at least 1 photon per ray, got {i0!r}")
    width = min(_extent(operator)[1:])
    left = i0 * math.exp(-MU_WATER * width)
    behind = f"{left**-0.5:.2g}" if left >= 1 else "no signal"
    missing = (
        f"{i0:.6g} photons per ray: noise of {i0**-0.5:.2g} per line integral in air and {behind} behind {width:.3g} "
        f"mm of water, the width of the image; rays behind more than {math.log(i0) / MU_WATER:.3g} mm of water are "
        "starved (less than one photon)"
    )
    return _scenario("low dose", operator, torch.arange(len(_angles(operator))), float(i0), missing)


def _scenario(name: str, operator: AnyCT, kept: Tensor, i0: float | None, missing: str) -> Scenario:
    whole = len(_angles(operator))
    part = operator if len(kept) == whole else operator.subset(kept)
    return Scenario(name, part, kept, i0, missing, whole)


def _fan(operator: AnyCT) -> FanRays | None:
    """Return the rays of a beam that spreads, None for a parallel one."""
    rays = operator.beam.fan if isinstance(operator, ConeBeamCT) else operator.rays
    return rays if isinstance(rays, FanRays) else None


def _extent(operator: AnyCT) -> tuple[float, float, float]:
    """Return the side of a pixel, and height and width of a slice, in mm."""
    pixel = operator.voxel_size if isinstance(operator, ConeBeamCT) else operator.pixel_size
    height, width = operator.domain_shape[-2:]
    return pixel, height * pixel, width * pixel


def _angles(operator: AnyCT) -> Tensor:
    return torch.as_tensor(operator.angles, dtype=torch.float64).cpu()
