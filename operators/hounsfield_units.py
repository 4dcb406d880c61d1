"""Attenuation and Hounsfield units, and volumes that claim to be in Hounsfield units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError, FormatError, NumericsError

__all__ = ["MU_WATER", "attenuation", "clean_hounsfield", "hounsfield"]

MU_WATER = 0.0192
"""Linear attenuation of water in 1/mm at about 70 keV, the effective energy of a 120 kVp body scan."""

# Water reaches 0.1/mm only below 19 keV, far from any medical scan: larger values are in 1/cm or 1/m.
_LARGEST_MU_WATER = 0.1
_AIR, _LOWEST = -1000.0, -1024.0
# Values this far down are padding wherever they come from; noise of air ends before.
_NOISE_OF_AIR = -1500.0
_LARGEST = 32767.0
# Without one value below this a volume holds neither air nor fat.
_LEAST_AIR = -20.0
# A signed 16-bit value read as unsigned: HU of -4096 to -1 land in the last 4096 values.
_WRAP, _WRAPPED_FROM = 65536.0, 61440.0
_HALF = 32768.0
_NORMALISED = 2.0
_MOST_PADDING_LEVELS, _MOST_SPREAD = 4, 0.1


def hounsfield(mu: Tensor, mu_water: float = MU_WATER, *, mu_air: float = 0.0) -> Tensor:
    r"""Return the attenuation of an image in Hounsfield units.

    .. math:: HU = 1000\, (\mu - \mu_w) / (\mu_w - \mu_a)

    Parameters
    ----------
    mu
        Attenuation in 1/mm, any shape, real.
    mu_water, mu_air
        Attenuation of water and air in 1/mm. Air is usually taken as 0; LoDoPaB-CT has 0.02 and 2e-5.

    Returns
    -------
    HU, in the shape and precision of ``mu``.

    Raises
    ------
    ConfigError
        If ``mu_water`` is not an attenuation of water in 1/mm, or ``mu`` is not real.
    """
    contrast = _checked_contrast(mu, mu_water, mu_air)
    return (mu - mu_water) * (1000 / contrast)


def attenuation(hu: Tensor, mu_water: float = MU_WATER, *, mu_air: float = 0.0) -> Tensor:
    r"""Return the attenuation in 1/mm of an image in Hounsfield units: the inverse of `hounsfield`.

    .. math:: \mu = \mu_w + (\mu_w - \mu_a)\, HU / 1000

    Values below -1000 HU give a negative attenuation; `clean_hounsfield` removes the padding of scanners. Parameters
    and errors as in `hounsfield`; integers give float32.
    """
    contrast = _checked_contrast(hu, mu_water, mu_air)
    return mu_water + hu * (contrast / 1000)


def clean_hounsfield(hu: Tensor, *, offset: float | None = None) -> tuple[Tensor, str]:
    """Return a volume in true Hounsfield units, and a note of what was changed.

    - Values below -1024, with which scanners pad outside the field of view (-2000, -3024, -32768), become air, -1000.
    - Signed 16-bit values read as unsigned (64512 for -1024), and values moved by 32768 either way, are put back; no
      volume in HU looks like these.
    - Values without negative ones (stored values whose rescale intercept of -1024 was not applied, images scaled to
      [0, 1] or [0, 255], attenuations) could be several things, and are refused.

    Parameters
    ----------
    hu
        Any shape, real; integers of any kind.
    offset
        What has to be added to get HU: -1024 for stored values of most scanners, 0 for a volume known to be in HU (a
        region without air and fat). None: decide from the values. Padding is removed in any case.

    Returns
    -------
    HU in float32 (float64 stays), and the note, "" where nothing was changed.

    Raises
    ------
    FormatError
        If the values are not in HU and it is not certain what they are.
    NumericsError
        If a value is NaN or infinite.
    """
    if hu.is_complex() or hu.numel() == 0:
        raise FormatError(f"expected real values in HU, got {hu.dtype} of shape {tuple(hu.shape)}")
    values = hu.to(torch.float64 if hu.dtype == torch.float64 else torch.float32)
    unusable = int((~torch.isfinite(values)).sum())
    if unusable:
        raise NumericsError(
            f"expected finite values in HU, got {unusable} of {values.numel()} NaN or infinite; "
            "where they are padding, pass torch.nan_to_num(hu, nan=-1000)"
        )
    if offset is None:
        values, shifted = _without_wrap(values)
    else:
        if not math.isfinite(offset):
            raise ConfigError(f"expected a finite offset in HU, got {offset}")
        values, shifted = values + offset, f"{offset:+g} added as told" if offset else ""
    padding = values < _LOWEST
    padded = _padding_note(values, padding)
    if offset is None:
        # Without the padding, which would hide that the rest has no air.
        _check_scale(values[~padding])
    return values.masked_fill(padding, _AIR), "; ".join(note for note in (shifted, padded) if note)


def _checked_contrast(image: Tensor, mu_water: float, mu_air: float) -> float:
    if not (math.isfinite(mu_water) and 0 < mu_water < _LARGEST_MU_WATER):
        raise ConfigError(
            f"expected mu_water in 1/mm, above 0 and below {_LARGEST_MU_WATER} (about {MU_WATER} at 70 keV), got "
            f"{mu_water}; divide by 10 if it is in 1/cm, by 1000 if it is in 1/m"
        )
    if not 0 <= mu_air < mu_water:
        raise ConfigError(f"expected mu_air between 0 and mu_water={mu_water:g} in 1/mm, got {mu_air}")
    if image.is_complex():
        raise ConfigError(f"expected a real image, got {image.dtype}; take its real part")
    return mu_water - mu_air


def _without_wrap(values: Tensor) -> tuple[Tensor, str]:
    """Undo an unsigned reading, or a shift by 32768, of signed 16-bit values."""
    low, high = float(values.min()), float(values.max())
    if high > _LARGEST:
        wrapped = values > _LARGEST
        if low >= 0 and _WRAPPED_FROM <= float(values[wrapped].min()) and high < _WRAP:
            note = f"{int(wrapped.sum())} values of {_WRAPPED_FROM:g} or more were signed 16 bit read as unsigned"
            return torch.where(wrapped, values - _WRAP, values), f"{note}: 65536 subtracted"
        if _HALF - 4096 <= low < _HALF + _LEAST_AIR and high < _WRAP:
            return values - _HALF, f"values {low:g} to {high:g} were moved by 32768: 32768 subtracted"
        raise FormatError(
            f"expected values in HU, at most {_LARGEST:g}, got {low:g} to {high:g}: an overflow or another scale; "
            "apply the rescale slope and intercept of the file, or read it with its own (signed) type"
        )
    if -_HALF - 4096 <= low < -_HALF + _LEAST_AIR and high < -_HALF + 4096:
        return values + _HALF, f"values {low:g} to {high:g} were moved by -32768: 32768 added"
    return values, ""


def _padding_note(values: Tensor, padding: Tensor) -> str:
    """Return how much padding there is, "" for none, or raise where it cannot be padding."""
    count = int(padding.sum())
    if count == 0:
        return ""
    if count == values.numel():
        raise FormatError(
            f"expected values in HU, got {float(values.min()):g} to {float(values.max()):g}, all below {_LOWEST:g}; "
            "the rescale slope and intercept are wrong or missing"
        )
    levels, members = values[values < _NOISE_OF_AIR].unique(return_counts=True)
    # A scanner pads with one value or a few; a spread of them is an image on another scale.
    spread = int(members.sum() - members.topk(min(_MOST_PADDING_LEVELS, len(members))).values.sum())
    if spread > _MOST_SPREAD * values.numel():
        raise FormatError(
            f"expected values in HU, got {spread} of {values.numel()} spread from {float(levels.min()):g} to "
            f"{_NOISE_OF_AIR:g}, which is neither tissue nor padding; apply the rescale slope of the file"
        )
    return f"{count} values below {_LOWEST:g} (lowest {float(values.min()):g}), padding, set to air, {_AIR:g} HU"


def _check_scale(values: Tensor) -> None:
    low, high = float(values.min()), float(values.max())
    got = f"{low:.6g} to {high:.6g}"
    if max(abs(low), abs(high)) <= _NORMALISED:
        raise FormatError(
            f"expected values in HU, got {got}: a normalised image or an attenuation; undo its window, or use "
            "hounsfield(mu, mu_water)"
        )
    if low >= _LEAST_AIR:
        raise FormatError(
            f"expected values in HU, where air is -1000 and fat -100, got {got}; add the rescale intercept of the "
            "scanner with offset=-1024 (stored values), undo the window (8-bit images), "
            "or pass offset=0 if this is a region without air and fat"
        )
