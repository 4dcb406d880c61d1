"""View angles: monotone, in rad, and never degrees by mistake."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError

__all__ = ["angles_from_file", "arc_degrees", "checked_angles", "checked_arc"]

_TURN = 2 * math.pi
# Room for a view that repeats the first one and for rounding.
_TOLERANCE = 1.01
# A scan of several turns takes more than about a hundred views per turn; so few are degrees read as rad.
_COARSE_STEP = 0.06
_UNITS = {
    "deg": "deg", "degree": "deg", "degrees": "deg", "°": "deg",
    "rad": "rad", "radian": "rad", "radians": "rad",
}


def checked_angles(angles: Tensor, *, name: str = "angles") -> Tensor:
    """Return view angles as float64, or refuse what cannot be a scan in rad.

    Angles must run strictly one way, up or down (scanners turn both ways); views in another order are sorted together
    with their projections first. They look like degrees, and are refused, where they span more than one turn (or lie
    more than two turns from 0) and

    - their median step is 0.06 or more, about a hundred views per turn or fewer, or
    - the arc, one step beyond the last view, is 180 or 360 to within two steps.

    A scan of several turns in rad passes with smaller steps. Degrees within one turn, such as 0 to 5, cannot be told
    from rad.

    Parameters
    ----------
    angles
        ``(views,)`` in rad.
    name
        What the message calls them.

    Returns
    -------
    ``(views,)`` float64 on the device of the input.

    Raises
    ------
    GeometryError
        If there is no view, more than one axis, a non-finite, repeated or unordered angle, or they look like degrees.
    """
    values = _ordered(angles, name)
    if looks_like_degrees(values):
        low, high = float(values.min()), float(values.max())
        raise GeometryError(
            f"expected {name} in rad, got {low:.6g} to {high:.6g} in {len(values)} views: these look like degrees; "
            f"pass torch.deg2rad({name}) (angles truly in rad: take them modulo 2 pi and sort the views)"
        )
    return values


def checked_arc(arc: float, *, name: str = "arc") -> float:
    """Return an arc or direction in rad, at most one turn either way, or raise `GeometryError`."""
    if isinstance(arc, bool) or not isinstance(arc, int | float) or not math.isfinite(arc):
        raise GeometryError(f"expected a finite {name} in rad, got {arc!r}")
    if abs(arc) > _TOLERANCE * _TURN:
        raise GeometryError(
            f"expected {name} in rad, at most one turn of 2 pi, got {arc:g}: this looks like degrees; "
            f"pass math.radians({arc:g})"
        )
    return float(arc)


def angles_from_file(angles: Tensor, unit: str | None = None) -> tuple[Tensor, str]:
    """Return the angles of a file in rad, and a sentence that says which unit they were taken to be in.

    Without a unit, angles that look like degrees (the rule of `checked_angles`), and whole numbers, are degrees; angles
    within one turn are rad; fine steps over several turns could be either and are refused.

    Parameters
    ----------
    angles
        ``(views,)`` as stored.
    unit
        ``"deg"``, ``"rad"`` (or a longer spelling, as files state it) or None to detect.

    Returns
    -------
    ``(views,)`` float64 in rad, and the note for the record.

    Raises
    ------
    ConfigError
        For another unit.
    GeometryError
        For angles that `checked_angles` refuses, that contradict the stated unit, or whose unit cannot be told.
    """
    stated = None if unit is None else _UNITS.get(unit.strip().lower())
    if unit is not None and stated is None:
        raise ConfigError(f"expected the unit of the angles to be 'deg', 'rad' or None, got {unit!r}")
    values = _ordered(angles, "angles")
    text = f"{float(values.min()):.6g} to {float(values.max()):.6g}"
    if stated == "deg" and _is_whole_turn_in_rad(values):
        raise GeometryError(
            f"expected angles in degrees, as stated, got {text}, which is half a turn or a turn in rad: "
            "pass the unit 'rad'"
        )
    if stated == "rad" and looks_like_degrees(values):
        raise GeometryError(
            f"expected angles in rad, as stated, got {text}: these look like degrees; state the unit 'deg'"
        )
    if stated is not None:
        note = f"view angles {text} in {stated}, as stated"
    else:
        stated, reason = _detected(values, text)
        note = f"view angles {text} without a unit, taken as {stated}: {reason}"
    radians = torch.deg2rad(values) if stated == "deg" else values
    return checked_angles(radians), note


def looks_like_degrees(values: Tensor) -> bool:
    """Return whether ordered angles, read as rad, can only be degrees; the rule is in `checked_angles`."""
    span, step = _span_and_step(values)
    farthest = float(values.abs().max())
    if span <= _TOLERANCE * _TURN and farthest <= 2 * _TOLERANCE * _TURN:
        return False
    if len(values) == 1 or step >= _COARSE_STEP:
        return True
    return any(abs(span + step - arc) <= 2 * step for arc in (180.0, 360.0))


def _ordered(angles: Tensor, name: str) -> Tensor:
    values = torch.as_tensor(angles)
    if values.is_complex() or values.ndim != 1 or values.numel() == 0:
        raise GeometryError(
            f"expected {name} of shape (views,) with at least one view, got {values.dtype} {tuple(values.shape)}"
        )
    values = values.detach().to(torch.float64)
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise GeometryError(
            f"expected finite {name}, got {int((~finite).sum())} of {len(values)} NaN or infinite; "
            "drop those views and their projections"
        )
    steps = values.diff()
    if bool((steps > 0).all()) or bool((steps < 0).all()):
        return values
    wrong = steps <= 0 if float(values[-1]) >= float(values[0]) else steps >= 0
    at = int(wrong.nonzero()[0])
    raise GeometryError(
        f"expected {name} that run strictly one way, got {float(values[at]):.6g} followed by "
        f"{float(values[at + 1]):.6g} at view {at + 1}; drop repeated views, sort the rest (torch.sort) and their "
        "projections with them, and unwrap jumps of a turn"
    )


def _span_and_step(values: Tensor) -> tuple[float, float]:
    if len(values) == 1:
        return 0.0, 0.0
    return abs(float(values[-1] - values[0])), float(values.diff().abs().median())


def _is_whole_turn_in_rad(values: Tensor) -> bool:
    span, step = _span_and_step(values)
    # Three digits: an arc of 3.1 degrees is possible, one of 3.14159 degrees is not meant.
    return len(values) > 2 and any(abs(arc / math.pi - n) < 2e-3 for n in (1, 2) for arc in (span, span + step))


def _detected(values: Tensor, text: str) -> tuple[str, str]:
    if looks_like_degrees(values):
        return "deg", "in rad they would be several turns of few views"
    span, step = _span_and_step(values)
    if span > _TOLERANCE * _TURN:
        raise GeometryError(
            f"expected angles whose unit can be told, got {text} in steps of {step:.4g}: several turns in rad or an "
            "arc in degrees; state the unit, 'deg' or 'rad'"
        )
    if len(values) > 2 and bool((values == values.round()).all()):
        return "deg", "they are whole numbers"
    return "rad", "they lie within one turn"


def arc_degrees(angles: Tensor) -> float:
    """Return the arc that views at these angles (rad) stand for: from the first to the last and one step more."""
    if angles.numel() < 2:
        return 0.0
    ordered = angles.double().sort().values
    step = float((ordered[1:] - ordered[:-1]).median())
    return min(360.0, math.degrees(float(ordered[-1] - ordered[0]) + step))
