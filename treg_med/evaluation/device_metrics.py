"""The metrics in batches on any torch device, used only where they agree with the reference.

`implementation` gives the functions that a protocol calls: those of scikit-image and scipy, or those below on a
device that has passed `agrees`. Both take (n, H, W) arrays and return float64 (n,) arrays, so that a protocol is
written once. Everything is in double precision: the variances of SSIM are differences of nearly equal numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.evaluation import metrics, perceptual
from treg_med.evaluation.metrics import SSIM_SIDES, Array, Images, Mask, Range, Window, as_ranges, check_pair
from treg_med.evaluation.perceptual import (
    HAARPSI_ALPHA,
    HAARPSI_C,
    HAARPSI_SIDE,
    MS_SSIM_SIDE,
    MS_SSIM_WEIGHTS,
)

__all__ = ["REFERENCE", "TOLERANCE", "MetricFunctions", "agrees", "implementation"]

#: Largest difference from the reference that a device may show (PSNR in dB, the rest without unit).
TOLERANCE = 1e-6
# 64 MiB per intermediate image in double precision.
_MOST_PIXELS = 2**23
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class MetricFunctions:
    """One implementation of the metrics; signatures as in `metrics` and `perceptual`."""

    name: str
    squared_error: Callable[..., Array]
    ssim: Callable[..., Array]
    ms_ssim: Callable[..., Array]
    haarpsi: Callable[..., Array]

    def psnr(self, prediction: Images, target: Images, data_range: Range) -> Array:
        """Return the PSNR of whole images in dB, as `metrics.psnr`."""
        mean = self.squared_error(prediction, target) / target[0].size
        return metrics.decibels(mean, as_ranges(data_range, len(target)))

    def nmse(self, prediction: Images, target: Images) -> Array:
        """Return the NMSE of whole images, as `metrics.nmse`."""
        energy = self.squared_error(np.zeros_like(target), target)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(energy > 0, self.squared_error(prediction, target) / energy, np.nan)


REFERENCE = MetricFunctions("reference", metrics.squared_error, metrics.ssim, perceptual.ms_ssim, perceptual.haarpsi)


def implementation(device: str | torch.device | None) -> MetricFunctions:
    """Return the metrics on a device, or the reference where ``device`` is None or does not agree with it.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if device is None:
        return REFERENCE
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"expected a torch device such as 'cpu' or 'cuda:0', got {str(device)!r} "
            f"({' '.join(str(error).split())[:100]}); leave it out for the reference implementation"
        ) from error
    if not agrees(place):
        return REFERENCE
    return _on(place)


def _on(device: torch.device) -> MetricFunctions:
    return MetricFunctions(
        str(device),
        partial(_squared_error, device),
        partial(_ssim, device),
        partial(_ms_ssim, device),
        partial(_haarpsi, device),
    )


@cache
def agrees(device: torch.device) -> bool:
    """Whether every metric on ``device`` is within `TOLERANCE` of the reference on a fixed batch; warns if not.

    Checked once per process and device. The batch holds a smooth object, noise of three strengths, odd sides, and
    one image in the small units of raw MR data.
    """
    target, prediction, peaks, mask = _check_batch()
    own = _on(device)
    differences = []
    try:
        for name in ("squared_error", "ssim", "gaussian", "masked", "ms_ssim", "haarpsi"):
            mine, reference = (
                _measured(functions, name, prediction, target, peaks, mask) for functions in (own, REFERENCE)
            )
            differences.append(np.abs(mine - reference))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        warnings.warn(
            f"metrics on {device} failed ({' '.join(str(error).split())[:100]}); the reference is used instead",
            stacklevel=3,
        )
        return False
    # A NaN is the largest of all and fails the comparison.
    worst = float(np.max(differences))
    if not worst <= TOLERANCE:
        warnings.warn(
            f"metrics on {device} differ from the reference by {worst:.1e}, more than {TOLERANCE:.0e}; "
            "the reference is used instead",
            stacklevel=3,
        )
        return False
    return True


def _check_batch() -> tuple[Array, Array, Array, Mask]:
    rows, columns = np.mgrid[-1:1:173j, -1:1:166j]
    draw = np.random.default_rng(0)
    head = np.clip(1.2 - (rows**2 + 1.5 * columns**2) ** 2, 0, 1) * (1 + 0.3 * np.sin(9 * rows) * np.cos(7 * columns))
    target = np.stack([head, 1000 * head, 1e-5 * head])
    peaks = target.max(axis=(1, 2))
    noise = draw.standard_normal(target.shape) * np.array([0.01, 0.05, 0.2])[:, None, None]
    return target, target + noise * peaks[:, None, None], peaks, target > 0.1 * peaks[:, None, None]


def _measured(
    functions: MetricFunctions, name: str, prediction: Array, target: Array, peaks: Array, mask: Mask
) -> Array:
    if name == "squared_error":
        return functions.psnr(prediction, target, peaks)
    if name == "gaussian":
        return functions.ssim(prediction, target, peaks, window="gaussian")
    if name == "masked":
        return functions.ssim(prediction, target, peaks, mask=mask)
    return np.asarray(getattr(functions, name)(prediction, target, peaks))


def _in_batches(count: int, pixels: int) -> list[slice]:
    size = max(1, _MOST_PIXELS // pixels)
    return [slice(start, start + size) for start in range(0, count, size)]


def _moved(device: torch.device, images: Images, chosen: slice, ranges: Array | None = None) -> Tensor:
    """Return a batch in double precision on the device, divided by its data ranges."""
    batch = torch.from_numpy(np.ascontiguousarray(images[chosen])).to(device).to(torch.float64)
    if ranges is None:
        return batch
    return batch / torch.from_numpy(np.array(ranges[chosen])).to(device)[:, None, None]


def _squared_error(device: torch.device, prediction: Images, target: Images, mask: Mask | None = None) -> Array:
    check_pair(prediction, target, mask)
    parts = []
    for chosen in _in_batches(len(target), target[0].size):
        error = (_moved(device, prediction, chosen) - _moved(device, target, chosen)).square()
        if mask is not None:
            error = error * _moved(device, mask.astype(np.uint8), chosen)
        parts.append(error.sum(dim=(1, 2)).cpu().numpy())
    return np.concatenate(parts)


def _ssim(
    device: torch.device,
    prediction: Images,
    target: Images,
    data_range: Range,
    *,
    window: Window = "uniform",
    mask: Mask | None = None,
) -> Array:
    if window not in SSIM_SIDES:
        raise ConfigError(f"expected window 'uniform' or 'gaussian', got {window!r}")
    side = SSIM_SIDES[window]
    check_pair(prediction, target, mask, side=side)
    ranges = as_ranges(data_range, len(target))
    parts = []
    for chosen in _in_batches(len(target), target[0].size):
        x, y = _moved(device, target, chosen, ranges), _moved(device, prediction, chosen, ranges)
        luminance, contrast = _ssim_terms(x, y, window)
        similarity = luminance * contrast
        if mask is None:
            parts.append(similarity.mean(dim=(1, 2)).cpu().numpy())
            continue
        inside = slice(side // 2, -(side // 2))
        weight = _moved(device, mask[:, inside, inside].astype(np.uint8), chosen)
        parts.append(((similarity * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))).cpu().numpy())
    return np.concatenate(parts)


def _ssim_terms(x: Tensor, y: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Return the luminance term and the contrast and structure term, of a data range of 1."""
    side = SSIM_SIDES[window]
    smooth = _gaussian if window == "gaussian" else partial(F.avg_pool2d, kernel_size=side, stride=1)
    sample = 1.0 if window == "gaussian" else side**2 / (side**2 - 1)
    mean_x, mean_y = smooth(x), smooth(y)
    variances = sample * (smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2)
    covariance = sample * (smooth(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance, (2 * covariance + _C2) / (variances + _C2)


def _gaussian(images: Tensor) -> Tensor:
    """Smooth with sigma 1.5 over 11 pixels, whole windows only."""
    offsets = torch.arange(-5, 6, dtype=torch.float64, device=images.device)
    weights = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    weights = weights / weights.sum()
    rows = F.conv2d(images[:, None], weights[None, None, :, None])
    return F.conv2d(rows, weights[None, None, None, :])[:, 0]


def _ms_ssim(device: torch.device, prediction: Images, target: Images, data_range: Range) -> Array:
    check_pair(prediction, target, side=MS_SSIM_SIDE)
    ranges = as_ranges(data_range, len(target))
    parts = []
    for chosen in _in_batches(len(target), target[0].size):
        x, y = _moved(device, target, chosen, ranges), _moved(device, prediction, chosen, ranges)
        similarity = torch.ones(len(x), dtype=torch.float64, device=device)
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            if scale:
                x, y = _halved(x), _halved(y)
            luminance, contrast = _ssim_terms(x, y, "gaussian")
            coarsest = scale == len(MS_SSIM_WEIGHTS) - 1
            terms = luminance * contrast if coarsest else contrast
            similarity = similarity * terms.mean(dim=(1, 2)).clamp(min=0) ** weight
        parts.append(similarity.cpu().numpy())
    return np.concatenate(parts)


def _halved(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    even = F.pad(images[:, None], (0, width % 2, 0, height % 2), mode="replicate")
    return F.avg_pool2d(even, 2)[:, 0]


def _haarpsi(device: torch.device, prediction: Images, target: Images, data_range: Range) -> Array:
    check_pair(prediction, target, side=HAARPSI_SIDE)
    ranges = as_ranges(data_range, len(target)) / 255
    parts = []
    for chosen in _in_batches(len(target), target[0].size):
        x, y = (
            F.avg_pool2d(F.pad(_moved(device, images, chosen, ranges), (0, 1, 0, 1)), 2, stride=1)[:, ::2, ::2]
            for images in (target, prediction)
        )
        weighted = torch.zeros(len(x), dtype=torch.float64, device=device)
        total = torch.zeros_like(weighted)
        for across_rows in (True, False):
            fine, middle, coarse = (
                (_haar(x, scale, across_rows), _haar(y, scale, across_rows)) for scale in (1, 2, 3)
            )
            similarity = (_similarity(*fine) + _similarity(*middle)) / 2
            weight = torch.maximum(*coarse)
            weighted = weighted + (torch.sigmoid(HAARPSI_ALPHA * similarity) * weight).sum(dim=(1, 2))
            total = total + weight.sum(dim=(1, 2))
        index = (torch.logit(weighted / total) / HAARPSI_ALPHA).square()
        parts.append(torch.where(total > 0, index, 1.0).cpu().numpy())
    return np.concatenate(parts)


def _haar(images: Tensor, scale: int, across_rows: bool) -> Tensor:
    side = 2**scale
    before, after = side // 2 - 1, side // 2
    padded = F.pad(images, (before, after, before, after))
    kernel = (side // 2, side) if across_rows else (side, side // 2)
    means = F.avg_pool2d(padded, kernel, stride=1)
    halves = (means[:, after:], means[:, :-after]) if across_rows else (means[..., after:], means[..., :-after])
    return (halves[0] - halves[1]).abs() * (side / 2)


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    return (2 * a * b + HAARPSI_C) / (a * a + b * b + HAARPSI_C)
