"""Projectors against exact line integrals, closed forms and one another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operators import ellipses
from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import ConeBeamCT, CTOperator, FanBeamCT, NonuniformFFT, ParallelBeamCT

N, PIXEL = 96, 0.8


def _parallel(views: int = 40, bins: int = 151, **options: Any) -> ParallelBeamCT:
    angles = torch.arange(views) * math.pi / views
    return ParallelBeamCT((N, N), angles, bins, **{"pixel_size": PIXEL, "bin_size": PIXEL, **options})


def _fan(views: int = 60, bins: int = 180, **options: Any) -> FanBeamCT:
    angles = torch.arange(views) * 2 * math.pi / views
    geometry = {"source_origin": 250.0, "origin_detector": 120.0, "pixel_size": PIXEL, "bin_size": 1.0}
    return FanBeamCT((N, N), angles, bins, **{**geometry, **options})


def _exact(operator: CTOperator, fine: int = 8) -> Tensor:
    """Line integrals of the head, averaged over the bins."""
    rays = operator.rays
    finer = type(rays)(**{
        **{name: getattr(rays, name) for name in rays.__dataclass_fields__},
        "n_bins": rays.n_bins * fine, "bin_size": rays.bin_size / fine, "centre": (rays.axis + 0.5) * fine - 0.5,
    })  # fmt: skip
    exact = ellipses.line_integrals(*finer.lines(), N / 2 * PIXEL)
    return exact.reshape(rays.views, rays.n_bins, fine).mean(-1).float()


def _error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("make", [_parallel, _fan])
@pytest.mark.parametrize("centre", [None, 71.3])
def test_both_modes_are_near_the_exact_line_integrals(make: Any, centre: float | None) -> None:
    head = ellipses.image(N, PIXEL)
    fourier, joseph = (make(mode=mode, centre=centre) for mode in ("fourier", "joseph"))
    exact = _exact(fourier)
    errors = _error(fourier(head), exact), _error(joseph(head), exact)
    assert max(errors) < 0.025
    assert errors[0] < 1.15 * errors[1]


def test_a_curved_detector_sees_the_same_rays_at_other_bins() -> None:
    head = ellipses.image(N, PIXEL)
    for mode in ("fourier", "joseph"):
        curved = _fan(detector="curved", mode=mode)
        assert _error(curved(head), _exact(curved)) < 0.025


def test_joseph_is_its_closed_form() -> None:
    operator = _fan(7, 60, mode="joseph", bin_size=3.0)
    x = torch.rand(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta, s = (value[..., None, None] for value in operator.rays.lines())
    column = (torch.arange(N, dtype=torch.float64) - (N - 1) / 2) * PIXEL
    steep = torch.maximum(theta.cos().abs(), theta.sin().abs())
    away = (s - column * theta.cos() + column[:, None] * theta.sin()).abs()
    weights = PIXEL / steep * (1 - away / (PIXEL * steep)).clamp_min(0)
    assert torch.allclose(operator(x), (weights * x).sum((-2, -1)), rtol=1e-10, atol=1e-10)


def test_a_far_source_makes_a_parallel_beam() -> None:
    head = ellipses.image(N, PIXEL)
    angles = torch.arange(12) * 2 * math.pi / 12
    lengths: dict[str, Any] = {"pixel_size": PIXEL, "bin_size": PIXEL}
    for mode, bound in (("joseph", 1e-4), ("fourier", 0.01)):
        far = FanBeamCT((N, N), angles, 151, source_origin=1e7, origin_detector=0.0, mode=mode, **lengths)
        assert _error(far(head), ParallelBeamCT((N, N), angles, 151, mode=mode, **lengths)(head)) < bound


@pytest.mark.parametrize("mode", ["fourier", "joseph"])
def test_lengths_scale_line_integrals(mode: Any) -> None:
    head = ellipses.image(N)
    angles = torch.arange(9) * math.pi / 9
    small = ParallelBeamCT((N, N), angles, 120, mode=mode)
    large = ParallelBeamCT((N, N), angles, 120, pixel_size=2.5, bin_size=2.5, mode=mode)
    # A point of the spectrum on the rim of the kernel may fall on either side of it.
    assert _error(large(head), 2.5 * small(head)) < 1e-3


def test_replicas_bring_fine_detail_to_that_of_separate_bins() -> None:
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(10) * math.pi / 10 + 0.05
    limit = ParallelBeamCT((32, 32), angles, 51, replicas=8)(noise)
    errors = [_error(ParallelBeamCT((32, 32), angles, 51, replicas=n)(noise), limit) for n in (0, 1, 2)]
    assert errors[0] < 0.35
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_a_cone_of_tall_slices_is_a_fan_times_its_slant() -> None:
    angles = torch.arange(5) * 2 * math.pi / 5
    slices = torch.rand(9, 8, generator=torch.Generator().manual_seed(0))
    common: dict[str, Any] = {"source_origin": 30.0, "origin_detector": 15.0}
    fan = FanBeamCT((9, 8), angles, 12, mode="joseph", pixel_size=1.1, bin_size=1.3, centre=5.9, **common)
    cone = ConeBeamCT((41, 9, 8), angles, (7, 12), voxel_size=1.1, bin_size=(1.6, 1.3), centre=(3.0, 5.9), **common)
    u, v = (torch.arange(12) - 5.9) * 1.3, (torch.arange(7) - 3.0) * 1.6
    slant = (1 + v[:, None].square() / (u.square() + 45.0**2)).sqrt()
    assert torch.allclose(cone(slices.expand(41, 9, 8)), fan(slices)[:, None] * slant, rtol=1e-5, atol=1e-5)


def test_a_subset_has_the_projections_of_its_views() -> None:
    head = ellipses.image(N, PIXEL)
    for operator in (_parallel(), _parallel(mode="joseph"), _fan(mode="joseph", detector="curved")):
        kept = torch.tensor([1, 5, 20])
        assert torch.allclose(operator.subset(kept)(head), operator(head)[kept], rtol=1e-4, atol=1e-3)
    cone = ConeBeamCT((4, 5, 6), torch.arange(6.0), (5, 7), source_origin=16.0, origin_detector=8.0)
    volume = torch.rand(4, 5, 6)
    assert torch.allclose(cone.subset(slice(0, 6, 2))(volume), cone(volume)[::2], atol=1e-5)


def test_what_the_operator_says_of_itself() -> None:
    operator = _fan(36, centre=80.0)
    assert math.isclose(operator.coverage, 2 * math.pi, rel_tol=1e-6)
    reach = 80.5 / 370.0
    assert math.isclose(operator.field_of_view, 250 * math.sin(math.atan(reach)))
    assert "fan beam, flat detector" in repr(operator)
    assert "36 views over 360 degrees" in repr(operator)
    assert math.isclose(_parallel().field_of_view, 75.5 * PIXEL)


def test_width_sets_the_error_of_the_nonuniform_transform() -> None:
    generator = torch.Generator().manual_seed(1)
    points = 2 * torch.rand(200, 2, dtype=torch.float64, generator=generator) - 1
    x = torch.randn(33, 40, dtype=torch.complex128, generator=generator)
    rows, columns = torch.arange(33) - 16, torch.arange(40) - 20
    turns = points[:, :1, None] * rows[:, None] + points[:, 1:, None] * columns
    direct = (torch.exp(-2j * math.pi * turns) * x).sum((-2, -1))
    for width, bound in ((3, 4e-2), (4, 1e-2), (5, 2e-3), (6, 5e-4)):
        assert _error(NonuniformFFT((33, 40), points, width=width)(x), direct) < bound


ANGLES = torch.arange(8) * math.pi / 8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"angles": torch.arange(0.0, 180.0, 22.5)}, "degrees"),
        ({"angles": torch.tensor([0.0, 0.5, 0.4])}, "strictly one way"),
        ({"angles": torch.tensor([0.0, float("nan")])}, "finite"),
        ({"angles": torch.zeros(0)}, "at least one view"),
        ({"n_bins": 0}, "at least one bin"),
        ({"bin_size": 0.0}, "bin_size > 0"),
        ({"pixel_size": float("nan")}, "pixel_size > 0"),
        ({"centre": 60.0}, "rotation axis on the detector"),
        ({"centre": 0.0, "bin_size": 1000.0, "n_bins": 1, "image_shape": (1, 1), "pixel_size": 0.5}, None),
    ],
)
def test_bad_parallel_geometry_is_a_typed_error(options: dict[str, Any], match: str | None) -> None:
    arguments: dict[str, Any] = {"image_shape": (16, 16), "angles": ANGLES, "n_bins": 30} | options
    if match is None:
        ParallelBeamCT(**arguments)
        return
    with pytest.raises(GeometryError, match=match):
        ParallelBeamCT(**arguments)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source_origin": 0.5}, "source outside the image"),
        ({"source_origin": -500.0}, "source_origin > 0"),
        ({"origin_detector": -1.0}, "origin_detector >= 0"),
        ({"detector": "curved", "bin_size": 100.0}, "less than 180 degrees"),
        ({"bin_size": 500.0, "n_bins": 30}, "misses"),
    ],
)
def test_bad_fan_geometry_is_a_typed_error(options: dict[str, Any], match: str) -> None:
    arguments = {"source_origin": 500.0, "origin_detector": 300.0, "n_bins": 31} | options
    with pytest.raises(GeometryError, match=match):
        FanBeamCT((16, 16), ANGLES, **arguments)


def test_bad_choices_are_config_errors() -> None:
    for options in ({"mode": "siddon"}, {"replicas": 9}, {"replicas": -1}):
        with pytest.raises(ConfigError):
            _parallel(**options)
    for options in ({"mode": "siddon"}, {"detector": "round"}):
        with pytest.raises(ConfigError):
            _fan(**options)
    with pytest.raises(ConfigError, match="width"):
        NonuniformFFT((8, 8), torch.zeros(1, 2), width=1)
    with pytest.raises(GeometryError, match="row then column"):
        NonuniformFFT((8, 8), torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bin_size": (20.0, 1.0)}, "less than 45 degrees"),
        ({"centre": (9.0, 3.0)}, "plane of the source"),
        ({"source_origin": 3.0}, "source outside"),
        ({"volume_shape": (5, 6)}, r"\(D, H, W\)"),
    ],
)
def test_bad_cone_geometry_is_a_typed_error(options: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"volume_shape": (4, 5, 6), "detector_shape": (5, 7), "source_origin": 16.0}
    with pytest.raises(GeometryError, match=match):
        ConeBeamCT(angles=ANGLES, origin_detector=8.0, **(arguments | options))
