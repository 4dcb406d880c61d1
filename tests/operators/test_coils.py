"""Coil maps: ESPIRiT against the truth and against a brute-force implementation, simulation, compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import (
    birdcage_maps,
    calibration_region,
    centered_fft2,
    centered_ifft2,
    complex_gaussian_noise,
    compress_coils,
    estimate_sensitivity_maps,
    random_mask,
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _head(height: int, width: int) -> Tensor:
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    radius = (rows**2 + 1.3 * columns**2).sqrt()
    texture = 1 + 0.3 * torch.cos(9 * rows + 4 * columns) + 0.3 * torch.sin(7 * columns * rows)
    return (radius < 0.75) * texture * torch.polar(torch.ones(height, width), 1.5 * rows * columns + rows)


def _scan(n_coils: int, shape: tuple[int, int], std: float = 1e-3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, maps = _head(*shape), birdcage_maps(n_coils, shape)
    kspace = centered_fft2(maps * image)
    kspace = kspace + complex_gaussian_noise(tuple(kspace.shape), std, _generator())
    mask = random_mask(shape, 2.5, 0.25, generator=_generator()).mask
    return kspace * mask, mask, maps, image.abs() > 0.1


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """|<a, b>| / (|a| |b|) over coils, at every pixel: blind to the free phase."""
    inner = (a.conj() * b).sum(0).abs()
    return inner / (torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0)).clamp_min(1e-12)


def _brute_force_espirit(calibration: np.ndarray, shape: tuple[int, int], k: int, threshold: float) -> Tensor:
    """ESPIRiT read off the paper: every kernel to image space, an SVD in every pixel."""
    n_coils, rows, columns = calibration.shape
    patches = [
        calibration[:, i : i + k, j : j + k].ravel()
        for i in range(rows - k + 1)
        for j in range(columns - k + 1)
    ]
    _, singular, right = np.linalg.svd(np.array(patches), full_matrices=False)
    kernels = torch.from_numpy(right[singular > threshold * singular[0]].reshape(-1, n_coils, k, k))
    height, width = shape
    padded = torch.zeros(kernels.shape[0], n_coils, height, width, dtype=torch.complex128)
    top, left = height // 2 - k // 2, width // 2 - k // 2
    padded[:, :, top : top + k, left : left + k] = kernels.flip(-2, -1).conj()
    # Filtering k-space by the flipped conjugate kernel is multiplying the image by this transform.
    images = centered_ifft2(padded).permute(2, 3, 0, 1).reshape(height * width, -1, n_coils)
    vectors = torch.linalg.svd(images, full_matrices=False).Vh[:, 0].conj()
    return vectors.reshape(height, width, n_coils).permute(2, 0, 1)


def test_birdcage_has_unit_sum_of_squares_and_symmetry() -> None:
    maps = birdcage_maps(8, (33, 40))
    assert maps.shape == (8, 33, 40)
    assert maps.dtype == torch.complex64
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(33, 40), atol=1e-6)
    assert torch.allclose(maps[:, 16, 20], torch.full((8,), 8**-0.5, dtype=torch.complex64), atol=1e-6)
    assert float(maps[0, 16, -1].abs()) > 2 * float(maps[0, 16, 0].abs())
    assert torch.allclose(birdcage_maps(1, (5, 5)).abs(), torch.ones(1, 5, 5))


@pytest.mark.parametrize(
    ("n_coils", "shape", "radius"),
    [(0, (8, 8), 1.5), (2, (8,), 1.5), (2, (8, 8), 1.0), (2, (8, 8), float("nan"))],
)
def test_bad_birdcage_is_one_typed_error(n_coils: int, shape: tuple[int, int], radius: float) -> None:
    with pytest.raises(ConfigError):
        birdcage_maps(n_coils, shape, relative_radius=radius)


@pytest.mark.parametrize(("n_coils", "shape"), [(4, (80, 64)), (8, (75, 61))])
def test_estimated_maps_equal_the_simulated_ones_inside_the_object(
    n_coils: int, shape: tuple[int, int]
) -> None:
    kspace, mask, truth, inside = _scan(n_coils, shape)
    maps = estimate_sensitivity_maps(kspace, mask)
    assert maps.shape == truth.shape
    assert maps.dtype == kspace.dtype
    correlation = _correlation(maps, truth)[inside]
    assert float(correlation.mean()) > 0.9999
    assert float(correlation.min()) > 0.998
    assert torch.allclose(maps.abs().square().sum(0)[inside], torch.ones(int(inside.sum())), atol=1e-5)


def test_maps_agree_with_a_brute_force_implementation() -> None:
    shape = (40, 37)
    kspace, mask, _, inside = _scan(4, shape)
    rows, columns = calibration_region(mask)
    top, left = shape[0] // 2 - rows // 2, shape[1] // 2 - columns // 2
    block = kspace[:, top : top + rows, left : left + columns].to(torch.complex128)
    expected = _brute_force_espirit(block.numpy(), shape, 5, 0.02)
    maps = estimate_sensitivity_maps(kspace, mask, kernel_size=5, crop=0, max_iter=300)
    assert float(_correlation(maps, expected.to(maps.dtype))[inside].min()) > 0.9999


def test_no_signal_means_zero_maps() -> None:
    kspace, mask, _, inside = _scan(6, (64, 64), std=1e-4)
    maps = estimate_sensitivity_maps(kspace, mask)
    energy = maps.abs().square().sum(0)
    assert bool(((energy - 1).abs() < 1e-4).logical_or(energy == 0).all())
    assert bool((energy[inside] > 0).all())
    assert bool((energy[:4, :4] == 0).all())
    assert bool((estimate_sensitivity_maps(kspace, mask, crop=0).abs().sum(0) > 0).all())


def test_phase_reference_is_the_principal_virtual_coil() -> None:
    kspace, mask, _, inside = _scan(5, (64, 56))
    maps = estimate_sensitivity_maps(kspace, mask)
    rows, columns = calibration_region(mask)
    block = kspace[:, 32 - rows // 2 : 32 - rows // 2 + rows, 28 - columns // 2 : 28 - columns // 2 + columns]
    _, matrix = compress_coils(block, 1)
    virtual = (matrix.reshape(-1)[:, None, None] * maps).sum(0)[inside]
    relative_phase = virtual * virtual.sum().conj()
    assert float(relative_phase.angle().abs().max()) < 1e-2


def test_mask_is_found_in_the_data_and_size_can_be_given() -> None:
    kspace, mask, _, _ = _scan(4, (64, 48))
    given = estimate_sensitivity_maps(kspace, mask)
    assert torch.equal(estimate_sensitivity_maps(kspace), given)
    assert torch.equal(estimate_sensitivity_maps(kspace, calibration_size=calibration_region(mask)), given)


def test_scale_of_the_data_does_not_matter() -> None:
    kspace, mask, _, inside = _scan(4, (64, 48))
    scaled = estimate_sensitivity_maps(1e-4 * kspace, mask)
    assert torch.allclose(scaled[:, inside], estimate_sensitivity_maps(kspace, mask)[:, inside], atol=1e-3)


def test_calibration_region_is_the_largest_full_block() -> None:
    mask = torch.zeros(40, 50)
    mask[20 - 5 : 20 + 5, 25 - 3 : 25 + 4] = 1
    assert calibration_region(mask) == (10, 7)
    assert calibration_region(torch.ones(40, 50)) == (24, 24)
    assert calibration_region(torch.ones(40, 50), largest=12) == (12, 12)
    assert calibration_region(torch.zeros(40, 50)) == (0, 0)
    columns = torch.zeros(50)
    columns[25 - 3 : 25 + 3] = 1
    assert calibration_region(columns.expand(40, 50)) == (24, 6)


def test_measured_scan_gives_maps_that_explain_it(shared: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared / "kspace" / "brain_8ch_poisson.h5") as file:
        kspace, mask = torch.from_numpy(file["kspace"][0]), torch.from_numpy(file["mask"][:])
    assert calibration_region(mask) == (24, 24)
    maps = estimate_sensitivity_maps(kspace, mask)
    low = torch.zeros_like(kspace)
    low[:, 103:127, 78:102] = kspace[:, 103:127, 78:102]
    images = centered_ifft2(low)
    inside = (lambda e: e > 0.02 * e.max())(images.abs().square().sum(0))
    projected = maps * (maps.conj() * images).sum(0)
    left_over = torch.linalg.vector_norm((images - projected)[:, inside]) / torch.linalg.vector_norm(
        images[:, inside]
    )
    assert float(left_over) < 0.05


def test_compression_keeps_the_energy_of_few_virtual_coils() -> None:
    mixing = torch.randn(8, 3, dtype=torch.complex64, generator=_generator())
    kspace = torch.einsum(
        "cv,bvhw->bchw", mixing, torch.randn(2, 3, 9, 8, dtype=torch.complex64, generator=_generator())
    )
    compressed, matrix = compress_coils(kspace, 3)
    assert compressed.shape == (2, 3, 9, 8)
    assert matrix.shape == (3, 8)
    assert torch.allclose(matrix @ matrix.mH, torch.eye(3, dtype=torch.complex64), atol=1e-5)
    assert float(torch.linalg.vector_norm(compressed)) == pytest.approx(
        float(torch.linalg.vector_norm(kspace)), rel=1e-5
    )
    restored = torch.einsum("vc,bvhw->bchw", matrix.conj(), compressed)
    assert torch.allclose(restored, kspace, atol=1e-4)
    energies = compressed.abs().square().sum((0, 2, 3))
    assert bool((energies.diff() <= 0).all())


def test_bad_input_is_one_typed_error() -> None:
    kspace, mask, _, _ = _scan(3, (32, 30))
    with pytest.raises(GeometryError, match="calibration block of 0x0"):
        estimate_sensitivity_maps(kspace, torch.zeros(32, 30))
    with pytest.raises(GeometryError, match=r"\(30, 32\)"):
        estimate_sensitivity_maps(kspace, mask.T)
    with pytest.raises(GeometryError):
        estimate_sensitivity_maps(kspace[0], mask)
    with pytest.raises(ConfigError):
        estimate_sensitivity_maps(kspace, mask, crop=1.0)
    with pytest.raises(NumericsError):
        estimate_sensitivity_maps(0 * kspace, mask)
    with pytest.raises(NumericsError):
        estimate_sensitivity_maps(float("nan") * kspace, mask)
    with pytest.raises(ConfigError, match=r"\[1, 3\]"):
        compress_coils(kspace, 4)
    with pytest.raises(GeometryError):
        compress_coils(kspace.real, 1)
