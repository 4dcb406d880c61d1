"""View angles: which are taken, which are refused, and how degrees are told from rad."""

from __future__ import annotations

import math

import pytest
import torch

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.ct_angles import angles_from_file, checked_angles, checked_arc

TURN = 2 * math.pi


@pytest.mark.parametrize(
    "angles",
    [
        torch.arange(180) * math.pi / 180,
        -torch.arange(180) * math.pi / 180,
        torch.linspace(0, TURN, 721),
        math.pi + torch.linspace(0, TURN, 31),
        torch.tensor([0.3]),
        torch.tensor([0, 1, 2]),
        torch.arange(3000) * TURN / 1000,
        torch.arange(50000) * TURN / 1000,
    ],
    ids=["half turn", "backwards", "full circle", "from the other side", "one", "whole", "three turns", "fifty turns"],
)
def test_scans_in_rad_are_taken(angles: torch.Tensor) -> None:
    result = checked_angles(angles)
    assert result.dtype == torch.float64
    assert torch.equal(result, angles.double())


@pytest.mark.parametrize(
    "degrees",
    [
        torch.arange(180),
        torch.arange(180.0, 0.0, -1.0),
        torch.linspace(0, 360, 721),
        torch.linspace(0, 180, 10001),
        torch.arange(0, 360, 0.03),
        torch.linspace(30, 60, 61),
        torch.linspace(170, 175, 6),
        torch.tensor([45.0]),
        torch.tensor([0.0, 90.0]),
    ],
    ids=["half", "backwards", "full", "fine half", "fine full", "limited", "far from 0", "one", "two"],
)
def test_degrees_are_noticed_and_converted_from_files(degrees: torch.Tensor) -> None:
    with pytest.raises(GeometryError, match=r"look like degrees; pass torch\.deg2rad\(theta\)"):
        checked_angles(degrees, name="theta")
    radians, note = angles_from_file(degrees)
    assert torch.allclose(radians, torch.deg2rad(degrees.double()))
    assert "without a unit, taken as deg" in note
    assert torch.equal(angles_from_file(degrees, "degrees")[0], radians)


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        (torch.tensor([]), "at least one view"),
        (torch.zeros(3, 2), r"\(3, 2\)"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.tensor([0.0, math.nan, 1.0]), "1 of 3 NaN or infinite"),
        (torch.tensor([0.0, math.inf]), "infinite"),
        (torch.tensor([0.0, 0.1, 0.1, 0.2]), "0.1 followed by 0.1 at view 2"),
        (torch.tensor([0.0, 0.2, 0.1, 0.3]), "0.2 followed by 0.1 at view 2"),
        (torch.tensor([0.3, 0.1, 0.2, 0.0]), "0.1 followed by 0.2 at view 2"),
        (torch.tensor([3.0, 3.1, -3.1, -3.0]), "strictly one way"),
    ],
)
def test_what_is_no_scan_is_one_typed_error(angles: torch.Tensor, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        checked_angles(angles)
    with pytest.raises(GeometryError, match=message):
        angles_from_file(angles)


def test_files_state_their_unit_or_it_is_detected_and_said() -> None:
    half = torch.arange(180.0)
    radians, note = angles_from_file(half, " Degrees ")
    assert torch.allclose(radians, torch.deg2rad(half.double()))
    assert note == "view angles 0 to 179 in deg, as stated"
    radians, note = angles_from_file(torch.deg2rad(half))
    assert torch.equal(radians, torch.deg2rad(half).double())
    assert "taken as rad: they lie within one turn" in note
    _, note = angles_from_file(torch.arange(6))
    assert "taken as deg: they are whole numbers" in note
    assert torch.equal(angles_from_file(torch.arange(6), "rad")[0], torch.arange(6).double())


def test_a_unit_that_is_unknown_contradicted_or_open_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradians"):
        angles_from_file(torch.arange(180), "gradians")
    with pytest.raises(GeometryError, match="look like degrees"):
        angles_from_file(torch.arange(180), "rad")
    for views in (torch.arange(180) * math.pi / 180, torch.linspace(0, TURN, 100)):
        with pytest.raises(GeometryError, match="pass the unit 'rad'"):
            angles_from_file(views, "deg")
    with pytest.raises(GeometryError, match="state the unit"):
        angles_from_file(torch.arange(2000) * 0.01)


def test_arcs_in_degrees_are_noticed() -> None:
    assert checked_arc(math.pi) == math.pi
    assert checked_arc(-1) == -1.0
    with pytest.raises(GeometryError, match=r"pass math\.radians\(90\)"):
        checked_arc(90)
    for bad in (math.nan, math.inf, "1", True):
        with pytest.raises(GeometryError, match="finite start"):
            checked_arc(bad, name="start")  # type: ignore[arg-type]
