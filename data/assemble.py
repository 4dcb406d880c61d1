"""From one slice of k-space to a `Measurement`: checks, coil maps, noise level and scale, for all readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from treg_med.data.records import Geometry, Measurement
from treg_med.errors import FormatError, GeometryError, NumericsError
from treg_med.operators import CartesianMRI, centered_ifft2, estimate_noise_std, estimate_sensitivity_maps

__all__ = ["INVERSE_CRIME", "assemble_measurement", "check_finite", "check_mask", "robust_scale"]

INVERSE_CRIME = (
    "simulated measurement (inverse crime): k-space was computed from a magnitude image with the same model "
    "that reconstructs it; "
    "results are better than on measured data"
)
_SCALE_QUANTILE = 0.999
# Half side of the central block whose sampling density decides whether zero-filling keeps the brightness.
_CENTER_REACH = 1
# Peaks of an image over those of its zero-filled, blurred version: median of six volumes at 4 and 8 times.
_BLUR_LOSS = 1.15
_BLURRED_FROM = 1.5


def check_finite(kspace: Tensor, index: int) -> None:
    """Refuse NaN and Inf.

    Raises
    ------
    NumericsError
        Names the first bad sample and how many there are.
    """
    bad = ~torch.isfinite(torch.view_as_real(kspace.resolve_conj())).all(-1)
    count = int(bad.sum())
    if count:
        first = tuple(int(v) for v in bad.nonzero()[0])
        raise NumericsError(
            f"expected finite k-space, got {count} NaN or Inf samples in slice {index}, the first at (coil, "
            f"row, column) {first}; "
            "export the scan again, or set the mask to 0 there"
        )


def check_mask(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a mask from a file as (H, W) bool.

    Parameters
    ----------
    values
        (H, W) or (W,), boolean or 0 and 1 of any type.
    shape
        (H, W) of the k-space.

    Raises
    ------
    GeometryError
        If the shape does not fit.
    FormatError
        If it holds anything but 0 and 1, or samples nothing.
    """
    came = tuple(values.shape)
    if came not in (shape, shape[1:]):
        hint = "transpose it" if came == shape[::-1] else "store one value per k-space position or per column"
        raise GeometryError(f"expected a mask of shape {shape} or {shape[1:]}, got {came}; {hint}")
    if values.is_complex() or not bool(((values == 0) | (values == 1)).all()):
        raise FormatError(
            f"expected a mask of 0 and 1, got other values ({values.dtype}); store it as uint8 0/1"
        )
    mask = (values != 0).expand(shape).clone()
    if not bool(mask.any()):
        raise FormatError(
            f"expected a mask that samples something, got all zeros {came}; store 1 where k-space was "
            "measured"
        )
    return mask


def robust_scale(kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> float:
    """Return the factor that brings the maximum of a typical image to about 1.

    ``scale = density / (blur * q)``, q the 99.9th percentile of the zero-filled root-sum-of-squares
    magnitude (the percentile, unlike the maximum, ignores single bright pixels). A fully sampled centre
    keeps its brightness when the rest is filled with zeros; where the 3 x 3 block about the centre of
    k-space is itself sampled with density < 1, zero-filling scales the image by it. From 1.5 times
    undersampling on, blur is 1.15: zero-filling lowers the peaks of real volumes 1.0 to 1.9 times, 1.15 in
    the median. Maps whose squares do not sum to 1 are divided out. An empty slice has scale 1.

    Parameters
    ----------
    kspace
        (coils, H, W) complex.
    mask
        (H, W) bool.
    maps
        (coils, H, W) complex or None.
    """
    magnitude = torch.linalg.vector_norm(centered_ifft2(kspace), dim=0)
    if maps is not None:
        gain = torch.linalg.vector_norm(maps, dim=0)
        magnitude = torch.where(gain > 0.1 * gain.max(), magnitude / gain.clamp_min(1e-12), 0)
    height, width = mask.shape
    top, left = max(0, height // 2 - _CENTER_REACH), max(0, width // 2 - _CENTER_REACH)
    center = mask[top : height // 2 + _CENTER_REACH + 1, left : width // 2 + _CENTER_REACH + 1]
    density = float(center.float().mean()) or float(mask.float().mean())
    blur = _BLUR_LOSS if mask.numel() >= _BLURRED_FROM * int(mask.sum()) else 1.0
    position = max(1, round(_SCALE_QUANTILE * magnitude.numel()))
    value = blur * float(magnitude.flatten().kthvalue(position).values) / density
    return 1.0 / value if value > 0 else 1.0


def assemble_measurement(
    kspace: Tensor,
    mask: Tensor,
    *,
    index: int,
    geometry: Geometry,
    provenance: Mapping[str, Any],
    maps: Tensor | None = None,
    noise_std: float | None = None,
    noise_from: tuple[Tensor, Tensor] | None = None,
    target: Tensor | None = None,
) -> Measurement:
    """Build the measurement of one slice.

    Coil maps and noise level that are not given are estimated from the data, and the provenance says so.

    Parameters
    ----------
    kspace
        (coils, H, W) complex; samples outside ``mask`` are dropped.
    mask
        (H, W) bool.
    index
        Slice of the scan.
    geometry
        Of the scan.
    provenance
        Facts from the reader; ``warnings`` is extended.
    maps
        (coils, H, W), or None.
    noise_std
        Noise level per sample, or None.
    noise_from
        K-space and mask to estimate the noise level from, where more was measured than ``mask`` keeps.
    target
        (H, W) reference, or None.

    Raises
    ------
    NumericsError
        If the data hold NaN or Inf, or nothing but zeros where a coil map or noise level has to be estimated.
    GeometryError
        If several coils have no fully sampled centre to estimate maps from.
    """
    facts = dict(provenance)
    warnings = list(facts.get("warnings", ()))
    check_finite(kspace, index)
    # where, unlike a product with the mask, leaves no negative zeros behind.
    y = torch.where(mask, kspace, torch.zeros((), dtype=kspace.dtype))
    estimate_maps = maps is None and y.shape[0] > 1
    if (estimate_maps or noise_std is None) and not bool(y.any()):
        raise NumericsError(
            f"slice {index} holds only zeros, so neither coil maps nor noise can be estimated; leave this "
            "slice out"
        )
    if estimate_maps:
        maps = estimate_sensitivity_maps(y, mask)
        facts["sensitivity_maps"] = "estimated from the calibration region (ESPIRiT)"
    elif maps is not None:
        maps = maps.to(y.dtype)
        facts["sensitivity_maps"] = "given"
    else:
        facts["sensitivity_maps"] = "single coil"
    if noise_std is None:
        noise_std = estimate_noise_std(*(noise_from or (y, mask)))
        facts["noise_std"] = "estimated"
        warnings.append(
            "the noise level was estimated from the highest sampled frequencies; residuals depend on it"
        )
    else:
        facts["noise_std"] = "given"
    facts["warnings"] = tuple(dict.fromkeys(warnings))
    return Measurement(
        y=y,
        operator=CartesianMRI(mask, maps),
        noise_std=noise_std,
        scale=robust_scale(y, mask, maps),
        target=target,
        geometry=geometry.at_slice(index),
        provenance=facts,
    )
