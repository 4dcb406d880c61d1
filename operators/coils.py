"""Receive coils: sensitivity maps from calibration data (ESPIRiT), simulated maps, and coil compression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError

__all__ = ["birdcage_maps", "calibration_region", "compress_coils", "estimate_sensitivity_maps"]

# Bytes of per-pixel coil matrices held at once.
_BLOCK_BYTES = 16 << 20


def birdcage_maps(
    n_coils: int,
    shape: tuple[int, int],
    *,
    relative_radius: float = 1.5,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Simulate a ring of parallel rods, sum_c |S_c|^2 = 1 everywhere.

    S_c(z) is proportional to 1 / (1 - z exp(-i t_c) / R), the receive field of a line current at R exp(i
    t_c), with z = x + i y in units of the half side, t_c = 2 pi c / n_coils, each coil phased to agree at the
    centre.

    Parameters
    ----------
    n_coils
        Number of coils, >= 1.
    shape
        ``(H, W)``.
    relative_radius
        Ring radius R in units of the half side; > sqrt(2) keeps the rods outside the image.
    dtype
        complex64 or complex128.

    Returns
    -------
    ``(n_coils, H, W)``.

    Raises
    ------
    ConfigError
        For bad parameters.
    """
    if n_coils < 1 or len(shape) != 2 or min(shape) < 1:
        raise ConfigError(f"birdcage_maps needs n_coils >= 1 and a shape (H, W), got {n_coils} and {shape}")
    if not (math.isfinite(relative_radius) and relative_radius > math.sqrt(2)):
        raise ConfigError(
            f"relative_radius must exceed sqrt(2), got {relative_radius}: a rod would lie in the image"
        )
    if not dtype.is_complex:
        raise ConfigError(f"sensitivity maps need a complex dtype, got {dtype}")
    rows, columns = (((torch.arange(n) - n // 2) / max(1.0, n / 2)).double() for n in shape)
    position = torch.complex(columns.expand(*shape), rows[:, None].expand(*shape))
    angles = 2 * math.pi * torch.arange(n_coils, dtype=torch.float64) / n_coils
    rods = torch.polar(torch.full_like(angles, 1 / relative_radius), -angles)
    maps = 1 / (1 - position * rods[:, None, None])
    return (maps / torch.linalg.vector_norm(maps, dim=0)).to(dtype)


def calibration_region(mask: Tensor, *, largest: int = 24) -> tuple[int, int]:
    """Return the sides (rows, columns) of the largest fully sampled block about the centre of k-space.

    Parameters
    ----------
    mask
        ``(H, W)``, nonzero where sampled.
    largest
        Upper limit of each side.

    Returns
    -------
    Sides; the block starts at ``n // 2 - side // 2``. (0, 0) where the centre itself is not sampled.
    """
    if mask.ndim != 2:
        raise GeometryError(f"calibration_region expects a mask (H, W), got {tuple(mask.shape)}")
    height, width = mask.shape
    sampled = (mask != 0).cpu()
    best = (0, 0)
    for rows in range(1, min(height, largest) + 1):
        top = height // 2 - rows // 2
        complete = sampled[top : top + rows].all(dim=0)
        columns = 0
        while columns < min(width, largest):
            left = width // 2 - (columns + 1) // 2
            if not bool(complete[left : left + columns + 1].all()):
                break
            columns += 1
        if rows * columns > best[0] * best[1]:
            best = (rows, columns)
    return best


def estimate_sensitivity_maps(
    kspace: Tensor,
    mask: Tensor | None = None,
    *,
    calibration_size: int | tuple[int, int] | None = None,
    kernel_size: int = 6,
    singular_threshold: float = 0.02,
    crop: float = 0.8,
    max_iter: int = 50,
) -> Tensor:
    """Estimate coil sensitivities from the calibration region by ESPIRiT.

    The k-space patches of a multi-coil image span a small subspace V; the sensitivities at a pixel are the
    eigenvector of eigenvalue 1 of (1/k^2) sum over patch offsets of V V^H seen in image space.

    Parameters
    ----------
    kspace
        ``(coils, H, W)`` complex, DC at index ``n // 2``.
    mask
        ``(H, W)``, nonzero where sampled (default: where any coil is nonzero); locates the calibration block.
    calibration_size
        Side (or sides) of the central block to use (default: the largest fully sampled one, at most 24).
    kernel_size
        Side k of the k-space patches.
    singular_threshold
        Singular values below this fraction of the largest are noise.
    crop
        Pixels whose eigenvalue is below this hold no signal; their maps are 0. 0 keeps all pixels.
    max_iter
        Largest number of power iterations.

    Returns
    -------
    ``(coils, H, W)`` in the precision of ``kspace``: sum_c |S_c|^2 = 1 where there is signal and 0 elsewhere.
    Phase reference: the first principal component of the calibration data, seen as a virtual coil, has
    sensitivity >= 0.

    Raises
    ------
    GeometryError
        If the shapes do not fit or the calibration block is smaller than the patches.
    NumericsError
        If the calibration data are zero or not finite.

    Notes
    -----
    Uecker et al., Magn. Reson. Med. 71 (2014) 990.
    """
    _check_espirit_arguments(kspace, mask, kernel_size, singular_threshold, crop, max_iter)
    sampled = (kspace != 0).any(dim=0) if mask is None else mask
    calibration = _calibration_data(kspace, sampled, calibration_size, kernel_size).to(torch.complex128)
    energy = float(torch.linalg.vector_norm(calibration))
    if not math.isfinite(energy) or energy == 0:
        raise NumericsError(f"the calibration region has norm {energy}; it must hold finite, nonzero data")
    correlation = _subspace_correlation(calibration / energy, kernel_size, singular_threshold).to(
        kspace.dtype
    )
    reference = torch.linalg.svd(calibration.flatten(1), full_matrices=False).U[:, 0].to(kspace.dtype)
    start = _low_resolution_coils(calibration / energy, kspace.shape[-2:]).to(kspace.dtype)
    return _dominant_vectors(correlation, start, reference, crop, max_iter)


def compress_coils(kspace: Tensor, n_virtual: int) -> tuple[Tensor, Tensor]:
    """Combine coils linearly into fewer virtual ones that keep most of the energy.

    y' = W y with W the leading left singular vectors of the (coils x samples) data, conjugate transposed;
    orthonormal rows keep white noise white and its level unchanged.

    Parameters
    ----------
    kspace
        ``(*batch, coils, H, W)``; all samples together determine W.
    n_virtual
        Number of virtual coils, between 1 and coils.

    Returns
    -------
    The compressed data ``(*batch, n_virtual, H, W)`` and W ``(n_virtual, coils)``.

    Raises
    ------
    ConfigError, GeometryError
        For a bad number of virtual coils, or data that are not complex multi-coil k-space.

    Notes
    -----
    Buehrer et al., Magn. Reson. Med. 57 (2007) 1131.
    """
    if kspace.ndim < 3 or not kspace.is_complex():
        raise GeometryError(
            f"expected complex k-space (*batch, coils, H, W), got {kspace.dtype} {tuple(kspace.shape)}"
        )
    n_coils = kspace.shape[-3]
    if not 1 <= n_virtual <= n_coils:
        raise ConfigError(f"n_virtual must lie in [1, {n_coils}] (the coils of the data), got {n_virtual}")
    samples = kspace.movedim(-3, 0).reshape(n_coils, -1).to(torch.complex128)
    _, vectors = torch.linalg.eigh(samples @ samples.mH)
    matrix = vectors[:, -n_virtual:].flip(-1).mH.to(kspace.dtype)
    return torch.einsum("vc,...chw->...vhw", matrix, kspace), matrix


def _check_espirit_arguments(
    kspace: Tensor, mask: Tensor | None, kernel_size: int, threshold: float, crop: float, max_iter: int
) -> None:
    if kspace.ndim != 3 or not kspace.is_complex():
        raise GeometryError(
            f"expected complex k-space (coils, H, W), got {kspace.dtype} {tuple(kspace.shape)}"
        )
    if mask is not None and mask.shape != kspace.shape[1:]:
        raise GeometryError(
            f"mask {tuple(mask.shape)} does not fit k-space {tuple(kspace.shape)}; expected (H, W)"
        )
    if kernel_size < 1 or not 0 < threshold < 1 or not 0 <= crop < 1 or max_iter < 1:
        raise ConfigError(
            "estimate_sensitivity_maps needs kernel_size >= 1, singular_threshold in (0, 1), crop in [0, 1) "
            f"and max_iter >= 1, got {kernel_size}, {threshold}, {crop}, {max_iter}"
        )


def _calibration_data(
    kspace: Tensor, sampled: Tensor, size: int | tuple[int, int] | None, kernel_size: int
) -> Tensor:
    height, width = kspace.shape[1:]
    if size is None:
        rows, columns = calibration_region(sampled)
    else:
        rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < kernel_size or rows > height or columns > width:
        raise GeometryError(
            f"a calibration block of {rows}x{columns} in {height}x{width} k-space does not hold "
            f"{kernel_size}x{kernel_size} patches; acquire a fully sampled centre, lower kernel_size, "
            "or pass sensitivity maps yourself"
        )
    top, left = height // 2 - rows // 2, width // 2 - columns // 2
    return kspace[:, top : top + rows, left : left + columns]


def _subspace_correlation(calibration: Tensor, kernel_size: int, threshold: float) -> Tensor:
    """Return the (coils, coils, 2k-1, 2k-1) correlation of the patch subspace over patch offsets."""
    n_coils, k = calibration.shape[0], kernel_size
    patches = calibration.unfold(1, k, 1).unfold(2, k, 1)
    matrix = patches.permute(1, 2, 0, 3, 4).reshape(-1, n_coils * k * k)
    _, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    kernels = right[singular > threshold * singular[0]].reshape(-1, n_coils, k, k)
    # Correlating the kernels first leaves coils^2 small images to transform, not one per kernel and coil.
    spectrum = torch.fft.fft2(kernels, s=(2 * k - 1, 2 * k - 1))
    products = torch.einsum("nahw,nbhw->abhw", spectrum, spectrum.conj())
    return torch.fft.fftshift(torch.fft.ifft2(products), dim=(-2, -1)) / k**2


def _low_resolution_coils(calibration: Tensor, shape: torch.Size) -> Tensor:
    """Return the coil images of the calibration block alone, a start near the wanted eigenvectors."""
    row_basis = _fourier_basis(shape[0], calibration.shape[1])
    column_basis = _fourier_basis(shape[1], calibration.shape[2])
    return row_basis.to(calibration) @ calibration @ column_basis.to(calibration).mT


def _fourier_basis(n: int, n_frequencies: int) -> Tensor:
    """Return exp(2 pi i f (m - n//2) / n), f = -(n_frequencies // 2)..., as (n, n_frequencies)."""
    position = torch.arange(n) - n // 2
    frequency = torch.arange(n_frequencies) - n_frequencies // 2
    cycles = torch.outer(position, frequency).double() / n
    return torch.polar(torch.ones_like(cycles), 2 * math.pi * cycles)


def _dominant_vectors(
    correlation: Tensor, start: Tensor, reference: Tensor, crop: float, max_iter: int
) -> Tensor:
    """Return the dominant eigenvector of every pixel's coil matrix, phased and cropped."""
    n_coils, height, width = start.shape
    extent = correlation.shape[-1]
    row_basis = _fourier_basis(height, extent).to(correlation)
    column_basis = _fourier_basis(width, extent).to(correlation)
    half = (correlation @ column_basis.mT).permute(2, 3, 0, 1)
    maps = torch.empty_like(start)
    block = max(1, _BLOCK_BYTES // (n_coils**2 * width * start.element_size()))
    for first in range(0, height, block):
        rows = slice(first, min(first + block, height))
        matrices = torch.einsum("re,ewab->rwab", row_basis[rows], half)
        vectors, value = _power_iterations(matrices, start[:, rows].permute(1, 2, 0), max_iter)
        projection = torch.einsum("c,rwc->rw", reference.conj(), vectors)
        vectors = vectors * torch.polar(torch.ones_like(projection.real), -projection.angle())[..., None]
        maps[:, rows] = torch.where(value[..., None] >= crop, vectors, 0).permute(2, 0, 1)
    return maps


def _power_iterations(matrices: Tensor, start: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
    """Return the dominant unit eigenvector and eigenvalue of Hermitian positive matrices."""
    tiny = torch.finfo(start.real.dtype).tiny
    norm = torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    vectors = torch.where(norm > tiny, start / norm.clamp_min(tiny), start.shape[-1] ** -0.5)
    value = torch.zeros_like(norm)
    for _ in range(max_iter):
        product = (matrices @ vectors[..., None]).squeeze(-1)
        previous, value = value, torch.linalg.vector_norm(product, dim=-1, keepdim=True)
        vectors = product / value.clamp_min(tiny)
        if bool(((value - previous).abs() <= 1e-6).all()):
            break
    return vectors, value.squeeze(-1)
