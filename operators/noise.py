"""Gaussian noise: drawing it, real or complex, and estimating its level from k-space or from real data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError

__all__ = [
    "complex_gaussian_noise",
    "estimate_noise_std",
    "estimate_real_noise_std",
    "gaussian_noise",
    "highest_frequency_noise_std",
    "white_noise_std",
    "whitened",
]

# Median of |z| for a standard normal z: turns a median absolute deviation into a standard deviation.
_MAD_OF_NORMAL = 0.6744897501960817
_FEWEST_SAMPLES = 16


def complex_gaussian_noise(
    shape: tuple[int, ...],
    std: float,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Draw circular complex Gaussian noise with E|n|^2 = std^2 (real, imaginary part: std / sqrt 2 each).

    Parameters
    ----------
    shape
        Shape of the result.
    std
        Standard deviation in the units of the measurement, >= 0.
    generator
        Source of randomness; the result lives on its device.
    dtype
        complex64 or complex128.

    Raises
    ------
    ConfigError
        If ``std`` is negative or not finite, or ``dtype`` is not complex.
    """
    if not dtype.is_complex:
        raise ConfigError(f"complex noise needs a complex dtype, got {dtype}")
    return _scaled_normal(shape, std, generator, dtype)


def gaussian_noise(
    shape: tuple[int, ...],
    std: float,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw real Gaussian noise with E[n^2] = std^2.

    Parameters, result and errors as in `complex_gaussian_noise`, with ``dtype`` float32 or float64.
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"real noise needs a floating-point dtype, got {dtype}")
    return _scaled_normal(shape, std, generator, dtype)


def _scaled_normal(
    shape: tuple[int, ...], std: float, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    if not (math.isfinite(std) and std >= 0):
        raise ConfigError(f"noise needs a finite standard deviation >= 0, got {std}")
    return std * torch.randn(shape, dtype=dtype, generator=generator, device=generator.device)


def estimate_noise_std(kspace: Tensor, mask: Tensor | None = None, *, fraction: float = 0.1) -> float:
    """Estimate the noise level of a scan from its highest sampled spatial frequencies.

    Takes the ``fraction`` of the sampled positions that lie farthest from the centre of k-space, where a scan
    is mostly noise, and returns std = sqrt(2) median(|Re|, |Im|) / 0.6745 per coil, root-mean-squared over
    coils. The median ignores the few strong signal samples there; signal that fills the edge of k-space
    biases it upwards.

    Parameters
    ----------
    kspace
        ``(*batch, coils, H, W)`` or ``(H, W)`` complex, DC at index ``n // 2``.
    mask
        ``(H, W)`` or ``(W,)``, nonzero where sampled (default: where any sample is nonzero).
    fraction
        Part of the sampled positions used, in (0, 1].

    Returns
    -------
    Standard deviation s with E|n|^2 = s^2 per sample, in the units of ``kspace``.

    Raises
    ------
    ConfigError, GeometryError, NumericsError
        For a bad fraction, a mask of another shape, and too few or non-finite samples.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must lie in (0, 1], got {fraction}")
    if kspace.ndim < 2 or not kspace.is_complex():
        raise GeometryError(
            f"expected complex k-space (*batch, coils, H, W), got {kspace.dtype} {tuple(kspace.shape)}"
        )
    height, width = kspace.shape[-2:]
    flat = kspace.reshape(-1, height, width)
    sampled = (flat != 0).any(0) if mask is None else torch.as_tensor(mask, device=kspace.device) != 0
    if sampled.shape not in ((height, width), (width,)):
        raise GeometryError(
            f"mask of shape {tuple(sampled.shape)} does not fit k-space {tuple(kspace.shape)}"
        )
    sampled = sampled.expand(height, width)
    rows = (torch.arange(height, device=kspace.device) - height // 2) / height
    columns = (torch.arange(width, device=kspace.device) - width // 2) / width
    radius = rows[:, None] ** 2 + columns[None, :] ** 2
    return highest_frequency_noise_std(flat[:, sampled], radius[sampled], fraction=fraction)


def highest_frequency_noise_std(samples: Tensor, radius: Tensor, *, fraction: float = 0.1) -> float:
    """Estimate the noise level of Fourier samples ``(coils, M)`` from those of the largest radius ``(M,)``.

    As `estimate_noise_std`, of which it is the part that knows no grid.
    """
    count = min(radius.numel(), max(_FEWEST_SAMPLES, math.ceil(fraction * radius.numel())))
    if count < _FEWEST_SAMPLES:
        raise NumericsError(f"{count} sampled positions are too few to estimate noise; pass noise_std yourself")
    values = samples[:, radius.topk(count).indices]
    parts = torch.cat([values.real, values.imag], dim=-1).abs()
    if not bool(torch.isfinite(parts).all()):
        raise NumericsError("k-space holds NaN or Inf at its edge; clean the data before estimating noise")
    per_coil = math.sqrt(2) * parts.median(dim=-1).values / _MAD_OF_NORMAL
    return float(per_coil.double().square().mean().sqrt())


def estimate_real_noise_std(data: Tensor) -> float:
    """Return the deviation of white noise in real data, from the finest Haar coefficients of the last two axes.

    Parameters
    ----------
    data
        ``(*batch, H, W)`` real; entries that were not measured are 0 and say nothing.

    Notes
    -----
    Donoho, Johnstone: Ideal spatial adaptation by wavelet shrinkage, Biometrika 81 (1994) 425.
    """
    return white_noise_std(data)


def whitened(data: Tensor, weights: Tensor | None) -> Tensor:
    """Return data of variance sigma^2 / w as data of variance sigma^2; weights of None are one."""
    return data if weights is None else data * weights.sqrt()


def white_noise_std(data: Tensor, measured: Tensor | None = None) -> float:
    """Return the level s of white noise, E|n|^2 = s^2 per sample, from differences of neighbours.

    The finest Haar coefficients of the last two axes; of pairs along one axis where there is only one, or where too few
    blocks of four were measured.

    Parameters
    ----------
    data
        ``(*batch, W)`` or ``(*batch, H, W)``, real or complex.
    measured
        Bool, broadcastable to the data; None: what is not zero.

    Raises
    ------
    NumericsError
        If there are fewer than 16 measured neighbours.
    """
    parts = torch.view_as_real(data.resolve_conj()).movedim(-1, 0) if data.is_complex() else data
    seen = torch.ones_like(data, dtype=torch.bool) if measured is None else measured.to(data.device).expand(data.shape)
    for axes in ((-2, -1), (-1,), (-2,)):
        if data.ndim < 2 and -2 in axes:
            continue
        finest, known = parts, seen
        for axis in axes:
            finest = finest.diff(dim=axis) / math.sqrt(2)
            known = known.unfold(axis, 2, 1).all(-1)
        values = finest[known.expand(finest.shape) & (finest != 0)].abs()
        if len(values) >= _FEWEST_SAMPLES:
            return float(values.median()) / _MAD_OF_NORMAL * (math.sqrt(2) if data.is_complex() else 1.0)
    raise NumericsError("too few neighbouring samples were measured to estimate the noise; pass noise_std yourself")
