"""How each metric is called on a page, in which unit, and which direction is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "MINUS", "Metric", "metric"]

MINUS = "−"


@dataclass(frozen=True)
class Metric:
    """A column of the table; `better` is None where neither direction is (a residual is best near one)."""

    name: str
    label: str
    better: Literal["higher", "lower"] | None
    unit: str = ""
    digits: int | None = None

    @property
    def heading(self) -> str:
        """Label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def format(self, value: float | None, *, signed: bool = False) -> str:
        """Write a value with the digits of the metric, a true minus sign, and a plus where asked."""
        if value is None or not math.isfinite(value):
            return "–"
        size = f"{abs(value):.{self.digits}f}" if self.digits is not None else f"{abs(value):.3g}"
        # Nothing is left of a value that rounds to zero but its sign, which would mislead.
        zero = float(size) == 0
        sign = MINUS if value < 0 and not zero else "+" if signed and not zero else ""
        return sign + size


METRICS = {
    each.name: each
    for each in (
        Metric("psnr", "PSNR", "higher", "dB", 2),
        Metric("psnr_fr", "PSNR, fixed range", "higher", "dB", 2),
        Metric("psnr_roi", "PSNR in region", "higher", "dB", 2),
        Metric("ssim", "SSIM", "higher", "", 4),
        Metric("ssim_fr", "SSIM, fixed range", "higher", "", 4),
        Metric("ssim_unit_range", "SSIM, range 1", "higher", "", 4),
        Metric("ssim_roi", "SSIM in region", "higher", "", 4),
        Metric("ms_ssim", "MS-SSIM", "higher", "", 4),
        Metric("haarpsi", "HaarPSI", "higher", "", 4),
        Metric("nmse", "NMSE", "lower", "", 5),
        Metric("nmse_roi", "NMSE in region", "lower", "", 5),
        Metric("rmse_hu", "RMSE", "lower", "HU", 1),
        Metric("rmse_hu_soft", "RMSE, soft tissue", "lower", "HU", 1),
        Metric("mae_hu", "MAE", "lower", "HU", 1),
        Metric("error_ratio", "error ratio, region to rest", "lower"),
        Metric("cnr", "CNR", None),
        Metric("cnr_target", "CNR of the target", None),
        Metric("lesion_contrast", "lesion contrast", None),
        Metric("residual", "residual", None, "noise units", 3),
    )
}


def metric(name: str) -> Metric:
    """Return what is known of a metric; of an unknown one neither direction is better."""
    return METRICS.get(name, Metric(name, name.replace("_", " "), None))
