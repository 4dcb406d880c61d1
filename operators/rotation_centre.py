"""Where the rotation axis of a parallel-beam scan meets the detector, from the sinogram alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators.ct_angles import checked_angles

__all__ = ["find_rotation_centre"]

_FEWEST_VIEWS, _FEWEST_BINS = 8, 16
# Grid points per bin before the parabola.
_FINENESS = 8
# What real scans are off by (drift of the beam, motion, too few views), as a part of the amplitude at a frequency.
_MODEL_ERROR = 0.01
# Ends of the projections above this part of the peak mean that the object leaves the detector.
_TRUNCATED = 0.05
_MOST_FADES = 30
# Agreement of all frequencies on the axis is 0.99 for scans and up to 0.45 for noise.
_LEAST_AGREEMENT = 0.7


def find_rotation_centre(sinogram: Tensor, angles: Tensor, *, search: tuple[float, float] | None = None) -> float:
    r"""Find the column of the rotation axis of a parallel-beam scan: the one that makes a full turn consistent.

    With q(w, b) the Fourier transform of the projection at angle b and c the axis, g(w, b) = exp(i w c) q(w, b) obeys
    g(w, b + pi) = conj g(w, b). The turn continued in this way from half a turn is smooth in b: its Fourier
    coefficients G_n vanish outside the double wedge \|n\| <= R \|w\| of an object of radius R. The energy outside is

    .. math:: J(c) = \sum_w v_w \sum_{|n| > R |w|} |G_n(w)|^2
        = \mathrm{const} + \mathrm{Re} \sum_w v_w B(w)\, e^{2 i w c},
        \quad B(w) = \frac{2}{\pi} \sum_{n > R |w|} (-1)^n H_n(w) H_{-n}(w),
        \quad H_n(w) = \int_0^\pi q(w, b)\, e^{-i n b}\, db,

    so that one inverse FFT gives J at every c, fractions of a bin included. Directions measured from both sides, in
    scans of more than half a turn, add the integral of \|g(w, b + pi) - conj g(w, b)\|^2 over b to J. The weight
    v = 1 / (noise power + (1 % of the amplitude)^2) keeps strong low frequencies, where drifts of the beam are, from
    deciding alone.

    Parameters
    ----------
    sinogram
        ``(*batch, views, bins)`` line integrals -log(I / I0); the slices of a batch share the axis.
    angles
        ``(views,)`` in rad, monotone, over at least half a turn (the last view may be one step short of it).
    search
        Lowest and highest column considered (default: the middle half of the detector).

    Returns
    -------
    Column of the axis in bins, 0 at the middle of the first bin: ``centre`` of `ParallelBeamCT`.

    Raises
    ------
    GeometryError
        If shapes do not fit, there are too few views or bins, or the views do not cover half a turn.
    ConfigError
        If the search range does not lie on the detector.
    NumericsError
        If the sinogram is not finite, or no column within the range stands out.

    Notes
    -----
    The double wedge criterion is that of Vo et al., Opt. Express 22 (2014) 19078, who try the columns one by one. Where
    the object is larger than the detector, the projections are faded out symmetrically about the axis, again and again
    until it rests. In a scan of 360 degrees with the axis near an edge of the detector (to double the field of view)
    only the columns seen from both sides tell the axis: pass these, and count ``search`` from their first. A fan beam
    and projections in another order than their angles are not noticed.
    """
    data, radians = _checked(sinogram, angles)
    n_bins = data.shape[-1]
    low, high = _checked_search(search, n_bins)
    centre, agreement = _minimum(_polynomial(data, radians), n_bins, low, high)
    if _is_truncated(data):
        for _ in range(_MOST_FADES):
            before = centre
            faded = data * _fade(n_bins, before, data.device)
            centre, agreement = _minimum(_polynomial(faded, radians), n_bins, low, high)
            if abs(centre - before) < 0.01:
                break
    if not (agreement >= _LEAST_AGREEMENT and low < centre < high):
        raise NumericsError(
            f"expected one column between {low:g} and {high:g} that fits a rotation axis, got none that stands out "
            f"(best {centre:.2f}, agreement {agreement:.2f} of 1); pass search=(low, high) around the true axis, "
            "or give the centre yourself"
        )
    return centre


def _checked(sinogram: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Return finite ``(slices, views, bins)`` float64 and ascending angles."""
    if sinogram.ndim < 2 or sinogram.is_complex() or sinogram.numel() == 0:
        raise GeometryError(
            f"expected a real sinogram (*batch, views, bins), got {sinogram.dtype} {tuple(sinogram.shape)}"
        )
    radians = checked_angles(angles).to(sinogram.device)
    views, n_bins = sinogram.shape[-2:]
    if len(radians) != views:
        raise GeometryError(f"expected one angle for each of {views} views, got {len(radians)}")
    if views < _FEWEST_VIEWS or n_bins < _FEWEST_BINS:
        raise GeometryError(
            f"expected at least {_FEWEST_VIEWS} views of {_FEWEST_BINS} bins to find the axis from, got {views} of "
            f"{n_bins}; give the centre yourself"
        )
    span = abs(float(radians[-1] - radians[0]))
    step = float(radians.diff().abs().median())
    if span + 1.5 * step < math.pi:
        raise GeometryError(
            f"expected views over half a turn (180 degrees), got {math.degrees(span):.4g} degrees in steps of "
            f"{math.degrees(step):.3g}; without opposite views the axis is not determined: give the centre yourself"
        )
    data = sinogram.detach().to(torch.float64).reshape(-1, views, n_bins)
    if not bool(torch.isfinite(data).all()):
        raise NumericsError("the sinogram holds NaN or Inf; mend dead bins and starved rays before the axis is sought")
    if float(data.max() - data.min()) == 0:
        raise NumericsError(f"expected an object in the sinogram, got the constant {float(data.max()):g}")
    if float(radians[-1]) < float(radians[0]):
        return data.flip(-2), radians.flip(0)
    return data, radians


def _checked_search(search: tuple[float, float] | None, n_bins: int) -> tuple[float, float]:
    low, high = (n_bins / 4, 3 * n_bins / 4) if search is None else (float(search[0]), float(search[1]))
    if not 0 <= low < high - 1 <= n_bins - 2:
        raise ConfigError(
            f"expected a search range of more than one bin within 0 to {n_bins - 1}, got ({low:g}, {high:g}); "
            "give it in bins"
        )
    return low, high


def _polynomial(data: Tensor, angles: Tensor) -> Tensor:
    """Return the coefficients v B of J, summed over slices, at the frequencies of an FFT of twice the bins."""
    n_bins = data.shape[-1]
    spectrum = torch.fft.rfft(data, n=2 * n_bins)
    power = spectrum.abs().square().mean(dim=-2)
    # Twice the bins also make room for shifts by twice the axis, which J is a function of.
    noise = power[:, 3 * power.shape[-1] // 4 :].median(dim=-1).values[:, None]
    weight = 1 / (noise + _MODEL_ERROR**2 * power).clamp_min(torch.finfo(power.dtype).tiny)
    # The mean of the projections says nothing about the axis.
    weight[:, 0] = 0
    terms = _outside_wedge(spectrum, angles, n_bins) + _opposite_views(spectrum, angles)
    return (weight * terms).sum(dim=0)


def _outside_wedge(spectrum: Tensor, angles: Tensor, n_bins: int) -> Tensor:
    step = angles.diff().median()
    first = angles - angles[0] < math.pi - step / 2
    angles, spectrum = angles[first], spectrum[:, first]
    around = torch.cat([angles[-1:] - math.pi, angles, angles[:1] + math.pi])
    samples = spectrum * ((around[2:] - around[:-2]) / 2)[:, None]
    order = torch.arange(1, len(angles), dtype=angles.dtype, device=angles.device)
    turn = torch.polar(torch.ones((), dtype=angles.dtype, device=angles.device), -order[:, None] * angles)
    radius = math.pi / 2 * torch.arange(spectrum.shape[-1], dtype=angles.dtype, device=angles.device)
    # The coefficients fall off within a few times (R w)^(1/3) beyond the wedge, as Bessel functions do.
    outside = order[:, None] > radius + 2 * radius ** (1 / 3) + 2
    signs = outside * (1 - 2 * (order % 2))[:, None]
    return 2 / math.pi * (signs * (turn @ samples) * (turn.conj() @ samples)).sum(dim=-2)


def _opposite_views(spectrum: Tensor, angles: Tensor) -> Tensor:
    """Return the terms of the views that were also measured from the other side, interpolated between views."""
    wanted = angles[angles + math.pi <= angles[-1]] + math.pi
    if len(wanted) == 0:
        return torch.zeros_like(spectrum[:, 0])
    after = torch.searchsorted(angles, wanted).clamp(1, len(angles) - 1)
    part = ((wanted - angles[after - 1]) / (angles[after] - angles[after - 1]))[:, None]
    opposite = torch.lerp(spectrum[:, after - 1], spectrum[:, after], part.to(spectrum.dtype))
    return -2 * angles.diff().median() * (spectrum[:, : len(wanted)] * opposite).sum(dim=-2)


def _minimum(coefficients: Tensor, n_bins: int, low: float, high: float) -> tuple[float, float]:
    """Return the column of the lowest J within the range, and -J there as a part of the lowest it could be."""
    # Sample j of the transform is J at 2 c = j / (fineness / 2).
    curve = torch.fft.irfft(coefficients, n=_FINENESS * n_bins, norm="forward")
    first, last = math.ceil(low * _FINENESS), math.floor(high * _FINENESS)
    at = first + int(curve[first : last + 1].argmin())
    before, lowest, after = (float(curve[at + shift]) for shift in (-1, 0, 1))
    bend = before - 2 * lowest + after
    offset = 0.5 * (before - after) / bend if bend > 0 else 0.0
    bound = 2 * float(coefficients.abs().sum())
    return (at + max(-1.0, min(1.0, offset))) / _FINENESS, -lowest / bound if bound > 0 else 0.0


def _is_truncated(data: Tensor) -> bool:
    profile = data.abs().mean(dim=(0, 1))
    return float(torch.maximum(profile[:2].mean(), profile[-2:].mean())) > _TRUNCATED * float(profile.max())


def _fade(n_bins: int, centre: float, device: torch.device) -> Tensor:
    """Return a window that is 1 near the axis and falls to 0 at the nearer edge and its mirror image."""
    reach = min(centre, n_bins - 1 - centre)
    distance = (torch.arange(n_bins, dtype=torch.float64, device=device) - centre).abs() / reach
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - 0.2) / 0.8).clamp(0, 1))
