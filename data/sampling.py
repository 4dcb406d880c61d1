"""Choosing a sampling pattern by name, and seeds that depend on nothing but what they are for."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable

import torch

from treg_med.errors import ConfigError
from treg_med.operators.masks import (
    SamplingMask,
    equispaced_mask,
    gaussian_mask_1d,
    gaussian_mask_2d,
    poisson_disc_mask,
    radial_mask,
    random_mask,
)

__all__ = ["MASK_KINDS", "child_generator", "make_mask"]

#: Names of the patterns; "full" samples everything.
MASK_KINDS = ("random", "equispaced", "gaussian-1d", "gaussian-2d", "poisson-disc", "radial", "full")
# Four times undersampled with 8 % of the columns in the centre, eight times with 4 %: the pairs of the
# fastMRI challenge.
_CENTER_TIMES_ACCELERATION = 0.32
_LARGEST_CALIBRATION = 24
_COLUMN_PATTERNS: dict[str, Callable[..., SamplingMask]] = {
    "random": random_mask,
    "equispaced": equispaced_mask,
    "gaussian-1d": gaussian_mask_1d,
}
# Part of all samples that the calibration block of a 2-D pattern may take.
_CALIBRATION_SHARE = 0.4


def child_generator(seed: int, *keys: object) -> torch.Generator:
    """Return a generator for one purpose, the same whatever else was drawn before.

    Parameters
    ----------
    seed
        The seed of the run.
    *keys
        What it is for, for example ``"noise", 17``.
    """
    digest = hashlib.sha256(repr((int(seed), *keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def make_mask(
    kind: str,
    shape: tuple[int, int],
    acceleration: float,
    generator: torch.Generator,
    center_fraction: float | None = None,
) -> SamplingMask:
    """Return a named sampling pattern.

    Parameters
    ----------
    kind
        One of `MASK_KINDS`.
    shape
        (H, W); one-dimensional patterns sample whole columns.
    acceleration
        Undersampling asked for, >= 1; 1 and ``"full"`` sample everything.
    generator
        Source of randomness.
    center_fraction
        Part of the columns in the fully sampled centre of 1-D patterns (default 0.32 / acceleration).

    Raises
    ------
    ConfigError
        For an unknown name or an acceleration below 1.
    """
    if kind not in MASK_KINDS:
        raise ConfigError(f"expected a mask out of {', '.join(MASK_KINDS)}, got {kind!r}")
    if not (isinstance(acceleration, int | float) and math.isfinite(acceleration) and acceleration >= 1):
        raise ConfigError(f"expected an acceleration >= 1, got {acceleration!r}")
    if kind == "full" or acceleration == 1:
        return SamplingMask.of(torch.ones(shape, dtype=torch.bool), "full")
    if kind in _COLUMN_PATTERNS:
        default = min(1.0, _CENTER_TIMES_ACCELERATION / acceleration)
        center = default if center_fraction is None else center_fraction
        return _COLUMN_PATTERNS[kind](shape, acceleration, center, generator=generator)
    if kind == "radial":
        return _radial(shape, acceleration, math.pi * float(torch.rand((), generator=generator)))
    share = _CALIBRATION_SHARE * shape[0] * shape[1] / acceleration
    block = min(_LARGEST_CALIBRATION, *shape, math.isqrt(int(share)))
    make_2d = gaussian_mask_2d if kind == "gaussian-2d" else poisson_disc_mask
    return make_2d(shape, acceleration, block, generator=generator)


def _radial(shape: tuple[int, int], acceleration: float, angle: float) -> SamplingMask:
    """Spokes at golden angles until as much is sampled as asked for: they overlap in the centre."""
    fewest = max(1, round(min(shape) / acceleration))

    def spoked(spokes: int) -> SamplingMask:
        return radial_mask(shape, spokes, golden_angle=True, first_angle=angle)

    # Spokes at golden angles are only added to, so that more of them never sample less.
    most = range(fewest, 4 * max(shape))
    return spoked(fewest + bisect_left(most, True, key=lambda n: spoked(n).acceleration <= acceleration))
