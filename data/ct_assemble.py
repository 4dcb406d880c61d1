"""From one sinogram to a `Measurement`: checks, noise, statistical weights and scale, for all CT readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from treg_med.data.records import Geometry, Measurement
from treg_med.errors import FormatError, GeometryError, NumericsError
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.filtered_backprojection import filtered_backprojection

__all__ = [
    "CT_INVERSE_CRIME",
    "NOT_MEDICAL",
    "assemble_ct",
    "check_field_of_view",
    "check_finite",
    "check_sinogram",
    "estimate_incident_counts",
    "quick_image",
    "truncated_part",
]

CT_INVERSE_CRIME = (
    "simulated measurement (inverse crime): counts were computed from an image, with a finer model than the one "
    "that reconstructs it but without scatter, beam hardening and motion; results are better than on measured data"
)
NOT_MEDICAL = (
    "not a scan of a body: no medical prior applies and no text describes it; use a method without a prior "
    "(fbp, tv, pwls-tv)"
)
_SCALE_QUANTILE = 0.998
_QUICK_PIXELS, _QUICK_VIEWS = 128, 120
_MAD_OF_NORMAL = 0.6745
# Variance of p[k-1] - 2 p[k] + p[k+1] over that of p.
_SECOND_DIFFERENCE = 6.0
# Views closer than this see nearly the same object, so that differences between them are noise.
_DENSE_VIEWS = math.radians(1.0)
# Projections that have not come down to this part of the peak at the edge of the detector are cut off.
_TRUNCATED = 0.08
_EDGE_BINS = 3
# Attenuation of what is in a scan, relative to water: bone is 2.5 and teeth 4 times, lung a quarter.
_PLAUSIBLE_PEAK = (0.15, 25.0)
# exp(-200) of the photons: no ray through any object has a larger line integral and is measured.
_LARGEST_INTEGRAL = 200.0
# Air beside an object transmits everything.
_TRANSMISSION = (0.9, 1.2)
# Sizes of scanned objects in mm: below and beyond these, metres or micrometres were meant.
_SMALLEST_FIELD, _LARGEST_FIELD = 2.0, 5000.0
# The widest bore of a clinical scanner is 900 mm.
_LARGEST_BODY = 1000.0


def check_finite(values: Tensor, what: str, index: int) -> None:
    """Refuse NaN and Inf.

    Parameters
    ----------
    values
        (views, bins).
    what, index
        What they are and the slice number, for the message.

    Raises
    ------
    NumericsError
        Names the first bad sample and how many there are.
    """
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    if count:
        first = tuple(int(v) for v in bad.nonzero()[0])
        raise NumericsError(
            f"expected finite {what}, got {count} NaN or Inf in slice {index}, the first at (view, bin) {first}; "
            "export the scan again, or leave these views out"
        )


def check_sinogram(sinogram: Tensor, index: int) -> None:
    """Refuse NaN and Inf, sinograms without any contrast, and counts in their place.

    Parameters
    ----------
    sinogram
        (views, bins) line integrals.
    index
        Slice number, for the message.

    Raises
    ------
    NumericsError
        Names the first bad sample and how many there are.
    FormatError
        If all values are equal, or so large that they cannot be line integrals.
    """
    check_finite(sinogram, "projections", index)
    if float(sinogram.abs().max()) > _LARGEST_INTEGRAL:
        raise FormatError(
            f"expected line integrals -log(I / I0), got values up to {float(sinogram.abs().max()):.4g} in slice "
            f"{index}, through which no photon passes; counts belong into a dataset 'counts' beside 'i0', and lengths "
            "into mm"
        )
    if float(sinogram.max()) - float(sinogram.min()) <= 0:
        raise FormatError(
            f"expected projections of something, got the same value {float(sinogram.flatten()[0]):g} everywhere in "
            f"slice {index}; leave this slice out"
        )


def check_field_of_view(operator: CTOperator, *, medical: bool) -> tuple[str, ...]:
    """Check that lengths can be millimetres; return warnings.

    Raises
    ------
    GeometryError
        If the image is larger than any scanner, or far from the size of the detector brought to the axis.
    """
    field = max(operator.image_shape) * operator.pixel_size
    if field > _LARGEST_FIELD:
        raise GeometryError(
            f"expected lengths in mm, got an image of {field:.4g} mm: pixel_size is probably in micrometres; "
            f"divide it by 1000 (pixel_size={operator.pixel_size / 1000:.4g})"
        )
    magnification = operator.rays.magnification
    seen = operator.n_bins * operator.bin_size / magnification
    if not field / 30 < seen < field * 30:
        raise GeometryError(
            f"expected an image about as large as the detector sees, got {field:.4g} mm of image and {seen:.4g} mm of "
            "detector at the axis: pixel_size and bin_size are in different units; give both in mm"
        )
    if field < _SMALLEST_FIELD * (10 if medical else 1):
        return (
            f"the image is {field:.3g} mm wide: if this is not a microscope, pixel_size is in metres or centimetres "
            "and the attenuation is wrong by that factor",
        )
    if medical and field > _LARGEST_BODY:
        return (
            f"the image is {field:.4g} mm wide, wider than a scanner: check the unit that pixel_size is in, as sizes "
            "and attenuation are wrong by the same factor",
        )
    return ()


def truncated_part(sinogram: Tensor) -> float:
    """Return the part of the views whose projection is cut off by an edge of the detector."""
    peak = float(sinogram.abs().max())
    edges = torch.stack([sinogram[:, :_EDGE_BINS].median(1).values, sinogram[:, -_EDGE_BINS:].median(1).values])
    return float((edges.amax(0) > _TRUNCATED * peak).double().mean()) if peak > 0 else 0.0


def _looks_like_transmissions(sinogram: Tensor) -> bool:
    """Return whether values end near one at both edges of the detector and nowhere leave [0, 1] by far."""
    edges = torch.cat([sinogram[:, :_EDGE_BINS], sinogram[:, -_EDGE_BINS:]], 1)
    low, high = _TRANSMISSION
    inside = float(sinogram.min()) >= 0 and float(sinogram.max()) <= high
    return inside and low <= float(edges.median()) and float(sinogram.median()) < float(edges.median())


def _beyond_image(sinogram: Tensor, operator: CTOperator) -> float:
    """Return the mean of the rays that miss the image, as a part of the peak; 0 where there are none."""
    crossing = operator.rays.crossing(operator.image_shape, operator.pixel_size, margin=operator.bin_size)
    missing = ~crossing.to(sinogram.device)
    peak = float(sinogram.abs().max())
    return float(sinogram[missing].mean()) / peak if peak > 0 and bool(missing.any()) else 0.0


def estimate_incident_counts(sinogram: Tensor, angles: Tensor) -> float:
    """Estimate I0 of log data whose counts are not known, from its photon noise Var(p) = exp(p) / I0.

    I0 = 6 / (median |d| exp(-p/2) / 0.6745)^2 with the second differences d of the projections, between neighbouring
    views where these are at most one degree apart, else along the detector, where the median ignores edges.

    Parameters
    ----------
    sinogram
        (views, bins) line integrals.
    angles
        (views,) rad.

    Raises
    ------
    NumericsError
        If there is no noise to measure.
    """
    steps = (angles[1:] - angles[:-1]).abs()
    dense = sinogram.shape[0] >= 3 and float(steps.median()) <= _DENSE_VIEWS
    axis = 0 if dense else 1
    length = sinogram.shape[axis] - 2
    if length < 1:
        raise NumericsError(f"expected at least 3 bins to estimate noise from, got {tuple(sinogram.shape)}")
    left, middle, right = (sinogram.narrow(axis, i, length).double() for i in range(3))
    relative = (left - 2 * middle + right) * torch.exp(-middle / 2)
    level = float(relative.abs().median()) / _MAD_OF_NORMAL
    if not level > 0:
        raise NumericsError("expected projections with noise, got none to estimate; pass noise_std=... yourself")
    return _SECOND_DIFFERENCE / level**2


def quick_image(sinogram: Tensor, operator: CTOperator) -> Tensor:
    """Return a coarse positive filtered backprojection that is scaled to fit the data.

    x = a f, f = max(FBP(y), 0), a = <A f, y> / ||A f||^2: a limited arc lowers f, not a f. At most 128 pixels along a
    side and about 120 views, as only the brightness is of interest.

    Parameters
    ----------
    sinogram
        (views, bins) line integrals.
    operator
        The projector they belong to.
    """
    pixels = max(1, math.ceil(max(operator.image_shape) / _QUICK_PIXELS))
    stride = max(1, operator.views // _QUICK_VIEWS)
    coarse: CTOperator = operator._cached(("quick", pixels, stride), lambda: _coarser(operator, pixels, stride))
    whole = operator.n_bins // pixels * pixels
    data = sinogram[::stride, :whole].reshape(-1, whole // pixels, pixels).mean(-1)
    image = filtered_backprojection(coarse, data).clamp_min(0.0)
    projected = coarse(image)
    power = float(projected.double().square().sum())
    fit = float((projected.double() * data.double()).sum()) / power if power > 0 else 1.0
    return image * fit if fit > 0 else image


def _coarser(operator: CTOperator, pixels: int, stride: int) -> CTOperator:
    """Return the geometry with pixels and bins that many times larger and every so-manieth view."""
    shape = (math.ceil(operator.image_shape[0] / pixels), math.ceil(operator.image_shape[1] / pixels))
    return operator.changed(
        image_shape=shape,
        angles=operator.rays.angles[::stride],
        n_bins=operator.n_bins // pixels,
        pixel_size=operator.pixel_size * pixels,
        bin_size=operator.bin_size * pixels,
        centre=(operator.centre - (pixels - 1) / 2) / pixels,
        mode="fourier",
    )


def _robust_peak(image: Tensor) -> float:
    """Return the 99.8th percentile of the image averaged over 3 x 3 pixels: streaks and noise do not count."""
    smooth = torch.nn.functional.avg_pool2d(image[None, None], 3, 1, 1).flatten()
    position = max(1, round(_SCALE_QUANTILE * smooth.numel()))
    return float(smooth.kthvalue(position).values)


def assemble_ct(
    sinogram: Tensor,
    operator: CTOperator,
    *,
    index: int,
    geometry: Geometry,
    provenance: Mapping[str, Any],
    inverse_variance: Tensor | None = None,
    noise_std: float | None = None,
    noise_from: tuple[Tensor, Tensor] | None = None,
    target: Tensor | None = None,
    mu_water: float | None = None,
    photons: float | None = None,
    starved: int = 0,
    centre_source: str = "given",
) -> Measurement:
    """Build the measurement of one slice.

    Where the noise is known neither from counts nor as a number it is estimated, and the provenance says so.

    Parameters
    ----------
    sinogram
        (views, bins) line integrals.
    operator
        The projector.
    index
        Slice of the scan.
    geometry
        Of the scan.
    provenance
        Facts from the reader; ``warnings`` is extended.
    inverse_variance
        (views, bins) 1 / Var(p), 0 where nothing was measured; None if unknown.
    noise_std
        One noise level for all samples, where ``inverse_variance`` is None.
    noise_from
        Line integrals and angles (rad) to estimate the noise from, where more was measured than is used.
    target
        (H, W) reference in 1/mm, or None.
    mu_water
        Attenuation of water in 1/mm where the image has Hounsfield units.
    photons
        Counts per ray without an object, where known.
    starved
        Rays with so few counts that their logarithm was limited.
    centre_source
        Where the position of the rotation axis on the detector came from.

    Raises
    ------
    NumericsError, FormatError, GeometryError
        If the data cannot be used.
    """
    facts = dict(provenance)
    warnings = list(facts.get("warnings", ()))
    check_sinogram(sinogram, index)
    y = sinogram.to(torch.float32).contiguous()
    weights: Tensor | None = None
    if inverse_variance is None and noise_std is None:
        everything, angles = noise_from or (y, operator.angles.cpu())
        check_sinogram(everything, index)
        photons = estimate_incident_counts(everything, angles)
        inverse_variance = photons * torch.exp(-y.double())
        facts["noise_std"] = "estimated"
        warnings.append(
            "the noise was estimated from the projections, as photon noise of variance exp(p) / I0 with I0 = "
            f"{photons:.3g}; "
            "residuals and weights depend on it"
        )
    else:
        facts["noise_std"] = "given" if inverse_variance is None else "from the counts"
    if inverse_variance is not None:
        noise_std, weights = _normalised(inverse_variance, index)
    warnings += _data_warnings(y, operator, starved)
    peak = _robust_peak(quick_image(y, operator))
    if mu_water is not None and not _PLAUSIBLE_PEAK[0] < peak / mu_water < _PLAUSIBLE_PEAK[1]:
        warnings.append(
            f"the attenuation reaches {peak:.3g} / mm, {peak / mu_water:.2g} times that of water: check the units of "
            "pixel_size, bin_size and the projections before trusting Hounsfield units"
        )
    facts |= operator.facts() | {"photons": photons, "centre_source": centre_source, "mu_water_per_mm": mu_water}
    facts["warnings"] = tuple(dict.fromkeys(warnings))
    return Measurement(
        y=y,
        operator=operator,
        noise_std=noise_std,
        scale=1.0 / peak if peak > 0 else 1.0,
        target=None if target is None else target.to(torch.float32),
        geometry=geometry.at_slice(index),
        provenance=facts,
        weights=weights,
        mu_water=mu_water,
    )


def _data_warnings(y: Tensor, operator: CTOperator, starved: int) -> list[str]:
    """Return what a user must know of these line integrals: transmissions, truncation, starvation."""
    warnings = []
    cut = truncated_part(y)
    if _looks_like_transmissions(y):
        warnings.append(
            "the projections are largest, and near 1, where rays miss the object: if they are transmissions I / I0, "
            "take -log of them; as line integrals they give a wrong image"
        )
    elif cut > 0:
        warnings.append(
            f"truncated projections: {100 * cut:.0f} % of the views reach the edge of the detector, so the object is "
            "larger than the field of view; values rise towards the edge of the image and are offset inside"
        )
    outside = _beyond_image(y, operator)
    if outside > _TRUNCATED:
        warnings.append(
            f"rays that miss the image are not empty ({100 * outside:.0f} % of the peak): the object is larger than "
            "the image, or pixel_size and bin_size are in different units; iterative methods draw into the image what "
            "lies beyond it"
        )
    if starved:
        warnings.append(
            f"photon starvation: {starved} of {y.numel()} rays had hardly any counts; they have little weight, and "
            "methods without weights show streaks along them"
        )
    return warnings


def _normalised(inverse_variance: Tensor, index: int) -> tuple[float, Tensor]:
    """Return noise_std and weights of mean 1 over the samples that were measured: Var(p) = noise_std^2 / weight."""
    values = inverse_variance.double()
    measured = values > 0
    if not bool(measured.any()) or not bool(torch.isfinite(values).all()):
        raise NumericsError(
            f"expected finite variances with something measured in slice {index}; check the counts and i0"
        )
    mean = float(values[measured].mean())
    return 1.0 / math.sqrt(mean), (values / mean).to(torch.float32).contiguous()
