"""The rotation axis is found on phantoms, on a real scan, cut off or noisy, and not found where there is none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators.counts import flat_field, log_transform, simulate_counts
from treg_med.operators.rotation_centre import find_rotation_centre


def _views(count: int, arc: float = math.pi) -> Tensor:
    return torch.arange(count, dtype=torch.float64) * arc / count


def _ellipses(angles: Tensor, bins: int, centre: float, seed: int = 0) -> Tensor:
    """Return exact line integrals, up to 4, of an ellipse of ellipses that fits the detector."""
    random = torch.Generator().manual_seed(seed)
    radius = min(centre, bins - 1 - centre)
    s = torch.arange(bins, dtype=torch.float64) - centre
    sinogram = torch.zeros(len(angles), bins, dtype=torch.float64)
    for index in range(8):
        a, b, distance, direction, turn, value = torch.rand(6, generator=random, dtype=torch.float64).tolist()
        a, b = (0.85, 0.6) if index == 0 else (0.03 + 0.17 * a, 0.03 + 0.17 * b)
        distance *= 0.05 if index == 0 else 0.5
        value = 1.0 if index == 0 else 1.5 * value - 0.5
        a, b, distance = a * radius, b * radius, distance * radius
        width = (a * torch.cos(angles - turn)) ** 2 + (b * torch.sin(angles - turn)) ** 2
        offset = s - (distance * torch.cos(angles - 2 * math.pi * direction))[:, None]
        chord = (width[:, None] - offset**2).clamp_min(0).sqrt() / width[:, None]
        sinogram += 2 * value * a * b * chord
    return 4 * sinogram / sinogram.max()


def _noisy(sinogram: Tensor, i0: float, seed: int = 0) -> Tensor:
    counts = simulate_counts(sinogram, i0, generator=torch.Generator().manual_seed(seed))
    return log_transform(counts, i0).sinogram


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("i0", [None, 1e5, 4e3])
@pytest.mark.parametrize(
    ("views", "arc", "bins", "centre"),
    [
        (180, math.pi, 256, 98.3),
        (90, math.pi, 256, 141.0),
        (60, math.pi, 128, 63.5),
        (250, 4.0, 256, 117.25),
        (360, 2 * math.pi, 256, 110.6),
    ],
    ids=["half turn", "few views", "central", "more than half", "full turn"],
)
def test_axis_of_phantoms_is_found(
    views: int, arc: float, bins: int, centre: float, i0: float | None, seed: int
) -> None:
    angles = _views(views, arc)
    sinogram = _ellipses(angles, bins, centre, seed)
    found = find_rotation_centre(sinogram if i0 is None else _noisy(sinogram, i0, seed), angles)
    assert found == pytest.approx(centre, abs=0.05 if i0 is None else 0.2)


def test_closed_half_turn_and_full_circle_are_taken() -> None:
    for arc, views in ((math.pi, 121), (2 * math.pi, 241)):
        angles = torch.linspace(0, arc, views, dtype=torch.float64)
        assert find_rotation_centre(_ellipses(angles, 128, 57.4), angles) == pytest.approx(57.4, abs=0.05)


def test_direction_start_and_uneven_steps_do_not_matter() -> None:
    angles = _views(180)
    sinogram = _ellipses(angles, 128, 57.4)
    found = find_rotation_centre(sinogram, angles)
    assert find_rotation_centre(sinogram.flip(0), angles.flip(0)) == pytest.approx(found, abs=1e-6)
    assert find_rotation_centre(sinogram.flip(1), angles) == pytest.approx(127 - found, abs=0.01)
    assert find_rotation_centre(1e-3 * sinogram.float(), angles) == pytest.approx(found, abs=1e-3)
    uneven = angles + 0.004 * torch.sin(9 * angles) + 2.0
    assert find_rotation_centre(_ellipses(uneven, 128, 57.4), uneven) == pytest.approx(57.4, abs=0.05)


def test_slices_of_a_batch_share_the_axis() -> None:
    angles = _views(60)
    slices = torch.stack([_noisy(_ellipses(angles, 128, 57.4, seed), 500.0, seed) for seed in range(8)])
    assert find_rotation_centre(slices.reshape(2, 4, 60, 128), angles) == pytest.approx(57.4, abs=0.1)


@pytest.mark.parametrize("columns", [(20, 230), (60, 220), (60, 175)])
def test_object_larger_than_the_detector_is_no_obstacle(columns: tuple[int, int]) -> None:
    angles = _views(180)
    first, last = columns
    cut = _ellipses(angles, 256, 118.7)[:, first:last]
    assert find_rotation_centre(cut, angles) + first == pytest.approx(118.7, abs=0.2)


def test_axis_outside_the_default_range_needs_the_range() -> None:
    angles = _views(180)
    sinogram = _ellipses(angles, 256, 50.2)
    with pytest.raises(NumericsError, match=r"pass search=\(low, high\)"):
        find_rotation_centre(sinogram, angles)
    assert find_rotation_centre(sinogram, angles, search=(0, 255)) == pytest.approx(50.2, abs=0.05)


@pytest.mark.parametrize("row", [0, 1])
def test_axis_of_a_real_scan_is_found(shared: Path, row: int) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared / "sino" / "tooth.h5") as file:
        raw, flats, darks = (
            torch.from_numpy(file[f"exchange/{name}"][:, row]) for name in ("data", "data_white", "data_dark")
        )
        angles = torch.deg2rad(torch.from_numpy(file["exchange/theta"][...]))
    sinogram = flat_field(raw, flats, darks).sinogram
    assert find_rotation_centre(sinogram, angles) == pytest.approx(296.0, abs=0.25)
    assert find_rotation_centre(sinogram[:, 200:450], angles) + 200 == pytest.approx(296.0, abs=0.5)


@pytest.mark.parametrize("bins", [32, 64, 256])
def test_noise_has_no_axis(bins: int) -> None:
    for seed in range(5):
        noise = torch.randn(90, bins, generator=torch.Generator().manual_seed(seed))
        with pytest.raises(NumericsError, match="none that stands out"):
            find_rotation_centre(noise, _views(90))


def test_bad_input_is_one_typed_error() -> None:
    angles = _views(60)
    sinogram = _ellipses(angles, 64, 30.0)
    with pytest.raises(GeometryError, match="one angle for each of 60 views, got 59"):
        find_rotation_centre(sinogram, angles[1:])
    with pytest.raises(GeometryError, match="degrees"):
        find_rotation_centre(sinogram, torch.rad2deg(angles))
    with pytest.raises(GeometryError, match="half a turn"):
        find_rotation_centre(sinogram[:40], angles[:40])
    with pytest.raises(GeometryError, match="at least 8 views"):
        find_rotation_centre(sinogram[::10], angles[::10])
    with pytest.raises(GeometryError, match="of 15"):
        find_rotation_centre(sinogram[:, :15], angles)
    with pytest.raises(GeometryError, match="real sinogram"):
        find_rotation_centre(sinogram.to(torch.complex64), angles)
    with pytest.raises(GeometryError, match="real sinogram"):
        find_rotation_centre(sinogram[0], angles)
    with pytest.raises(NumericsError, match="NaN"):
        find_rotation_centre(sinogram * math.nan, angles)
    for constant in (0.0, 2.0):
        with pytest.raises(NumericsError, match="constant"):
            find_rotation_centre(torch.full((60, 64), constant), angles)
    for search in ((-1.0, 20.0), (20.0, 64.0), (30.0, 30.5), (40.0, 20.0), (math.nan, 20.0)):
        with pytest.raises(ConfigError, match="search range"):
            find_rotation_centre(sinogram, angles, search=search)
