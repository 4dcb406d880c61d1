"""Analytic reconstruction: filtered backprojection for parallel and fan beams, and FDK for a circular cone beam."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.base import LinearOperator, Scaled
from treg_med.operators.cone_beam import ConeBeamCT
from treg_med.operators.ct_rays import image_axes
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.operators.joseph import look_up, pairs
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.operators.ramp_filter import FilterName, ramp_filter
from treg_med.operators.view_weights import angular_steps, redundancy_weights
from treg_med.operators.weighted import Weighted

__all__ = ["filtered_backprojection"]


def filtered_backprojection(
    operator: LinearOperator, sinogram: Tensor, filter: FilterName = "ram-lak", *, extend: bool = False
) -> Tensor:
    r"""Return the image in 1/mm whose line integrals a sinogram holds, by filtering and backprojecting it.

    .. math:: \mu(x, y) = \sum_b \Delta b\; (h * p_b)(x \cos b + y \sin b)

    for a parallel beam; for a fan every ray counts by the cosine of its fan angle and by `redundancy_weights`, and
    every view by the inverse square of the distance from its source; for a cone the same, view by view (FDK). Views
    need not be equidistant, and what a missing wedge would have added is missing.

    Parameters
    ----------
    operator
        A `ParallelBeamCT`, `FanBeamCT` or `ConeBeamCT`, or one that was weighted or scaled (which is undone).
    sinogram
        ``(*batch, *operator.range_shape)``, real.
    filter
        Window of the ramp: ``"ram-lak"``, ``"shepp-logan"``, ``"cosine"``, ``"hamming"`` or ``"hann"``.
    extend
        Continue projections that the detector cuts off instead of taking them for zero beyond it.

    Returns
    -------
    ``(*batch, *operator.domain_shape)``

    Raises
    ------
    ConfigError
        For another operator or filter.

    Parallel and fan: Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3. Cone: Feldkamp,
    Davis and Kress, J. Opt. Soc. Am. A 1 (1984) 612.
    """
    sinogram = operator._checked(sinogram, operator.range_shape, "sinogram")
    with torch.no_grad():
        if isinstance(operator, Weighted):
            roots = operator.weights.sqrt().to(sinogram)
            filled = torch.where(roots > 0, sinogram / torch.where(roots > 0, roots, 1), 0)
            return filtered_backprojection(operator.operator, filled, filter, extend=extend)
        if isinstance(operator, Scaled):
            factor = complex(operator.factor).real
            return filtered_backprojection(operator.operator, sinogram / factor, filter, extend=extend)
        if isinstance(operator, ParallelBeamCT):
            return _parallel(operator, sinogram, filter, extend)
        if isinstance(operator, FanBeamCT):
            return _fan(operator, sinogram, filter, extend)
        if isinstance(operator, ConeBeamCT):
            return _cone(operator, sinogram, filter, extend)
    raise ConfigError(
        f"expected a parallel, fan or cone beam to filter and backproject, got {operator!r}; use an iterative method"
    )


def _parallel(operator: ParallelBeamCT, sinogram: Tensor, filter: FilterName, extend: bool) -> Tensor:
    steps = angular_steps(operator.rays.angles, math.pi).to(sinogram)
    filtered = ramp_filter(sinogram, operator.bin_size, filter, extend=extend)
    return operator.backproject(filtered * steps[:, None])


def _fan(operator: FanBeamCT, sinogram: Tensor, filter: FilterName, extend: bool) -> Tensor:
    rays = operator.rays
    gamma, curved = rays.fan_angles, rays.shape == "curved"
    weights = redundancy_weights(rays.angles, gamma, operator.coverage) * gamma.cos()
    weights = weights * angular_steps(rays.angles, 2 * math.pi)[:, None]
    weighted = sinogram * weights.to(sinogram)
    spacing = rays.bin_size / (rays.source_detector if curved else rays.magnification)
    filtered = ramp_filter(weighted, spacing, filter, angular=curved, extend=extend)
    if curved:
        filtered = filtered * rays.source_origin
    height, width = operator.image_shape
    x, y = image_axes(operator.image_shape, operator.pixel_size, sinogram)
    y = y[:, None]
    flat = filtered.reshape(-1, *operator.range_shape)
    image = flat.new_zeros(len(flat), height, width)
    for view, angle in enumerate(rays.angles.tolist()):
        cos, sin = math.cos(angle), math.sin(angle)
        across, along = x * cos + y * sin, rays.source_origin - x * sin + y * cos
        if curved:
            place, near = (across / along).atan() * rays.source_detector, 1 / (across.square() + along.square())
        else:
            place, near = across / along * rays.source_detector, (rays.source_origin / along).square()
        image += _interpolate(flat[:, view], place / rays.bin_size + rays.axis) * near.to(flat)
    return image.reshape(*sinogram.shape[:-2], height, width)


def _cone(operator: ConeBeamCT, projections: Tensor, filter: FilterName, extend: bool) -> Tensor:
    beam = operator.beam
    u, v = beam.fan.detector.to(projections), beam.heights.to(projections)
    distance = beam.source_detector
    cosine = distance / (distance**2 + u.square() + v[:, None].square()).sqrt()
    steps = angular_steps(beam.angles, 2 * math.pi)[:, None] * redundancy_weights(
        beam.angles, beam.fan.fan_angles, beam.fan.arc
    )
    weighted = projections * cosine * steps[:, None, :].to(projections)
    filtered = ramp_filter(weighted, beam.fan.bin_size / beam.fan.magnification, filter, extend=extend)
    return operator.backproject(filtered)


def _interpolate(profiles: Tensor, place: Tensor) -> Tensor:
    """Return profiles ``(n, bins)`` at real-valued bins of any shape, linear in between and zero beyond the ends."""
    share = place.clamp(-1, profiles.shape[-1])
    left = share.floor()
    share = (share - left).to(profiles)
    index = left.int().add_(1).flatten()
    looked_up = (look_up(pairs(profile), index, share) for profile in profiles)
    return torch.stack([torch.addcmul(value, step, share) for value, step in looked_up])
