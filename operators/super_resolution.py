"""Downsampling of an image by a whole factor: the measurement of super-resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.contract import checked_image_shape
from treg_med.operators.separable import Separable

__all__ = ["SuperResolution"]


class SuperResolution(Separable):
    """Downsample an image ``(*batch, H, W)`` to ``(*batch, H / f, W / f)``.

    y[i, j] = sum_{m, n} w[m - c_i] w[n - c_j] x[m, n],  c_i = f i + (f - 1) / 2

    with the weights of each output pixel normalised to sum one.

    Parameters
    ----------
    shape
        ``(H, W)`` of the image.
    factor
        Whole factor f >= 1 of both axes.
    kernel
        ``"mean"`` averages blocks of f x f pixels, so that A A^H = 1 / f^2. ``"bicubic"`` is the cubic
        convolution kernel with a = -1/2 stretched by f against aliasing; it reads beyond the border by
        repeating the last pixel.
    is_complex
        Whether images are complex.

    Raises
    ------
    ConfigError
        If the factor is not a positive integer or the kernel is unknown.
    GeometryError
        If a side of the image is not a multiple of the factor.

    Notes
    -----
    Keys, IEEE Trans. Acoust. Speech Signal Process. 29 (1981) 1153 (cubic convolution).
    """

    def __init__(
        self,
        shape: tuple[int, int],
        factor: int,
        kernel: Literal["mean", "bicubic"] = "mean",
        *,
        is_complex: bool = False,
    ) -> None:
        height, width = checked_image_shape(shape)
        if not isinstance(factor, int) or factor < 1:
            raise ConfigError(f"super-resolution needs an integer factor >= 1, got {factor!r}")
        if kernel not in _KERNELS:
            raise ConfigError(f"unknown downsampling kernel {kernel!r}; choose one of {', '.join(_KERNELS)}")
        if height % factor or width % factor:
            raise GeometryError(
                f"an image of {height}x{width} does not divide into blocks of {factor}x{factor}; "
                "crop or pad it to a multiple of the factor"
            )
        super().__init__(
            _resampling_matrix(height, factor, kernel),
            _resampling_matrix(width, factor, kernel),
            is_complex=is_complex,
        )
        self.factor = factor
        self.kernel = kernel

    def __repr__(self) -> str:
        """Return shapes, factor and kernel."""
        return f"{super().__repr__()}, factor {self.factor}, {self.kernel}"


def _box(t: Tensor) -> Tensor:
    return (t.abs() < 0.5).to(t.dtype)


def _cubic(t: Tensor) -> Tensor:
    """Return Keys' cubic with a = -1/2, the value that makes it accurate to third order."""
    t = t.abs()
    inner = (1.5 * t - 2.5) * t**2 + 1
    outer = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, inner, torch.where(t < 2, outer, 0))


# Profile and half width, in units of the output pixel.
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {"mean": (_box, 0.5), "bicubic": (_cubic, 2.0)}


def _resampling_matrix(n: int, factor: int, kernel: str) -> Tensor:
    """Return the ``(n / factor, n)`` matrix of one axis, rows summing to one, borders repeated."""
    profile, half_width = _KERNELS[kernel]
    reach = math.ceil(half_width * factor)
    inputs = torch.arange(-reach, n + reach)
    centres = factor * torch.arange(n // factor, dtype=torch.float64) + (factor - 1) / 2
    weights = profile((inputs - centres[:, None]) / factor)
    matrix = torch.zeros(n // factor, n, dtype=torch.float64)
    matrix.index_add_(1, inputs.clamp(0, n - 1), weights)
    return matrix / matrix.sum(dim=1, keepdim=True)
