"""Complex noise: its convention, and its level estimated from k-space alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import (
    CartesianMRI,
    birdcage_maps,
    complex_gaussian_noise,
    estimate_noise_std,
    gaussian_mask_2d,
    random_mask,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_convention_is_the_total_complex_variance() -> None:
    noise = complex_gaussian_noise((400, 400), 3.0, _generator(), dtype=torch.complex128)
    assert float(noise.abs().square().mean()) == pytest.approx(9.0, rel=0.02)
    assert float(noise.real.std()) == pytest.approx(3.0 / 2**0.5, rel=0.02)
    assert abs(complex((noise * noise).mean())) < 0.1
    assert torch.equal(
        complex_gaussian_noise((5,), 1.0, _generator()), complex_gaussian_noise((5,), 1.0, _generator())
    )
    assert bool((complex_gaussian_noise((5,), 0.0, _generator()) == 0).all())


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_bad_level_is_one_typed_error(std: float) -> None:
    with pytest.raises(ConfigError):
        complex_gaussian_noise((2, 2), std, _generator())


@pytest.mark.parametrize("std", [0.003, 0.02])
@pytest.mark.parametrize("kind", ["columns", "points", "full"])
@pytest.mark.parametrize("coils", [1, 8])
def test_level_of_simulated_data_is_found(std: float, kind: str, coils: int) -> None:
    size = 160
    masks = {
        "columns": random_mask((size, size), 4, generator=_generator()).mask,
        "points": gaussian_mask_2d((size, size), 6, generator=_generator()).mask,
        "full": torch.ones(size, size),
    }
    operator = CartesianMRI(masks[kind], birdcage_maps(coils, (size, size)))
    grid = torch.linspace(-1, 1, size)
    radius = (grid[:, None] ** 2 + 1.4 * grid[None, :] ** 2).sqrt()
    # Edges one pixel wide and a fine texture inside: an image, not a smooth blob.
    image = torch.sigmoid((0.8 - radius) * size / 2) * (1 + 0.5 * torch.cos(20 * radius))
    clean = operator(image)
    noise = complex_gaussian_noise(tuple(clean.shape), std, _generator()) * operator.mask
    estimate = estimate_noise_std(clean + noise, operator.mask)
    assert estimate == pytest.approx(std, rel=0.15)
    assert estimate_noise_std(clean + noise) == pytest.approx(estimate, rel=1e-6)
    assert estimate_noise_std(1000 * (clean + noise), operator.mask) == pytest.approx(
        1000 * estimate, rel=1e-4
    )


def test_a_few_outliers_do_not_matter() -> None:
    kspace = complex_gaussian_noise((2, 64, 64), 1.0, _generator())
    kspace[:, 0, ::8] = 100.0
    assert estimate_noise_std(kspace) == pytest.approx(1.0, rel=0.15)


def test_row_mask_is_taken_and_single_coil_data_too() -> None:
    kspace = complex_gaussian_noise((64, 48), 0.5, _generator())
    assert estimate_noise_std(kspace, torch.ones(48)) == pytest.approx(0.5, rel=0.15)


def test_measured_scan_gives_a_plausible_level(shared: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared / "kspace" / "brain_8ch_poisson.h5") as file:
        kspace, mask = torch.from_numpy(file["kspace"][0]), torch.from_numpy(file["mask"][:])
    level = estimate_noise_std(kspace, mask)
    # The level must be a floor: not moved by how much of the edge is looked at, and far below the signal.
    assert estimate_noise_std(kspace, mask, fraction=0.03) == pytest.approx(level, rel=0.1)
    assert level < 0.01 * float(kspace.abs().max())


def test_bad_input_is_one_typed_error() -> None:
    kspace = complex_gaussian_noise((2, 16, 16), 1.0, _generator())
    with pytest.raises(GeometryError, match=r"\(8, 16\)"):
        estimate_noise_std(kspace, torch.ones(8, 16))
    with pytest.raises(GeometryError):
        estimate_noise_std(kspace.real)
    with pytest.raises(ConfigError):
        estimate_noise_std(kspace, fraction=0.0)
    with pytest.raises(NumericsError, match="too few"):
        estimate_noise_std(kspace, torch.eye(16)[:1].expand(16, 16) * torch.eye(16))
    with pytest.raises(NumericsError, match="NaN"):
        estimate_noise_std(kspace * float("nan"), torch.ones(16, 16))
