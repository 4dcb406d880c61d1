"""Data Exchange: flat fields, the rotation axis, and what the format does not say."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.data.ct_files import disc_image, write_exchange
from treg_med.data import open_scan
from treg_med.errors import ConfigError, FormatError, GeometryError
from treg_med.operators.filtered_backprojection import filtered_backprojection

DISCS = ((3.0, 5.0, 30.0, 0.02), (10.0, -8.0, 6.0, 0.03))


def test_counts_become_line_integrals_with_their_noise(tmp_path: Path) -> None:
    with open_scan(write_exchange(tmp_path / "a.h5")) as scan:
        m = scan[1]
        assert (len(scan), scan.header.image_shape) == (2, (128, 128))
        assert not scan.header.medical
        assert scan.header.text is None
    assert m.provenance["centre"] == pytest.approx(60.0, abs=0.15)
    assert m.provenance["centre_source"] == "estimated from the projections"
    assert m.provenance["photons"] == pytest.approx(20000, rel=0.2)
    assert m.mu_water is None
    image = filtered_backprojection(m.operator, m.y, "hann")
    truth = torch.from_numpy(disc_image((128, 128), 1.0, DISCS))
    assert float(((image - truth) ** 2).mean().sqrt()) < 0.003
    residual = (m.operator(truth) - m.y) * m.weights.sqrt() / m.noise_std
    assert float(residual.square().mean().sqrt()) == pytest.approx(1.15, abs=0.25), "noise, and the edges of pixels"


def test_what_was_estimated_or_is_unknown_is_said(tmp_path: Path) -> None:
    write_exchange(tmp_path / "a.h5")
    with open_scan(tmp_path / "a.h5") as scan:
        warnings = scan[0].warnings
    assert any("axis was estimated" in w for w in warnings)
    assert any("per bin" in w for w in warnings)
    assert any("no medical prior" in w for w in warnings)
    with open_scan(tmp_path / "a.h5", centre=60.0, bin_size=0.5) as scan:
        m = scan[0]
    assert not any("estimated" in w or "per bin" in w for w in m.warnings)
    assert m.operator.pixel_size == m.operator.bin_size == 0.5
    assert m.provenance["centre_source"] == "given as an option"


@pytest.mark.parametrize(
    ("units", "taken"), [("degrees", "as stated"), ("radians", "as stated"), (None, "taken as deg")]
)
def test_the_unit_of_the_angles_is_said(tmp_path: Path, units: str | None, taken: str) -> None:
    with open_scan(write_exchange(tmp_path / "a.h5", units=units), centre=60.0) as scan:
        assert taken in scan.header.operations[0]["note"]
        assert scan.header.arc_deg == pytest.approx(180.0)


def test_views_can_be_left_out_and_the_axis_still_comes_from_all(tmp_path: Path) -> None:
    with open_scan(write_exchange(tmp_path / "a.h5"), views=12) as scan:
        m = scan[0]
    assert tuple(m.y.shape) == (12, 128)
    assert m.provenance["centre"] == pytest.approx(60.0, abs=0.15)


def test_dark_fields_are_optional_and_flat_fields_are_not(tmp_path: Path) -> None:
    with open_scan(write_exchange(tmp_path / "a.h5", leave_out=("data_dark",)), centre=60.0) as scan:
        assert scan[0].y.isfinite().all()
    for name in ("data_white", "theta", "data"):
        write_exchange(tmp_path / f"{name}.h5", leave_out=(name,))
        with pytest.raises(FormatError, match=f"exchange/{name}"):
            open_scan(tmp_path / f"{name}.h5")


def test_dead_bins_have_no_weight(tmp_path: Path) -> None:
    path = write_exchange(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for name in ("data", "data_white", "data_dark"):
            file[f"exchange/{name}"][..., 100] = 100.0
    with open_scan(path, centre=60.0) as scan:
        m = scan[0]
    assert m.weights is not None
    assert not m.weights[:, 100].any()
    assert any("dead" in w for w in m.warnings)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_exchange(tmp_path / "a.h5")
    with pytest.raises(GeometryError, match="axis"):
        _ = open_scan(path, centre=400.0)[0]
    with pytest.raises(ConfigError, match="bin_size"):
        open_scan(path, bin_size=0.0)
    with h5py.File(path, "a") as file:
        del file["exchange/theta"]
        file["exchange/theta"] = np.arange(7.0)
    with pytest.raises(GeometryError, match="one per view"):
        open_scan(path)


def test_a_centre_that_cannot_be_found_asks_for_one(tmp_path: Path) -> None:
    write_exchange(tmp_path / "a.h5", views=5)
    with pytest.raises(GeometryError, match="centre="):
        open_scan(tmp_path / "a.h5")


def test_the_tooth_is_sharp(shared: Path) -> None:
    with open_scan(shared / "sino" / "tooth.h5") as scan:
        m = scan[0]
        assert len(scan) == 2
    assert m.provenance["centre"] == pytest.approx(296.0, abs=0.3)
    assert m.provenance["arc_deg"] == pytest.approx(180.0)
