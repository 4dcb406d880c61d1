"""Sampling masks: true acceleration, full centre, reproducible, and bad parameters refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from treg_med.errors import ConfigError
from treg_med.operators import (
    SamplingMask,
    equispaced_mask,
    gaussian_mask_1d,
    gaussian_mask_2d,
    poisson_disc_mask,
    radial_mask,
    random_mask,
)

LINES: list[Callable[..., SamplingMask]] = [equispaced_mask, random_mask, gaussian_mask_1d]
POINTS: list[Callable[..., SamplingMask]] = [gaussian_mask_2d, poisson_disc_mask]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", LINES)
@pytest.mark.parametrize(
    ("width", "acceleration", "center"), [(96, 4, 0.08), (101, 8, 0.04), (64, 1, 0.1), (50, 2.5, 0)]
)
def test_line_masks_have_the_exact_number_of_columns_and_a_full_centre(
    make: Callable[..., SamplingMask], width: int, acceleration: float, center: float
) -> None:
    result = make((20, width), acceleration, center, generator=_generator())
    assert result.mask.shape == (20, width)
    assert result.mask.dtype == torch.bool
    columns = result.mask[0]
    assert torch.equal(result.mask, columns.expand(20, width))
    assert int(columns.sum()) == round(width / acceleration)
    assert result.acceleration == pytest.approx(width / int(columns.sum()))
    n_center = round(width * center)
    first = width // 2 - n_center // 2
    assert bool(columns[first : first + n_center].all())
    if n_center:
        assert bool(columns[width // 2])


@pytest.mark.parametrize("make", POINTS)
@pytest.mark.parametrize(
    ("shape", "acceleration", "block"), [((64, 80), 4, 12), ((75, 62), 8, (10, 7)), ((64, 64), 3, 0)]
)
def test_point_masks_reach_the_acceleration_and_keep_the_block(
    make: Callable[..., SamplingMask],
    shape: tuple[int, int],
    acceleration: float,
    block: int | tuple[int, int],
) -> None:
    result = make(shape, acceleration, block, generator=_generator())
    assert result.mask.shape == shape
    assert result.acceleration == pytest.approx(shape[0] * shape[1] / int(result.mask.sum()))
    assert result.acceleration == pytest.approx(acceleration, rel=0.021)
    rows, columns = (block, block) if isinstance(block, int) else block
    top, left = shape[0] // 2 - rows // 2, shape[1] // 2 - columns // 2
    assert bool(result.mask[top : top + rows, left : left + columns].all())


@pytest.mark.parametrize("make", [random_mask, gaussian_mask_1d, equispaced_mask, *POINTS])
def test_same_seed_same_mask_other_seed_another(make: Callable[..., SamplingMask]) -> None:
    center = 8 if make in POINTS else 0.05
    draw = partial(make, (48, 60), 5, center)
    assert torch.equal(draw(generator=_generator(1)).mask, draw(generator=_generator(1)).mask)
    assert not torch.equal(draw(generator=_generator(1)).mask, draw(generator=_generator(2)).mask)


def test_equispaced_gaps_differ_by_at_most_one() -> None:
    columns = torch.nonzero(equispaced_mask((4, 200), 7, 0.0).mask[0]).squeeze(1)
    gaps = columns.diff()
    assert int(gaps.max() - gaps.min()) <= 1
    outside = equispaced_mask((4, 200), 6, 0.08, generator=_generator()).mask[0, :90]
    gaps = torch.nonzero(outside).squeeze(1).diff()
    assert int(gaps.max() - gaps.min()) <= 1


def test_random_mask_is_uniform_outside_the_centre() -> None:
    counts = (
        sum(random_mask((1, 40), 4, 0.1, generator=_generator(s)).mask[0].double() for s in range(600)) / 600
    )
    outer = torch.cat([counts[:18], counts[22:]])
    assert bool(((outer - 6 / 36).abs() < 0.075).all())


def test_gaussian_masks_are_denser_near_the_centre() -> None:
    lines = (
        sum(gaussian_mask_1d((1, 64), 4, 0.0, generator=_generator(s)).mask[0].double() for s in range(200))
        / 200
    )
    assert float(lines[24:40].mean()) > 2 * float(lines[:8].mean())
    points = gaussian_mask_2d((128, 128), 6, 0, generator=_generator()).mask.double()
    assert float(points[48:80, 48:80].mean()) > 3 * float(points[:16].mean())


def test_poisson_disc_keeps_its_distance_and_thins_outwards() -> None:
    shape, acceleration = (96, 96), 8
    mask = poisson_disc_mask(shape, acceleration, 0, generator=_generator()).mask
    points = torch.nonzero(mask).double()
    distance = torch.cdist(points, points) + 1e9 * torch.eye(len(points))
    nearest = distance.min(dim=1).values
    radius = torch.linalg.vector_norm((points - 48) / 48, dim=1)
    inner, outer = nearest[radius < 0.3].mean(), nearest[radius > 0.9].mean()
    assert float(outer) > 1.5 * float(inner)
    # Random points of the outer density would often touch; a Poisson disc of radius > 2 never does.
    assert float(nearest[radius > 0.9].min()) >= 2.0


def test_poisson_disc_can_leave_out_the_corners() -> None:
    mask = poisson_disc_mask((64, 64), 6, 8, crop_corners=True, generator=_generator()).mask
    assert not bool(mask[:8, :8].any())
    assert mask.numel() / int(mask.sum()) == pytest.approx(6, rel=0.021)


def test_poisson_disc_is_quick_at_a_usual_size() -> None:
    start = time.process_time()
    poisson_disc_mask((256, 256), 8, generator=_generator())
    assert time.process_time() - start < 4.0


@pytest.mark.parametrize("make", [random_mask, gaussian_mask_1d, equispaced_mask])
@pytest.mark.parametrize(
    ("shape", "acceleration", "center"),
    [
        ((10,), 2, 0.1),
        ((0, 8), 2, 0.1),
        ((8, 8), 0.5, 0.1),
        ((8, 8), float("nan"), 0.1),
        ((8, 8), 2, 1.5),
        ((8, 8), 4, 0.9),
    ],
)
def test_bad_line_parameters_are_one_typed_error(
    make: Callable[..., SamplingMask], shape: tuple[int, int], acceleration: float, center: float
) -> None:
    with pytest.raises(ConfigError):
        make(shape, acceleration, center, generator=_generator())


@pytest.mark.parametrize("make", POINTS)
@pytest.mark.parametrize(
    ("acceleration", "block"), [(0, 4), (4, 100), (4, (4, -1)), (16, 20), (float("inf"), 4)]
)
def test_bad_point_parameters_are_one_typed_error(
    make: Callable[..., SamplingMask], acceleration: float, block: int | tuple[int, int]
) -> None:
    with pytest.raises(ConfigError):
        make((32, 32), acceleration, block, generator=_generator())


def test_other_bad_settings_are_one_typed_error() -> None:
    with pytest.raises(ConfigError, match="std_fraction"):
        gaussian_mask_2d((32, 32), 4, 4, std_fraction=0.0, generator=_generator())
    with pytest.raises(ConfigError, match="tolerance"):
        poisson_disc_mask((32, 32), 4, 4, tolerance=-1.0, generator=_generator())
    with pytest.raises(ConfigError, match="reaches acceleration"):
        poisson_disc_mask((16, 16), 9, 5, tolerance=1e-6, generator=_generator())


def test_spokes_are_lines_through_the_centre() -> None:
    row, cross = radial_mask((20, 30), 1).mask, radial_mask((20, 30), 2)
    assert bool(row[10].all()) and int(row.sum()) == 30
    assert bool(cross.mask[10].all() and cross.mask[:, 15].all()) and int(cross.mask.sum()) == 49
    assert cross.acceleration == pytest.approx(600 / 49) and cross.kind == "radial"
    diagonal = radial_mask((16, 16), 1, first_angle=math.pi / 4).mask
    assert torch.equal(diagonal, torch.eye(16, dtype=torch.bool))


@pytest.mark.parametrize("golden", [False, True])
def test_more_spokes_sample_more_and_always_the_centre(golden: bool) -> None:
    counts = []
    for spokes in (5, 10, 20, 40):
        result = radial_mask((64, 48), spokes, golden_angle=golden)
        assert bool(result.mask[32, 24])
        # Apart from the first row and column of an even grid, an image's transform is sampled with its conjugate.
        inner = result.mask[1:, 1:]
        assert torch.equal(inner, inner.flip(0, 1))
        counts.append(int(result.mask.sum()))
    assert counts == sorted(set(counts))
    assert 20 * 48 * 0.6 < counts[2] < 20 * 64


@pytest.mark.parametrize("spokes", [0, -3, 2.5, True])
def test_spokes_are_counted(spokes: object) -> None:
    with pytest.raises(ConfigError, match="spoke"):
        radial_mask((8, 8), spokes)  # type: ignore[arg-type]
