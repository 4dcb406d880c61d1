"""Photon counts: simulating them, and turning them into line integrals with their statistical weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError

__all__ = ["LogData", "flat_field", "log_transform", "simulate_counts"]

_FLOOR = 0.1
_FEWEST_FLATS = 3
# A sinogram in which no ray keeps a thousandth of its photons has its counts and its I0 on different scales.
_LEAST_TRANSMISSION = 1e-3


@dataclass(frozen=True)
class LogData:
    """Line integrals with their statistical weights.

    Attributes
    ----------
    sinogram
        p = -log(I / I0), no unit.
    weights
        w >= 0 in the shape of ``sinogram``: Var(p) = 1 / w, and 0 where a bin measured nothing.
    i0
        Photons per bin without an object, broadcastable to ``sinogram``.
    starved
        Number of samples whose counts were raised to the floor.
    dead
        Number of detector bins without signal; all their samples have weight 0.
    gain
        Detector units per photon; None where it is not known: then ``weights`` and ``i0`` are right up to one factor.
    """

    sinogram: Tensor
    weights: Tensor
    i0: Tensor
    starved: int
    dead: int = 0
    gain: float | None = 1.0

    @property
    def noise_std(self) -> float:
        """Noise level of the whole sinogram, the inverse root of the mean of the weights that are not 0."""
        return self._mean_weight() ** -0.5

    @property
    def relative_weights(self) -> Tensor:
        """The weights over their mean, so that Var(p) = ``noise_std``^2 / relative weight."""
        return self.weights / self._mean_weight()

    def _mean_weight(self) -> float:
        return float(self.weights[self.weights > 0].double().mean())


def simulate_counts(
    sinogram: Tensor, i0: float | Tensor, *, electronic_std: float = 0.0, generator: torch.Generator
) -> Tensor:
    r"""Draw what a detector counts behind an object.

    .. math:: I \sim \mathrm{Poisson}(I_0 e^{-p}) + \mathcal N(0, \sigma_e^2)

    Parameters
    ----------
    sinogram
        ``(*batch, views, bins)`` line integrals p without noise.
    i0
        Photons per ray without an object, > 0: a number, or a tensor that broadcasts to the sinogram, such as
        ``(bins,)`` behind a bow-tie filter.
    electronic_std
        Standard deviation of the readout noise in photons.
    generator
        Source of randomness, on the device of the sinogram.

    Returns
    -------
    Counts in the shape and precision of the sinogram; whole numbers, unless there is readout noise, with which they may
    be negative.

    Raises
    ------
    ConfigError
        If ``i0`` is not positive or ``electronic_std`` negative.
    GeometryError
        If ``i0`` does not fit the sinogram.
    NumericsError
        If the sinogram is not finite, or so large (or negative) that it cannot be in the unit of line integrals.
    """
    if not sinogram.is_floating_point():
        raise ConfigError(f"expected a real floating-point sinogram, got {sinogram.dtype}")
    _check_electronic_std(electronic_std)
    photons = _checked_i0(i0, sinogram)
    _check_finite(sinogram, "line integrals")
    # Single precision would make whole numbers of more than seven digits even.
    expected = photons * torch.exp(-sinogram.double())
    dark = int((expected < 1e-3).sum())
    if 2 * dark > expected.numel() or not bool((expected < 1e15).all()):
        raise NumericsError(
            f"expected line integrals of order 1, got {float(sinogram.min()):.3g} to {float(sinogram.max()):.3g}, "
            f"which stop all photons in {dark} of {expected.numel()} rays; give the attenuation in 1/mm "
            "(attenuation(hu) of HU) and lengths in mm"
        )
    counts = torch.poisson(expected, generator=generator)
    if electronic_std > 0:
        noise = torch.randn(counts.shape, dtype=counts.dtype, device=counts.device, generator=generator)
        counts = counts + electronic_std * noise
    return counts.to(sinogram.dtype)


def log_transform(
    counts: Tensor, i0: float | Tensor, *, electronic_std: float = 0.0, floor: float = _FLOOR
) -> LogData:
    r"""Turn counts into line integrals, each with the inverse of its variance.

    .. math:: p = \log(I_0 / n),\quad w = n^2 / (n + \sigma_e^2),\quad n = \max(I, \mathrm{floor})

    A ray with no photon left (or, under readout noise, a negative count) has no logarithm. It takes the floor, and with
    it a weight of at most 0.1 beside the n of other rays: it says "dark", and moves nothing by how dark exactly. Below
    about ten photons the logarithm is biased (by 1 / 2n) and its noise is not Gaussian.

    Parameters
    ----------
    counts
        ``(*batch, views, bins)`` photons, real or integer.
    i0
        Photons without an object, > 0: a number, or a tensor that broadcasts to the counts.
    electronic_std
        Standard deviation of the readout noise in photons.
    floor
        Least count, > 0; 0.1 is that of LoDoPaB-CT.

    Raises
    ------
    ConfigError, GeometryError
        For an ``i0``, floor or readout noise that cannot be, and an ``i0`` that does not fit.
    FormatError
        If counts are negative without readout noise, most exceed ``i0``, or none comes near it: another scale.
    NumericsError
        If counts are not finite.

    Notes
    -----
    Thibault et al., Proc. SPIE 6065 (2006) 60650X, has the weights with readout noise; the constant 0.1 is from
    Leuschner et al., Sci. Data 8 (2021) 109.
    """
    _check_counts(counts)
    _check_electronic_std(electronic_std)
    if not (math.isfinite(floor) and floor > 0):
        raise ConfigError(f"expected a floor > 0 in photons, got {floor}")
    if electronic_std == 0:
        _check_not_negative(counts, "; state the readout noise (electronic_std), or add back the dark signal")
    photons = _checked_i0(i0, counts)
    sinogram, weights, starved = _logarithm(counts.double(), photons, electronic_std, floor)
    dtype = torch.float64 if counts.dtype == torch.float64 else torch.float32
    return LogData(sinogram.to(dtype), weights.to(dtype), photons.to(dtype), starved)


def flat_field(counts: Tensor, flats: Tensor, darks: Tensor | None = None, *, gain: float | None = None) -> LogData:
    r"""Turn raw detector values into line integrals, by images without object and images without beam.

    .. math:: p = -\log \frac{I - D}{F - D},\quad \mathrm{Var}(p) = \frac{g\,(I - D) + \sigma_D^2}{(I - D)^2}

    F and D are means over frames; F - D of each bin is its I0, bow-tie and sensitivity included. Values may be in any
    unit: the gain g (units per photon) is the ratio of variance to mean of the flats, since photons have equal ones,
    and sigma_D^2 is the variance of the darks. The brightness of each flat is set to that of their mean first. (The
    noise of F itself is left out: it is the same in all views.)

    Parameters
    ----------
    counts
        ``(views, *detector)``, with ``detector`` ``(bins,)`` or ``(rows, bins)``.
    flats, darks
        ``(frames, *detector)``, or ``detector`` if already averaged. No darks means a dark signal of 0.
    gain
        Detector units per photon, if known (default: estimated from at least three flats; without them the weights are
        relative, which `LogData.gain` None says).

    Returns
    -------
    Line integrals and weights in the shape of ``counts``. Dead bins (no more signal in the flats than in the darks)
    have p = 0 and weight 0, and are counted.

    Raises
    ------
    GeometryError
        If detector shapes differ.
    ConfigError
        If ``gain`` is not positive.
    FormatError
        If values are negative, most bins are dead (flats and darks swapped?), or transmissions are out of scale.
    NumericsError
        If values are not finite.

    Notes
    -----
    The gain is the photon transfer method: Janesick, Photon Transfer (SPIE Press, 2007).
    """
    _check_counts(counts)
    if counts.ndim < 2:
        raise GeometryError(f"expected counts of shape (views, *detector), got {tuple(counts.shape)}")
    _check_not_negative(counts, "; pass raw detector values, without the darks subtracted")
    detector = tuple(counts.shape[1:])
    bright = _frames(flats, detector, "flats")
    dark = counts.new_zeros((1, *detector), dtype=torch.float64) if darks is None else _frames(darks, detector, "darks")
    if gain is not None and not (math.isfinite(gain) and gain > 0):
        raise ConfigError(f"expected a gain > 0 in detector units per photon, got {gain}")
    offset = dark.mean(0)
    signal = bright.mean(0) - offset
    alive = signal > 0
    dead = int((~alive).sum())
    if 2 * dead > alive.numel():
        raise FormatError(
            f"expected flats brighter than darks, got {dead} of {alive.numel()} bins that are not (mean "
            f"{float(bright.mean()):.6g} and {float(offset.mean()):.6g}); are flats and darks swapped?"
        )
    readout = _variance(dark[:, alive]).median() if len(dark) >= _FEWEST_FLATS else signal.new_zeros(())
    if gain is None and len(bright) >= _FEWEST_FLATS:
        gain = _photon_transfer(bright[:, alive] - offset[alive], float(readout))
    unit = gain or 1.0
    i0 = torch.where(alive, signal, 1.0) / unit
    received = torch.where(alive, (counts.double() - offset) / unit, i0)
    sinogram, weights, starved = _logarithm(received, i0, float(readout.sqrt()) / unit, _FLOOR)
    weights = weights * alive
    dtype = torch.float64 if counts.dtype == torch.float64 else torch.float32
    return LogData(sinogram.to(dtype), weights.to(dtype), (i0 * alive).to(dtype), starved, dead, gain)


def _logarithm(counts: Tensor, i0: Tensor, electronic_std: float, floor: float) -> tuple[Tensor, Tensor, int]:
    transmission = counts / i0
    highest = float(transmission.max())
    if highest < _LEAST_TRANSMISSION:
        raise FormatError(
            f"expected counts near i0 where rays miss the object, got a transmission of at most {highest:.3g} "
            f"(counts up to {float(counts.max()):.6g}, i0 up to {float(i0.max()):.6g}); give both in the same unit"
        )
    # Five standard deviations, and 5 % for the drift of a tube.
    above = transmission > 1.05 + 5 * (i0 + electronic_std**2).sqrt() / i0
    if 2 * int(above.sum()) > above.numel():
        raise FormatError(
            f"expected counts of at most i0, got more in {int(above.sum())} of {above.numel()} samples (up to "
            f"{float(counts.max()):.6g}, with i0 up to {float(i0.max()):.6g}); give both in the same unit"
        )
    raised = counts.clamp_min(floor)
    weights = raised.square() / (raised + electronic_std**2)
    # Files hold the floor itself in single precision.
    return torch.log(i0 / raised), weights, int((counts <= floor * (1 + 1e-6)).sum())


def _photon_transfer(flats: Tensor, readout: float) -> float | None:
    """Return variance over mean of flats ``(frames, bins)`` without dark signal, or None where there is no noise."""
    mean = flats.mean(0)
    brightness = flats.mean(1, keepdim=True)
    steady = flats * (brightness.mean() / brightness)
    # The brightness of a frame takes up one part in `bins` of the noise.
    lost = 1 - 1 / flats.shape[1]
    gain = float((_variance(steady) / mean).median() - readout * (1 / mean).median())
    return gain / lost if lost > 0 and gain > 0 else None


def _variance(frames: Tensor) -> Tensor:
    """Return the variance over frames, scaled so that its median (not its mean) over many bins is right."""
    degrees = len(frames) - 1
    # Wilson and Hilferty: the median of chi^2 with k degrees of freedom is k (1 - 2 / 9k)^3.
    return frames.var(0) / (1 - 2 / (9 * degrees)) ** 3


def _frames(values: Tensor, detector: tuple[int, ...], name: str) -> Tensor:
    frames = values[None] if tuple(values.shape) == detector else values
    if tuple(frames.shape[1:]) != detector or len(frames) == 0:
        raise GeometryError(
            f"expected {name} of shape (frames, *{detector}) to fit the detector of the counts, "
            f"got {tuple(values.shape)}"
        )
    _check_counts(frames)
    _check_not_negative(frames, f"; check the {name}")
    return frames.double()


def _check_counts(counts: Tensor) -> None:
    if counts.is_complex() or counts.dtype == torch.bool or counts.numel() == 0:
        raise GeometryError(f"expected real counts (*batch, views, bins), got {counts.dtype} {tuple(counts.shape)}")
    _check_finite(counts, "counts")


def _check_finite(values: Tensor, name: str) -> None:
    unusable = int((~torch.isfinite(values)).sum())
    if unusable:
        raise NumericsError(
            f"expected finite {name}, got {unusable} of {values.numel()} NaN or infinite; set counts of defective bins "
            "to 0, or drop those views"
        )


def _check_not_negative(counts: Tensor, fix: str) -> None:
    negative = int((counts < 0).sum())
    if negative:
        raise FormatError(
            f"expected counts >= 0, got {negative} of {counts.numel()} negative (lowest {float(counts.min()):.6g}){fix}"
        )


def _check_electronic_std(electronic_std: float) -> None:
    if not (math.isfinite(electronic_std) and electronic_std >= 0):
        raise ConfigError(f"expected a readout noise electronic_std >= 0 in photons, got {electronic_std}")


def _checked_i0(i0: float | Tensor, data: Tensor) -> Tensor:
    photons = torch.as_tensor(i0, dtype=torch.float64, device=data.device)
    if not bool(torch.isfinite(photons).all()) or not bool((photons > 0).all()):
        raise ConfigError(
            f"expected i0 > 0 photons per ray, got {float(photons.min()):g} to {float(photons.max()):g}; "
            "use flat_field for bins without signal"
        )
    try:
        fits = torch.broadcast_shapes(photons.shape, data.shape) == data.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise GeometryError(
            f"expected i0 as a number or of a shape that broadcasts to {tuple(data.shape)}, such as one per bin, "
            f"({data.shape[-1]},), got {tuple(photons.shape)}"
        )
    return photons
