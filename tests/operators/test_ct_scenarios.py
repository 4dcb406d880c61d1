"""Scenarios keep the right views, and say in words and numbers what is missing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.cone_beam import ConeBeamCT
from treg_med.operators.ct_scenarios import limited_angle, low_dose, sparse_view
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.operators.parallel_beam import ParallelBeamCT

TURN = 2 * math.pi


def _parallel(views: int = 180, arc: float = math.pi, **settings: float) -> ParallelBeamCT:
    angles = torch.arange(views, dtype=torch.float64) * arc / views
    return ParallelBeamCT((32, 32), angles, 48, **settings)  # type: ignore[arg-type]


def _fan(angles: Tensor) -> FanBeamCT:
    return FanBeamCT((32, 32), angles, 64, source_origin=200.0, origin_detector=100.0)


def test_sparse_views_are_even_and_their_limit_is_said() -> None:
    scenario = sparse_view(_parallel(pixel_size=1.29), 30)
    assert torch.equal(scenario.views, torch.arange(0, 180, 6))
    assert scenario.operator.views == 30
    assert torch.allclose(scenario.operator.angles, torch.deg2rad(torch.arange(0, 180, 6).double()))
    # 1.29 mm / 0.1047 rad.
    assert scenario.missing == (
        "views every 6.0 degrees: detail of a pixel (1.29 mm) beyond 12.3 mm from the axis is undersampled"
    )
    assert scenario.i0 is None
    uneven = sparse_view(_parallel(), 7).views.diff()
    assert set(uneven.tolist()) == {25, 26}


def test_enough_views_miss_nothing() -> None:
    scenario = sparse_view(_parallel(), 180)
    assert "nothing is undersampled" in scenario.missing
    assert torch.equal(scenario.views, torch.arange(180))
    assert "1 view" in sparse_view(_parallel(), 1).missing


def test_repeated_last_view_of_a_circle_is_not_counted() -> None:
    circle = _fan(torch.linspace(0, TURN, 721, dtype=torch.float64))
    assert torch.equal(sparse_view(circle, 60).views, torch.arange(0, 720, 12))
    assert torch.equal(limited_angle(circle, math.pi / 2).views, torch.arange(181))
    assert torch.equal(limited_angle(circle, TURN).views, torch.arange(720))
    with pytest.raises(ConfigError, match="1 to 720 views"):
        sparse_view(circle, 721)


def test_limited_angle_keeps_the_arc_and_names_the_wedge() -> None:
    scenario = limited_angle(_parallel(), math.pi / 3)
    assert torch.equal(scenario.views, torch.arange(61))
    assert scenario.missing == (
        "missing wedge of 120 degrees between 60 and 180 degrees (from x to the right, counter-clockwise, modulo 180): "
        "edges with normals in it are not measured"
    )
    assert torch.equal(limited_angle(_parallel(), 0.5, start=1.0).views, torch.arange(58, 86))
    assert limited_angle(_parallel(), math.pi).missing == "no direction is missing"


def test_the_wedge_is_where_edges_leave_no_trace() -> None:
    operator = _parallel()
    stripes = torch.arange(32).double()
    window = torch.hann_window(32, periodic=False, dtype=torch.float64)
    upright = torch.cos(2 * math.pi * stripes / 4).expand(32, 32) * window * window[:, None]
    # Stripes with normals along x are at 0 degrees: measured by 60 degrees about 0, missed by those about 90.
    seen = limited_angle(operator, math.pi / 3, start=-math.pi / 6 + math.pi)
    missed = limited_angle(operator, math.pi / 3, start=math.pi / 3)
    # A parallel beam has seen 180 to 210 degrees from the other side.
    assert torch.equal(seen.views, torch.cat([torch.arange(31), torch.arange(150, 180)]))
    assert "between 30 and 150" in seen.missing
    assert "between 120 and 240" in missed.missing
    energy = [float(case.operator(upright).square().sum()) for case in (seen, missed)]
    assert energy[1] < 1e-3 * energy[0]


def test_arc_over_the_end_of_a_circle_and_backwards_scans() -> None:
    circle = _fan(torch.arange(360, dtype=torch.float64) * TURN / 360)
    over = limited_angle(circle, math.radians(20), start=math.radians(-10))
    assert torch.equal(over.views, torch.cat([torch.arange(11), torch.arange(350, 360)]))
    backwards = _fan(-torch.arange(360, dtype=torch.float64) * TURN / 360)
    kept = limited_angle(backwards, math.radians(90)).views
    assert torch.equal(kept, torch.cat([torch.tensor([0]), torch.arange(270, 360)]))


def test_fan_needs_more_than_half_a_turn() -> None:
    circle = _fan(torch.arange(360, dtype=torch.float64) * TURN / 360)
    opening = math.degrees(2 * math.atan(31.5 / 300))
    assert "60 degrees between 120 and 180 degrees at the axis" in limited_angle(circle, math.radians(120)).missing
    assert f"missing {opening:.3g} degrees of a short scan" in limited_angle(circle, math.pi).missing
    assert limited_angle(circle, math.radians(181 + opening)).missing == "no direction is missing"


def test_cone_beams_are_taken() -> None:
    angles = torch.arange(36, dtype=torch.float64) * TURN / 36
    cone = ConeBeamCT((4, 8, 8), angles, (6, 12), source_origin=100.0, origin_detector=50.0)
    scenario = sparse_view(cone, 9)
    assert scenario.operator.range_shape == (9, 6, 12)
    whole = torch.arange(36.0)[:, None, None].expand(2, 36, 6, 12)
    assert torch.equal(scenario.reduce(whole)[1, :, 0, 0], torch.arange(0.0, 36.0, 4))
    assert "missing wedge" in limited_angle(cone, 1.0).missing
    assert "8 mm of water" in low_dose(cone, 1000).missing


def test_reduced_sinogram_is_what_the_reduced_operator_measures() -> None:
    operator = _parallel()
    image = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scenario in (sparse_view(operator, 20), limited_angle(operator, 1.0, 0.5), low_dose(operator, 1e4)):
        assert torch.allclose(scenario.reduce(operator(image)), scenario.operator(image), atol=1e-9)
        assert scenario.name in ("sparse view", "limited angle", "low dose")
        with pytest.raises(dataclasses.FrozenInstanceError):
            scenario.missing = ""  # type: ignore[misc]
        with pytest.raises(GeometryError, match=r"\(\*batch, 180, 48\), got \(179, 48\)"):
            scenario.reduce(operator(image[0])[1:])


def test_low_dose_says_how_noisy_and_measures_so() -> None:
    operator = _parallel(pixel_size=5.0, bin_size=5.0)
    scenario = low_dose(operator, 4000)
    assert scenario.operator is operator
    assert scenario.i0 == 4000.0
    # 160 mm of water pass exp(-3.07) of 4000 photons, 185.
    assert scenario.missing == (
        "4000 photons per ray: noise of 0.016 per line integral in air and 0.073 behind 160 mm of water, the width of "
        "the image; rays behind more than 432 mm of water are starved (less than one photon)"
    )
    assert "no signal behind" in low_dose(operator, 10).missing
    clean = operator(torch.full((32, 32), 0.005, dtype=torch.float64))
    log = scenario.measure(clean, generator=torch.Generator().manual_seed(0))
    assert float(((log.sinogram - clean).square() * log.weights).mean()) == pytest.approx(1, rel=0.05)


def test_scenarios_follow_each_other() -> None:
    operator = _parallel()
    fewer = sparse_view(operator, 60)
    both = low_dose(fewer.operator, 1e4)
    clean = operator(torch.full((32, 32), 0.02))
    log = both.measure(fewer.reduce(clean), generator=torch.Generator().manual_seed(0))
    assert log.sinogram.shape == (60, 48)
    with pytest.raises(ConfigError, match="low_dose"):
        fewer.measure(clean, generator=torch.Generator())


@pytest.mark.parametrize("views", [0, -1, 181, 2.5, True])
def test_bad_number_of_views_is_one_typed_error(views: int) -> None:
    with pytest.raises(ConfigError, match="1 to 180 views"):
        sparse_view(_parallel(), views)


@pytest.mark.parametrize(
    ("arc", "start", "message"),
    [
        (60, 0.0, r"arc in rad.*degrees; pass math\.radians\(60\)"),
        (1.0, 90, r"start in rad.*degrees; pass math\.radians\(90\)"),
        (0.0, 0.0, "above 0"),
        (-1.0, 0.0, "above 0"),
        (math.nan, 0.0, "finite arc"),
        (1.0, math.inf, "finite start"),
        (4.0, 0.0, "choose an arc"),
    ],
)
def test_bad_arc_is_one_typed_error(arc: float, start: float, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        limited_angle(_parallel(), arc, start)


@pytest.mark.parametrize("start", [2.6, 4.0, -0.5])
def test_arc_that_a_fan_did_not_see_is_refused(start: float) -> None:
    with pytest.raises(GeometryError, match="views from 0 to 179 degrees; choose an arc"):
        limited_angle(_fan(torch.deg2rad(torch.arange(180.0))), 1.0, start)


@pytest.mark.parametrize("i0", [0, 0.5, -4000.0, math.nan, math.inf, True])
def test_bad_dose_is_one_typed_error(i0: float) -> None:
    with pytest.raises(ConfigError, match="at least 1 photon"):
        low_dose(_parallel(), i0)
