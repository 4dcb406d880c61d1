"""The Fourier transform of an image at arbitrary frequencies, by Kaiser-Bessel gridding in plain torch."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, ResourceError
from treg_med.operators.base import LinearOperator
from treg_med.operators.contract import checked_image_shape
from treg_med.operators.noise import highest_frequency_noise_std, whitened

__all__ = [
    "NonuniformFFT",
    "inverse_kernel_transform",
    "kaiser_bessel",
    "kaiser_bessel_transform",
    "kernel_at",
    "kernel_parameter",
    "origin_halves",
    "smooth_length",
    "sparse_rows",
]


class NonuniformFFT(LinearOperator):
    r"""Fourier transform of an image ``(*batch, H, W)`` at M frequencies, ``(*batch, M)``.

    .. math:: y_m = \sum_{r} x_r\, e^{-2 \pi i\, k_m \cdot r}, \qquad r = (i - H // 2,\ j - W // 2)

    up to the error of the kernel: relative to white noise 2e-2, 5e-3, 1e-3 and 3e-4 for widths 3 to 6 on a grid 1.25
    times as fine, less for images. The adjoint is the exact transpose, whatever that error.

    Parameters
    ----------
    shape
        ``(H, W)`` of the image.
    points
        Frequencies k ``(M, 2)`` in cycles per pixel, row then column; periodic with period one.
    oversampling
        Fineness of the grid, from 1.1 to 4.
    width
        Grid points under the kernel along each axis, from 2 to 12.
    tolerance
        None grids as described. A number from 1e-12 to 1e-1 leaves the transform to the package finufft, on a CPU, with
        that relative error; its adjoint is the exact transpose too.

    Raises
    ------
    GeometryError
        If the points are not ``(M, 2)``.
    ConfigError
        For points that are not finite, or an oversampling, width or tolerance out of range.
    ResourceError
        If finufft is asked for and not installed.

    Notes
    -----
    The interpolation matrix and its transpose are held as sparse rows: ``16 M width^2`` bytes in single precision.

    Fessler and Sutton, IEEE Trans. Signal Process. 51 (2003) 560. Kernel: Beatty, Nishimura and Pauly, IEEE Trans. Med.
    Imaging 24 (2005) 799.
    """

    _points: Tensor
    _deapodisation: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        points: Tensor,
        *,
        oversampling: float = 1.25,
        width: int = 5,
        tolerance: float | None = None,
    ) -> None:
        shape = checked_image_shape(shape)
        k = torch.as_tensor(points).detach().to(torch.float64)
        if k.ndim != 2 or k.shape[1] != 2 or len(k) == 0:
            raise GeometryError(f"expected frequencies (M, 2), row then column, got {tuple(k.shape)}")
        if not bool(torch.isfinite(k).all()):
            raise ConfigError("expected finite frequencies, got NaN or Inf; check the trajectory")
        if not 1.1 <= oversampling <= 4 or not 2 <= width <= 12:
            raise ConfigError(
                f"expected an oversampling from 1.1 to 4 and a width from 2 to 12, got {oversampling:g} and {width}"
            )
        if tolerance is not None and not 1e-12 <= tolerance <= 0.1:
            raise ConfigError(f"expected a tolerance from 1e-12 to 0.1, or None, got {tolerance!r}")
        super().__init__(shape, (len(k),), is_complex=True)
        self.oversampling, self.width, self.tolerance = float(oversampling), int(width), tolerance
        if tolerance is not None:
            _finufft()
        self._grid = tuple(smooth_length(max(math.ceil(oversampling * n), 2 * width)) for n in shape)
        self.register_buffer("_points", k.clone())
        inverse = [inverse_kernel_transform(n, g, width) for n, g in zip(shape, self._grid, strict=True)]
        self.register_buffer("_deapodisation", (inverse[0][:, None] * inverse[1]).float())

    @property
    def shift_invariant(self) -> bool:
        """A^H A is a convolution, up to its border."""
        return True

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise from the tenth of the samples at the highest frequencies."""
        radius = self._points.square().sum(1).to(y.device)
        return highest_frequency_noise_std(whitened(y, weights)[None], radius)

    def facts(self) -> dict[str, Any]:
        """Return the number of samples and the highest frequency in cycles per pixel."""
        return {"samples": len(self._points), "highest_frequency": float(self._points.square().sum(1).max().sqrt())}

    def _forward(self, x: Tensor) -> Tensor:
        batch = x.shape[:-2]
        if self.tolerance is not None:
            return self._planned(x.reshape(-1, *self.domain_shape), 2).reshape(*batch, -1)
        scaled = x.reshape(-1, *self.domain_shape) * self._deapodisation.to(x.real.dtype)
        grid = scaled.new_zeros(len(scaled), *self._grid)
        for image, place in _origin_blocks(self.domain_shape, self._grid):
            grid[(slice(None), *place)] = scaled[(slice(None), *image)]
        spectrum = torch.view_as_real(torch.fft.fft2(grid, out=grid)).flatten(1, 2)  # (n, K, 2)
        columns = spectrum.transpose(0, 1).reshape(spectrum.shape[1], -1)
        values = self._matrices(columns)[0] @ columns
        values = values.reshape(len(values), -1, 2).transpose(0, 1).contiguous()
        return torch.view_as_complex(values).reshape(*batch, -1)

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[:-1]
        if self.tolerance is not None:
            return self._planned(y.reshape(-1, y.shape[-1]), 1).reshape(*batch, *self.domain_shape)
        flat = torch.view_as_real(y.resolve_conj().reshape(-1, y.shape[-1])).transpose(0, 1)
        columns = self._matrices(flat)[1] @ flat.reshape(len(flat), -1)
        grid = torch.view_as_complex(columns.reshape(*self._grid, -1, 2).permute(2, 0, 1, 3).contiguous())
        torch.fft.ifft2(grid, norm="forward", out=grid)
        x = grid.new_empty(len(grid), *self.domain_shape)
        for image, place in _origin_blocks(self.domain_shape, self._grid):
            x[(slice(None), *image)] = grid[(slice(None), *place)]
        return x.mul_(self._deapodisation.to(x.real.dtype)).reshape(*batch, *self.domain_shape)

    def _planned(self, values: Tensor, kind: int) -> Tensor:
        """Transform every item with finufft: kind 2 from the image to the points, kind 1 back."""

        def plan() -> Any:
            made = _finufft().Plan(
                kind,
                self.domain_shape,
                eps=self.tolerance,
                isign=-1 if kind == 2 else 1,
                dtype=str(values.dtype).removeprefix("torch."),
                nthreads=torch.get_num_threads(),
            )
            radians = torch.remainder(2 * torch.pi * self._points.double() + torch.pi, 2 * torch.pi) - torch.pi
            made.setpts(*(axis.to(values.real.dtype).contiguous().numpy() for axis in radians.T))
            return made

        if values.device.type != "cpu":
            raise ConfigError(f"expected data on the CPU for finufft, got {values.device}; leave out the tolerance")
        made = self._cached(("finufft", kind, values.dtype), plan)
        items = [made.execute(item.resolve_conj().contiguous().numpy()) for item in values]
        return torch.stack([torch.from_numpy(item) for item in items])

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the interpolation matrix and its transpose as sparse rows, in the precision of a tensor."""
        key = ("interpolation", like.dtype, like.device)
        pair: tuple[Tensor, Tensor] = self._cached(key, lambda: self._build(like.dtype, like.device))
        return pair

    def _build(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        k, (rows, columns) = self._points.to(device), self._grid
        i, wi = kernel_at(k[:, 0], rows, self.width, self.domain_shape[0])
        j, wj = kernel_at(k[:, 1], columns, self.width, self.domain_shape[1])
        index = ((i % rows)[:, :, None] * columns + (j % columns)[:, None, :]).flatten(1)
        # Rounded once to single precision, so that both precisions apply the same matrix.
        weight = (wi[:, :, None] * wj[:, None, :]).flatten(1).float().to(dtype)
        return sparse_rows(index, weight, rows * columns)


def origin_halves(n: int, grid: int) -> list[tuple[slice, slice]]:
    """Pairs of halves of an axis of n pixels and of its grid: the origin, pixel n // 2, sits at the grid's corner."""
    half = n // 2
    return [(slice(half, n), slice(0, n - half)), (slice(0, half), slice(grid - half, grid))]


def _origin_blocks(
    shape: tuple[int, ...], grid: tuple[int, ...]
) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Pairs of quadrants of an image and of its grid."""
    rows, columns = (origin_halves(n, g) for n, g in zip(shape, grid, strict=True))
    return [((a[0], b[0]), (a[1], b[1])) for a in rows for b in columns]


def sparse_rows(
    index: Tensor, weight: Tensor, columns: int, *, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a matrix with the entries `weight` at the columns `index`, both ``(rows, n)``, and its transpose.

    Of the entries only those `kept` are taken. The transposed matrix is sorted by column, stably, so that sums are
    reproducible.
    """
    rows, per_row = index.shape
    row = torch.arange(rows, device=index.device).repeat_interleave(per_row)
    flat, values = index.flatten(), weight.flatten()
    if kept is not None:
        chosen = kept.flatten()
        row, flat, values = row[chosen], flat[chosen], values[chosen]
    order = torch.argsort(flat, stable=True)
    return (
        _csr(_starts(row, rows), flat, values, (rows, columns)),
        _csr(_starts(flat, columns), row[order], values[order], (columns, rows)),
    )


def _starts(places: Tensor, count: int) -> Tensor:
    """Return where the entries of each of `count` rows start, once sorted."""
    counts = torch.bincount(places, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _csr(starts: Tensor, index: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        # torch announces the layout as beta once per process.
        warnings.filterwarnings("ignore", message=".*[Ss]parse (CSR|invariant).*")
        small = torch.int32
        return torch.sparse_csr_tensor(starts.to(small), index.to(small), values, shape, check_invariants=False)


def _finufft() -> Any:
    try:
        return import_module("finufft")
    except ImportError as error:
        raise ResourceError("a tolerance needs the package finufft; pip install finufft, or leave it out") from error


def smooth_length(least: int) -> int:
    """Return the smallest even product of 2, 3 and 5 that is at least `least`, which an FFT likes."""
    n = least + least % 2
    while _without_small_primes(n) != 1:
        n += 2
    return n


def _without_small_primes(n: int) -> int:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n


def kernel_parameter(oversampling: float, width: int) -> float:
    """Return beta of the Kaiser-Bessel kernel of a width in grid points."""
    return math.pi * math.sqrt((width / oversampling) ** 2 * (oversampling - 0.5) ** 2 - 0.8)


def kaiser_bessel(distance: Tensor, width: int, beta: float) -> Tensor:
    """Return the kernel, one at zero, at distances in grid points."""
    inside = (1 - (distance / (width / 2)).square()).clamp_min(0).sqrt()
    return torch.special.i0(beta * inside) / torch.special.i0(distance.new_tensor(beta))


def kaiser_bessel_transform(frequency: Tensor, width: int, beta: float) -> Tensor:
    """Return the Fourier transform of the kernel at frequencies in cycles per grid point, inside its pass band."""
    root = (beta**2 - (math.pi * width * frequency).square()).clamp_min(1e-12).sqrt()
    return width * torch.sinh(root) / (root * torch.special.i0(frequency.new_tensor(beta)))


def kernel_at(k: Tensor, grid: int, width: int, n: int) -> tuple[Tensor, Tensor]:
    """Return the grid points ``(M, width)`` under the kernel about each frequency, and its values there.

    Points beyond the grid of an axis of n pixels are not wrapped.
    """
    position = (k * grid)[:, None]
    points = torch.ceil(position - width / 2) + torch.arange(width, device=k.device)
    return points.long(), kaiser_bessel(position - points, width, kernel_parameter(grid / n, width))


def inverse_kernel_transform(n: int, grid: int, width: int) -> Tensor:
    """Return one over the Fourier transform of the kernel at the pixels of one axis, float64 ``(n,)``."""
    place = (torch.arange(n, dtype=torch.float64) - n // 2) / grid
    return 1 / kaiser_bessel_transform(place, width, kernel_parameter(grid / n, width))
