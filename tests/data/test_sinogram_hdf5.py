"""Sinograms with a declared geometry: nothing is guessed, and wrong units do not pass in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.ct_files import disc_image, write_sinogram
from treg_med.data import open_scan
from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError, TregMedError
from treg_med.operators.filtered_backprojection import filtered_backprojection

TRUTH = torch.from_numpy(disc_image((64, 60), 3.5))
FAN = {"geometry": "fan", "source_origin": 595.0, "origin_detector": 490.0, "detector": "flat"}


@pytest.mark.parametrize("kind", ["counts", "sinogram"])
@pytest.mark.parametrize("slices", [None, 2])
def test_counts_and_line_integrals(tmp_path: Path, kind: str, slices: int | None) -> None:
    with open_scan(write_sinogram(tmp_path / "a.h5", kind=kind, slices=slices)) as scan:
        m = scan[-1]
        assert len(scan) == (slices or 1)
    image = filtered_backprojection(m.operator, m.y, "hann")
    assert float((image - TRUTH).square().mean().sqrt()) < 0.0021
    assert m.provenance["noise_std"] == ("from the counts" if kind == "counts" else "estimated")
    assert m.mu_water == 0.0192
    assert m.noise_std is not None
    assert m.noise_std == pytest.approx(1e5**-0.5 * 2.3, rel=0.6)


@pytest.mark.parametrize(("units", "factor"), [("1/mm", 1.0), ("1/cm", 10.0), ("1/m", 1000.0)])
def test_all_units_come_out_in_mm(tmp_path: Path, units: str, factor: float) -> None:
    changes = {"units": units, "pixel_size": 3.5 / factor, "bin_size": 3.5 / factor, "mu_water": 0.0192 * factor}
    target = TRUTH.numpy() * factor
    path = write_sinogram(tmp_path / "a.h5", slices=None, changes=changes, datasets={"target": target})
    with open_scan(path) as scan:
        m = scan[0]
    assert m.operator.pixel_size == pytest.approx(3.5)
    assert m.mu_water == pytest.approx(0.0192)
    assert m.target is not None
    assert torch.allclose(m.target, TRUTH, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "datasets", "missing"),
    [
        ({"bin_size": None, "units": None}, {}, ["bin_size", "units"]),
        ({"geometry": None}, {}, ["geometry"]),
        ({"geometry": "fan"}, {}, ["source_origin", "origin_detector", "detector"]),
        ({}, {"angles": None}, ["'angles'"]),
        ({}, {"i0": None}, ["i0"]),
    ],
)
def test_everything_missing_is_listed(
    tmp_path: Path, changes: dict[str, Any], datasets: dict[str, Any], missing: list[str]
) -> None:
    path = write_sinogram(tmp_path / "a.h5", changes=changes, datasets=datasets)
    with pytest.raises(FormatError) as caught:
        open_scan(path)
    assert all(name in str(caught.value) for name in missing)


def test_angles_need_a_unit_and_degrees_are_not_radians(tmp_path: Path) -> None:
    degrees = np.arange(90) * 2.0
    with open_scan(write_sinogram(tmp_path / "a.h5", angles=degrees, angle_units="deg")) as scan:
        assert scan.header.arc_deg == pytest.approx(180.0)
    with pytest.raises(FormatError, match="units"):
        open_scan(write_sinogram(tmp_path / "b.h5", angle_units=None))
    with pytest.raises(GeometryError, match="degrees"):
        open_scan(write_sinogram(tmp_path / "c.h5", angles=degrees))
    with pytest.raises(TregMedError, match="unit"):
        open_scan(write_sinogram(tmp_path / "d.h5", angle_units="grad"))


def test_views_in_any_order_give_the_same_scan(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(90)
    with open_scan(write_sinogram(tmp_path / "a.h5", angles=np.arange(90)[order] * np.pi / 90)) as scan:
        m = scan[0]
        assert any("sorted" in o["operation"] for o in scan.header.operations)
    assert float((filtered_backprojection(m.operator, m.y, "hann") - TRUTH).square().mean().sqrt()) < 0.0021


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre": 200.0}, "axis"),
        ({"pixel_size": 3500.0, "bin_size": 3500.0}, "micrometres"),
        ({"pixel_size": 0.0035}, "different units"),
        ({"pixel_size": -1.0}, "pixel_size"),
        ({**FAN, "source_origin": 59.5}, "in cm"),
        ({**FAN, "source_origin": 0.595, "origin_detector": 0.49}, "in m "),
    ],
)
def test_wrong_lengths_are_refused_with_the_suspected_unit(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GeometryError, match=message):
        open_scan(write_sinogram(tmp_path / "a.h5", changes=changes))


def test_lengths_in_metres_taken_for_mm_are_noticed(tmp_path: Path) -> None:
    with open_scan(write_sinogram(tmp_path / "a.h5", changes={"pixel_size": 0.0035, "bin_size": 0.0035})) as scan:
        warnings = scan[0].warnings
    assert any("metres" in w for w in warnings)
    assert any("times that of water" in w for w in warnings)


def test_a_fan_keeps_its_distances(tmp_path: Path) -> None:
    with open_scan(write_sinogram(tmp_path / "a.h5", changes={**FAN, "bin_size": 6.4})) as scan:
        m = scan[0]
    assert m.provenance["beam"] == "fan"
    assert m.provenance["source_origin_mm"] == 595.0
    assert "short scan" in m.provenance["missing"] or "missing" in m.provenance["missing"]


def test_truncated_projections_are_said(tmp_path: Path) -> None:
    with open_scan(write_sinogram(tmp_path / "a.h5", bins=41)) as scan:
        assert any("truncated projections: 100 %" in w for w in scan[0].warnings)
    with open_scan(write_sinogram(tmp_path / "b.h5")) as scan:
        assert not any("truncated" in w for w in scan[0].warnings)


def test_weights_of_the_file_are_used(tmp_path: Path) -> None:
    weights = np.ones((90, 95))
    weights[:, 40] = 0
    path = write_sinogram(
        tmp_path / "a.h5", kind="sinogram", slices=None, changes={"noise_std": 0.02}, datasets={"weights": weights}
    )
    with open_scan(path) as scan:
        m = scan[0]
    assert m.weights is not None
    assert not m.weights[:, 40].any()
    assert m.noise_std == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("kind", "datasets", "error", "message"),
    [
        ("counts", {"i0": np.zeros(95)}, NumericsError, "i0 > 0"),
        ("counts", {"i0": np.ones(7)}, GeometryError, "i0"),
        ("counts", {"counts": np.ones((2, 80, 95))}, GeometryError, "90|angles"),
        ("counts", {"counts": np.ones(9)}, FormatError, "views, bins"),
        ("sinogram", {"target": np.ones((60, 64))}, GeometryError, "target"),
        ("sinogram", {"weights": np.ones((90, 94))}, GeometryError, "weights"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, kind: str, datasets: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_scan(write_sinogram(tmp_path / "a.h5", kind=kind, datasets=datasets))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_samples_are_refused_where_they_are(tmp_path: Path, bad: float) -> None:
    data = np.ones((2, 90, 95))
    data[1, 7, 3] = bad
    with open_scan(write_sinogram(tmp_path / "a.h5", kind="sinogram", datasets={"sinogram": data})) as scan:
        with pytest.raises(FormatError, match="same value"):
            scan[0]
        with pytest.raises(NumericsError, match=r"slice 1.*\(7, 3\)"):
            scan[1]


def test_negative_and_foreign_counts_are_refused(tmp_path: Path) -> None:
    counts = np.full((2, 90, 95), 1e5)
    counts[0, 3, 4] = -5
    with open_scan(write_sinogram(tmp_path / "a.h5", datasets={"counts": counts})) as scan:
        with pytest.raises(FormatError, match="negative"):
            scan[0]
    with open_scan(write_sinogram(tmp_path / "b.h5", datasets={"i0": 1.0})) as scan:
        with pytest.raises(FormatError, match="same unit"):
            scan[0]


def test_options_override_the_file(tmp_path: Path) -> None:
    path = write_sinogram(tmp_path / "a.h5")
    with open_scan(path, views=30, centre=46.5, mu_water=0.02, noise_std=0.03) as scan:
        m = scan[0]
    assert (m.operator.views, m.operator.centre, m.mu_water, m.noise_std) == (30, 46.5, 0.02, 0.03)
    assert m.provenance["centre_source"] == "given as an option"
    with pytest.raises(ConfigError, match="no option"):
        open_scan(path, acceleration=4.0)


def test_an_object_that_is_no_body_gets_no_text(tmp_path: Path) -> None:
    changes = {"medical": 0, "anatomy": "chest"}
    with open_scan(write_sinogram(tmp_path / "a.h5", changes=changes)) as scan:
        assert scan.header.text is None
        assert any("no medical prior" in w for w in scan.header.warnings)
    with open_scan(write_sinogram(tmp_path / "b.h5", changes={"anatomy": "chest", "plane": "axial"})) as scan:
        assert scan.header.text == "Axial CT slice of the chest"


def test_free_text_reaches_no_provenance(tmp_path: Path) -> None:
    canary = "CANARY^JANE"
    changes = dict.fromkeys(("description", "patient", "anatomy", "plane"), canary)
    with open_scan(write_sinogram(tmp_path / "a.h5", changes=changes)) as scan:
        assert canary not in json.dumps(dict(scan[0].provenance))
