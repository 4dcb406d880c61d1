"""What the views of a scan leave out, in words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["missing_views", "missing_wedge", "repeats_first", "undersampled"]

# Files hold angles in single precision.
_SAME_ANGLE = 1e-5


def missing_views(angles: Tensor, opening: float, pixel: float, height: float, width: float) -> str:
    """Return in words which directions and which details all views of a scan leave out.

    Parameters
    ----------
    angles
        ``(views,)`` in rad, monotone.
    opening
        Angle of the fan in rad; zero for a parallel beam.
    pixel, height, width
        Of the image, in mm.
    """
    angles = torch.as_tensor(angles, dtype=torch.float64).cpu()
    kept = angles[: len(angles) - repeats_first(angles)]
    sparse = undersampled(kept, pixel, height, width)
    if len(angles) == 1:
        return sparse
    first, measured = float(angles.min()) % (2 * math.pi), float((kept[-1] - kept[0]).abs())
    return f"{missing_wedge(first, measured, float(angles.diff().abs().median()), opening)}; {sparse}"


def undersampled(angles: Tensor, pixel: float, height: float, width: float) -> str:
    r"""Say where views at these angles undersample detail.

    Views \|D\| apart sample detail of one pixel only within pixel / D of the axis; beyond, it appears as streaks.
    """
    if len(angles) == 1:
        return "1 view: nothing is known of the place of any detail along its rays"
    step = float(angles.diff().abs().max())
    resolved = pixel / step
    if resolved >= math.hypot(width, height) / 2:
        return f"views every {math.degrees(step):.2g} degrees: nothing is undersampled within the image"
    return (
        f"views every {math.degrees(step):.1f} degrees: detail of a pixel ({pixel:.3g} mm) beyond "
        f"{resolved:.3g} mm from the axis is undersampled"
    )


def missing_wedge(first: float, measured: float, step: float, opening: float) -> str:
    """Say which directions of edges are not measured by views from `first` over `measured` rad, `step` apart."""
    lacking = math.pi - measured
    if lacking > 1.5 * step:
        low = math.degrees(first + measured) % 180
        high = low + math.degrees(lacking)
        where = "at the axis " if opening else ""
        return (
            f"missing wedge of {math.degrees(lacking):.4g} degrees between {low:.4g} and {high:.4g} degrees {where}"
            "(from x to the right, counter-clockwise, modulo 180): edges with normals in it are not measured"
        )
    if lacking + opening > 1.5 * step:
        return (
            f"missing {math.degrees(lacking + opening):.3g} degrees of a short scan (180 degrees and the "
            f"{math.degrees(opening):.3g} of the fan): away from the axis some directions are not measured"
        )
    return "no direction is missing"


def repeats_first(angles: Tensor) -> bool:
    """Whether the last view repeats the first one after a turn."""
    return len(angles) > 1 and abs(abs(float(angles[-1] - angles[0])) - 2 * math.pi) < _SAME_ANGLE
