"""HTC2022: geometry from the attributes, the reference, and scans that no medical prior fits."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
import torch

from tests.data.ct_files import write_htc
from treg_med.data import open_scan, sample_path, validate_source
from treg_med.data.htc2022 import Htc2022Reader
from treg_med.errors import ConfigError, FormatError, GeometryError
from treg_med.operators.filtered_backprojection import filtered_backprojection


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_the_shipped_disc_is_reconstructed_where_its_reference_has_it() -> None:
    with open_scan(sample_path("htc2022_disc")) as scan:
        assert isinstance(scan, Htc2022Reader)
        assert validate_source(scan)
        m, segmentation = scan[0], scan.segmentation()
        assert (scan.header.views, scan.header.beam, scan.header.image_shape) == (60, "fan", (256, 256))
    assert m.target is not None
    assert segmentation is not None
    assert m.operator.pixel_size == pytest.approx(0.29664, rel=1e-3)
    image = filtered_backprojection(m.operator, m.y, "hann")
    assert _correlation(image, m.target) > 0.95
    inside = torch.nn.functional.avg_pool2d(segmentation[None, None].float(), 9, 1, 4)[0, 0] == 1
    assert float(image[inside].mean() / m.target[inside].mean()) == pytest.approx(1.0, abs=0.01)
    for flipped in (m.target.flip(0), m.target.flip(1), m.target.T):
        assert _correlation(image, flipped) < _correlation(image, m.target) - 0.005


def test_no_medical_prior_is_advised() -> None:
    with open_scan(sample_path("htc2022_disc")) as scan:
        header, m = scan.header, scan[0]
    assert not header.medical
    assert header.text is None
    assert m.mu_water is None
    assert any("no medical prior" in w for w in m.warnings)
    assert any("no ground truth" in w for w in m.warnings)


def test_the_repeated_view_is_left_out(tmp_path: Path) -> None:
    with open_scan(write_htc(tmp_path / "a.h5")) as scan:
        m = scan[0]
        assert scan.header.views == 120
        assert scan.header.arc_deg == pytest.approx(360.0)
    assert m.operator.views == 120
    image = filtered_backprojection(m.operator, m.y, "hann")
    assert m.target is not None
    assert _correlation(image, m.target) > 0.97


@pytest.mark.parametrize(
    ("options", "views"), [({"views": 15}, 15), ({"arc": 90.0}, 30), ({"arc": 30.0, "start": 345.0}, 10)]
)
def test_less_is_measured_on_purpose(tmp_path: Path, options: dict[str, float], views: int) -> None:
    with open_scan(write_htc(tmp_path / "a.h5"), **options) as scan:
        m = scan[0]
        whole = type(scan)(scan.path)[0]
    assert m.operator.views == views
    assert m.provenance["operations"][-1]["operation"] == "retrospective view selection"
    # The noise is measured on all views, whichever are used.
    assert m.provenance["photons"] == whole.provenance["photons"]
    assert m.scale == pytest.approx(whole.scale, rel=0.5)


def test_the_noise_is_that_of_photons(tmp_path: Path) -> None:
    with open_scan(write_htc(tmp_path / "a.h5", views=721)) as scan:
        m = scan[0]
    assert m.provenance["noise_std"] == "estimated"
    assert m.provenance["photons"] == pytest.approx(6e4, rel=0.2)
    with open_scan(tmp_path / "a.h5", noise_std=0.01) as scan:
        given = scan[0]
    assert (given.noise_std, given.weights) == (0.01, None)


def test_a_scan_without_reference_has_no_target(tmp_path: Path) -> None:
    with open_scan(write_htc(tmp_path / "a.h5", reference=False), image_size=64) as scan:
        assert isinstance(scan, Htc2022Reader)
        assert scan[0].target is None
        assert scan.segmentation() is None


def test_attributes_are_needed_and_copied_nowhere(tmp_path: Path) -> None:
    path = write_htc(tmp_path / "a.h5")
    with open_scan(path) as scan:
        assert "CANARY" not in json.dumps([dict(scan[0].provenance), scan.header.as_dict()]) + repr(scan)
    with h5py.File(path, "a") as file:
        file.attrs["distanceSourceDetector"] = 100.0
    with pytest.raises(GeometryError, match="beyond the axis"):
        open_scan(path)
    with h5py.File(path, "a") as file:
        del file.attrs["pixelSizePost"]
    with pytest.raises(FormatError, match="pixelSizePost"):
        open_scan(path)


def test_options_are_checked(tmp_path: Path) -> None:
    path = write_htc(tmp_path / "a.h5")
    for options in ({"image_size": 2}, {"views": 500}, {"arc": -1.0}, {"photons": 5.0}):
        with pytest.raises(ConfigError):
            open_scan(path, **options)


def test_a_complete_scan_agrees_with_the_reference(shared: Path) -> None:
    with open_scan(shared / "sino" / "htc2022_01a.h5", views=180) as scan:
        m = scan[0]
    assert m.target is not None
    assert _correlation(filtered_backprojection(m.operator, m.y, "hann"), m.target) > 0.99
