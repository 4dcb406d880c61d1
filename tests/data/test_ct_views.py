"""Choosing views, sorting them, and not counting one twice."""

from __future__ import annotations

import math

import pytest
import torch

from treg_med.data.ct_views import ScannedViews, ViewSelection
from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.ct_angles import arc_degrees

FULL = torch.arange(0, 360, 0.5).double()


@pytest.mark.parametrize(
    ("options", "count", "first", "last"),
    [
        ({}, 720, 0.0, 359.5),
        ({"views": 60}, 60, 0.0, 354.0),
        ({"arc": 90.0}, 180, 0.0, 89.5),
        ({"arc": 30, "start": 45.0}, 60, 45.0, 74.5),
        ({"arc": 60, "start": 330.0}, 120, 330.0, 389.5),
        ({"arc": 60, "start": -30.0, "views": 10}, 10, -30.0, 24.0),
    ],
)
def test_views_are_chosen_along_the_arc(options: dict[str, float], count: int, first: float, last: float) -> None:
    kept, angles = ViewSelection(**options).choose(torch.deg2rad(FULL))  # type: ignore[arg-type]
    assert len(kept) == len(angles) == count
    assert math.degrees(float(angles[0])) == pytest.approx(first)
    assert math.degrees(float(angles[-1])) == pytest.approx(last)
    assert bool((angles.diff() > 0).all())
    turns = (angles - torch.deg2rad(FULL)[kept]) / (2 * math.pi)
    assert torch.allclose(turns, turns.round(), atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"views": 0}, {"views": 2.5}, {"arc": 0}, {"arc": 400.0}, {"arc": float("nan")}, {"start": 10.0}, {"views": True}],
)
def test_what_cannot_be_chosen_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ViewSelection(**options)  # type: ignore[arg-type]


def test_more_views_than_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 720"):
        ViewSelection(views=721).choose(torch.deg2rad(FULL))
    with pytest.raises(ConfigError, match="no view"):
        ViewSelection(arc=10.0, start=200.0).choose(torch.deg2rad(FULL[:100]))


def test_a_view_that_closes_the_circle_is_left_out() -> None:
    scanned = ScannedViews.of(torch.linspace(0, 360, 721), "deg", ViewSelection())
    assert len(scanned.every) == 720
    assert scanned.operations[1]["views"] == 1
    assert len(ScannedViews.of(torch.linspace(0, 180, 181), "deg", ViewSelection()).every) == 181


def test_views_in_another_order_are_sorted_and_said() -> None:
    scanned = ScannedViews.of(torch.tensor([0.0, 2.0, 1.0, 3.0]), "deg", ViewSelection())
    assert scanned.every.tolist() == [0, 2, 1, 3]
    assert any("sorted" in o["operation"] for o in scanned.operations)
    assert bool((scanned.angles.diff() > 0).all())
    falling = ScannedViews.of(torch.tensor([3.0, 2.0, 1.0]), "deg", ViewSelection())
    assert falling.every.tolist() == [0, 1, 2]
    with pytest.raises(GeometryError, match="repeated"):
        ScannedViews.of(torch.tensor([0.0, 1.0, 1.0]), "deg", ViewSelection())
    with pytest.raises(GeometryError, match="NaN"):
        ScannedViews.of(torch.tensor([0.0, float("nan"), 1.0]), "deg", ViewSelection())


def test_the_arc_counts_one_step_beyond_the_last_view() -> None:
    assert arc_degrees(torch.deg2rad(FULL)) == pytest.approx(360.0)
    assert arc_degrees(torch.arange(10) * math.pi / 10) == pytest.approx(180.0)
    assert arc_degrees(torch.zeros(1)) == 0.0
