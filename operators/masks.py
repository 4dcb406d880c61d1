"""Cartesian sampling patterns; each states its true acceleration.

One-dimensional patterns sample whole columns (phase encoding along the last axis). ``acceleration`` asked for
counts everything, the fully sampled centre included: about ``H W / acceleration`` positions are sampled.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treg_med.errors import ConfigError

__all__ = [
    "SamplingMask",
    "equispaced_mask",
    "gaussian_mask_1d",
    "gaussian_mask_2d",
    "mask_facts",
    "poisson_disc_mask",
    "radial_mask",
    "random_mask",
]


@dataclass(frozen=True)
class SamplingMask:
    """A sampling pattern with what it truly is.

    Attributes
    ----------
    mask
        ``(H, W)`` bool, True where k-space is sampled.
    acceleration
        True acceleration, H W / (number of sampled positions).
    kind
        Name of the pattern.
    """

    mask: Tensor
    acceleration: float
    kind: str

    @classmethod
    def of(cls, mask: Tensor, kind: str) -> SamplingMask:
        """Wrap a boolean ``(H, W)`` pattern and count its acceleration."""
        return cls(mask, mask.numel() / max(1, int(mask.sum())), kind)


def equispaced_mask(
    shape: tuple[int, int],
    acceleration: float,
    center_fraction: float = 0.08,
    *,
    generator: torch.Generator | None = None,
) -> SamplingMask:
    """Sample evenly spaced columns and a full centre.

    Exactly ``round(W / acceleration)`` columns: the central ``round(W center_fraction)`` and the rest at
    equal (fractional) distance among the remaining columns, from a random offset (from the half distance
    without a ``generator``).

    Parameters
    ----------
    shape
        ``(H, W)``.
    acceleration
        Undersampling factor asked for, >= 1.
    center_fraction
        Part of the columns that form the fully sampled centre, in [0, 1].
    generator
        Source of the random offset.

    Raises
    ------
    ConfigError
        For bad parameters, or if the centre alone exceeds the columns asked for.
    """
    _, width = _checked_pattern(shape, acceleration)
    selected, outer, n_outer = _column_budget(width, acceleration, center_fraction)
    start = 0.5 if generator is None else float(torch.rand((), generator=generator, device=generator.device))
    if n_outer:
        steps = (torch.arange(n_outer) + start) * (outer.numel() / n_outer)
        selected[outer[steps.long().clamp(max=outer.numel() - 1)]] = True
    return SamplingMask.of(selected.expand(shape).clone(), "equispaced")


def random_mask(
    shape: tuple[int, int], acceleration: float, center_fraction: float = 0.08, *, generator: torch.Generator
) -> SamplingMask:
    """Sample uniformly random columns and a full centre, exactly ``round(W / acceleration)`` columns.

    As the random masks of fastMRI (arXiv 1811.08839), but with the exact number of columns. Parameters and
    errors as in `equispaced_mask`.
    """
    _, width = _checked_pattern(shape, acceleration)
    selected, outer, n_outer = _column_budget(width, acceleration, center_fraction)
    selected[outer[_weighted_choice(torch.zeros(outer.numel()), n_outer, generator)]] = True
    return SamplingMask.of(selected.expand(shape).clone(), "random")


def gaussian_mask_1d(
    shape: tuple[int, int],
    acceleration: float,
    center_fraction: float = 0.08,
    *,
    std_fraction: float = 0.25,
    generator: torch.Generator,
) -> SamplingMask:
    """Sample columns with a Gaussian density and a full centre, exactly ``round(W / acceleration)`` columns.

    Columns are drawn without replacement with weight exp(-d^2 / (2 s^2)), d the distance from the centre and
    s = ``std_fraction`` W. Parameters and errors otherwise as in `equispaced_mask`.
    """
    _, width = _checked_pattern(shape, acceleration)
    _check_positive("std_fraction", std_fraction)
    selected, outer, n_outer = _column_budget(width, acceleration, center_fraction)
    distance = (outer - width // 2) / (std_fraction * width)
    selected[outer[_weighted_choice(-(distance**2) / 2, n_outer, generator)]] = True
    return SamplingMask.of(selected.expand(shape).clone(), "gaussian-1d")


def gaussian_mask_2d(
    shape: tuple[int, int],
    acceleration: float,
    calibration_size: int | tuple[int, int] = 24,
    *,
    std_fraction: float = 0.25,
    generator: torch.Generator,
) -> SamplingMask:
    """Sample ``round(H W / acceleration)`` points: a full central block, the others with a Gaussian density.

    Points are drawn without replacement with weight exp(-(d_0^2/s_0^2 + d_1^2/s_1^2) / 2), s =
    ``std_fraction`` (H, W).

    Parameters
    ----------
    shape
        ``(H, W)``.
    acceleration
        Undersampling factor asked for, >= 1.
    calibration_size
        Side (or sides) of the fully sampled central block, 0 for none.
    std_fraction
        Standard deviation of the density in units of the side.
    generator
        Source of randomness.

    Raises
    ------
    ConfigError
        For bad parameters, or if the block alone exceeds the points asked for.
    """
    height, width = _checked_pattern(shape, acceleration)
    _check_positive("std_fraction", std_fraction)
    mask = _central_block(height, width, calibration_size)
    remaining = _remaining_points(mask, acceleration)
    rows, columns = torch.nonzero(~mask, as_tuple=True)
    squared = ((rows - height // 2) / (std_fraction * height)) ** 2
    squared = squared + ((columns - width // 2) / (std_fraction * width)) ** 2
    chosen = _weighted_choice(-squared / 2, remaining, generator)
    mask[rows[chosen], columns[chosen]] = True
    return SamplingMask.of(mask, "gaussian-2d")


def poisson_disc_mask(
    shape: tuple[int, int],
    acceleration: float,
    calibration_size: int | tuple[int, int] = 24,
    *,
    tolerance: float = 0.02,
    crop_corners: bool = False,
    generator: torch.Generator,
) -> SamplingMask:
    """Sample a variable-density Poisson disc: random points whose mutual distance grows outwards.

    Grid points are visited in random order; one is taken unless it lies closer to an earlier point p than
    r(p) = 1 + a rho(p), rho the distance from the centre in units of the half side. The slope a is found by
    bisection so that the count, central block included, is ``H W / acceleration`` within ``tolerance``.

    Parameters
    ----------
    shape
        ``(H, W)``.
    acceleration
        Undersampling factor asked for, >= 1.
    calibration_size
        Side (or sides) of the fully sampled central block, 0 for none.
    tolerance
        Largest relative deviation of the true from the asked acceleration.
    crop_corners
        Leave out the corners rho > 1.
    generator
        Source of randomness.

    Raises
    ------
    ConfigError
        For bad parameters, or if no slope reaches the acceleration within the tolerance.

    Notes
    -----
    Variable-density Poisson disc sampling: Bridson, SIGGRAPH sketches (2007); Lustig and Pauly, MRM 64 (2010)
    457.
    """
    height, width = _checked_pattern(shape, acceleration)
    _check_positive("tolerance", tolerance)
    block = _central_block(height, width, calibration_size)
    _remaining_points(block, acceleration)
    rows = (torch.arange(height) - height // 2) / max(1.0, height / 2)
    columns = (torch.arange(width) - width // 2) / max(1.0, width / 2)
    rho = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt().numpy()
    allowed = rho <= 1 if crop_corners else np.ones_like(rho, dtype=bool)
    order = torch.randperm(height * width, generator=generator, device=generator.device).cpu().numpy()
    order = order[allowed.reshape(-1)[order]]
    low, high, bracketed = 0.0, math.sqrt(acceleration), False
    best: np.ndarray | None = None
    reached = math.inf
    for _ in range(30):
        slope = (low + high) / 2 if bracketed else high
        mask = _poisson_disc(order, 1 + slope * rho) | block.numpy()
        true = mask.size / int(mask.sum())
        if abs(true / acceleration - 1) < abs(reached / acceleration - 1):
            best, reached = mask, true
        if abs(reached / acceleration - 1) <= tolerance / 4:
            break
        if true >= acceleration:
            high, bracketed = slope, True
        elif slope > max(height, width):
            break
        else:
            low, high = slope, high if bracketed else 2 * high
    if best is None or abs(reached / acceleration - 1) > tolerance:
        raise ConfigError(
            f"a Poisson disc of {height}x{width} with this calibration block reaches acceleration "
            f"{reached:.3g}, not {acceleration:g}; change calibration_size, acceleration or tolerance"
        )
    return SamplingMask.of(torch.from_numpy(best), "poisson-disc")


def radial_mask(
    shape: tuple[int, int], spokes: int, *, golden_angle: bool = False, first_angle: float = 0.0
) -> SamplingMask:
    r"""Sample the grid positions nearest to straight lines through the centre of k-space.

    Spoke k lies at :math:`\theta_k = \theta_0 + k \pi / n`, or :math:`k \pi (\sqrt 5 - 1) / 2` with `golden_angle`, and
    has one position in every column, or in every row where it is steeper than the diagonal; angles are in units of the
    sampled box. By the Fourier slice theorem these are n views of a parallel-beam projection, on a grid. Pseudo-radial:
    true radial data lie between grid positions.

    Parameters
    ----------
    shape
        ``(H, W)``.
    spokes
        n >= 1.
    golden_angle
        Whether angles advance by the golden angle.
    first_angle
        :math:`\theta_0` in rad, from the direction of columns (along a row).

    Raises
    ------
    ConfigError
        For bad parameters.

    Winkelmann et al.: An Optimal Radial Profile Order Based on the Golden Ratio, IEEE Trans. Med. Imaging 26 (2007) 68.
    """
    height, width = _checked_pattern(shape, 1.0)
    if isinstance(spokes, bool) or not isinstance(spokes, int) or spokes < 1 or not math.isfinite(first_angle):
        raise ConfigError(f"expected at least 1 spoke and a finite first_angle, got {spokes!r} and {first_angle!r}")
    step = math.pi * ((math.sqrt(5) - 1) / 2 if golden_angle else 1 / spokes)
    mask = torch.zeros(height, width, dtype=torch.bool)
    columns, rows = torch.arange(width) - width // 2, torch.arange(height) - height // 2
    for k in range(spokes):
        along, across = math.cos(first_angle + k * step), math.sin(first_angle + k * step)
        if abs(along) >= abs(across):
            _mark(mask, (columns * (across / along) * (height / width)).round().long(), columns)
        else:
            _mark(mask, rows, (rows * (along / across) * (width / height)).round().long())
    return SamplingMask.of(mask, "radial")


def _mark(mask: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Set positions counted from the centre; those outside are passed over."""
    height, width = mask.shape
    rows, columns = rows + height // 2, columns + width // 2
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    mask[rows[inside], columns[inside]] = True


def _poisson_disc(order: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Take points in the given order, each blocking the open disc of its radius."""
    height, width = radius.shape
    reach = int(math.ceil(float(radius.max())))
    # A frame as wide as the largest disc spares every stamp its clipping.
    blocked = np.zeros((height + 2 * reach, width + 2 * reach), dtype=bool)
    taken = np.zeros(height * width, dtype=bool)
    # Radii are quantised to 1/32 pixel downwards, so that a few hundred stamps serve all points.
    level = np.floor(radius.reshape(-1) * 32).astype(np.int64)
    stamps: dict[int, tuple[int, np.ndarray]] = {}
    for index in order.tolist():
        row, column = divmod(index, width)
        if blocked[row + reach, column + reach]:
            continue
        taken[index] = True
        key = int(level[index])
        if key not in stamps:
            stamps[key] = _disc_stamp(key / 32)
        half, stamp = stamps[key]
        top, left = row + reach - half, column + reach - half
        blocked[top : top + 2 * half + 1, left : left + 2 * half + 1] |= stamp
    return taken.reshape(height, width)


def _disc_stamp(radius: float) -> tuple[int, np.ndarray]:
    half = int(math.ceil(radius)) - 1
    offset = np.arange(-half, half + 1)
    return half, offset[:, None] ** 2 + offset[None, :] ** 2 < radius**2


def _checked_pattern(shape: tuple[int, int], acceleration: float) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1 or any(int(n) != n for n in shape):
        raise ConfigError(f"a mask needs a shape (H, W) of positive integers, got {shape}")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise ConfigError(f"acceleration must be a finite number >= 1, got {acceleration}")
    return int(shape[0]), int(shape[1])


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number > 0, got {value}")


def _column_budget(width: int, acceleration: float, center_fraction: float) -> tuple[Tensor, Tensor, int]:
    """Return the centre columns as a pattern, the indices of the others, and how many of those to add."""
    if not 0 <= center_fraction <= 1:
        raise ConfigError(f"center_fraction must lie in [0, 1], got {center_fraction}")
    total = max(1, round(width / acceleration))
    n_center = round(width * center_fraction)
    if n_center > total:
        raise ConfigError(
            f"the centre of {n_center} columns exceeds the {total} of {width} columns at acceleration "
            f"{acceleration:g}; lower center_fraction below {total / width:.3g} or the acceleration"
        )
    selected = torch.zeros(width, dtype=torch.bool)
    # n_center // 2 columns before DC (index W // 2), so that an odd centre is symmetric about it.
    first = width // 2 - n_center // 2
    selected[first : first + n_center] = True
    return selected, torch.nonzero(~selected).squeeze(1), total - n_center


def _central_block(height: int, width: int, size: int | tuple[int, int]) -> Tensor:
    rows, columns = (size, size) if isinstance(size, int) else size
    if not (0 <= rows <= height and 0 <= columns <= width):
        raise ConfigError(f"calibration_size {size} does not fit a {height}x{width} mask")
    mask = torch.zeros(height, width, dtype=torch.bool)
    top, left = height // 2 - rows // 2, width // 2 - columns // 2
    mask[top : top + rows, left : left + columns] = True
    return mask


def _remaining_points(block: Tensor, acceleration: float) -> int:
    total, n_block = max(1, round(block.numel() / acceleration)), int(block.sum())
    if n_block > total:
        raise ConfigError(
            f"the calibration block of {n_block} points exceeds the {total} points at acceleration "
            f"{acceleration:g}; lower calibration_size or the acceleration"
        )
    return total - n_block


def _weighted_choice(log_weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` indices without replacement, successively proportional to the weights (Gumbel top-k)."""
    uniform = torch.rand(
        log_weight.shape, generator=generator, device=generator.device, dtype=torch.float64
    ).cpu()
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    return (log_weight + gumbel).topk(count).indices


def mask_facts(mask: Tensor) -> dict[str, Any]:
    """Return what identifies a mask ``(H, W)``: its shape, samples, SHA-256, and the columns where these are whole."""
    pattern = (mask != 0).cpu().contiguous()
    facts: dict[str, Any] = {
        "shape": list(pattern.shape),
        "sampled": int(pattern.sum()),
        "sha256": hashlib.sha256(pattern.to(torch.uint8).numpy().tobytes()).hexdigest(),
    }
    if bool((pattern == pattern[:1]).all()):
        facts["columns"] = pattern[0].nonzero().flatten().tolist()
    return facts
